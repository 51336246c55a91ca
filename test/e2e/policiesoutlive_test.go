package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// restartAgent kills a node's agent and waits until the next one is ready.
func (c *cluster) restartAgent(node string) {
	c.t.Helper()
	starts := func() int {
		log, err := c.Agent(node).Log()
		c.must(err)
		return strings.Count(log, `msg="k8s-ovs-agent starts"`)
	}
	was := starts()
	c.must(c.Agent(node).KillProgram())
	c.eventually(node+": another agent", 30*time.Second, func() error {
		if starts() == was {
			return fmt.Errorf("none has started")
		}
		return c.Agent(node).Ready(c.t.Context())
	})
}

// TestPolicyAgentKilled: policies hold while the agent is away, and when the next one takes
// over. Nothing that is allowed is lost, and the flows are the same.
func TestPolicyAgentKilled(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.policy("red/web", onlyApp("near"))
	c.policy("pink/far", `{podSelector: {matchLabels: {app: far}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}`)
	allowed := toWeb("red/near", "pink/near").and(func(from, to probe.Endpoint) bool {
		return from.String() != "pink/far" || to.Namespace == "pink"
	})
	c.waitMatrix("policies", policyTime, allowed)
	c.agentsKilled(allowed)
}

// agentsKilled kills the agents in turn and starts them again, under the probe: nothing that is
// allowed is lost, nothing else passes, and the flows are the same.
func (c *cluster) agentsKilled(allowed rule) {
	c.t.Helper()
	nodes := []string{"n1", "n2"}
	flows := map[string][]string{}
	for _, node := range nodes {
		flows[node] = c.lastingFlows(node)
	}
	run := c.run(probe.Exactly(allowed))
	c.traffic(run, 25)
	for range 3 {
		for _, node := range nodes {
			c.restartAgent(node)
			c.traffic(run, 10)
		}
	}
	for _, node := range nodes {
		if diff := cmp.Diff(flows[node], c.lastingFlows(node)); diff != "" {
			c.t.Errorf("flows of %s after restarts (-before +after):\n%s", node, diff)
		}
	}
	c.judgeAll(run)
}

// lastingFlows are a node's flows but for those that are there for two minutes after a pod was selected.
func (c *cluster) lastingFlows(node string) []string {
	c.t.Helper()
	return slices.DeleteFunc(c.flows(node), func(f string) bool {
		return strings.HasPrefix(f, "table=12, priority=80,") || strings.HasPrefix(f, "table=19, priority=115,")
	})
}

// TestPolicyVswitchdKilled: a switch that comes back has the policies again with its first packets,
// and what is allowed is lost for no longer than without policies. It has forgotten all connections.
func TestPolicyVswitchdKilled(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.policy("red/web", onlyApp("near"))
	allowed := toWeb("red/near", "pink/near")
	c.waitMatrix("a policy", policyTime, allowed)
	c.vswitchdKilled(allowed, "ovs-vswitchd killed %d times, with network policies in force")
}

// vswitchdKilled kills the switch of n1 again and again, under the probe: what is allowed is lost for no longer than without
// policies, and nothing else passes. fault is what the table of faults says of it.
func (c *cluster) vswitchdKilled(allowed rule, fault string) {
	c.t.Helper()
	const times = 3
	run := c.run(probe.Exactly(allowed))
	c.traffic(run, 25)
	var outages []span
	for range times {
		outages = append(outages, during("ovs-vswitchd is away", func() {
			c.must(c.OVS("n1").KillVswitchd())
			c.must(c.OVS("n1").StartVswitchd(c.t.Context()))
		}))
		c.traffic(run, 25)
		time.Sleep(recovery)
	}
	rep := run.Stop()
	c.judge(rep, outages)
	took := silences(rep, outages)
	fault = fmt.Sprintf(fault, times)
	c.costs(fault, rep.Lost(), slices.Max(took), barServes)
	c.held(fault, took, time.Second, recovery)
	c.requireMatrix("after all", allowed)
}

// TestPolicyAway: without controller, etcd and API server policies stay, also for pods that come:
// those are isolated with their first packet. Who is new may be let in by nobody then, and is when
// they are back.
func TestPolicyAway(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.policy("red/web", onlyApp("near"))
	allowed := toWeb("red/near", "pink/near")
	c.waitMatrix("a policy", policyTime, allowed)
	run := c.runAs(probe.Exactly(allowed), probe.RunOptions{}, c.get("red/web"), c.get("red/near"), c.get("red/far"), c.get("pink/near"), c.get("pink/far"))
	c.traffic(run, 25)
	c.must(c.Controller().Kill())
	c.traffic(run, 10)

	// toWebs is toWeb for all pods of red that a policy may be about.
	toWebs := func(subjects []string, peers ...string) rule {
		return rule(withinTenants).and(func(from, to probe.Endpoint) bool { return !named(to, subjects) || named(from, peers) })
	}
	subjects, peers := []string{"red/web", "red/web2"}, []string{"red/near", "pink/near"}
	c.labelled("n1", "red/web2", "web")
	c.requireMatrix("a new pod, without controller and etcd", toWebs(subjects, peers...))
	c.labelled("n2", "red/near2", "near")
	c.requireMatrix("a new peer, of whom nobody was told", toWebs(subjects, peers...))

	c.must(c.api.Away())
	// Nobody can say what labels a pod has: every policy isolates it, and no one's exception is for it.
	unknown := []string{"red/web3", "red/other", "red/alone"}
	c.labelled("n1", "red/web3", "web")
	c.labelled("n1", "red/other", "other")
	c.labelled("n2", "red/alone", "other")
	asKnown := toWebs(subjects, peers...).and(func(_, to probe.Endpoint) bool { return !named(to, unknown) })
	c.requireMatrix("new pods, without API server besides", asKnown)
	c.restartAgentUnready("n1")
	c.requireMatrix("with an agent that started meanwhile", asKnown)

	c.serveAPI()
	c.must(c.StartInCluster(t.Context(), binDir))
	c.waitMatrix("all are back", time.Minute, toWebs([]string{"red/web", "red/web2", "red/web3"}, "red/near", "pink/near", "red/near2"))
	c.traffic(run, 10)
	c.judgeAll(run)
}

// restartAgentUnready kills a node's agent and waits until the next one serves pods.
func (c *cluster) restartAgentUnready(node string) {
	c.t.Helper()
	c.must(c.Agent(node).KillProgram())
	c.eventually(node+": another agent", 30*time.Second, func() error {
		metrics, err := c.Agent(node).Metrics(c.t.Context())
		if err == nil && !strings.Contains(metrics, "\nk8s_ovs_ready 1\n") {
			err = fmt.Errorf("it is not ready")
		}
		return err
	})
}
