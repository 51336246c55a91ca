package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// Tests that attack are named TestAttack and the attacker's kind, and are in a file for each
// kind; `make attacks` runs them and writes ATTACKS.md of what they record.

// attack carries out an attack that must be held off: of what was tried, nothing may be
// delivered. It fails the test otherwise, and records the result.
func (l *lab) attack(by attacks.Attacker, name string, try func() (tried, delivered int)) {
	l.t.Helper()
	l.attackNotHeld(by, name, "", try)
}

// attackNotHeld carries out an attack that is documented to succeed, and why. The test
// fails when it does not: then it is held off, and the documents are to say so.
func (l *lab) attackNotHeld(by attacks.Attacker, name, why string, try func() (tried, delivered int)) {
	l.t.Helper()
	tried, delivered := try()
	row := attacks.Row{By: by, Name: name, Datapath: l.datapath(), Tried: tried, Delivered: delivered, NotHeld: why}
	if err := attacks.Record(row); err != nil {
		l.t.Error(err)
	}
}

// datapath is that of the lab's nodes, "netdev" or "system".
func (l *lab) datapath() string {
	l.t.Helper()
	out, err := l.OVS("n1").VSCtl(l.t.Context(), "get", "Bridge", "br0", "datapath_type")
	l.must(err)
	return strings.Trim(strings.TrimSpace(out), `"`)
}

// patience is how long a frame that must arrive may take on a busy machine.
const patience = 10 * time.Second

// forgery is what is sent to forge one message: its frames, all of which contain the
// mark where they are whole. Where it has a victim, what others see of the mark is none of
// its delivery, such as the errors that its sender is told.
type forgery struct {
	mark   string
	frames [][]byte
	victim string
}

// send sends forgeries from a pod, waits until they must have arrived, and returns how
// many there were and how many of their marks any pod's link has seen. The last pods
// share from's tenant.
func (e *ears) send(from string, forged []forgery, fence ...string) (tried, delivered int) {
	e.l.t.Helper()
	for _, f := range forged {
		for _, frame := range f.frames {
			e.l.must(e.ports[from].Send(frame))
		}
	}
	e.fence(from, fence...)
	return len(forged), e.delivered(forged)
}

// delivered counts the forgeries that have reached a pod.
func (e *ears) delivered(forged []forgery) (n int) {
	e.l.t.Helper()
	seen := map[string][][]byte{}
	for name, p := range e.ports {
		seen[name] = p.Frames()
	}
	for _, f := range forged {
		reached := ""
		for name, frames := range seen {
			if f.victim != "" && f.victim != name {
				continue
			}
			for _, frame := range frames {
				if bytes.Contains(frame, []byte(f.mark)) {
					reached = name
				}
			}
		}
		if reached != "" {
			e.l.t.Logf("%q reached %s", f.mark, reached)
			n++
		}
	}
	return n
}

// ears listen on the links of all pods.
type ears struct {
	l     *lab
	ports map[string]*wire.Port // by pod
}

func (l *lab) listen() *ears {
	l.t.Helper()
	e := &ears{l, map[string]*wire.Port{}}
	pods, err := l.Pods()
	l.must(err)
	for _, p := range pods {
		e.ports[p.String()] = l.open(p.Sandbox(), "eth0")
	}
	return e
}

// open opens a link for raw frames until the test's end.
func (l *lab) open(sandbox, link string) *wire.Port {
	l.t.Helper()
	p, err := wire.Open(sandbox, link)
	l.must(err)
	l.t.Cleanup(func() { _ = p.Close() })
	return p
}

// mac is a pod's hardware address.
func (l *lab) mac(name string) net.HardwareAddr {
	l.t.Helper()
	m, err := net.ParseMAC(l.get(name).MAC)
	l.must(err)
	return m
}

// gatewayMAC is what a pod must address to get anywhere: its neighbour entry.
func (l *lab) gatewayMAC(name string) net.HardwareAddr {
	l.t.Helper()
	out, err := l.PodExec(l.t.Context(), l.get(name), "ip", "-4", "neigh", "show", "dev", "eth0")
	l.must(err)
	f := strings.Fields(out)
	for i, w := range f {
		if w == "lladdr" {
			m, err := net.ParseMAC(f[i+1])
			l.must(err)
			return m
		}
	}
	l.t.Fatalf("%s has no neighbour: %q", name, out)
	return nil
}

// fence sends an honest datagram from one pod to others of its tenant and
// waits until they have it: all that was sent before has been delivered or dropped
// by then, since the switch keeps a port's packets in order.
func (e *ears) fence(from string, to ...string) {
	e.l.t.Helper()
	mark := fmt.Sprintf("honest-%d", time.Now().UnixNano())
	a := e.l.get(from)
	for _, name := range to {
		b := e.l.get(name)
		frame := wire.Ethernet(e.l.gatewayMAC(from), e.l.mac(from), wire.TypeIPv4,
			wire.IPv4(a.IP, b.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
		e.l.must(e.ports[from].Send(frame))
	}
	for _, name := range to {
		if _, err := e.ports[name].WaitFor(mark, patience); err != nil {
			e.l.t.Fatalf("an honest datagram from %s does not reach %s: %v", from, name, err)
		}
	}
}

// netID is the number under which a namespace travels, read from its record.
func (l *lab) netID(namespace string) uint32 {
	l.t.Helper()
	r := l.record(namespace)
	if r.Effective == nil {
		l.t.Fatalf("namespace %s has no confirmed netID: %+v", namespace, r)
	}
	return *r.Effective
}

// node runs a command in a node.
func (l *lab) node(node string, args ...string) string {
	l.t.Helper()
	out, err := l.NodeExec(l.t.Context(), node, args...)
	l.must(err)
	return out
}

// vxlanFrom sends one VXLAN packet to a node from a host in the underlay, with
// an inner datagram between two pods.
func (l *lab) vxlanFrom(sandbox string, to netip.Addr, vni uint32, from, victim netlab.Pod, mark string) {
	l.t.Helper()
	macOf := func(p netlab.Pod) net.HardwareAddr {
		m, err := net.ParseMAC(p.MAC)
		l.must(err)
		return m
	}
	inner := wire.Ethernet(macOf(victim), macOf(from), wire.TypeIPv4,
		wire.IPv4(from.IP, victim.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
	c, err := ns.ListenUDP(sandbox, ":0")
	l.must(err)
	defer func() { _ = c.Close() }()
	_, err = c.WriteToUDPAddrPort(wire.VXLAN(vni, inner), netip.AddrPortFrom(to, wire.VXLANPort))
	l.must(err)
}

func (l *lab) vtep(node string) netip.Addr {
	l.t.Helper()
	n, err := l.Node(node)
	l.must(err)
	return n.VTEP
}
