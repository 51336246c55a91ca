package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// echo answers datagrams and connections on port 5000 of an address in a
// namespace with the address that they come from.
func (l *lab) echo(sandbox string, at netip.Addr) {
	l.t.Helper()
	address := netip.AddrPortFrom(at, 5000).String()
	udp, err := ns.ListenUDP(sandbox, address)
	l.must(err)
	tcp, err := ns.ListenTCP(sandbox, address)
	l.must(err)
	l.t.Cleanup(func() { _, _ = udp.Close(), tcp.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap().String()))
			_ = c.Close()
		}
	}()
}

// seenAs connects from a namespace to an echo and returns the address it was
// seen to come from.
func seenAs(network, sandbox string, to netip.Addr, timeout time.Duration) (string, error) {
	var c net.Conn
	err := ns.DoPath(sandbox, func() (err error) {
		c, err = net.DialTimeout(network, netip.AddrPortFrom(to, 5000).String(), timeout)
		return err
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(timeout))
	if _, err := c.Write([]byte("who am I")); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// TestOutside: pods reach the world under their node's address and never under
// their own; hosts reach pods; the world does not reach pods through a node.
func TestOutside(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a"}, "n2": {"red/b", "blue/b"}})
	ctx := t.Context()
	underlay := ns.Path(l.UnderlayNetns())
	l.echo(underlay, netlab.Outside)
	seen := map[string]interface{ Frames() [][]byte }{
		"n1": l.open(underlay, "n1"), // what the nodes send into the underlay
		"n2": l.open(underlay, "n2"),
	}
	pods, err := l.Pods()
	l.must(err)
	for _, p := range pods {
		want := l.vtep(p.Node).String()
		for _, network := range []string{"udp4", "tcp4"} {
			if got, err := seenAs(network, p.Sandbox(), netlab.Outside, patience); err != nil || got != want {
				t.Errorf("%s by %s is seen as %q (%v), want its node's %s", p, network, got, err, want)
			}
		}
		if out, err := l.PodExec(ctx, p, "ping", "-c1", "-W3", netlab.Outside.String()); err != nil {
			t.Errorf("%s does not reach the world: %v\n%s", p, err, out)
		}
	}
	for node, port := range seen {
		for _, f := range port.Frames() {
			if src, ok := ipv4Source(f); ok && netip.MustParsePrefix("172.11.0.0/16").Contains(src) {
				t.Errorf("%s sent a packet with the pod's source %s into the underlay", node, src)
			}
		}
	}

	for _, node := range []string{"n1", "n2"} {
		for _, p := range pods {
			if out, err := l.NodeExec(ctx, node, "ping", "-c1", "-W3", p.IP.String()); err != nil {
				t.Errorf("host %s does not reach %s: %v\n%s", node, p, err, out)
			}
			if out, err := l.PodExec(ctx, p, "ping", "-c1", "-W3", l.vtep(node).String()); err != nil {
				t.Errorf("%s does not reach host %s: %v\n%s", p, node, err, out)
			}
		}
	}
	probeTCP(t, l, pods)
	l.outsideCannotEnter(pods)
}

// probeTCP connects from each node to each pod, as a kubelet's probes do.
func probeTCP(t *testing.T, l *lab, pods []netlab.Pod) {
	t.Helper()
	for _, p := range pods {
		l.echo(p.Sandbox(), p.IP)
		for _, node := range []string{"n1", "n2"} {
			if _, err := seenAs("tcp4", ns.Path(l.Name()+"-"+node), p.IP, patience); err != nil {
				t.Errorf("TCP from host %s to %s: %v", node, p, err)
			}
		}
	}
}

// outsideCannotEnter: a host in the underlay that sends packets for pods to a
// node is not let through.
func (l *lab) outsideCannotEnter(pods []netlab.Pod) {
	l.t.Helper()
	stranger, err := l.NewStranger(l.t.Context(), "router", netip.MustParseAddr("198.18.0.241"))
	l.must(err)
	l.attack(attacks.Underlay, "routing the cluster network through a node", func() (tried, delivered int) {
		for _, node := range []string{"n1", "n2"} {
			l.must(ns.IP(l.t.Context(), stranger, fmt.Sprintf("route replace 172.11.0.0/16 via %s", l.vtep(node))))
			for _, p := range pods {
				tried++
				if got, err := seenAs("tcp4", ns.Path(stranger), p.IP, 500*time.Millisecond); err == nil {
					l.t.Logf("a host outside reaches %s through %s, seen as %s", p, node, got)
					delivered++
				}
			}
		}
		return tried, delivered
	})
}

// ipv4Source is the source address of a frame's IPv4 packet.
func ipv4Source(f []byte) (netip.Addr, bool) {
	if len(f) < 34 || f[12] != 8 || f[13] != 0 {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(f[26:30])
	return a, ok
}

// TestMasqueradeRestored: somebody flushes the firewall; pods reach the world
// again within 5 s (ancestors' failure 37).
func TestMasqueradeRestored(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 1})
	p := l.pod("n1", "red/a")
	l.echo(ns.Path(l.UnderlayNetns()), netlab.Outside)
	want := l.vtep("n1").String()
	seen := func() error {
		got, err := seenAs("udp4", p.Sandbox(), netlab.Outside, 500*time.Millisecond)
		if err == nil && got != want {
			err = fmt.Errorf("seen as %s", got)
		}
		return err
	}
	l.must(seen())
	l.node("n1", "nft", "flush", "ruleset")
	l.eventually("masquerading after a flush", 5*time.Second+2*time.Second, seen)
	if out := l.node("n1", "nft", "list", "ruleset"); !strings.Contains(out, "masquerade") {
		t.Errorf("rules after the flush:\n%s", out)
	}
}
