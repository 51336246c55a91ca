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

// policedService makes service red/web of red/web and red/spare, which answer, with a policy that
// lets pods near reach them, and one by which pink/near may ask red/web only.
func (c *cluster) policedService() {
	c.t.Helper()
	c.policyPods()
	c.labelled("n2", "red/spare", "web")
	for _, name := range []string{"red/web", "red/spare"} {
		c.answers(c.get(name))
	}
	c.must(c.api.Put(c.service()))
	c.endpoints("red/web", "red/spare")
	c.policy("red/web", onlyApp("near"))
	c.policy("pink/near", `
podSelector: {matchLabels: {app: near}}
policyTypes: [Egress]
egress:
- to: [{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}]
  ports: [{port: 8080}, {protocol: UDP, port: 8080}]
`)
}

// waitAnswers waits until connections of a pod to the service are answered by these, and the
// endpoint that a policy keeps from it by nobody.
func (c *cluster) waitAnswers(when, from string, want ...string) {
	c.t.Helper()
	c.eventuallyEach(policyLooks, when+": "+from, policyTime, func() error {
		seen := map[string]int{}
		for range 10 * len(want) {
			_, who := c.dial(from)
			seen[who]++
			if who == nothing && len(want) == 1 {
				break // each takes its time
			}
		}
		if len(seen) != len(want) {
			return fmt.Errorf("it is answered by %v, not by %v", seen, want)
		}
		for _, w := range want {
			if seen[w] == 0 {
				return fmt.Errorf("it is answered by %v, not by %v", seen, want)
			}
		}
		return nil
	})
}

// checkPolicedService asks who is answered, before and while a policy changes under open connections.
func (c *cluster) checkPolicedService() {
	c.t.Helper()
	c.waitAnswers("allowed at both ends", "pink/near", "red/web", "red/spare")
	c.waitAnswers("allowed by the endpoints", "red/near", "red/web", "red/spare")
	c.waitAnswers("not allowed", "red/far", nothing)
	c.waitAnswers("another tenant", "blue/far", nothing)
	c.endpoints("red/web")
	c.waitAnswers("one endpoint", "red/near", "red/web")
	c.waitAnswers("one's own endpoint", "red/web", "red/web")
	open, who := c.dial("red/near")
	if open == nil {
		c.t.Fatalf("red/near is answered by %s", who)
	}
	stays, who := c.dial("pink/near")
	if stays == nil {
		c.t.Fatalf("pink/near is answered by %s", who)
	}
	c.policy("red/web", `
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{namespaceSelector: {matchLabels: {team: pink}}}]
`)
	c.waitAnswers("no longer allowed", "red/near", nothing)
	if echo(open) {
		c.t.Error("an open connection to the service of a pod that may no longer goes on")
	}
	if !echo(stays) {
		c.t.Error("an open connection to the service of a pod that may ended")
	}
	c.policy("red/web", onlyApp("near"))
	c.waitAnswers("allowed again", "red/near", "red/web")
	c.eventually("the open connection goes on", 30*time.Second, func() error {
		if !echo(open) {
			return fmt.Errorf("no answer")
		}
		return nil
	})
}

// TestPolicyServices: policies are about the endpoint that a service is translated to,
// and about who asked.
func TestPolicyServices(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policedService()
	for _, node := range []string{"n1", "n2"} {
		c.waitGroups(node, 2)
	}
	c.checkPolicedService()
}

// proxied translates what the service's address and a port of the node are sent to these
// endpoints in turn, as kube-proxy's mode nftables does.
func (c *cluster) proxied(node string, endpoints ...string) {
	c.t.Helper()
	var chains, choices strings.Builder
	for i, name := range endpoints {
		ip := c.get(name).IP
		// Who asks itself would answer itself past the node.
		fmt.Fprintf(&chains, "chain endpoint-%d { ip saddr %s meta mark set mark or 0x4000; meta l4proto tcp dnat to %s:8080; }\n", i, ip, ip)
		fmt.Fprintf(&choices, "%d : goto endpoint-%d, ", i, i)
	}
	vip := netip.MustParseAddrPort(web)
	c.node(node, "nft", fmt.Sprintf(`table ip kube-proxy
		delete table ip kube-proxy
		table ip kube-proxy {
		%s
		chain endpoints { numgen random mod %d vmap { %s }; }
		chain external { meta mark set mark or 0x4000 goto endpoints; }
		chain services { ip daddr %s tcp dport %d goto endpoints; ip daddr %s tcp dport %d goto external; }
		chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
		chain nat-output { type nat hook output priority -100; jump services; }
		chain nat-postrouting { type nat hook postrouting priority 100;
			mark and 0x4000 == 0x4000 meta mark set mark xor 0x4000 masquerade fully-random; }
	}`, chains.String(), len(endpoints), strings.TrimSuffix(choices.String(), ", "), vip.Addr(), vip.Port(), c.vtep(node), nodePort))
}

