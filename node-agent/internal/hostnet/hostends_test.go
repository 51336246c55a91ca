package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// A node whose host ends have IPv6, as every write to net.ipv6.conf.all.disable_ipv6 gives it to
// them, believes no router advertisement of a pod and answers it nothing; without the table it does.
func TestHostEndsHaveNoIPv6(t *testing.T) {
	l := newLab(t)
	const end = "kov0123456789ab"
	l.ip(l.node, "link add "+end+" type veth peer name eth1 address 02:00:00:00:00:05 netns "+l.pods)
	l.run(l.node, "sysctl", "-qw", "net.ipv6.conf."+end+".accept_dad=0")
	l.run(l.pods, "sysctl", "-qw", "net.ipv6.conf.eth1.disable_ipv6=1")
	l.ip(l.pods, "link set eth1 up")
	l.ip(l.node, "link set "+end+" up")
	pod, err := wire.Open(ns.Path(l.pods), "eth1")
	l.ok(err)
	t.Cleanup(func() { _ = pod.Close() })
	// Its advertisement comes before its echo request, so who answers this has seen that.
	mac, from := net.HardwareAddr{2, 0, 0, 0, 0, 5}, netip.MustParseAddr("fe80::5")
	hails := func(mark string) {
		for _, message := range [][]byte{wire.RouterAdvertisement(netip.MustParsePrefix("2001:db8::/64")), wire.EchoV6(mark)} {
			l.ok(pod.Send(wire.Ethernet(wire.AllNodesMAC, mac, wire.TypeIPv6, wire.ICMPv6(from, wire.AllNodes, message))))
		}
	}
	routes := func() string { return l.run(l.node, "ip", "-6", "route", "show", "default") }
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 10 s; default routes: %q", what, routes())
			}
		}
	}
	until("a node without the table believes a pod", func() bool { hails("open"); return strings.Contains(routes(), end) })

	l.ensure(true)
	l.run(l.node, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	l.run(l.node, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0")
	until("the host end has IPv6", func() bool {
		return strings.Contains(l.run(l.node, "ip", "-6", "addr", "show", "dev", end, "scope", "link"), "fe80::")
	})
	hails("shut")
	until("the firewall has dropped both", func() bool {
		return strings.Contains(l.run(l.node, "nft", "list", "chain", "ip6", table, "raw-prerouting"), "counter packets 2 ")
	})
	if got := routes(); got != "" {
		t.Errorf("the node has a default route from a pod: %s", got)
	}
	// What the node itself says to all of a link does not get there either.
	l.ok(ns.Do(l.node, func() error {
		c, err := (&net.Dialer{}).Dial("udp6", "[ff02::1%"+end+"]:9")
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write([]byte("said")); errors.Is(err, unix.EPERM) {
			return nil
		}
		return err
	}))
	node, err := wire.Open(ns.Path(l.node), end)
	l.ok(err)
	t.Cleanup(func() { _ = node.Close() })
	l.ok(node.Send(wire.Ethernet(mac, mac, wire.TypeARP, []byte("the last frame"))))
	if _, err := pod.WaitFor("the last frame", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if pod.Saw("shut") || pod.Saw("said") {
		t.Errorf("the pod hears the node: answers to it %t, what it says to all %t", pod.Saw("shut"), pod.Saw("said"))
	}
}

// A kernel without nf_tables for IPv6 or for bridges is refused only where pods would reach the node: by
// IPv6 with the userspace datapath. Otherwise that is said once, and the tables of the others are there
// and go. What passes, as that nft cannot be started or is killed, is tried again.
func TestTablesThatAKernelLacks(t *testing.T) {
	refused, killed := exec.Command("false").Run(), exec.Command("sh", "-c", "kill -9 $$").Run()
	for _, tc := range []struct {
		name     string
		family   knftables.Family
		userland bool
		err      error
		want     error // of Ensure
		said     int
	}{
		{"no IPv6, kernel datapath", knftables.IPv6Family, false, refused, nil, 1},
		{"no IPv6, userspace datapath", knftables.IPv6Family, true, refused, refused, 0},
		{"no bridges", knftables.BridgeFamily, true, refused, nil, 1},
		{"nft for bridges was killed", knftables.BridgeFamily, true, killed, killed, 0},
		{"nft for bridges does not start", knftables.BridgeFamily, false, unix.EAGAIN, unix.EAGAIN, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			var log bytes.Buffer
			l.net.log = slog.New(slog.NewTextHandler(&log, nil))
			lacking := func(ns *link.NS, family knftables.Family, name string) (knftables.Interface, error) {
				if family == tc.family {
					return nil, fmt.Errorf("opening: %w", tc.err)
				}
				return openTable(ns, family, name)
			}
			l.net.open = lacking
			if !tc.userland {
				l.spec.SwitchDevices = nil
			}
			for range 2 {
				if _, err := l.net.Ensure(t.Context(), l.spec); !errors.Is(err, tc.want) || tc.want == nil && err != nil {
					t.Fatalf("Ensure: %v, want %v", err, tc.want)
				}
			}
			if n := strings.Count(log.String(), "level=WARN"); n != tc.said {
				t.Errorf("said %d times, want %d: %s", n, tc.said, &log)
			}
			other := map[knftables.Family]string{knftables.IPv6Family: "bridge", knftables.BridgeFamily: "ip6"}[tc.family]
			if tables := l.run(l.node, "nft", "list", "tables"); !strings.Contains(tables, "table "+other+" "+table+"\n") {
				t.Errorf("there is no table %s: %s", other, tables)
			}
			if err := l.net.Cleanup(t.Context()); errors.Is(tc.err, refused) != (err == nil) {
				t.Errorf("Cleanup: %v", err)
			}
			if tables := l.run(l.node, "nft", "list", "tables"); strings.Contains(tables, table) {
				t.Errorf("left: %s", tables)
			}
			l.net.open = openTable
			_, err := l.net.Ensure(t.Context(), l.spec)
			l.ok(err)
			has := strings.Contains(l.run(l.node, "nft", "list", "tables"), "table "+string(tc.family)+" "+table+"\n")
			if has != (tc.want != nil) {
				t.Errorf("once nothing is in the way the table is there: %t", has)
			}
		})
	}
}

// Pods whose host ends somebody made ports of a bridge of the kernel do not talk there; without the
// table they do.
func TestHostEndsInABridge(t *testing.T) {
	const experimental = 0x88b5 // an Ethernet type that nobody looks into (IEEE 802)
	l := newLab(t)
	if out, err := exec.Command("ip", "-n", l.node, "link", "add", "host0", "type", "bridge").CombinedOutput(); err != nil {
		t.Skipf("this kernel has no bridges: %v: %s", err, out)
	}
	l.ip(l.node, "link set host0 up")
	ports := map[string]*wire.Port{}
	for name, end := range map[string]string{l.pods: "kov0123456789aa", l.outside: "kov0123456789ab"} {
		l.ip(l.node, "link add "+end+" type veth peer name eth1 netns "+name, "link set "+end+" master host0", "link set "+end+" up")
		l.run(name, "sysctl", "-qw", "net.ipv6.conf.eth1.disable_ipv6=1")
		l.ip(name, "link set eth1 up")
		p, err := wire.Open(ns.Path(name), "eth1")
		l.ok(err)
		t.Cleanup(func() { _ = p.Close() })
		ports[name] = p
	}
	from, to := ports[l.pods], ports[l.outside]
	says := func(mark string) {
		l.ok(from.Send(wire.Ethernet(wire.Broadcast, net.HardwareAddr{2, 0, 0, 0, 0, 5}, experimental, []byte(mark))))
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 10 s", what)
			}
		}
	}
	until("without the table pods talk", func() bool { says("open"); return to.Saw("open") })
	l.ensure(true)
	says("shut")
	until("the firewall has dropped it", func() bool {
		return !strings.Contains(l.run(l.node, "nft", "list", "chain", "bridge", table, "raw-prerouting"), "counter packets 0 ")
	})
	node, err := wire.Open(ns.Path(l.node), "kov0123456789ab")
	l.ok(err)
	t.Cleanup(func() { _ = node.Close() })
	l.ok(node.Send(wire.Ethernet(wire.Broadcast, net.HardwareAddr{2, 0, 0, 0, 0, 6}, experimental, []byte("by the switch"))))
	if _, err := to.WaitFor("by the switch", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if to.Saw("shut") {
		t.Error("a pod's frame got to another by the bridge")
	}
}
