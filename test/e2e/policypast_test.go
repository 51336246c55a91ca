package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// The service whose endpoints are no pods: port 80 is port 8080 of the world, by TCP and UDP, 81 that of
// node n2 and 82 that of n1. So is the world behind a port of n1.
var (
	worldService = netip.MustParseAddrPort("10.96.10.2:80")
	n2Service    = netip.MustParseAddrPort("10.96.10.2:81")
	n1Service    = netip.MustParseAddrPort("10.96.10.2:82")
)

// worldAndNodes serves them, and has n1 translate the service as kube-proxy does. It returns the port of n1.
func (c *cluster) worldAndNodes() (worldPort netip.AddrPort) {
	c.t.Helper()
	for sandbox, address := range map[string]netip.Addr{c.UnderlayNetns(): netlab.Outside, c.Name() + "-n1": c.vtep("n1"), c.Name() + "-n2": c.vtep("n2")} {
		at := netip.AddrPortFrom(address, 8080).String()
		tcp, err := ns.ListenTCP(ns.Path(sandbox), at)
		c.must(err)
		udp, err := ns.ListenUDP(ns.Path(sandbox), at)
		c.must(err)
		c.t.Cleanup(func() { _, _ = tcp.Close(), udp.Close() })
		go serveConnections(tcp)
		go serveDatagrams(udp)
	}
	return c.translated()
}

// translated has n1 translate the service.
func (c *cluster) translated() (worldPort netip.AddrPort) {
	c.t.Helper()
	worldPort = netip.AddrPortFrom(c.vtep("n1"), nodePort)
	c.node("n1", "nft", fmt.Sprintf(`table ip kube-proxy {
		chain nat-prerouting { type nat hook prerouting priority -100;
			ip daddr . th dport { %s . 80, %s . %d } meta l4proto { tcp, udp } dnat to %s:8080;
			ip daddr %s tcp dport 81 dnat to %s:8080;
			ip daddr %s tcp dport 82 dnat to %s:8080;
		};
	}`, worldService.Addr(), worldPort.Addr(), nodePort, netlab.Outside, n2Service.Addr(), c.vtep("n2"), n1Service.Addr(), c.vtep("n1")))
	return worldPort
}

// waitReach waits by a pod of which this says so, by TCP, and the world by UDP too.
func (c *cluster) waitReach(when, from string, want map[netip.AddrPort]bool) {
	c.t.Helper()
	pod := c.get(from)
	c.eventuallyEach(policyLooks, when+": "+from, policyTime, func() error {
		for at, open := range want {
			if got := reached(pod, "tcp4", at); got != open {
				return fmt.Errorf("%v is reached: %t, want %t", at, got, open)
			}
			if got := at == worldService && reached(pod, "udp4", at); got != (open && at == worldService) {
				return fmt.Errorf("%v is reached by UDP: %t, want %t", at, got, open)
			}
		}
		return nil
	})
}

// toWorld is the spec of a policy by which pods with label app=web reach port 8080 of the world, and
// nothing else.
var toWorld = toBlock(netlab.Outside, 8080)

func toBlock(address netip.Addr, port int) string {
	return fmt.Sprintf(`
podSelector: {matchLabels: {app: web}}
policyTypes: [Egress]
egress:
- to: [{ipBlock: {cidr: %s/32}}]
  ports: [{port: %d}, {port: %[2]d, protocol: UDP}]
`, address, port)
}

