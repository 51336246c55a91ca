package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// A tenant makes a service with a port on every node, and endpoints by hand that are
// nodes' ports for tunnels and probes. Whoever serves it translates what comes to the port
// and sends it on as the node: to a peer it is the node's own.

// natPorts are the node ports of such a service, by what they lead to.
var natPorts = map[string]netip.AddrPort{
	"30001": netip.MustParseAddrPort("198.18.0.1:4789"),
	"30002": netip.MustParseAddrPort("198.18.0.2:4789"),
	"30003": netip.MustParseAddrPort("198.18.0.3:4789"),
	"30011": netip.MustParseAddrPort("198.18.0.1:4790"),
	"30012": netip.MustParseAddrPort("198.18.0.2:4790"),
	"30013": netip.MustParseAddrPort("198.18.0.3:4790"),
	"30020": netip.MustParseAddrPort("198.18.0.240:9"), // an honest endpoint outside
}

// natService is the service's address; it has the same ports.
const natService = "10.96.0.99"

// natByNftables writes what kube-proxy's mode nftables does.
func natByNftables(l *lab, node string) {
	var elements []string
	var chains strings.Builder
	for port, to := range natPorts {
		fmt.Fprintf(&chains, "chain endpoint-%s { meta l4proto udp dnat to %s; }\n", port, to)
		fmt.Fprintf(&chains, "chain external-%s { meta mark set mark or 0x4000 goto endpoint-%s; }\n", port, port)
		for _, at := range []string{l.vtep(node).String(), natService} {
			elements = append(elements, fmt.Sprintf("%s . udp . %s : goto external-%s", at, port, port))
		}
	}
	l.node(node, "nft", fmt.Sprintf(`table ip kube-proxy {
		%s
		map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { %s }; }
		chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
		chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
		chain nat-output { type nat hook output priority -100; jump services; }
		chain nat-postrouting { type nat hook postrouting priority 100;
			mark and 0x4000 == 0x4000 meta mark set mark xor 0x4000 masquerade fully-random; }
	}`, chains.String(), strings.Join(elements, ", ")))
}

// natByIptables writes what kube-proxy's mode iptables and the plugin portmap do.
func natByIptables(l *lab, node string) {
	for port, to := range natPorts {
		for _, at := range []string{l.vtep(node).String(), natService} {
			for _, chain := range []string{"PREROUTING", "OUTPUT"} {
				match := []string{"iptables-legacy", "-w", "-t", "nat", "-A", chain, "-d", at, "-p", "udp", "--dport", port, "-j"}
				l.node(node, append(match, "MARK", "--or-mark", "0x4000")...)
				l.node(node, append(match, "DNAT", "--to-destination", to.String())...)
			}
		}
	}
	l.node(node, "iptables-legacy", "-w", "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x4000/0x4000", "-j", "MASQUERADE")
}

// natByIPVS is kube-proxy's mode ipvs, with the connection tracking that it asks for
// or, as others leave it, without.
func natByIPVS(tracked bool) func(l *lab, node string) {
	return func(l *lab, node string) {
		value := "0"
		if tracked {
			value = "1"
		}
		l.node(node, "sh", "-c", "echo "+value+" >/proc/sys/net/ipv4/vs/conntrack")
		l.node(node, "ip", "addr", "add", natService+"/32", "dev", "lo")
		for port, to := range natPorts {
			for _, at := range []string{l.vtep(node).String(), natService} {
				l.node(node, "ipvsadm", "-A", "-u", at+":"+port, "-s", "rr")
				l.node(node, "ipvsadm", "-a", "-u", at+":"+port, "-r", to.String(), "-m")
			}
		}
		l.node(node, "nft", `table ip kube-proxy {
			chain nat-postrouting { type nat hook postrouting priority 100; udp dport { 9, 4789, 4790 } masquerade; }
		}`)
	}
}

func TestAttackTenantNATByNftables(t *testing.T) { attackByNAT(t, "nftables", natByNftables) }

func TestAttackTenantNATByIptables(t *testing.T) {
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		t.Skip("no iptables-legacy here; `make test-kernel` has it")
	}
	attackByNAT(t, "iptables", natByIptables)
}

func TestAttackTenantNATByIPVS(t *testing.T) {
	needIPVS(t)
	attackByNAT(t, "ipvs", natByIPVS(true))
}

func TestAttackTenantNATByUntrackedIPVS(t *testing.T) {
	needIPVS(t)
	attackByNAT(t, "ipvs that does not track", natByIPVS(false))
}

func needIPVS(t *testing.T) {
	t.Helper()
	_ = exec.Command("modprobe", "ip_vs").Run() // it may be in the kernel
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		t.Skip("no ip_vs in this kernel; `make test-kernel` has it")
	}
}

