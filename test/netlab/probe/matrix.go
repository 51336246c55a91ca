package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AllProtocols is what a matrix usually asks for.
var AllProtocols = []Protocol{Ping, UDP, TCP, HTTP}

// MatrixOptions bounds how long a matrix takes.
type MatrixOptions struct {
	// Tries for a pair that does not answer; default 2.
	Tries int
	// Wait for an answer, each try; default 400 ms.
	Wait time.Duration
}

// Outcome is what became of one pair by one protocol.
type Outcome struct {
	// Reached: the answer came back.
	Reached bool
	// Delivered: the receiver saw the request (for TCP and HTTP: the segment
	// that opens a connection), whether or not its answer came back.
	Delivered bool
	// Tries that were sent until the answer.
	Tries int
}

// Result is who reached whom.
type Result struct {
	Endpoints []Endpoint
	Protocols []Protocol
	outcomes  []Outcome
}

// Outcome of one pair, given by the places of the endpoints.
func (r *Result) Outcome(from, to int, p Protocol) Outcome { return *r.at(from, to, p) }

func (r *Result) at(from, to int, p Protocol) *Outcome {
	return &r.outcomes[(int(p)*len(r.Endpoints)+from)*len(r.Endpoints)+to]
}

// Matrix opens the endpoints, asks once who reaches whom, and closes them.
func Matrix(ctx context.Context, endpoints []Endpoint, protos []Protocol) (*Result, error) {
	p, err := Open(endpoints)
	if err != nil {
		return nil, err
	}
	r, err := p.Matrix(ctx, protos, MatrixOptions{})
	return r, errors.Join(err, p.Close())
}

// matrixRun is a matrix being filled.
type matrixRun struct {
	mu     sync.Mutex
	result *Result
	open   int           // pairs that may still answer in this try
	done   chan struct{} // closed when none is
}

// Matrix asks who reaches whom, all pairs at once: pairs that answer take as
// long as their answer, all others together take Tries x Wait.
func (p *Prober) Matrix(ctx context.Context, protos []Protocol, o MatrixOptions) (*Result, error) {
	if o.Tries == 0 {
		o.Tries = 2
	}
	if o.Wait == 0 {
		o.Wait = 400 * time.Millisecond
	}
	n := len(p.endpoints)
	m := &matrixRun{result: &Result{
		Endpoints: p.endpoints,
		Protocols: protos,
		outcomes:  make([]Outcome, int(protocols)*n*n),
	}}
	p.setSink(m)
	defer p.setSink(nil)
	for try := 1; try <= o.Tries; try++ {
		if err := p.tryAll(ctx, m, protos, try, o.Wait); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := *m.result // what still arrives late goes into the other one
	r.outcomes = slices.Clone(r.outcomes)
	return &r, nil
}

// tryAll asks all pairs that have not answered yet and waits for them.
func (p *Prober) tryAll(ctx context.Context, m *matrixRun, protos []Protocol, try int, wait time.Duration) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	type ask struct {
		from, to int
		proto    Protocol
	}
	var asks []ask
	m.mu.Lock()
	for _, proto := range protos {
		for from := range p.endpoints {
			for to := range p.endpoints {
				if out := m.result.at(from, to, proto); from != to && !out.Reached {
					out.Tries = try
					asks = append(asks, ask{from, to, proto})
				}
			}
		}
	}
	m.open, m.done = len(asks), make(chan struct{})
	if m.open == 0 {
		close(m.done)
	}
	m.mu.Unlock()
	for _, a := range asks {
		h := header{session: p.session, kind: kindRequest, from: uint16(a.from), to: uint16(a.to), seq: uint64(try), sent: time.Now()}
		s := p.stations[a.from]
		switch a.proto {
		case Ping:
			_ = s.sendPing(h) // what is not sent is not answered
		case UDP:
			_ = s.sendUDP(h)
		case TCP, HTTP:
			wg.Add(1)
			go func() {
				defer wg.Done()
				if s.request(a.proto, h, wait) == nil {
					m.answered(a.proto, h)
				}
			}()
		default:
			return fmt.Errorf("probe: a matrix cannot use %s", a.proto)
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-m.done:
	case <-timer.C:
	}
	return nil
}

// request makes one connection and asks once, and waits for each; nil means that the
// right one answered.
func (s *station) request(p Protocol, h header, wait time.Duration) error {
	c, err := s.dial(int(h.to), p, wait)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if p == HTTP {
		return get(c, s.p.endpoints[h.to].String())
	}
	if _, err := c.Write(h.encode()); err != nil {
		return err
	}
	buf := make([]byte, headerLen)
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	answer, err := decodeHeader(buf)
	if err != nil {
		return err
	}
	h.kind, h.sent, answer.sent = kindAnswer, time.Time{}, time.Time{}
	if answer != h {
		return fmt.Errorf("answer %+v is not that to %+v", answer, h)
	}
	return nil
}

// get asks for the endpoint's name over an open connection.
func get(c interface {
	io.Reader
	io.Writer
}, want string) error {
	req, err := http.NewRequest(http.MethodGet, "http://pod/", nil)
	if err != nil {
		return err
	}
	req.Close = true
	if err := req.Write(c); err != nil {
		return err
	}
	body, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(body), "HTTP/1.1 200") || !strings.HasSuffix(string(body), want+"\n") {
		return fmt.Errorf("%s answers %q", want, body)
	}
	return nil
}

