package tunnelprobe

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os/exec"
	"testing"
	"time"

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
		p := New(Config{NS: host, Device: device, Port: port, Outside: reached{}, Logger: slog.New(slog.DiscardHandler)})
		p.SetNodes(overlays[i], 4789, []Node{{Tunnel: netip.AddrFrom4([4]byte{198, 18, 0, byte(2 - i)}), Overlay: overlays[1-i]}})
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
	l.ip(1, "link set "+device+" up")
	l.await("with it again", hears)
	l.ip(0, "link del "+device)
	l.wire()
	l.await("with another one", hears)
	if err := l.nodes[0].Reach(); err != nil {
		t.Errorf("it says %v", err)
	}
}
