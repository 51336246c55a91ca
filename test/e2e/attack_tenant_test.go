package e2e

import (
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// TestAttackTenantReusedAddress: an address that another tenant gets right after DEL
// reaches the new pod only, from the first packet on.
func TestAttackTenantReusedAddress(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{HostSubnetLength: 3}) // five pods a node
	l.pods(map[string][]string{
		"n1": {"red/a", "red/b", "red/c", "red/d", "red/e"},
		"n2": {"red/f", "blue/f"},
	})
	rule := tenants{"red": "r", "blue": "b"}
	l.requireMatrix("at first", rule.allowed)
	if _, err := l.AddPod(t.Context(), "n1", "red", "toomany", netlab.PodOptions{}); err == nil || !strings.Contains(err.Error(), "address") {
		t.Errorf("a sixth pod on a node with five addresses: %v, want an error about addresses", err)
	}
	for _, name := range []string{"red/c", "red/a"} {
		old := l.get(name)
		l.must(l.DelPod(t.Context(), old))
		fresh := l.pod("n1", "blue/instead-of-"+old.Name)
		if fresh.IP != old.IP {
			t.Fatalf("the new pod has %s, not the freed %s: the test tests nothing", fresh.IP, old.IP)
		}
		r := l.matrix()
		l.attack(attacks.Tenant, "an address that another tenant has freed", func() (tried, delivered int) {
			if err := r.Check(rule.allowed); err != nil {
				t.Logf("address of %s reused: %v\n%s", name, err, table(r))
				return 1, 1
			}
			return 1, 0
		})
		if err := r.FirstTryOnly(); err != nil {
			t.Errorf("address of %s reused: first packets were lost: %v", name, err)
		}
	}
}
