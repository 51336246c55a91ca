package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// TestAttackUnderlayVXLAN: VXLAN from a host that is no node is dropped,
// whatever netID it carries. A node's own, sent the same way, shows that the test
// would see it.
func TestAttackUnderlayVXLAN(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"blue/a"}, "n2": {"blue/c"}})
	e := l.listen()
	stranger, err := l.NewStranger(t.Context(), "stranger", netip.MustParseAddr("198.18.0.240"))
	l.must(err)
	victim, partner := l.get("blue/a"), l.get("blue/c")
	vni := l.netID("blue")
	n1, n2 := l.vtep("n1"), ns.Path(l.Name()+"-n2")
	l.attack(attacks.Underlay, "VXLAN with a tenant's, the global and any VNI", func() (int, int) {
		var forged []forgery
		for i, v := range []uint32{vni, 0, 1} {
			f := forgery{mark: fmt.Sprintf("stranger's no. %d;", i)}
			l.vxlanFrom(ns.Path(stranger), n1, v, partner, victim, f.mark)
			forged = append(forged, f)
		}
		l.vxlanFrom(n2, n1, vni, partner, victim, "the peer's")
		if _, err := e.ports["blue/a"].WaitFor("the peer's", patience); err != nil {
			t.Fatalf("what a peer sends does not arrive, so this test sees nothing: %v", err)
		}
		return len(forged), e.delivered(forged)
	})
}

// TestAttackUnderlayRoutes: a host that is no node does not reach pods by routing to
// them through a node.
func TestAttackUnderlayRoutes(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a"}, "n2": {"red/b", "blue/b"}})
	pods, err := l.Pods()
	l.must(err)
	probeTCP(t, l, pods) // what the host may not, a node may
	l.outsideCannotEnter(pods)
}
