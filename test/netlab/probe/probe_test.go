package probe

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// network is namespaces on one Linux bridge, where everybody reaches everybody
// until a test says otherwise.
type network struct {
	t         *testing.T
	endpoints []Endpoint
	names     []string
}

func newNetwork(t *testing.T, hosts ...string) *network {
	t.Helper()
	ctx := context.Background()
	n := &network{t: t}
	make := func(suffix string) string {
		name := fmt.Sprintf("probetest-%d-%s", os.Getpid(), suffix)
		if err := ns.Create(name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ns.Delete(name) })
		return name
	}
	middle := make("middle")
	if err := ns.IP(ctx, middle, "link add name br0 type bridge", "link set dev br0 up"); err != nil {
		t.Fatal(err)
	}
	for i, host := range hosts {
		name := make(fmt.Sprint(i))
		ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		port := fmt.Sprintf("p%d", i)
		if err := ns.IP(ctx, middle, "link add name "+port+" type veth peer name eth0 netns "+name, "link set dev "+port+" master br0 up"); err != nil {
			t.Fatal(err)
		}
		if err := ns.IP(ctx, name, "addr add "+ip.String()+"/24 dev eth0", "link set dev eth0 up"); err != nil {
			t.Fatal(err)
		}
		if err := ns.WaitRunning(ctx, name, "eth0"); err != nil {
			t.Fatal(err)
		}
		namespace, pod, _ := strings.Cut(host, "/")
		n.endpoints = append(n.endpoints, Endpoint{Namespace: namespace, Name: pod, Node: "n1", IP: ip, Sandbox: ns.Path(name)})
		n.names = append(n.names, name)
	}
	return n
}

// drop makes host number at drop what comes from host number from.
func (n *network) drop(from, at int) {
	n.t.Helper()
	n.nft(at, fmt.Sprintf("table ip t { chain c { type filter hook prerouting priority 0; ip saddr %s drop; }; }", n.endpoints[from].IP))
}

func (n *network) open(at int) { n.t.Helper(); n.nft(at, "flush ruleset") }

func (n *network) nft(at int, rules string) {
	n.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if err := ns.Do(n.names[at], func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
}

func (n *network) prober() *Prober {
	n.t.Helper()
	p, err := Open(n.endpoints)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			n.t.Error(err)
		}
	})
	return p
}

func all(Endpoint, Endpoint) bool { return true }

// sameTenant: endpoints of one namespace reach each other.
func sameTenant(a, b Endpoint) bool { return a.Namespace == b.Namespace }

