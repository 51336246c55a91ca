package tunnelprobe

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/net/bpf"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/rawpacket"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

const (
	device   = "tun0"
	port     = 4790
	patience = 30 * time.Second
)

var overlays = [2]netip.Addr{netip.MustParseAddr("172.11.0.1"), netip.MustParseAddr("172.11.4.1")}

// reached is a way outside of the tunnels on which everybody answers at once.
type reached struct{}

func (reached) Ask([]netip.Addr) {}

func (reached) Answered(netip.Addr) (time.Time, bool) { return time.Now(), true }

// lab is two nodes whose gateway ports are the ends of a wire.
type lab struct {
	t     *testing.T
	names [2]string
	nodes [2]*Prober
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, names: [2]string{nstest.New(t), nstest.New(t)}}
	l.wire()
	for i, name := range l.names {
		// The nodes' own rules are not to matter.
		out, err := exec.CommandContext(t.Context(), "ip", "netns", "exec", name, "nft",
			"add table inet fw; add chain inet fw i { type filter hook input priority filter; policy drop; }; add chain inet fw o { type filter hook output priority filter; policy drop; }").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		host, err := link.Open(ns.Path(name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = host.Close() })
		p := New(Config{NS: host, Device: device, Port: port, Outside: reached{}, Fresh: time.Minute, Well: func() bool { return true }, Logger: slog.New(slog.DiscardHandler)})
		p.SetNodes(netip.PrefixFrom(overlays[i], 22).Masked(), 4789, []Node{{Tunnel: netip.AddrFrom4([4]byte{198, 18, 0, byte(2 - i)}), Overlay: overlays[1-i]}})
		l.nodes[i] = p
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.Run(ctx)
		}()
		t.Cleanup(func() { cancel(); <-done })
	}
	return l
}

// wire makes the devices.
func (l *lab) wire() {
	l.ip(0, "link add "+device+" type veth peer name "+device+" netns "+l.names[1])
	for i, at := range overlays {
		l.ip(i, "addr add "+at.String()+"/32 dev "+device, "link set "+device+" up")
	}
}

func (l *lab) ip(node int, lines ...string) {
	l.t.Helper()
	if err := ns.IP(l.t.Context(), l.names[node], lines...); err != nil {
		l.t.Fatal(err)
	}
}

// await waits until both nodes have heard each other after now, or say that they do not.
func (l *lab) await(when string, ok func(p *Prober, since time.Time) bool) {
	l.t.Helper()
	since := time.Now()
	for i, p := range l.nodes {
		for !ok(p, since) {
			if time.Since(since) > patience {
				l.t.Fatalf("%s: not so of node %d within %s; it says %v", when, i, patience, p.Reach())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func hears(p *Prober, since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.machine.answered.After(since)
}

func isCut(p *Prober, _ time.Time) bool { return errors.Is(p.Reach(), ErrCut) }

// TestProber: nodes hear each other whatever their firewalls say; a device that is down, or another one, does not end that.
func TestProber(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.await("at first", hears)
	if p := l.nodes[0]; !p.Listens() || p.Reach() != nil {
		t.Errorf("it listens: %t, and says %v", p.Listens(), p.Reach())
	}
	l.ip(1, "link set "+device+" down")
	l.await("without the device", isCut)
	for i, p := range l.nodes {
		select {
		case <-p.Changed():
		case <-time.After(patience):
			t.Errorf("node %d does not tell that it is cut off", i)
		}
	}
	l.ip(1, "link set "+device+" up")
	l.await("with it again", hears)
	l.ip(0, "link del "+device)
	l.wire()
	l.await("with another one", hears)
	if err := l.nodes[0].Reach(); err != nil {
		t.Errorf("it says %v", err)
	}
}

// TestOfNodes: what the agent is woken up by.
func TestOfNodes(t *testing.T) {
	vm, err := bpf.NewVM(ofNodes(port, netip.MustParsePrefix("172.11.8.0/22")))
	if err != nil {
		t.Fatal(err)
	}
	from, to := netip.MustParseAddrPort("172.11.4.1:4790"), netip.MustParseAddrPort("172.11.8.1:4790")
	frame := func(packet []byte, change func(ip []byte)) []byte {
		if change != nil {
			change(packet)
		}
		return append(make([]byte, ethernetSize), packet...)
	}
	options := append([]byte{0x46}, rawpacket.Datagram(from, to)[1:rawpacket.IPSize]...)
	options = append(append(options, 1, 1, 1, 0), rawpacket.Datagram(from, to, 'x')[rawpacket.IPSize:]...)
	for name, c := range map[string]struct {
		frame []byte
		want  bool
	}{
		"another node":                {frame(rawpacket.Datagram(from, to, make([]byte, messageLen)...), nil), true},
		"one with options":            {frame(options, nil), true},
		"one that must not be broken": {frame(rawpacket.Datagram(from, to), func(ip []byte) { ip[6] = 0x40 }), true},
		"a pod":                       {frame(rawpacket.Datagram(netip.MustParseAddrPort("172.11.4.2:4790"), to), nil), false},
		"a pod with a low address":    {frame(rawpacket.Datagram(netip.MustParseAddrPort("172.11.5.1:4790"), to), nil), false},
		"another port":                {frame(rawpacket.Datagram(from, netip.MustParseAddrPort("172.11.8.1:53")), nil), false},
		"TCP":                         {frame(rawpacket.Acknowledgment(from, to, 1), nil), false},
		"a first fragment":            {frame(rawpacket.Datagram(from, to), func(ip []byte) { ip[6] = 0x20 }), false},
		"a later fragment":            {frame(rawpacket.Datagram(from, to), func(ip []byte) { ip[7] = 1 }), false},
		"less than its headers":       {frame(rawpacket.Datagram(from, to)[:21], nil), false},
	} {
		if n, err := vm.Run(c.frame); err != nil || n > 0 != c.want {
			t.Errorf("%s: %d bytes are taken, %v; want some: %t", name, n, err, c.want)
		}
	}
}
