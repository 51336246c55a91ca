package probe

import (
	"cmp"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// Rule says what must and what may arrive. While a change is under way, what
// both the old and the new state allow must arrive, and what either allows may.
type Rule struct {
	Must, May func(from, to Endpoint) bool
}

// Exactly is the rule of a state that is in force: what is allowed must
// arrive, nothing else may.
func Exactly(allowed func(from, to Endpoint) bool) Rule { return Rule{allowed, allowed} }

// Changing is the rule while before turns into after.
func Changing(before, after func(from, to Endpoint) bool) Rule {
	return Rule{
		Must: func(a, b Endpoint) bool { return before(a, b) && after(a, b) },
		May:  func(a, b Endpoint) bool { return before(a, b) || after(a, b) },
	}
}

// RunOptions says how often a run sends. A zero is its default.
type RunOptions struct {
	// Interval of pings, datagrams and messages of streams, each pair; default 20 ms.
	Interval time.Duration
	// Connect is the pause between short connections, each pair; default 200 ms.
	Connect time.Duration
	// Protocols; default Ping, UDP, TCP, Stream.
	Protocols []Protocol
	// Grace is how late an arrival may be before it counts as lost; default 1 s.
	Grace time.Duration
	// Answered has datagrams answered: one has arrived when its answer has. To what tracks connections
	// they are connections then, with packets in both directions.
	Answered bool
	// GiveUp is how long a stream waits for an acknowledgement, or for its connection, before it makes a new
	// one; zero: as long as TCP does, which waits longer the longer it has heard nothing. Such a stream shows who
	// may talk, and loses what was under way: nothing of it is demanded.
	GiveUp time.Duration
}

// demands reports whether any rule may demand that what is sent by a protocol arrives.
func (o RunOptions) demands(p Protocol) bool { return p != Stream || o.GiveUp == 0 }

// kind is that of a protocol's messages.
func (o RunOptions) kind(p Protocol) uint8 {
	if p == UDP && o.Answered {
		return kindAsked
	}
	return kindOneWay
}

const (
	// connectTimeout is below the first retransmission of a SYN (1 s, RFC 6298,
	// section 2), so that a lost one is not made good by the kernel.
	connectTimeout = 900 * time.Millisecond
	// synSlack is how old a segment may be when it is seen: it carries no time.
	synSlack = 50 * time.Millisecond
)

// Run sends until Stop.
type Run struct {
	p       *Prober
	o       RunOptions
	started time.Time
	stop    chan struct{}
	wg      sync.WaitGroup

	mu    sync.Mutex
	rules []ruleSince

	flows []*flow // by protocol, from, to
}

type ruleSince struct {
	since    time.Time
	must     []bool // by from, to
	may      []bool
	endpoint int
}

// flow is what one pair sends by one protocol.
type flow struct {
	proto    Protocol
	from, to int

	mu          sync.Mutex
	entries     []entry // by sequence number from base on
	base        uint64
	sent, got   int
	duplicates  int
	lost        []Event // settled; see settle
	forbidden   []Event
	lostBefore  int // more of them than are kept
	forbidMore  int
	maxDelay    time.Duration
	retransmits uint32
	broken      int
}

// entry is one message that was sent.
type entry struct {
	at   time.Time
	must bool
	got  bool
}

// kept bounds how many events a flow remembers one by one.
const kept = 1000

// Start begins to send by all pairs.
func (p *Prober) Start(rule Rule, o RunOptions) *Run {
	if o.Interval == 0 {
		o.Interval = 20 * time.Millisecond
	}
	if o.Connect == 0 {
		o.Connect = 200 * time.Millisecond
	}
	if o.Grace == 0 {
		o.Grace = time.Second
	}
	if o.Protocols == nil {
		o.Protocols = []Protocol{Ping, UDP, TCP, Stream}
	}
	n := len(p.endpoints)
	r := &Run{p: p, o: o, started: time.Now(), stop: make(chan struct{}), flows: make([]*flow, int(protocols)*n*n)}
	for _, proto := range o.Protocols {
		for from := range n {
			for to := range n {
				if from != to {
					r.flows[(int(proto)*n+from)*n+to] = &flow{proto: proto, from: from, to: to}
				}
			}
		}
	}
	r.SetRule(rule)
	p.setSink(r)
	for from := range n {
		r.goDo(func() { r.sendDatagrams(from) })
	}
	for _, f := range r.flows {
		switch {
		case f == nil:
		case f.proto == TCP:
			r.goDo(func() { r.connections(f) })
		case f.proto == Stream:
			r.goDo(func() { r.streams(f) })
		}
	}
	return r
}

func (r *Run) goDo(fn func()) {
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		fn()
	}()
}