func TestMatrix(t *testing.T) {
	n := newNetwork(t, "a/1", "a/2", "b/1")
	p := n.prober()
	ctx := t.Context()
	r, err := p.Matrix(ctx, AllProtocols, MatrixOptions{Wait: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(all); err != nil {
		t.Error(err)
	}
	if err := r.FirstTryOnly(); err != nil {
		t.Error(err)
	}
	if err := r.Check(sameTenant); err == nil || !strings.Contains(err.Error(), "a/1 -> b/1 by HTTP: delivered, which is forbidden") {
		t.Errorf("a network without isolation passes the check: %v", err)
	}

	n.drop(2, 0) // what b/1 answers or sends does not get to a/1
	n.nft(1, fmt.Sprintf("table ip t { chain c { type filter hook prerouting priority 0; ip saddr %s ip protocol { udp, icmp } drop; }; }", n.endpoints[2].IP))
	start := time.Now()
	if r, err = p.Matrix(ctx, AllProtocols, MatrixOptions{Wait: time.Second}); err != nil {
		t.Fatal(err)
	}
	// All pairs at once take two waits; one protocol after the other would take eight.
	if took := time.Since(start); took > 7*time.Second {
		t.Errorf("matrix took %s, want less than 7 s", took)
	}
	for _, c := range []struct {
		from, to int
		p        Protocol
		want     Outcome
	}{
		{0, 1, TCP, Outcome{true, true, 1}},
		{0, 2, Ping, Outcome{false, true, 2}}, // there, but not back
		{0, 2, UDP, Outcome{false, true, 2}},
		{0, 2, TCP, Outcome{false, true, 2}},
		{0, 2, HTTP, Outcome{false, true, 2}},
		{2, 0, Ping, Outcome{false, false, 2}},
		{2, 0, UDP, Outcome{false, false, 2}},
		{2, 0, TCP, Outcome{false, false, 2}},
		{2, 1, TCP, Outcome{true, true, 1}},
		{2, 1, UDP, Outcome{false, false, 2}},
	} {
		if got := r.Outcome(c.from, c.to, c.p); got != c.want {
			t.Errorf("%s -> %s by %s: %+v, want %+v", n.endpoints[c.from], n.endpoints[c.to], c.p, got, c.want)
		}
	}
	var table bytes.Buffer
	if err := r.Render(&table); err != nil {
		t.Fatal(err)
	}
	const want = "   from \\ to  1  2  3\n" +
		"1  a/1        ·  ✓  !\n" +
		"2  a/2        ✓  · th!\n" +
		"3  b/1        ✗ th  ·\n"
	if diff := cmp.Diff(want, table.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if err := r.Check(sameTenant); err == nil || !strings.Contains(err.Error(), "a/1 -> b/1 by UDP: delivered, which is forbidden") {
		t.Errorf("a one-way leak passes the check: %v", err)
	}
	if err := r.Check(all); err == nil || !strings.Contains(err.Error(), "a/1 -> b/1 by ping: delivered, but no answer came back") ||
		!strings.Contains(err.Error(), "b/1 -> a/1 by ping: not reached") {
		t.Errorf("a broken pair passes the check: %v", err)
	}
}

func TestRunLossless(t *testing.T) {
	n := newNetwork(t, "a/1", "a/2")
	run := n.prober().Start(Exactly(all), RunOptions{Interval: 5 * time.Millisecond, Connect: 20 * time.Millisecond, Grace: 5 * time.Second})
	waitUntil(t, func() bool {
		r := run.Report()
		return r.Received(UDP) >= 100 && r.Received(Ping) >= 100 && r.Received(TCP) >= 20 && r.Received(Stream) >= 100
	})
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Error(err)
	}
	for _, f := range rep.Flows {
		if f.Received != f.Sent || f.Duplicates != 0 || f.Broken != 0 || f.MaxDelay <= 0 {
			t.Errorf("flow %+v: want all received once", f)
		}
	}
	var out bytes.Buffer
	if err := rep.Render(&out); err != nil || !strings.Contains(out.String(), "stream") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// TestRunCountsLoss: what is dropped while it must arrive is lost, with the
// numbers of exactly the missing messages; what is dropped by rule is not.
func TestRunCountsLoss(t *testing.T) {
	n := newNetwork(t, "a/1", "a/2")
	run := n.prober().Start(Exactly(all), RunOptions{Interval: 5 * time.Millisecond, Protocols: []Protocol{UDP}, Grace: 3 * time.Second})
	waitUntil(t, func() bool { return run.Report().Received() >= 20 })
	before := time.Now()
	n.drop(0, 1)
	waitUntil(t, func() bool { return len(run.Lost(before)) >= 20 })
	n.open(1)
	opened := time.Now()
	was := run.Report().Received()
	waitUntil(t, func() bool { return run.Report().Received() >= was+50 })
	rep := run.Stop()
	if rep.Forbidden() != 0 {
		t.Errorf("%d forbidden, want none", rep.Forbidden())
	}
	for _, e := range rep.LostEvents {
		if e.From.Name != "1" || e.Sent.Before(before) || e.Sent.After(opened) {
			t.Errorf("%s counts as lost, but the way was open", e)
		}
	}
	for i, e := range rep.LostEvents[1:] {
		if want := rep.LostEvents[i].Seq + 1; e.Seq != want {
			t.Errorf("lost no. %d after no. %d: want one gap", e.Seq, want-1)
		}
	}
	if err := rep.Err(); err == nil || !strings.Contains(err.Error(), "lost: a/1 -> a/2 by UDP") {
		t.Errorf("Err = %v, want the loss", err)
	}
}

// TestRunSeesForbidden: a delivery counts when the rule in force forbids it, by
// every protocol, also where no answer gets back.
func TestRunSeesForbidden(t *testing.T) {
	n := newNetwork(t, "a/1", "b/1")
	n.drop(1, 0) // nothing gets back
	p := n.prober()
	run := p.Start(Exactly(sameTenant), RunOptions{Interval: 5 * time.Millisecond, Connect: 20 * time.Millisecond})
	waitUntil(t, func() bool {
		r := run.Report()
		return r.Forbidden(Ping) > 3 && r.Forbidden(UDP) > 3 && r.Forbidden(TCP) > 0 && r.Forbidden(Stream) > 0
	})
	rep := run.Stop()
	for _, e := range rep.ForbiddenEvents {
		if e.From.Namespace != "a" {
			t.Errorf("%s was delivered, but the way is closed", e)
		}
	}
	if err := rep.Err(); err == nil || !strings.Contains(err.Error(), "forbidden: a/1 -> b/1") {
		t.Errorf("Err = %v, want the leak", err)
	}
}

// TestOneDirection: who may ask and may not be asked is told apart where connections are
// tracked: answers are no questions.
func TestOneDirection(t *testing.T) {
	n := newNetwork(t, "a/1", "b/1")
	n.nft(0, `table ip t { chain c { type filter hook prerouting priority 0; ct state established,related accept; drop; }; }`)
	asks := func(from, _ Endpoint) bool { return from.Namespace == "a" }
	p := n.prober()
	r, err := p.Matrix(t.Context(), AllProtocols, MatrixOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(asks); err != nil {
		t.Error(err)
	}
	run := p.Start(Exactly(asks), RunOptions{Interval: 5 * time.Millisecond, Connect: 20 * time.Millisecond})
	waitUntil(t, func() bool { return run.Report().Received(Stream) > 50 && run.Report().Received(TCP) > 2 })
	if err := run.Stop().Err(); err != nil {
		t.Error(err)
	}
}

// TestRunChange: a tenant change under a run. What is under way when the rule
// changes is not held against anybody; what is sent after is.
func TestRunChange(t *testing.T) {
	n := newNetwork(t, "a/1", "a/2", "b/1")
	p := n.prober()
	opts := RunOptions{Interval: 5 * time.Millisecond, Connect: 20 * time.Millisecond, Grace: 5 * time.Second}
	run := p.Start(Exactly(all), opts)
	waitUntil(t, func() bool { return run.Report().Received(Stream) > 100 })
	run.SetRule(Changing(all, sameTenant))
	for _, pair := range [][2]int{{2, 0}, {2, 1}} {
		n.drop(pair[0], pair[1])
	}
	n.nft(2, "table ip t { chain c { type filter hook prerouting priority 0; ip saddr 192.0.2.0/24 drop; }; }")
	// A segment that opens a connection carries no time: those that came before are seen by then.
	time.Sleep(time.Second)
	run.SetRule(Exactly(sameTenant))
	was := run.Report().Received(UDP)
	waitUntil(t, func() bool { return run.Report().Received(UDP) > was+200 })
	if err := run.Report().Err(); err != nil {
		t.Errorf("a clean change: %v", err)
	}
	n.open(2) // and a leak after it
	waitUntil(t, func() bool { return run.Report().Forbidden(UDP) > 0 })
	if err := run.Stop().Err(); err == nil {
		t.Error("a leak after the change was not seen")
	}
}

// TestRunThrough: what leads to an endpoint is asked in its place. A datagram that has to be answered has
// arrived when its answer has. A stream that gives up goes on soon after a way is open again, and loses nothing by rule.
func TestRunThrough(t *testing.T) {
	n := newNetwork(t, "a/1", "a/2")
	for i := range n.endpoints {
		n.nft(i, `table ip s { chain o { type nat hook output priority -100; ip daddr 192.0.2.101 dnat to 192.0.2.1; ip daddr 192.0.2.102 dnat to 192.0.2.2; }; }`)
	}
	p := n.prober()
	p.Through(func(to int, proto Protocol) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(101 + to)}), p.Port(to, proto))
	})
	run := p.Start(Exactly(all), RunOptions{
		Interval: 5 * time.Millisecond, Connect: 20 * time.Millisecond, Protocols: []Protocol{UDP, Stream}, Grace: 3 * time.Second,
		Answered: true, GiveUp: 200 * time.Millisecond,
	})
	heard := func() bool { return run.Report().Received(UDP) >= 100 && run.Report().Received(Stream) >= 100 }
	waitUntil(t, heard)
	if err := run.Report().Err(); err != nil {
		t.Error(err)
	}
	n.drop(1, 0) // questions of a/1 arrive, answers and acknowledgements do not
	closed := time.Now()
	waitUntil(t, func() bool {
		lost := run.Lost(closed)
		return slices.ContainsFunc(lost, func(e Event) bool { return e.From.Name == "1" }) && run.broken() >= 2
	})
	n.nft(0, "delete table ip t")
	was := run.Report().Received(Stream)
	waitUntil(t, func() bool { return run.Report().Received(Stream) >= was+200 })
	if lost := run.Stop().Lost(Stream); lost > 0 {
		t.Errorf("%d messages of streams that give up count as lost", lost)
	}
}

// broken counts the streams that have ended.
func (r *Run) broken() (n int) {
	for _, f := range r.Report().Flows {
		n += f.Broken
	}
	return n
}

func TestOpenRefusesTwins(t *testing.T) {
	n := newNetwork(t, "a/1", "a/2")
	n.endpoints[1].IP = n.endpoints[0].IP
	if _, err := Open(n.endpoints); err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("two endpoints with one address: %v", err)
	}
}

func TestHeader(t *testing.T) {
	h := header{session: 7, kind: kindOneWay, from: 3, to: 65535, seq: 1 << 40, sent: time.Unix(1700000000, 123456789)}
	got, err := decodeHeader(h.encode())
	if err != nil || got != h {
		t.Errorf("decode(encode(%+v)) = %+v, %v", h, got, err)
	}
	for _, b := range [][]byte{nil, make([]byte, headerLen-1), make([]byte, headerLen)} {
		if _, err := decodeHeader(b); err == nil {
			t.Errorf("%d bytes of nothing were taken for a message", len(b))
		}
	}
}

// waitUntil waits for a condition that must come true.
func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("condition did not come true in 30 s")
		}
	}
}
