package shaping

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

// space makes a namespace for the test and opens it.
func space(t testing.TB) *link.NS {
	t.Helper()
	n, err := link.Open(ns.Path(nstest.New(t)))
	noErr(t, err)
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func nameOf(n *link.NS) string { return strings.TrimPrefix(n.Path(), ns.Dir+"/") }

const (
	hostAddr, podAddr = "198.18.0.1", "198.18.0.2"
	hostMAC, podMAC   = "0a:58:c6:12:00:01", "0a:58:c6:12:00:02"
)

// pod is a pair whose two ends stand for the switch and the pod.
type pod struct {
	*Shaper
	wire          Wire
	host, sandbox *link.NS
}

func newPod(t testing.TB, mtu int) *pod {
	t.Helper()
	p := &pod{host: space(t), sandbox: space(t)}
	p.Shaper = New(p.host, slog.New(slog.DiscardHandler))
	p.wire = Wire{HostIf: "kovabcdef012345", Sandbox: p.sandbox.Path(), IfName: "eth0", MTU: mtu}
	p.ip(t, p.host, fmt.Sprintf("link add %s address %s mtu %d type veth peer name eth0 address %s mtu %d netns %s",
		p.wire.HostIf, hostMAC, mtu, podMAC, mtu, nameOf(p.sandbox)))
	noErr(t, PrepareHost(p.host, p.wire.HostIf))
	noErr(t, PrepareSandbox(p.sandbox, p.wire.IfName))
	// Nothing passes but what a test sends: no ARP, no neighbour discovery.
	for _, end := range []struct {
		n                               *link.NS
		name, addr, neighbour, neighMAC string
	}{{p.host, p.wire.HostIf, hostAddr, podAddr, podMAC}, {p.sandbox, "eth0", podAddr, hostAddr, hostMAC}} {
		p.ip(t, end.n, "link set "+end.name+" addrgenmode none", "link set "+end.name+" up", "addr add "+end.addr+"/30 dev "+end.name,
			"neigh add "+end.neighbour+" lladdr "+end.neighMAC+" dev "+end.name+" nud permanent")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	noErr(t, ns.WaitRunning(ctx, nameOf(p.host), p.wire.HostIf))
	noErr(t, ns.WaitRunning(ctx, nameOf(p.sandbox), "eth0"))
	return p
}

func (p *pod) ip(t testing.TB, n *link.NS, lines ...string) {
	t.Helper()
	noErr(t, ns.IP(t.Context(), nameOf(n), lines...))
}

// tc runs iproute2's tc in a namespace.
func (p *pod) tc(t testing.TB, n *link.NS, args string) string {
	t.Helper()
	out, err := exec.Command("tc", append([]string{"-n", nameOf(n)}, strings.Fields(args)...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("tc %s: %v: %s", args, err, out)
	}
	return string(out)
}

// apply applies l and expects that it is then as it should be, and stays so.
func (p *pod) apply(t testing.TB, l limits.Limits) {
	t.Helper()
	noErr(t, p.Apply(p.wire, l))
	diff, err := p.Differences(p.wire, l)
	if err != nil || len(diff) > 0 {
		t.Fatalf("after Apply(%+v): differences %q, %v", l, diff, err)
	}
}

// direction is one of the two, by its ends.
type direction struct {
	name     string
	from, to *link.NS
	src, dst string
	limit    func(l limits.Limit) limits.Limits
	count    func(Counters) Direction
}

func (p *pod) directions() []direction {
	return []direction{
		{"to the pod", p.host, p.sandbox, hostAddr, podAddr,
			func(l limits.Limit) limits.Limits { return limits.Limits{Ingress: l} }, func(c Counters) Direction { return c.Ingress }},
		{"from the pod", p.sandbox, p.host, podAddr, hostAddr,
			func(l limits.Limit) limits.Limits { return limits.Limits{Egress: l} }, func(c Counters) Direction { return c.Egress }},
	}
}

// stream sends numbered datagrams.
type stream struct {
	out, in *net.UDPConn
	to      *net.UDPAddr
	sent    uint32
	got     map[uint32]int
}

func (d direction) stream(t testing.TB) *stream {
	t.Helper()
	in, err := ns.ListenUDP(d.to.Path(), d.dst+":0")
	noErr(t, err)
	t.Cleanup(func() { _ = in.Close() })
	noErr(t, in.SetReadBuffer(4<<20))
	out, err := ns.ListenUDP(d.from.Path(), d.src+":0")
	noErr(t, err)
	t.Cleanup(func() { _ = out.Close() })
	return &stream{out: out, in: in, to: in.LocalAddr().(*net.UDPAddr), got: map[uint32]int{}}
}

// send sends one datagram of that size, bytes.
func (s *stream) send(size int) error {
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b, s.sent)
	if _, err := s.out.WriteToUDP(b, s.to); err != nil {
		return err
	}
	s.sent++
	return nil
}

// receive reads until all that was sent has come, and returns how many are
// missing when nothing has come for a while, or came twice.
func (s *stream) receive(patience time.Duration) (missing, twice int) {
	b := make([]byte, 1<<16)
	for len(s.got) < int(s.sent) {
		_ = s.in.SetReadDeadline(time.Now().Add(patience))
		if _, err := s.in.Read(b); err != nil {
			break
		}
		s.got[binary.BigEndian.Uint32(b)]++
	}
	for _, n := range s.got {
		twice += n - 1
	}
	return int(s.sent) - len(s.got), twice
}
