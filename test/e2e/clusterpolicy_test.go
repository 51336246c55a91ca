package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// clusterPolicy makes a ClusterNetworkPolicy, or changes it, to what its spec says in YAML.
func (c *cluster) clusterPolicy(name, spec string) {
	c.t.Helper()
	c.must(c.api.PutClusterPolicy(name, spec))
}

// withdrawCluster deletes a ClusterNetworkPolicy.
func (c *cluster) withdrawCluster(name string) {
	c.t.Helper()
	c.must(c.api.DeleteClusterPolicy(name))
}

// ofTier is the spec of a ClusterNetworkPolicy about all pods of red, with rules of ingress.
func ofTier(tier string, priority int, rules string) string {
	return fmt.Sprintf("tier: %s\npriority: %d\nsubject: {namespaces: {matchLabels: {team: red}}}\ningress: [%s]\n", tier, priority, rules)
}

// Rules of ingress: about pods of a team, about pods with a label, and about all pods.
func ofTeam(action, team string) string {
	return fmt.Sprintf("{action: %s, from: [{namespaces: {matchLabels: {team: %s}}}]}", action, team)
}

func ofApp(action, app string) string {
	return fmt.Sprintf("{action: %s, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: %s}}}}]}", action, app)
}

func ofAll(action string) string {
	return fmt.Sprintf("{action: %s, from: [{namespaces: {}}]}", action)
}

// toRed is what is allowed where the pods of red may be reached by these pods only.
func toRed(may rule) rule {
	return rule(withinTenants).and(func(from, to probe.Endpoint) bool { return to.Namespace != "red" || may(from, to) })
}

// TestClusterPolicies: who reaches whom by tiers, actions and their order, on one node and from node
// to node, by all protocols.
func TestClusterPolicies(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.requireMatrix("without policies", withinTenants)
	is := func(pods ...string) rule { return func(from, _ probe.Endpoint) bool { return named(from, pods) } }
	not := func(r rule) rule { return func(from, to probe.Endpoint) bool { return !r(from, to) } }
	team := func(name string) rule { return func(from, _ probe.Endpoint) bool { return from.Namespace == name } }
	near, pink := is("red/near", "pink/near"), team("pink")
	far := c.get("red/far").IP
	for _, p := range []struct {
		name              string
		policies, cluster map[string]string
		allowed           rule
	}{
		{"Admin denies a namespace", nil, map[string]string{"a": ofTier("Admin", 7, ofTeam("Deny", "pink"))}, toRed(not(pink))},
		{"Admin accepts over a NetworkPolicy", map[string]string{"red/all": `{podSelector: {}, policyTypes: [Ingress]}`},
			map[string]string{"a": ofTier("Admin", 7, ofApp("Accept", "near"))}, toRed(near)},
		{"Admin denies what a NetworkPolicy allows", map[string]string{"red/all": `{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}`},
			map[string]string{"a": ofTier("Admin", 7, ofApp("Deny", "near"))}, toRed(not(near))},
		{"Admin passes on to a NetworkPolicy", map[string]string{"red/web": onlyApp("far")},
			map[string]string{"a": ofTier("Admin", 7, ofApp("Pass", "far")+", "+ofAll("Deny"))}, toRed(is("red/far", "pink/far"))},
		{"Baseline denies where no NetworkPolicy isolates", map[string]string{"red/web": onlyApp("near")},
			map[string]string{"b": ofTier("Baseline", 7, ofAll("Deny"))}, toRed(func(from, to probe.Endpoint) bool { return to.Name == "web" && near(from, to) })},
		{"Baseline accepts before it denies", nil,
			map[string]string{"b": ofTier("Baseline", 7, ofTeam("Accept", "pink")+", "+ofAll("Deny"))}, toRed(pink)},
		{"both tiers", map[string]string{"red/web": onlyApp("far")},
			map[string]string{"a": ofTier("Admin", 7, ofTeam("Accept", "pink")), "b": ofTier("Baseline", 7, ofAll("Deny"))},
			toRed(func(from, to probe.Endpoint) bool { return pink(from, to) || to.Name == "web" && from.Name == "far" })},
		{"the lower priority number is first", nil,
			map[string]string{"a": ofTier("Admin", 10, ofAll("Deny")), "b": ofTier("Admin", 5, ofApp("Accept", "near"))}, toRed(near)},
		{"of one priority the first by name", nil,
			map[string]string{"a": ofTier("Admin", 5, ofAll("Deny")), "b": ofTier("Admin", 5, ofApp("Accept", "near"))}, toRed(is())},
		{"pods as subject", nil, map[string]string{"a": `
tier: Admin
priority: 7
subject: {pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}}
ingress: [` + ofAll("Deny") + `]
`}, toWeb()},
		{"a subject that nobody is", nil, map[string]string{"a": `
tier: Admin
priority: 7
subject: {namespaces: {matchLabels: {team: green}}}
ingress: [` + ofAll("Deny") + `]
egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]
`}, withinTenants},
		{"every pod, in both directions", nil, map[string]string{"a": `
tier: Admin
priority: 7
subject: {namespaces: {}}
ingress: [` + ofApp("Accept", "near") + ", " + ofAll("Deny") + `]
egress: [{action: Deny, to: [{namespaces: {matchLabels: {team: pink}}}]}]
`}, rule(withinTenants).and(func(from, to probe.Endpoint) bool { return from.Name == "near" && to.Namespace != "pink" })},
		{"networks, outwards", nil, map[string]string{"a": fmt.Sprintf(`
tier: Admin
priority: 7
subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
egress: [{action: Accept, to: [{networks: [%s/32]}]}, {action: Deny, to: [{networks: [172.11.0.0/16]}]}]
`, far)}, fromWeb("red/far")},
	} {
		for name, spec := range p.policies {
			c.policy(name, spec)
		}
		for name, spec := range p.cluster {
			c.clusterPolicy(name, spec)
		}
		c.waitMatrix(p.name, policyTime, p.allowed)
		for name := range p.policies {
			c.withdraw(name)
		}
		for name := range p.cluster {
			c.withdrawCluster(name)
		}
		c.waitMatrix(p.name+", taken away", policyTime, withinTenants)
	}
}

