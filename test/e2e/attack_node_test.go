package e2e

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// TestAttackNodeVNI: a node's packets are held to its own pods' addresses and to the
// VNI that they carry, which it chooses itself: the tunnel proves no more than an address.
func TestAttackNodeVNI(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"blue/a", "blue/b"}, "n2": {"red/c", "blue/c"}})
	e := l.listen()
	stolen, n1 := ns.Path(l.Name()+"-n2"), l.vtep("n1")
	send := func(vni uint32, from, mark string) (int, int) {
		f := forgery{mark: mark + ";"}
		l.vxlanFrom(stolen, n1, vni, l.get(from), l.get("blue/a"), f.mark)
		l.vxlanFrom(stolen, n1, l.netID("blue"), l.get("blue/c"), l.get("blue/a"), "honest after "+mark)
		if _, err := e.ports["blue/a"].WaitFor("honest after "+mark, patience); err != nil {
			t.Fatalf("what a peer sends does not arrive, so this test sees nothing: %v", err)
		}
		return 1, e.delivered([]forgery{f})
	}
	l.attack(attacks.Node, "a VNI that nobody has", func() (int, int) { return send(l.netID("blue")+1, "blue/c", "no VNI") })
	l.attack(attacks.Node, "inner source of another node's pod", func() (int, int) { return send(l.netID("blue"), "blue/b", "no source") })
	const why = "nodes trust each other, and packets between them are not signed"
	l.attackNotHeld(attacks.Node, "another tenant's VNI", why, func() (int, int) { return send(l.netID("blue"), "red/c", "tenant's VNI") })
	l.attackNotHeld(attacks.Node, "the global VNI", why, func() (int, int) { return send(0, "red/c", "global VNI") })
}
