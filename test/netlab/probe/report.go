package probe

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Event is one message that was lost, or delivered though forbidden.
type Event struct {
	From, To Endpoint
	Protocol Protocol
	// Seq is its number in its flow; 0 for a segment that opens a connection.
	Seq uint64
	// Sent is when it was sent or, for such a segment, seen.
	Sent time.Time
}

func (e Event) String() string {
	return fmt.Sprintf("%s -> %s by %s: no. %d of %s", e.From, e.To, e.Protocol, e.Seq, e.Sent.Format("15:04:05.000"))
}

// FlowReport is what became of all messages of one pair by one protocol.
type FlowReport struct {
	From, To Endpoint
	Protocol Protocol
	// Must is whether the rule in force demands that it arrives.
	Must bool
	// Sent and Received count all messages; Lost those that had to arrive and did not.
	Sent, Received, Lost int
	// Forbidden counts deliveries that the rules forbid.
	Forbidden int
	// Duplicates arrived more than once.
	Duplicates int
	// MaxDelay is the longest time from sending to arrival (for Ping and TCP: to the answer).
	MaxDelay time.Duration
	// Retransmits and Broken are of a Stream: segments that TCP sent again, and
	// connections that ended before the run.
	Retransmits uint32
	Broken      int
}

// Report is the outcome of a run.
type Report struct {
	Flows []FlowReport
	// LostEvents and ForbiddenEvents are the single ones in the order of time;
	// of very many only the first of each flow are kept.
	LostEvents, ForbiddenEvents []Event
	Duration                    time.Duration
}

// Stop ends the sending, waits for what is under way, and reports.
func (r *Run) Stop() Report {
	close(r.stop)
	r.wg.Wait()
	r.settleDown()
	r.p.setSink(nil)
	return r.report(0)
}

// settleDown waits until all that must arrive has, at most for the grace.
func (r *Run) settleDown() {
	deadline := time.Now().Add(r.o.Grace)
	for time.Now().Before(deadline) && r.missing() {
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *Run) missing() bool {
	for _, f := range r.flows {
		if f == nil {
			continue
		}
		f.mu.Lock()
		missing := slices.ContainsFunc(f.entries, func(e entry) bool { return e.must && !e.got })
		f.mu.Unlock()
		if missing {
			return true
		}
	}
	return false
}

// Report is how the run stands. Messages younger than the grace are not
// judged yet.
func (r *Run) Report() Report { return r.report(r.o.Grace) }

// Silences are how long after each moment the last message was sent that is lost by what happened then. A
// moment's are those up to the next. What was sent at most underWay before a moment may be lost by it, too.
func (r Report) Silences(moments []time.Time, underWay time.Duration) []time.Duration {
	longest := make([]time.Duration, len(moments))
	for _, e := range r.LostEvents {
		if n, _ := slices.BinarySearchFunc(moments, e.Sent.Add(underWay), time.Time.Compare); n > 0 {
			longest[n-1] = max(longest[n-1], e.Sent.Sub(moments[n-1]))
		}
	}
	return longest
}

// Lost returns what was sent since then and is lost.
func (r *Run) Lost(since time.Time) []Event {
	return slices.DeleteFunc(r.Report().LostEvents, func(e Event) bool { return e.Sent.Before(since) })
}

func (r *Run) report(grace time.Duration) Report {
	now := time.Now()
	rep := Report{Duration: now.Sub(r.started)}
	rule := r.ruleAt(now)
	for _, f := range r.flows {
		if f == nil {
			continue
		}
		f.mu.Lock()
		lost := slices.Clone(f.lost)
		for i, e := range f.entries {
			if e.must && !e.got && now.Sub(e.at) >= grace {
				lost = append(lost, f.event(f.base+uint64(i), e.at, r.p.endpoints))
			}
		}
		rep.Flows = append(rep.Flows, FlowReport{
			From: r.p.endpoints[f.from], To: r.p.endpoints[f.to], Protocol: f.proto,
			Must: r.o.demands(f.proto) && rule.demands(f.from, f.to),
			Sent: f.sent, Received: f.got, Lost: len(lost) + f.lostBefore,
			Forbidden: len(f.forbidden) + f.forbidMore, Duplicates: f.duplicates,
			MaxDelay: f.maxDelay, Retransmits: f.retransmits, Broken: f.broken,
		})
		rep.LostEvents = append(rep.LostEvents, lost...)
		rep.ForbiddenEvents = append(rep.ForbiddenEvents, f.forbidden...)
		f.mu.Unlock()
	}
	byTime := func(a, b Event) int { return a.Sent.Compare(b.Sent) }
	slices.SortStableFunc(rep.LostEvents, byTime)
	slices.SortStableFunc(rep.ForbiddenEvents, byTime)
	return rep
}

// total adds up one number of all flows that match.
func (r Report) total(of func(FlowReport) int, protos []Protocol) int {
	n := 0
	for _, f := range r.Flows {
		if len(protos) == 0 || slices.Contains(protos, f.Protocol) {
			n += of(f)
		}
	}
	return n
}

// Sent counts all messages, of some protocols or of all.
func (r Report) Sent(protos ...Protocol) int {
	return r.total(func(f FlowReport) int { return f.Sent }, protos)
}

// Received counts those that arrived.
func (r Report) Received(protos ...Protocol) int {
	return r.total(func(f FlowReport) int { return f.Received }, protos)
}

// Lost counts messages that had to arrive and did not.
func (r Report) Lost(protos ...Protocol) int {
	return r.total(func(f FlowReport) int { return f.Lost }, protos)
}

// Forbidden counts deliveries that the rules forbid.
func (r Report) Forbidden(protos ...Protocol) int {
	return r.total(func(f FlowReport) int { return f.Forbidden }, protos)
}

// Err is nil when nothing was lost and nothing forbidden was delivered. It
// also fails a run in which nothing arrived: that has measured nothing.
func (r Report) Err() error {
	var wrong []string
	if r.Received() == 0 {
		wrong = append(wrong, fmt.Sprintf("nothing of %d messages arrived", r.Sent()))
	}
	for _, e := range r.ForbiddenEvents {
		wrong = append(wrong, "forbidden: "+e.String())
	}
	for _, e := range r.LostEvents {
		wrong = append(wrong, "lost: "+e.String())
	}
	return summary(wrong)
}

// Render writes one line a protocol, and the flows that lost or leaked.
func (r Report) Render(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	var b strings.Builder
	b.WriteString("protocol\tsent\treceived\tlost\tforbidden\tmax delay\t\n")
	for p := Protocol(0); p < protocols; p++ {
		if r.Sent(p) == 0 {
			continue
		}
		var longest time.Duration
		for _, f := range r.Flows {
			if f.Protocol == p {
				longest = max(longest, f.MaxDelay)
			}
		}
		fmt.Fprintf(&b, "%s\t%d\t%d\t%d\t%d\t%s\t\n", p, r.Sent(p), r.Received(p), r.Lost(p), r.Forbidden(p), longest.Round(10*time.Microsecond))
	}
	if _, err := io.WriteString(tw, b.String()); err != nil {
		return err
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, f := range r.Flows {
		if f.Lost > 0 || f.Forbidden > 0 {
			if _, err := fmt.Fprintf(w, "%s -> %s by %s: %d lost, %d forbidden of %d\n", f.From, f.To, f.Protocol, f.Lost, f.Forbidden, f.Sent); err != nil {
				return err
			}
		}
	}
	return nil
}