// nodePort is the service's on every node.
const nodePort = 30080

// TestPolicyKubeProxy: the same where the node translates services. A stranger who comes by
// a node's port is not the node: the policy keeps it out, and lets the node in.
func TestPolicyKubeProxy(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{AgentArgs: []string{"--service-proxy=kube-proxy"}})
	c.policedService()
	for _, node := range []string{"n1", "n2"} {
		c.proxied(node, "red/web", "red/spare")
	}
	c.waitAnswers("allowed at both ends", "pink/near", "red/web", "red/spare")
	c.waitAnswers("not allowed", "red/far", nothing)
	for _, node := range []string{"n1", "n2"} {
		c.proxied(node, "red/web")
	}
	c.waitAnswers("one endpoint", "red/near", "red/web")
	c.waitAnswers("by itself", "red/web", "red/web")
	c.waitAnswers("by itself, which it is not an endpoint of", "red/spare", nothing)
	open, who := c.dial("red/near")
	if open == nil {
		t.Fatalf("red/near is answered by %s", who)
	}

	stranger, err := c.NewStranger(t.Context(), "stranger", netip.MustParseAddr("198.18.0.240"))
	c.must(err)
	asks := func(netns string, at netip.AddrPort) bool {
		conn, err := ns.DialTCP(ns.Path(netns), at.String(), time.Second)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	}
	ports := []netip.AddrPort{netip.AddrPortFrom(c.vtep("n1"), nodePort), netip.AddrPortFrom(c.vtep("n2"), nodePort)}
	for _, at := range ports {
		if asks(stranger, at) {
			t.Errorf("a stranger is let in by node port %s", at)
		}
	}
	probe := netip.AddrPortFrom(c.get("red/web").IP, 8080)
	if !asks(c.Name()+"-n1", probe) {
		t.Error("red/web's own node does not reach it")
	}
	if asks(c.Name()+"-n2", probe) {
		t.Error("another node reaches red/web, which no policy allows")
	}
	c.policy("red/outside", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 198.18.0.0/24}}]}]}`)
	for _, at := range ports {
		c.eventuallyEach(policyLooks, "nodes let in", policyTime, func() error {
			if !asks(stranger, at) {
				return fmt.Errorf("node port %s does not answer", at)
			}
			return nil
		})
	}
	c.withdraw("red/outside")

	c.policy("red/web", onlyApp("far"))
	c.waitAnswers("allowed now", "red/far", "red/web")
	c.waitAnswers("no longer allowed", "red/near", nothing)
	if echo(open) {
		t.Error("an open connection of a pod that may no longer goes on")
	}
}

// TestPolicyNode: a pod that nobody may reach and that may reach nobody is reached by its own node, and
// by its own address; by other nodes it is not.
func TestPolicyNode(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	far, web := c.get("red/far"), c.get("red/web")
	c.serves(web, 8080)
	c.policy("red/all", denyAll)
	c.waitWays("nobody", map[way]bool{{"red/near", "red/web", "tcp4", 8080}: false, {"red/web", "red/web", "tcp4", 8080}: true})
	ping := func(node string, p netlab.Pod) error {
		_, err := c.NodeExec(t.Context(), node, "ping", "-c", "1", "-W", "1", p.IP.String())
		return err
	}
	for _, p := range []netlab.Pod{far, web} {
		if err := ping(p.Node, p); err != nil {
			t.Errorf("%s does not reach its pod %s: %v", p.Node, p, err)
		}
		if _, err := c.PodExec(t.Context(), p, "ping", "-c", "1", "-W", "3", c.vtep(p.Node).String()); err != nil {
			t.Errorf("%s does not reach its node: %v", p, err)
		}
		if _, err := c.PodExec(t.Context(), p, "ping", "-c", "1", "-W", "1", netlab.Outside.String()); err == nil {
			t.Errorf("%s reaches the world", p)
		}
	}
	if ping("n1", far) == nil || ping("n2", web) == nil {
		t.Error("a pod is reached by another node")
	}
	// A block with a node's address is that node, also where it comes from its gateway.
	c.policy("red/node", fmt.Sprintf(`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: %s/32}}]}]}`, c.vtep("n2")))
	c.eventually("n2 let in", policyTime, func() error { return ping("n2", web) })
}