func (r *Run) flow(p Protocol, from, to int) *flow {
	n := len(r.p.endpoints)
	return r.flows[(int(p)*n+from)*n+to]
}

// SetRule puts a rule in force for what is sent from now on. What was sent
// before is judged by the rule of its time; it is forbidden only if the new one
// forbids it as well.
func (r *Run) SetRule(rule Rule) {
	n := len(r.p.endpoints)
	s := ruleSince{must: make([]bool, n*n), may: make([]bool, n*n), endpoint: n}
	for i, a := range r.p.endpoints {
		for j, b := range r.p.endpoints {
			s.must[i*n+j], s.may[i*n+j] = rule.Must(a, b), rule.May(a, b)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.since = time.Now()
	r.rules = append(r.rules, s)
}

// ruleAt is the rule that was in force at t.
func (r *Run) ruleAt(t time.Time) ruleSince {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range slices.Backward(r.rules) {
		if !t.Before(s.since) {
			return s
		}
	}
	return r.rules[0]
}

func (s ruleSince) allows(from, to int) bool  { return s.may[from*s.endpoint+to] }
func (s ruleSince) demands(from, to int) bool { return s.must[from*s.endpoint+to] }

// next records that a message is sent now.
func (r *Run) next(f *flow) header {
	now := time.Now()
	must := r.o.demands(f.proto) && r.ruleAt(now).demands(f.from, f.to)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries = append(f.entries, entry{at: now, must: must})
	f.sent++
	if len(f.entries) >= 4096 { // long runs: what is old is counted and forgotten
		f.settle(r.o.Grace+5*time.Second, now, r.p.endpoints)
	}
	return header{
		session: r.p.session, kind: r.o.kind(f.proto), from: uint16(f.from), to: uint16(f.to),
		seq: f.base + uint64(len(f.entries)) - 1, sent: now,
	}
}

// settle counts entries older than age as lost or not, and forgets them. f.mu is held.
func (f *flow) settle(age time.Duration, now time.Time, endpoints []Endpoint) {
	old := 0
	for old < len(f.entries) && now.Sub(f.entries[old].at) >= age {
		if e := f.entries[old]; e.must && !e.got {
			f.lost, f.lostBefore = remember(f.lost, f.lostBefore, f.event(f.base+uint64(old), e.at, endpoints))
		}
		old++
	}
	f.entries = append(f.entries[:0:0], f.entries[old:]...)
	f.base += uint64(old)
}

func remember(events []Event, more int, e Event) ([]Event, int) {
	if len(events) >= kept {
		return events, more + 1
	}
	return append(events, e), more
}

func (f *flow) event(seq uint64, at time.Time, endpoints []Endpoint) Event {
	return Event{From: endpoints[f.from], To: endpoints[f.to], Protocol: f.proto, Seq: seq, Sent: at}
}

// arrived marks a message as arrived.
func (f *flow) arrived(seq uint64, sent time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if seq < f.base || seq >= f.base+uint64(len(f.entries)) {
		return
	}
	e := &f.entries[seq-f.base]
	if e.got {
		f.duplicates++
		return
	}
	e.got = true
	f.got++
	f.maxDelay = max(f.maxDelay, time.Since(sent))
}

func (f *flow) forbid(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forbidden, f.forbidMore = remember(f.forbidden, f.forbidMore, e)
}

func (r *Run) delivered(p Protocol, h header, at int) {
	f := r.flow(p, int(h.from), int(h.to))
	if f == nil || h.kind != r.o.kind(p) {
		return
	}
	wrongPod := at != int(h.to)
	if wrongPod || !r.ruleAt(h.sent).allows(f.from, f.to) && !r.ruleAt(time.Now()).allows(f.from, f.to) {
		e := f.event(h.seq, h.sent, r.p.endpoints)
		e.To = r.p.endpoints[at]
		f.forbid(e)
	}
	// A ping is there when its reply is, a short connection when its answer is.
	if !wrongPod && (p == UDP && !r.o.Answered || p == Stream) {
		f.arrived(h.seq, h.sent)
	}
}

func (r *Run) answered(p Protocol, h header) {
	if f := r.flow(p, int(h.from), int(h.to)); f != nil && (h.kind == kindOneWay || h.kind == kindAnswer && r.o.Answered) {
		f.arrived(h.seq, h.sent)
	}
}

func (r *Run) syn(p Protocol, from, at int) {
	f := r.flow(p, from, at)
	now := time.Now()
	if f == nil || r.ruleAt(now).allows(from, at) || r.ruleAt(now.Add(-synSlack)).allows(from, at) {
		return
	}
	f.forbid(f.event(0, now, r.p.endpoints))
}

// pause waits for d; false when the run ends.
func (r *Run) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-r.stop:
		return false
	case <-t.C:
		return true
	}
}