// goesOnAsking has a conversation ask again and again, each when the last was answered, until stop says
// how many were not.
func goesOnAsking(conn conversation) (stop func() (asked, lost int)) {
	end, told := make(chan struct{}), make(chan [2]int)
	go func() {
		var asked, lost int
		for {
			asked++
			if !conn.goesOn(3 * time.Second) {
				lost++
			}
			select {
			case <-end:
				told <- [2]int{asked, lost}
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() (int, int) { close(end); n := <-told; return n[0], n[1] }
}

// TestPolicyPastSwitch: what a pod sends to a service whose endpoint is no pod never comes back to the
// bridge beside kube-proxy. Policies are about the endpoint all the same: nothing passes that none
// allows, and what is revoked ends, in open flows with the next packet either way.
func TestPolicyPastSwitch(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{AgentArgs: []string{"--service-proxy=kube-proxy"}})
	c.policyPods()
	worldPort := c.worldAndNodes()
	everything := map[netip.AddrPort]bool{worldService: true, worldPort: true, n2Service: true, n1Service: true}
	ownNode := map[netip.AddrPort]bool{worldService: false, worldPort: false, n2Service: false, n1Service: true}
	world := map[netip.AddrPort]bool{worldService: true, worldPort: true, n2Service: false, n1Service: true}
	c.waitReach("without policies", "red/web", everything)
	if tables := c.node("n1", "nft", "list", "tables"); strings.Contains(tables, "k8s-ovs-policy") {
		t.Errorf("a node without policies has the table: %s", tables)
	}

	before := c.metric("n1", `k8s_ovs_drops_total{reason="policy-egress"}`)
	c.policy("red/web", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}`)
	c.waitReach("nothing allowed", "red/web", ownNode)
	c.waitReach("not selected", "red/near", everything)
	c.eventually("drops are counted", 30*time.Second, func() error {
		if n := c.metric("n1", `k8s_ovs_drops_total{reason="policy-egress"}`); n < before+3 {
			return fmt.Errorf("%v, %v before", n, before)
		}
		return nil
	})
	c.policy("red/web", toBlock(netlab.Outside, 80))
	c.waitReach("the service's port, which is none of the endpoint's", "red/web", ownNode)
	c.policy("red/web", toBlock(worldService.Addr(), 8080))
	c.waitReach("the service's address, which is no endpoint's", "red/web", ownNode)
	c.policy("red/web", toWorld)
	c.waitReach("the endpoint's", "red/web", world)

	pod := c.get("red/web")
	open := func(network string) conversation {
		conn, err := dialFrom(pod, network, worldService)
		c.must(err)
		t.Cleanup(func() { _ = conn.Close() })
		return conversation{conn}
	}
	stops := map[string]func() (int, int){"TCP": goesOnAsking(open("tcp4")), "UDP": goesOnAsking(open("udp4"))}
	rules := c.node("n1", "nft", "-a", "-s", "list", "table", "ip", "k8s-ovs-policy")
	for range 2 {
		c.restartAgent("n1")
	}
	if now := c.node("n1", "nft", "-a", "-s", "list", "table", "ip", "k8s-ovs-policy"); now != rules {
		t.Errorf("an agent that starts writes the table anew:\n%s\n%s", rules, now)
	}
	c.policy("red/more", toBlock(c.vtep("n2"), 8080))
	c.waitReach("another policy allows more", "red/web", everything)
	c.withdraw("red/more")
	c.waitReach("and no longer", "red/web", world)
	for network, stop := range stops {
		if asked, lost := stop(); lost > 0 {
			t.Errorf("%d of %d were lost by %s while the agent was killed and policies changed", lost, asked, network)
		}
	}

	tcp, udp := open("tcp4"), open("udp4")
	if !tcp.goesOn(3*time.Second) || !udp.goesOn(3*time.Second) {
		t.Fatal("flows to the world are not open")
	}
	c.node("n1", "nft", "flush", "ruleset")
	c.translated()
	c.policy("red/web", toBlock(c.vtep("n2"), 8080))
	revoked := map[netip.AddrPort]bool{worldService: false, worldPort: false, n2Service: true, n1Service: true}
	c.waitReach("revoked, and the node's firewall flushed", "red/web", revoked)
	if tcp.goesOn(3*time.Second) || udp.goesOn(time.Second) {
		t.Error("an open flow goes on that is not allowed any more")
	}
	c.policy("red/web", toWorld)
	c.waitReach("allowed again", "red/web", world)
	if !tcp.goesOn(30*time.Second) || !udp.goesOn(3*time.Second) {
		t.Error("an open flow does not go on that is allowed again")
	}
	c.withdraw("red/web")
	c.waitReach("without policies again", "red/web", everything)
	c.eventually("the table goes with the last pod in it", policyTime, func() error {
		if tables := c.node("n1", "nft", "list", "tables"); strings.Contains(tables, "k8s-ovs-policy") {
			return fmt.Errorf("%s", tables)
		}
		return nil
	})
}

// TestPolicyNodePort: with services by the bridge the node still translates its own ports, for pods too.
func TestPolicyNodePort(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	worldPort := c.worldAndNodes()
	open := func(yes bool) map[netip.AddrPort]bool { return map[netip.AddrPort]bool{worldPort: yes} }
	c.waitReach("without policies", "red/web", open(true))
	c.policy("red/web", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}`)
	c.waitReach("nothing allowed", "red/web", open(false))
	c.waitReach("not selected", "red/near", open(true))
	c.policy("red/web", toWorld)
	c.waitReach("allowed", "red/web", open(true))
}