func (m *matrixRun) delivered(p Protocol, h header, at int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.result.at(int(h.from), int(h.to), p).Delivered = true
	if int(h.to) != at { // arrived at the wrong one: that is a delivery too
		m.result.at(int(h.from), at, p).Delivered = true
	}
}

func (m *matrixRun) syn(p Protocol, from, at int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.result.at(from, at, p).Delivered = true
}

func (m *matrixRun) answered(p Protocol, h header) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.result.at(int(h.from), int(h.to), p)
	if out.Reached {
		return
	}
	out.Reached = true
	// An answer to the try before may come while this one waits: it counts.
	if m.open--; m.open == 0 {
		close(m.done)
	}
}

// Check compares the result with a rule. The error names each pair that is
// not as it must be: not reached though allowed, or delivered though forbidden,
// be it one way.
func (r *Result) Check(allowed func(from, to Endpoint) bool) error {
	var wrong []string
	for from, a := range r.Endpoints {
		for to, b := range r.Endpoints {
			if from == to {
				continue
			}
			for _, p := range r.Protocols {
				out := r.Outcome(from, to, p)
				switch may := allowed(a, b); {
				case may && !out.Reached && out.Delivered:
					wrong = append(wrong, fmt.Sprintf("%s -> %s by %s: delivered, but no answer came back", a, b, p))
				case may && !out.Reached:
					wrong = append(wrong, fmt.Sprintf("%s -> %s by %s: not reached", a, b, p))
				case !may && (out.Reached || out.Delivered):
					wrong = append(wrong, fmt.Sprintf("%s -> %s by %s: delivered, which is forbidden", a, b, p))
				}
			}
		}
	}
	return summary(wrong)
}

// FirstTryOnly is Check's counterpart for what must not even be lost once: it
// names the pairs that needed more than one try.
func (r *Result) FirstTryOnly() error {
	var wrong []string
	for from, a := range r.Endpoints {
		for to, b := range r.Endpoints {
			for _, p := range r.Protocols {
				if out := r.Outcome(from, to, p); from != to && out.Reached && out.Tries > 1 {
					wrong = append(wrong, fmt.Sprintf("%s -> %s by %s: took %d tries", a, b, p, out.Tries))
				}
			}
		}
	}
	return summary(wrong)
}

// summary makes one error of many lines, with a bound.
func summary(wrong []string) error {
	const most = 20
	if len(wrong) == 0 {
		return nil
	}
	total := len(wrong)
	if total > most {
		wrong = append(wrong[:most:most], fmt.Sprintf("and %d more", total-most))
	}
	return fmt.Errorf("%d wrong:\n  %s", total, strings.Join(wrong, "\n  "))
}

// Render writes the result as a table for people: rows send, columns receive.
// ✓ is reached by all protocols, ✗ by none and nothing was delivered; else
// the letters of those that were (p ping, u UDP, t TCP, h HTTP), with ! where
// something was delivered one way only.
func (r *Result) Render(w io.Writer) error {
	width := len("from \\ to")
	for _, e := range r.Endpoints {
		width = max(width, len(e.String()))
	}
	digits := len(strconv.Itoa(len(r.Endpoints)))
	cell := max(digits, 1) + 2
	var b strings.Builder
	fmt.Fprintf(&b, "%*s  %-*s", digits, "", width, "from \\ to")
	for i := range r.Endpoints {
		fmt.Fprintf(&b, "%*d", cell, i+1)
	}
	b.WriteString("\n")
	for from, e := range r.Endpoints {
		fmt.Fprintf(&b, "%*d  %-*s", digits, from+1, width, e)
		for to := range r.Endpoints {
			text := r.cell(from, to)
			fmt.Fprintf(&b, "%s%s", strings.Repeat(" ", max(1, cell-len([]rune(text)))), text)
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Result) cell(from, to int) string {
	if from == to {
		return "·"
	}
	letters, reached, oneWay := "", 0, ""
	for _, p := range r.Protocols {
		switch out := r.Outcome(from, to, p); {
		case out.Reached:
			reached++
			letters += strings.ToLower(p.String()[:1])
		case out.Delivered:
			oneWay = "!"
		}
	}
	switch {
	case reached == len(r.Protocols):
		return "✓"
	case reached == 0 && oneWay == "":
		return "✗"
	}
	return letters + oneWay
}