// sendDatagrams sends pings and datagrams from one endpoint to all others.
func (r *Run) sendDatagrams(from int) {
	tick := time.NewTicker(r.o.Interval)
	defer tick.Stop()
	s := r.p.stations[from]
	for {
		select {
		case <-r.stop:
			return
		case <-tick.C:
		}
		for to := range r.p.endpoints {
			if f := r.flow(Ping, from, to); f != nil {
				_ = s.sendPing(r.next(f)) // what is not sent is lost
			}
			if f := r.flow(UDP, from, to); f != nil {
				_ = s.sendUDP(r.next(f))
			}
		}
	}
}

// connections makes one short connection after the other.
func (r *Run) connections(f *flow) {
	s := r.p.stations[f.from]
	for r.pause(r.o.Connect) {
		h := r.next(f)
		if s.request(TCP, h, connectTimeout) == nil {
			f.arrived(h.seq, h.sent)
		}
	}
}

// streams keeps one connection and makes a new one when it breaks.
func (r *Run) streams(f *flow) {
	for first := true; ; first = false {
		if !first && !r.pause(r.o.Connect) {
			return
		}
		h := r.next(f) // making the connection is the first message's part
		c, err := r.connectStream(f)
		if err != nil {
			select {
			case <-r.stop:
				return
			default:
				continue
			}
		}
		ended := r.stream(f, c, h)
		f.mu.Lock()
		f.retransmits += retransmits(c)
		if !ended {
			f.broken++
		}
		f.mu.Unlock()
		_ = c.Close() // all was written or it is broken
		if ended {
			return
		}
	}
}

// connectStream makes a connection that gives up when the options say so.
func (r *Run) connectStream(f *flow) (net.Conn, error) {
	c, err := r.p.stations[f.from].dial(f.to, Stream, cmp.Or(r.o.GiveUp, connectTimeout))
	if err != nil || r.o.GiveUp == 0 {
		return c, err
	}
	if err := ns.SetUserTimeout(c, r.o.GiveUp); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// stream writes messages until the run ends (true) or the connection does.
// A connection whose peer is cut off takes no more when its buffer is full.
func (r *Run) stream(f *flow, c net.Conn, h header) bool {
	for {
		_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write(h.encode()); err != nil {
			return false
		}
		if !r.pause(r.o.Interval) {
			return true
		}
		h = r.next(f)
	}
}

// retransmits is how many segments the kernel has sent again on c (tcp_info).
func retransmits(c net.Conn) uint32 {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return 0
	}
	sc, err := t.SyscallConn()
	if err != nil {
		return 0
	}
	var total uint32
	_ = sc.Control(func(fd uintptr) { // a closed one has none
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			total = info.Total_retrans
		}
	})
	return total
}