// attackByNAT: tunnel packets and probes that come by way of a node's address
// translation reach nobody, whoever translates, wherever they come from and lead to.
func attackByNAT(t *testing.T, by string, translate func(l *lab, node string)) {
	l := up(t, netlab.Options{Nodes: 3})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b", "blue/b"}, "n3": {"red/c", "blue/c"}})
	stranger, err := l.NewStranger(t.Context(), "stranger", netip.MustParseAddr("198.18.0.240"))
	l.must(err)
	honest := l.open(ns.Path(stranger), "eth0")
	for _, node := range []string{"n1", "n2"} {
		translate(l, node)
	}
	n := &natAttack{lab: l, by: by, ears: l.listen(), honest: honest}
	for _, name := range []string{"n1", "n2", "n3"} {
		n.leaves = append(n.leaves, l.open(ns.Path(l.UnderlayNetns()), name))
	}
	n.ears.fence("red/b", "red/a", "red/c")

	pod, node := l.get("red/a").Sandbox(), ns.Path(l.Name()+"-n2")
	for _, way := range []struct {
		kind, from string
		via        netip.Addr
		where      string // the node that translates
	}{
		{"a pod by another node's port", pod, l.vtep("n2"), "n2"},
		{"a pod by its node's port", pod, l.vtep("n1"), "n1"},
		{"a pod by a service's address", pod, netip.MustParseAddr(natService), "n1"},
		{"a node by a service's address", node, netip.MustParseAddr(natService), "n2"},
		{"a host by a node's port", ns.Path(stranger), l.vtep("n2"), "n2"},
	} {
		for _, target := range []string{"n1", "n2", "n3"} {
			to := target
			if target == way.where {
				to = "the node itself"
			}
			n.vxlan(fmt.Sprintf("VXLAN of %s to %s, translated by %s", way.kind, to, by), way.from, way.via, target)
			if target != way.where {
				n.probe(fmt.Sprintf("probe of %s to %s, translated by %s", way.kind, to, by), way.from, way.via, target)
			}
		}
	}
	l.requireMatrix("after forging", tenants{"red": "r", "blue": "b"}.allowed)
	for _, node := range []string{"n1", "n2"} {
		for _, reason := range []string{"forged-tunnel", "forged-probe"} {
			l.eventually(node+" counts "+reason, 30*time.Second, func() error {
				if l.metric(node, `k8s_ovs_drops_total{reason="`+reason+`"}`) == 0 {
					return fmt.Errorf("none is counted")
				}
				return nil
			})
		}
	}
}

// natAttack is one lab's.
type natAttack struct {
	*lab
	by     string
	ears   *ears
	honest *wire.Port   // a host that honest endpoints are at
	leaves []*wire.Port // what nodes send into the underlay
	sent   int
}

// vxlan sends what would reach blue's pod on the target if the target took it for the
// tunnel packet of any node.
func (n *natAttack) vxlan(name, from string, via netip.Addr, target string) {
	n.t.Helper()
	suffix := map[string]string{"n1": "a", "n2": "b", "n3": "c"}
	victim := n.get("blue/" + suffix[target])
	var forged []forgery
	for node, letter := range suffix {
		if node == target {
			continue
		}
		partner := "blue/" + letter
		for _, vni := range []uint32{0, n.netID("blue")} {
			for _, size := range []int{0, 2000} { // the larger one in fragments
				f := forgery{mark: fmt.Sprintf("%s: from %s, VNI %d, %d more bytes;", name, partner, vni, size), victim: victim.String()}
				inner := wire.Ethernet(n.mac(victim.String()), n.mac(partner), wire.TypeIPv4,
					wire.IPv4(n.get(partner).IP, victim.IP, wire.ProtoUDP, wire.UDP(1000, 9, append([]byte(f.mark), make([]byte, size)...))))
				n.datagram(from, via, "3000"+target[1:], wire.VXLAN(vni, inner))
				forged = append(forged, f)
			}
		}
	}
	n.attack(attacks.Tenant, name, func() (int, int) {
		n.passed(from, via)
		return len(forged), n.ears.delivered(forged)
	})
}

// probe sends what would be a probe of the path from the translating node.
func (n *natAttack) probe(name, from string, via netip.Addr, target string) {
	n.t.Helper()
	f := forgery{mark: name + ";"}
	n.datagram(from, via, "3001"+target[1:], []byte("kovp"+f.mark))
	n.attack(attacks.Tenant, name, func() (int, int) {
		n.passed(from, via)
		for _, p := range n.leaves {
			for _, frame := range p.Frames() {
				// To the port of the probes, behind 14 bytes of Ethernet and 20 of IPv4.
				if len(frame) > 42 && frame[36] == 4790>>8 && frame[37] == 4790&0xff && strings.Contains(string(frame), f.mark) {
					return 1, 1
				}
			}
		}
		return 1, 0
	})
}

// passed waits until what was sent before has been translated and delivered, or dropped:
// an honest datagram has gone the same way, and others to all nodes from the one that translates.
func (n *natAttack) passed(from string, via netip.Addr) {
	n.t.Helper()
	n.sent++
	mark := fmt.Sprintf("honest %d by %s;", n.sent, n.by)
	n.datagram(from, via, "30020", []byte(mark))
	if _, err := n.honest.WaitFor(mark, patience); err != nil {
		n.t.Fatalf("an honest service by %s:30020 cannot be used either, so this test shows nothing: %v", via, err)
	}
	n.ears.fence("red/a", "red/b", "red/c")
	n.ears.fence("red/b", "red/a", "red/c")
}

// datagram sends one from a namespace, each from another port: a connection of its own.
func (n *natAttack) datagram(from string, via netip.Addr, port string, payload []byte) {
	n.t.Helper()
	var c net.Conn
	n.must(ns.DoPath(from, func() (err error) { c, err = net.Dial("udp4", net.JoinHostPort(via.String(), port)); return err }))
	defer func() { _ = c.Close() }()
	if _, err := c.Write(payload); !errors.Is(err, unix.EPERM) { // which is the node's own firewall
		n.must(err)
	}
}