// TestShowPolicies: netns says which policies select a namespace's pods, which pods, and by what rules.
func TestShowPolicies(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.policy("red/web", onlyApp("near"))
	c.clusterPolicy("legacy", ofTier("Admin", 7, ofTeam("Deny", "pink")))
	c.waitMatrix("policies", policyTime, toRed(func(from, to probe.Endpoint) bool {
		return from.Namespace == "red" && (to.Name != "web" || from.Name == "near")
	}))
	for _, show := range []struct {
		args []string
		want []string
	}{
		{[]string{"show", "red"}, []string{"web", "legacy", "near", "far"}},
		{[]string{"show", "red", "--policy", "web"}, []string{"app=near", "ingress"}},
		{[]string{"show", "red", "--cluster-policy", "legacy"}, []string{"Admin, priority 7", "Deny", "team=pink"}},
	} {
		c.eventually(strings.Join(show.args, " "), policyTime, func() error {
			out, err := c.atController(show.args...)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			for _, want := range show.want {
				if !strings.Contains(out, want) {
					return fmt.Errorf("%q is not in\n%s", want, out)
				}
			}
			t.Logf("netns %s\n%s", strings.Join(show.args, " "), out)
			return nil
		})
	}
	if out, err := c.atController("show", "red", "--cluster-policy", "none"); err == nil || !strings.Contains(out, "none") {
		t.Errorf("of a policy that is not there: %v, %s", err, out)
	}
}

