package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// TestFairnessPolicies: what pods of one tenant that policies select ask of each other leaves room in the
// connection table for another tenant's connections to a selected pod, for as long as they go on.
func TestFairnessPolicies(t *testing.T) {
	long(t)
	for proxy, args := range map[string][]string{"the bridge": nil, "kube-proxy": {"--service-proxy=kube-proxy"}} {
		t.Run("services by "+proxy, func(t *testing.T) { policyFairness(t, proxy, args) })
	}
}

func policyFairness(t *testing.T, proxy string, args []string) {
	c := policed(t, netlab.Options{AgentArgs: args})
	for _, name := range []string{"red/a", "red/b", "blue/a", "blue/near"} {
		c.labelled("n1", name, "flood")
	}
	c.labelled("n1", "red/web", "web")
	c.serves(c.get("blue/near"), 8080)
	const allowsAll = `{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}`
	// One of red's is selected, who has all that its namespace may.
	c.policy("red/web", strings.Replace(allowsAll, "podSelector: {}", "podSelector: {matchLabels: {app: web}}", 1))
	c.policy("blue/all", allowsAll)
	c.waitSelected("n1", 3)
	c.shrinkTable("n1")
	c.waitTableSize("n1", "service-connections", tableSize)
	blue := netip.AddrPortFrom(c.get("blue/near").IP, 8080).String()
	if made := c.connects("blue/a", blue); made != asks {
		t.Fatalf("%d of %d connections are made without a flood", made, asks)
	}
	// Nobody answers, so entries stay for half a minute and longer.
	for _, tc := range []struct {
		name     string
		protocol uint8
		to       string
		by       []string
	}{
		{"SYN flood to a selected pod", protoTCP, "red/web", []string{"red/a", "red/b"}},
		{"UDP flood of a selected pod", wire.ProtoUDP, "red/a", []string{"red/web"}},
	} {
		before := c.refusedConnections("n1", "red", "policy")
		a := c.floodConnections(tc.protocol, netip.AddrPortFrom(c.get(tc.to).IP, 9), tc.by...)
		// What a namespace may make at rest fills the table in 16 s: so it takes longer than that.
		began, most := time.Now(), 0
		c.eventually(tc.name+": more was asked for than there is room for", 2*time.Minute, func() error {
			most = max(most, c.tableUsed("n1"))
			if n, passed := a.sent.Load(), time.Since(began); n < 4*tableSize || passed < 25*time.Second {
				return fmt.Errorf("%d packets sent in %s", n, passed)
			}
			return nil
		})
		made, used := c.connects("blue/a", blue), c.tableUsed("n1")
		a.stop()
		most = max(most, used)
		t.Logf("services by %s, %s: %d packets sent, %d of %d entries used, %d at most, %d of %d connections of the other tenant made",
			proxy, tc.name, a.sent.Load(), used, tableSize, most, made, asks)
		c.attack(attacks.Tenant, tc.name+", services by "+proxy+": another tenant's connections to a selected pod", func() (tried, delivered int) { return asks, asks - made })
		if most >= tableSize*3/4 {
			t.Errorf("%s: %d of %d entries are used", tc.name, most, tableSize)
		}
		c.eventually(tc.name+": the metric tells of it", 30*time.Second, func() error {
			if n := c.refusedConnections("n1", "red", "policy"); n <= before {
				return fmt.Errorf("%v refused", n)
			}
			return nil
		})
		if n := c.refusedConnections("n1", "blue", "policy"); n != 0 {
			t.Errorf("%s: %v connections of the other tenant were refused", tc.name, n)
		}
	}
}
