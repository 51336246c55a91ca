package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestAPIServerAway: while the API server is away pods go and come, a namespace changes its network by `netns`, services answer and policies hold as
// they were, and nobody loses a packet. An agent that starts meanwhile serves pods, and says that it was not told of services. What
// is changed in the API server meanwhile is in force when it is back, and what people did by `netns` stands.
func TestAPIServerAway(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	ctx := t.Context()
	c.policyPods()
	c.labelled("n2", "red/spare", "web")
	for _, name := range []string{"red/web", "red/spare"} {
		c.answers(c.get(name))
	}
	c.must(c.api.Put(c.service()))
	c.endpoints("red/web", "red/spare")
	c.policy("red/web", onlyApp("near"))
	webs, near := []string{"red/web", "red/spare"}, []string{"red/near", "pink/near"}
	allowed := rule(withinTenants).and(func(from, to probe.Endpoint) bool { return !named(to, webs) || named(from, near) })
	c.waitMatrix("a policy", policyTime, allowed)
	c.waitAnswers("before", "red/near", webs...)
	run := c.runBetween(probe.Exactly(allowed), c.get("red/web"), c.get("red/spare"), c.get("red/near"), c.get("blue/far"))
	c.traffic(run, 20)

	c.must(c.api.Away())
	c.must(c.DelPod(ctx, c.get("red/far")))
	c.labelled("n2", "red/late", "other")
	// Nobody can say what labels it has: every policy of its namespace isolates it.
	asKnown := allowed.and(func(_, to probe.Endpoint) bool { return to.String() != "red/late" })
	c.requireMatrix("pods come and go", asKnown)
	c.waitAnswers("as last known", "red/near", webs...)
	c.commanded("isolate", "pink", "--force")
	split := func(r rule) rule {
		return r.and(func(from, to probe.Endpoint) bool { return (from.Namespace == "pink") == (to.Namespace == "pink") })
	}
	c.waitMatrix("a namespace is isolated", policyTime, split(asKnown))
	c.restartAgentUnready("n1")
	if err := c.Agent("n1").Ready(ctx); err == nil || !strings.Contains(err.Error(), "the API server has not told of the services yet") {
		t.Errorf("an agent that started without API server: %v", err)
	}
	c.requireMatrix("with an agent that started meanwhile", split(asKnown))
	c.waitAnswers("with an agent that started meanwhile", "red/near", webs...)
	c.traffic(run, 20)
	c.endpoints("red/spare")
	c.policy("pink/far", `{podSelector: {matchLabels: {app: far}}, policyTypes: [Ingress]}`)

	c.serveAPI()
	known := split(allowed).and(func(_, to probe.Endpoint) bool { return to.String() != "pink/far" })
	c.waitMatrix("all is known", time.Minute, known)
	c.waitAnswers("the service has one endpoint", "red/near", "red/spare")
	c.commanded("join", "pink", "red", "--force")
	c.waitMatrix("joined again", policyTime, allowed.and(func(_, to probe.Endpoint) bool { return to.String() != "pink/far" }))
	c.traffic(run, 20)
	c.nothingLost(run, "the API server away, while pods go and come, a namespace changes and an agent starts")
	c.allReady("n1", "n2")
}

// commanded runs netns beside the controller.
func (c *cluster) commanded(args ...string) {
	c.t.Helper()
	if out, err := c.atController(args...); err != nil {
		c.t.Fatalf("netns %s: %v: %s", strings.Join(args, " "), err, out)
	}
}