// atController runs netns beside the controller, with the etcd in it, and returns all that it prints.
func (c *cluster) atController(args ...string) (string, error) {
	cmd := exec.CommandContext(c.t.Context(), filepath.Join(binDir, "netns"), append(args, "--data-dir", c.DataDir())...)
	cmd.Env = netlab.Environ()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestClusterPolicyPorts: numbers, ranges and names of ports, denied and accepted.
func TestClusterPolicyPorts(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.portServers()
	each := waysToServers
	meant := func(w way) bool {
		return w == way{w.from, "red/web", "tcp4", 8080} || w == way{w.from, "red/other", "tcp4", 9090} || w == way{w.from, "red/udp", "udp4", 8080}
	}
	inwards := func(rules string) string {
		return "{tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}}, ingress: [" + rules + "]}"
	}
	outwards := func(rules string) string {
		return "{tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: near}}}}, egress: [" + rules + "]}"
	}
	for _, p := range []struct {
		name, spec string
		open       func(w way) bool
	}{
		{"one number denied", inwards(`{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 8080}}}]}`),
			func(w way) bool { return w.network != "tcp4" || w.port != 8080 }},
		{"a range accepted", inwards(`{action: Accept, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 8081, end: 8100}}}}]}, ` + ofAll("Deny")),
			func(w way) bool { return w.network == "udp4" && w.port == 8100 }},
		{"a name denied", inwards(`{action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}]}`),
			func(w way) bool { return !meant(w) }},
		{"a name accepted for some", inwards(`{action: Accept, from: [{namespaces: {matchLabels: {team: pink}}}], protocols: [{destinationNamedPort: http}]}, ` + ofAll("Deny")),
			func(w way) bool { return w.from == "pink/far" && meant(w) }},
		{"a name denied, outwards", outwards(`{action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: http}]}`),
			func(w way) bool { return w.from != "red/near" || !meant(w) }},
	} {
		c.clusterPolicy("ports", p.spec)
		c.waitWays(p.name, each(p.open))
		c.withdrawCluster("ports")
		c.waitWays(p.name+", taken away", each(func(way) bool { return true }))
	}
}

// TestClusterPolicyOutside: networks are a firewall of what goes out, and nodes may be denied, the
// pod's own among them.
func TestClusterPolicyOutside(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.echo(ns.Path(c.UnderlayNetns()), netlab.Outside)
	nodes := map[string]netip.Addr{}
	for _, name := range []string{"n1", "n2"} {
		nodes[name] = c.vtep(name)
		c.echo(ns.Path(c.Name()+"-"+name), nodes[name])
		n := c.api.Object("nodes", "", name).(*corev1.Node).DeepCopy()
		n.Labels = map[string]string{"host": name}
		c.must(c.api.Put(n))
	}
	type target struct {
		network string
		to      netip.Addr
	}
	web := c.get("red/web")
	requires := func(when string, open map[target]bool) {
		t.Helper()
		c.eventuallyEach(policyLooks, when, policyTime, func() error {
			for to, want := range open {
				if _, err := seenAs(to.network, web.Sandbox(), to.to, denied); (err == nil) != want {
					return fmt.Errorf("%s by %s: open %t, want %t", to.to, to.network, err == nil, want)
				}
			}
			return nil
		})
	}
	ways := func(outsideTCP, outsideUDP, n1, n2 bool) map[target]bool {
		return map[target]bool{
			{"tcp4", netlab.Outside}: outsideTCP, {"udp4", netlab.Outside}: outsideUDP, {"tcp4", nodes["n1"]}: n1, {"tcp4", nodes["n2"]}: n2,
		}
	}
	about := func(rules string) string {
		return "{tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {team: red}}}, egress: [" + rules + "]}"
	}
	requires("without policies", ways(true, true, true, true))
	c.clusterPolicy("out", about(fmt.Sprintf(`{action: Accept, to: [{networks: [%s/32]}], protocols: [{tcp: {destinationPort: {number: 5000}}}]}, {action: Deny, to: [{networks: [0.0.0.0/0]}]}`, netlab.Outside)))
	requires("a firewall", ways(true, false, false, false))
	c.clusterPolicy("out", about(`{action: Deny, to: [{nodes: {}}]}`))
	requires("nodes denied", ways(true, true, false, false))
	c.clusterPolicy("out", about(`{action: Accept, to: [{nodes: {matchLabels: {host: n2}}}]}, {action: Deny, to: [{nodes: {}}]}`))
	requires("one node accepted", ways(true, true, false, true))
	// What nodes send to pods no policy of ingress can mean.
	for node := range nodes {
		if out, err := c.NodeExec(t.Context(), node, "ping", "-c1", "-W3", c.get("pink/near").IP.String()); err != nil {
			t.Errorf("%s does not reach a pod: %v\n%s", node, err, out)
		}
	}
	c.withdrawCluster("out")
	requires("taken away", ways(true, true, true, true))
}

// TestClusterPolicyChanges: changes take hold of open connections, flows of UDP and pings; what is
// allowed before and after loses nothing.
func TestClusterPolicyChanges(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	is := func(pods ...string) rule { return func(from, _ probe.Endpoint) bool { return named(from, pods) } }
	near, pinkFar := toRed(is("red/near", "pink/near")), toRed(is("red/near", "pink/near", "pink/far"))
	accepts := func(rules string) string { return ofTier("Admin", 7, rules+ofAll("Deny")) }
	nearOnly := accepts(ofApp("Accept", "near") + ", ")
	c.clusterPolicy("a", nearOnly)
	c.waitMatrix("those near", policyTime, near)
	run := c.run(probe.Exactly(near))
	c.traffic(run, 25)

	c.becomes(run, "another rule first", near, pinkFar, func() {
		c.clusterPolicy("a", accepts(ofApp("Accept", "near")+", {action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {team: pink}}, podSelector: {matchLabels: {app: far}}}}]}, "))
	})
	c.becomes(run, "and gone again", pinkFar, near, func() { c.clusterPolicy("a", nearOnly) })
	c.becomes(run, "another policy that says the same, before it", near, near, func() { c.clusterPolicy("b", ofTier("Admin", 3, ofApp("Accept", "near"))) })
	c.becomes(run, "which takes its place", near, near, func() {
		c.clusterPolicy("c", ofTier("Admin", 9, ofAll("Deny")))
		c.withdrawCluster("a")
	})
	c.becomes(run, "priorities change places", near, toRed(is()), func() { c.clusterPolicy("c", ofTier("Admin", 1, ofAll("Deny"))) })
	c.becomes(run, "and back", toRed(is()), near, func() { c.clusterPolicy("c", ofTier("Admin", 9, ofAll("Deny"))) })
	c.becomes(run, "a NetworkPolicy behind Accept", near, near, func() { c.policy("red/all", `{podSelector: {}, policyTypes: [Ingress]}`) })
	someNear := toRed(is("pink/near"))
	c.becomes(run, "a pod has another label", near, someNear, func() { c.must(c.SetLabels(c.get("red/near"), map[string]string{"app": "other"})) })
	c.becomes(run, "and the old one again", someNear, near, func() { c.must(c.SetLabels(c.get("red/near"), map[string]string{"app": "near"})) })

	c.becomes(run, "another namespace is the subject", near, rule(withinTenants).and(func(from, to probe.Endpoint) bool {
		return (to.Namespace == "blue") || from.Name == "near"
	}), func() {
		spec := "{tier: Admin, priority: %d, subject: {namespaces: {matchExpressions: [{key: team, operator: In, values: [red, pink]}]}}, ingress: [%s]}"
		c.clusterPolicy("b", fmt.Sprintf(spec, 3, ofApp("Accept", "near")))
		c.clusterPolicy("c", fmt.Sprintf(spec, 9, ofAll("Deny")))
	})
	// Pods of pink have just become selected: pings and beginnings under way then may be lost.
	made := during("pink's pods are selected", func() {})
	made.began = made.began.Add(-policyTime)
	c.judgeAll(run, made)
}

// TestClusterPolicyRunningPods: a ClusterNetworkPolicy that comes cuts what it denies, in open
// connections too, and others go on.
func TestClusterPolicyRunningPods(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.serves(c.get("red/web"), 8080)
	allowed, revoked := c.converse("pink/near", "red/web"), c.converse("pink/far", "red/web")
	c.clusterPolicy("a", ofTier("Admin", 7, ofApp("Accept", "near")+", "+ofAll("Deny")))
	c.waitMatrix("the policy", policyTime, toRed(func(from, _ probe.Endpoint) bool { return from.Name == "near" }))
	if revoked.goesOn(3 * time.Second) {
		t.Error("a connection that is denied outlives the policy")
	}
	if !allowed.goesOn(5 * time.Second) {
		t.Error("a connection that is accepted ended with the policy")
	}
	c.withdrawCluster("a")
	c.waitMatrix("without", policyTime, withinTenants)
	if !revoked.goesOn(5 * time.Second) {
		t.Error("a connection does not go on where nothing denies it")
	}
}

// TestClusterPolicyAgentKilled: ClusterNetworkPolicies hold while the agent is away, and when the
// next one takes over. Nothing that is allowed is lost, and the flows are the same.
func TestClusterPolicyAgentKilled(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.clusterPolicy("a", ofTier("Admin", 7, ofApp("Accept", "near")+", "+ofTeam("Pass", "pink")+", "+ofAll("Deny")))
	c.policy("red/web", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`)
	allowed := toRed(func(from, to probe.Endpoint) bool {
		return from.Name == "near" || from.Namespace == "pink" && to.Name != "web"
	})
	c.waitMatrix("policies", policyTime, allowed)
	c.agentsKilled(allowed)
}

// TestClusterPolicyVswitchdKilled: a switch that comes back denies what is denied with its first
// packets.
func TestClusterPolicyVswitchdKilled(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.clusterPolicy("a", ofTier("Admin", 7, ofApp("Accept", "near")+", "+ofAll("Deny")))
	allowed := toRed(func(from, _ probe.Endpoint) bool { return from.Name == "near" })
	c.waitMatrix("a policy", policyTime, allowed)
	c.vswitchdKilled(allowed, "ovs-vswitchd killed %d times, with policies of the cluster in force")
}

// TestClusterPolicyAway: without controller, etcd and API server ClusterNetworkPolicies stay, also
// for pods that come: those are judged with their first packet. Whose labels or namespace nobody
// knows is denied what any pod might be.
func TestClusterPolicyAway(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	about := `{tier: Admin, priority: 7, subject: {pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}}, ingress: [` +
		ofApp("Accept", "near") + ", " + ofAll("Deny") + "]}"
	c.clusterPolicy("a", about)
	allowed := toWeb("red/near", "pink/near")
	c.waitMatrix("a policy", policyTime, allowed)
	run := c.runAs(probe.Exactly(allowed), probe.RunOptions{}, c.get("red/web"), c.get("red/near"), c.get("red/far"), c.get("pink/near"), c.get("pink/far"))
	c.traffic(run, 25)
	c.must(c.Controller().Kill())
	c.traffic(run, 10)

	toWebs := func(subjects []string, peers ...string) rule {
		return rule(withinTenants).and(func(from, to probe.Endpoint) bool { return !named(to, subjects) || named(from, peers) })
	}
	subjects, peers := []string{"red/web", "red/web2"}, []string{"red/near", "pink/near"}
	c.labelled("n1", "red/web2", "web")
	c.requireMatrix("a new pod, without controller and etcd", toWebs(subjects, peers...))
	c.must(c.api.Away())
	// It may be one of those that are denied all but what is accepted of them, and that is not known.
	unknown := []string{"red/other"}
	c.labelled("n1", "red/other", "other")
	asKnown := toWebs(subjects, peers...).and(func(_, to probe.Endpoint) bool { return !named(to, unknown) })
	c.requireMatrix("a new pod, without API server besides", asKnown)
	c.restartAgentUnready("n1")
	c.requireMatrix("with an agent that started meanwhile", asKnown)

	c.serveAPI()
	c.must(c.StartInCluster(t.Context(), binDir))
	c.waitMatrix("all are back", time.Minute, toWebs(subjects, "red/near", "pink/near"))
	c.traffic(run, 10)
	c.judgeAll(run)
}

// TestClusterPolicyNewNamespace: a pod of a namespace that was made a moment ago is denied what it
// is denied from its first packet on.
func TestClusterPolicyNewNamespace(t *testing.T) {
	c := policed(t, netlab.Options{Mode: netlab.SingleTenant})
	c.labelled("n2", "red/far", "far")
	c.clusterPolicy("a", `{tier: Admin, priority: 7, subject: {namespaces: {matchLabels: {guarded: "yes"}}}, ingress: [`+ofAll("Deny")+`], egress: [{action: Deny, to: [{namespaces: {}}]}]}`)
	c.labelNamespace("pink", map[string]string{"guarded": "yes"})
	c.labelled("n1", "pink/near", "near")
	c.waitMatrix("the policy", policyTime, func(from, to probe.Endpoint) bool { return from.Namespace != "pink" && to.Namespace != "pink" })
	for i := range 5 {
		name := fmt.Sprintf("fresh%d", i)
		c.labelNamespace(name, map[string]string{"guarded": "yes"})
		p := c.labelled(fmt.Sprintf("n%d", i%2+1), name+"/pod", "pod")
		for _, other := range []string{"red/far", "pink/near"} {
			if _, err := c.PodExec(t.Context(), p, "ping", "-c1", "-W0.4", c.get(other).IP.String()); err == nil {
				t.Errorf("%s reaches %s", p, other)
			}
			if _, err := c.PodExec(t.Context(), c.get(other), "ping", "-c1", "-W0.4", p.IP.String()); err == nil {
				t.Errorf("%s reaches %s", other, p)
			}
		}
	}
}

// TestClusterPolicyDrops: what is denied is counted, each packet, also where its rule or its pod goes
// right afterwards.
func TestClusterPolicyDrops(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.serves(c.get("red/web"), 8080)
	web := c.get("red/web")
	const ingress, egress = `k8s_ovs_drops_total{reason="policy-ingress"}`, `k8s_ovs_drops_total{reason="policy-egress"}`
	c.clusterPolicy("a", ofTier("Admin", 7, ofApp("Deny", "far")))
	c.waitWays("denied", map[way]bool{{"pink/far", "red/web", "udp4", 8080}: false, {"pink/near", "red/web", "udp4", 8080}: true})
	before := map[string]float64{ingress: c.settledMetric("n1", ingress), egress: c.settledMetric("n1", egress)}

	const each = 20
	sent := 0.0
	// sends has red/web be sent what is denied, and changes something right then. What it waits for
	// is seen in the flows: whoever tries is counted.
	sends := func(change func(), flow string, there bool) {
		t.Helper()
		conn, err := dialFrom(c.get("pink/far"), "udp4", netip.AddrPortFrom(web.IP, 8080))
		c.must(err)
		defer func() { _ = conn.Close() }()
		for range each {
			_, err := conn.Write([]byte("x"))
			c.must(err)
			time.Sleep(time.Millisecond)
		}
		// Twice a second the switch looks at what its datapath did. What a change meets before that
		// counts for what becomes of such packets afterwards.
		time.Sleep(2 * time.Second)
		sent += each
		change()
		c.waitFlow(flow, there)
		if got := c.settledMetric("n1", ingress); got != before[ingress]+sent {
			t.Errorf("%v were dropped, %v before: want %v more", got, before[ingress], sent)
		}
	}
	const secondLevel, isolation = "table=16, priority=59983,", "table=17, priority=39000,"
	sends(func() { c.clusterPolicy("a", ofTier("Admin", 7, ofApp("Accept", "near")+", "+ofTeam("Deny", "pink"))) }, secondLevel, true)
	sends(func() { c.withdrawCluster("a") }, secondLevel, false)
	c.policy("red/web", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`)
	c.waitFlow(isolation, true)
	sends(func() { c.must(c.DelPod(t.Context(), web)) }, isolation, false)
	if got := c.settledMetric("n1", egress); got != before[egress] {
		t.Errorf("of egress %v were dropped, want %v", got, before[egress])
	}
}

// waitFlow waits until n1 has a flow that begins so, or none.
func (c *cluster) waitFlow(begins string, there bool) {
	c.t.Helper()
	c.eventually("flow "+begins, policyTime, func() error {
		flows, err := c.tryFlows("n1")
		if has := slices.ContainsFunc(flows, func(f string) bool { return strings.HasPrefix(f, begins) }); err == nil && has != there {
			err = fmt.Errorf("it is there: %t", has)
		}
		return err
	})
}

// TestPolicyFlips: what a change forbids and the next allows, again and again on busy connections, is
// each time what the datapath does: it keeps what it has cached, and changes it in place where it can.
func TestPolicyFlips(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	is := func(pods ...string) rule { return func(from, _ probe.Endpoint) bool { return named(from, pods) } }
	both, one := toRed(is("red/near", "pink/near")), toRed(is("pink/near"))
	c.clusterPolicy("b", ofTier("Admin", 3, ofApp("Accept", "near")))
	c.clusterPolicy("c", ofTier("Admin", 9, ofAll("Deny")))
	c.policy("red/all", `{podSelector: {}, policyTypes: [Ingress]}`)
	c.waitMatrix("those near", policyTime, both)
	run := c.run(probe.Changing(both, one))
	for range 15 {
		for _, to := range []struct {
			app     string
			allowed rule
		}{{"other", one}, {"near", both}} {
			c.traffic(run, 25)
			c.must(c.SetLabels(c.get("red/near"), map[string]string{"app": to.app}))
			c.waitMatrix("app is "+to.app, policyTime, to.allowed)
		}
	}
	if err := run.Stop().Err(); err != nil {
		t.Error(err)
	}
}
