package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// deniedLines are the lines of a node's agent about what policies deny, since the agent was started
// with what it has now; told is how many packets it says that it left out.
func (c *cluster) deniedLines(node string) (lines []string, told float64) {
	c.t.Helper()
	log, err := c.Agent(node).Log()
	c.must(err)
	for line := range strings.Lines(log[max(0, strings.LastIndex(log, `msg="k8s-ovs-agent starts"`)):]) {
		if m := leftOutLine.FindStringSubmatch(line); m != nil {
			n, err := strconv.ParseFloat(m[1], 64)
			c.must(err)
			told += n
		} else if _, what, denied := strings.Cut(line, `msg="denied by policy" `); denied {
			lines = append(lines, strings.TrimSpace(what))
		}
	}
	return lines, told
}

var leftOutLine = regexp.MustCompile(`msg="denied by policy and left out of the log" count=(\d+)`)

// logs waits until a node's agent has logged that, while do is done again and again.
func (c *cluster) logs(node, want string, do func()) {
	c.t.Helper()
	c.eventually(want, policyTime, func() error {
		do()
		lines, _ := c.deniedLines(node)
		for _, line := range lines {
			if strings.HasPrefix(line, want) {
				return nil
			}
		}
		return fmt.Errorf("the log of %s has %q", node, lines)
	})
}

// restartWith starts a node's agent anew, with these flags.
func (c *cluster) restartWith(node string, args ...string) {
	c.t.Helper()
	c.must(c.SetAgentArgs(node, args...))
	c.must(c.Agent(node).Stop())
	c.must(c.Agent(node).StartInCluster(c.t.Context(), binDir))
}

// toldOfDenied reports whether the node's flows tell the agent of what policies deny.
func (c *cluster) toldOfDenied(node string) bool {
	c.t.Helper()
	out, err := c.OVS(node).OFCtl(c.t.Context(), "dump-flows", "br0", "table=66")
	c.must(err)
	return strings.Contains(out, "CONTROLLER")
}

const nobodyToWeb = `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`

// ask is a request that nobody is to answer.
func (c *cluster) ask(from, network, to string, port uint16) func() {
	return func() {
		if reached(c.get(from), network, netip.AddrPortFrom(c.get(to).IP, port)) {
			c.t.Errorf("%s reaches %s", from, to)
		}
	}
}

// TestPolicyDropsLogged: with --log-policy-drops the agent logs what policies deny, whose it was, from
// whom and by which policy. Without the flag nothing is, and nothing of it stays.
func TestPolicyDropsLogged(t *testing.T) {
	c := policed(t, netlab.Options{AgentArgs: []string{"--log-policy-drops"}})
	c.labelled("n1", "red/web", "web")
	c.labelled("n1", "red/near", "near")
	c.labelled("n2", "red/far", "far")
	c.labelled("n1", "pink/near", "near")
	c.policy("red/web", nobodyToWeb)
	c.must(c.api.PutClusterPolicy("alone", `{tier: Admin, priority: 7, subject: {namespaces: {matchLabels: {team: pink}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`))
	c.policy("red/near", `{podSelector: {matchLabels: {app: near}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}`)
	c.logs("n1", `pod=red/web direction=ingress peer=red/near protocol=TCP port=8080 policies=[red/web]`, c.ask("red/near", "tcp4", "red/web", 8080))
	c.logs("n1", `pod=red/web direction=ingress peer=`+c.get("red/far").IP.String()+` protocol=UDP port=53 policies=[red/web]`, c.ask("red/far", "udp4", "red/web", 53))
	c.logs("n1", `pod=red/near direction=egress peer=`+c.get("red/far").IP.String()+` protocol=TCP port=80 policies=[red/near]`, c.ask("red/near", "tcp4", "red/far", 80))

	c.eventually("the ClusterNetworkPolicy", policyTime, func() error {
		if reached(c.get("red/web"), "udp4", netip.AddrPortFrom(c.get("pink/near").IP, 8080)) {
			return errors.New("red/web reaches pink/near")
		}
		return nil
	})
	c.logs("n1", `pod=pink/near direction=ingress peer=red/web protocol=UDP port=8080 clusterPolicies=[alone]`, c.ask("red/web", "udp4", "pink/near", 8080))

	c.restartWith("n1")
	if c.toldOfDenied("n1") {
		t.Error("without the flag the agent is told of what policies deny")
	}
	before := c.settledMetric("n1", deniedIngress)
	c.ask("red/near", "tcp4", "red/web", 8080)()
	c.eventually("the drop is counted", policyTime, func() error {
		if n := c.metric("n1", deniedIngress); n <= before {
			return fmt.Errorf("%v were dropped", n)
		}
		return nil
	})
	if lines, told := c.deniedLines("n1"); len(lines) > 0 || told > 0 {
		t.Errorf("without the flag the log has %q, and leaves out %v", lines, told)
	}
	c.restartWith("n1", "--log-policy-drops")
	c.logs("n1", `pod=red/web direction=ingress peer=red/near protocol=TCP port=8080 policies=[red/web]`, c.ask("red/near", "tcp4", "red/web", 8080))
}

// TestPolicyDropsLoggedPastSwitch: with the flag also what never comes back to the bridge is logged, by where it ends,
// and the lines and what they say that they lack add up to what is counted.
func TestPolicyDropsLoggedPastSwitch(t *testing.T) {
	c := policed(t, netlab.Options{AgentArgs: []string{"--service-proxy=kube-proxy", "--log-policy-drops"}})
	c.policyPods()
	worldPort := c.worldAndNodes()
	c.policy("red/web", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}`)
	line := fmt.Sprintf(`pod=red/web direction=egress peer=%s protocol=%%s port=8080 policies=[red/web]`, netlab.Outside)
	for network, protocol := range map[string]string{"tcp4": "TCP", "udp4": "UDP"} {
		c.logs("n1", fmt.Sprintf(line, protocol), func() { reached(c.get("red/web"), network, worldService) })
	}
	reached(c.get("red/web"), "tcp4", worldPort)
	c.logs("n1", `pod=red/web direction=egress peer="node `, func() { reached(c.get("red/web"), "tcp4", n2Service) })
	much, err := dialFrom(c.get("red/web"), "udp4", worldService)
	c.must(err)
	defer func() { _ = much.Close() }()
	for range 200 {
		_, err := much.Write([]byte("x"))
		c.must(err)
	}
	// Both go on: what was connected before the policy sends its end again, later and later.
	c.eventually("lines and what they lack add up", time.Minute, func() error {
		if said, counted := c.settledLog("n1"), c.metric("n1", `k8s_ovs_drops_total{reason="policy-egress"}`); counted < 200 || said != counted {
			return fmt.Errorf("%v are in the log or said to be left out, %v are counted", said, counted)
		}
		return nil
	})
}

const deniedIngress = `k8s_ovs_drops_total{reason="policy-ingress"}`

// TestPolicyDropsFlood: a flood of what is denied has its share of the log and no more, all of it is
// counted, and what another pod is denied is logged meanwhile.
func TestPolicyDropsFlood(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{AgentArgs: []string{"--log-policy-drops"}})
	c.labelled("n1", "red/web", "web")
	c.labelled("n1", "red/near", "near")
	c.labelled("n1", "red/quiet", "web")
	c.labelled("n2", "red/far", "far")
	c.policy("red/web", nobodyToWeb)
	c.logs("n1", `pod=red/web direction=ingress peer=red/near protocol=TCP port=8080 policies=[red/web]`, c.ask("red/near", "tcp4", "red/web", 8080))
	const offered, window = 4e7, 4 * time.Second // bits a second: some 3,500 packets
	counted, lines := c.settledMetric("n1", deniedIngress), c.settledLog("n1")
	began := time.Now()
	f := c.flood("udp4", c.get("red/near"), netip.AddrPortFrom(c.get("red/web").IP, 8080).String(), offered)
	c.logs("n1", `pod=red/quiet direction=ingress peer=`+c.get("red/far").IP.String()+` protocol=UDP port=53 policies=[red/web]`, c.ask("red/far", "udp4", "red/quiet", 53))
	time.Sleep(time.Until(began.Add(window)))
	f.stop()
	took := time.Since(began)
	dropped := c.settledMetric("n1", deniedIngress) - counted
	if sent := float64(f.sent.Load()) / datagram; dropped < sent/2 || dropped < 1000 {
		t.Errorf("of %v packets of the flood %v were dropped", sent, dropped)
	}
	c.eventually("all of it is in the log, or said to be left out", 30*time.Second, func() error {
		if said := c.settledLog("n1") - lines; said != dropped {
			return fmt.Errorf("%v are, %v were dropped", said, dropped)
		}
		return nil
	})
	own := 0
	all, _ := c.deniedLines("n1")
	for _, line := range all {
		if strings.HasPrefix(line, "pod=red/web direction=ingress peer=red/near protocol=UDP port=8080") {
			own++
		}
	}
	if most := 20 + int(10*took.Seconds()) + 1; own == 0 || own > most {
		t.Errorf("the flood has %d lines, at most %d", own, most)
	}
}

// settledLog is how many packets the log has, and says that it leaves out.
func (c *cluster) settledLog(node string) float64 {
	lines, told := c.deniedLines(node)
	return float64(len(lines)) + told
}
