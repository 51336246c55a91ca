package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// becomes changes something under a run of the probe, from a rule to another one, and
// returns when that is in force and seen to be. It says when the change was made.
func (c *cluster) becomes(run *probe.Run, what string, before, after rule, change func()) span {
	c.t.Helper()
	run.SetRule(probe.Changing(before, after))
	c.connected(run, before)
	made := during(what, change)
	c.waitMatrix(what, policyTime, after)
	run.SetRule(probe.Exactly(after))
	c.t.Logf("%s: %s, seen to be in force %s later", made.began.Format("15:04:05.000"), what, time.Since(made.began).Round(time.Millisecond))
	c.traffic(run, 25)
	return made
}

// connected returns when no short connection of those allowed is under way that was begun
// before: each pair has made two more. A change that forbids it would cut it.
func (c *cluster) connected(run *probe.Run, allowed rule) {
	c.t.Helper()
	type pair struct{ from, to string }
	was := map[pair]int{}
	made := func(each func(p pair, n int) error) error {
		for _, f := range run.Report().Flows {
			if f.Protocol == probe.TCP && allowed(f.From, f.To) {
				if err := each(pair{f.From.String(), f.To.String()}, f.Received); err != nil {
					return err
				}
			}
		}
		return nil
	}
	c.must(made(func(p pair, n int) error { was[p] = n; return nil }))
	c.eventually("new connections", time.Minute, func() error {
		return made(func(p pair, n int) error {
			if n < was[p]+2 {
				return fmt.Errorf("%s -> %s: %d of 2", p.from, p.to, n-was[p])
			}
			return nil
		})
	})
}

// judgeAll fails the test when a run has lost anything, or seen anything forbidden. When a running
// pod becomes selected, which is in these spans, answers to what it asked just before are
// answers to nothing: a ping and the making of a connection may be lost then, but no more than two of a pair.
func (c *cluster) judgeAll(run *probe.Run, selected ...span) {
	c.t.Helper()
	rep := run.Stop()
	sent, lost := rep.Sent(), rep.Lost()
	outside := lostOutside(rep, selected, time.Second)
	excused := map[string]int{}
	rep.LostEvents = slices.DeleteFunc(rep.LostEvents, func(e probe.Event) bool {
		if e.Protocol != probe.Ping && e.Protocol != probe.TCP || slices.Contains(outside, e) {
			return false
		}
		flow := fmt.Sprint(e.From, e.To, e.Protocol)
		excused[flow]++
		return excused[flow] <= 2*len(selected)
	})
	if err := rep.Err(); err != nil {
		c.t.Errorf("%v\n%s", err, table(rep))
	}
	c.t.Logf("%d messages, %d lost", sent, lost)
}

// TestPolicyRevoked: who is no longer allowed is cut off, in open TCP connections, in flows of UDP
// and pings; who still is loses nothing, neither by that nor by what else changes: policies,
// labels of pods and namespaces.
func TestPolicyRevoked(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.policyPods()
	near, far, both := toWeb("red/near", "pink/near"), toWeb("red/far", "pink/far"), toWeb("red/near", "pink/near", "red/far", "pink/far")
	c.policy("red/web", onlyApp("near"))
	c.waitMatrix("those near", policyTime, near)
	run := c.run(probe.Exactly(near))
	c.traffic(run, 25)

	c.becomes(run, "those far as well", near, both, func() { c.policy("red/more", onlyApp("far")) })
	c.becomes(run, "those near no longer", both, far, func() { c.withdraw("red/web") })
	c.becomes(run, "those near again", far, both, func() { c.policy("red/web", onlyApp("near")) })
	c.becomes(run, "a policy that says the same", both, both, func() { c.policy("red/same", onlyApp("near")) })
	c.becomes(run, "its end", both, both, func() { c.withdraw("red/same") })

	someNear := toWeb("pink/near", "red/far", "pink/far")
	c.becomes(run, "a pod has another label", both, someNear, func() { c.must(c.SetLabels(c.get("red/near"), map[string]string{"app": "other"})) })
	c.becomes(run, "and the old one again", someNear, both, func() { c.must(c.SetLabels(c.get("red/near"), map[string]string{"app": "near"})) })

	ofTeam := func(team string) string {
		return fmt.Sprintf(`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: %s}}}]}]}`, team)
	}
	pink := toWeb("pink/near", "pink/far")
	c.becomes(run, "a namespace", both, pink, func() {
		c.policy("red/team", ofTeam("pink"))
		c.withdraw("red/web")
		c.withdraw("red/more")
	})
	c.becomes(run, "a namespace has another label", pink, toWeb(), func() { c.labelNamespace("pink", map[string]string{"team": "other"}) })
	c.becomes(run, "and the old one again", toWeb(), pink, func() { c.labelNamespace("pink", map[string]string{"team": "pink"}) })

	c.becomes(run, "the subject has another label", pink, withinTenants, func() { c.must(c.SetLabels(c.get("red/web"), map[string]string{"app": "other"})) })
	again := c.becomes(run, "and the old one again", withinTenants, pink, func() { c.must(c.SetLabels(c.get("red/web"), map[string]string{"app": "web"})) })
	c.becomes(run, "policies deleted", pink, withinTenants, func() { c.withdraw("red/team") })
	made := c.becomes(run, "and made again", withinTenants, pink, func() { c.policy("red/team", ofTeam("pink")) })
	c.becomes(run, "everything denied", pink, func(from, to probe.Endpoint) bool {
		return withinTenants(from, to) && from.Namespace != "red" && to.Namespace != "red"
	}, func() { c.policy("red/all", denyAll); c.withdraw("red/team") })
	c.judgeAll(run, again, made)
}

// conversation is an open TCP connection of a pod to another's port 8080.
type conversation struct{ net.Conn }

func (c *cluster) converse(from, to string) conversation {
	c.t.Helper()
	conn, err := dialFrom(c.get(from), "tcp4", netip.AddrPortFrom(c.get(to).IP, 8080))
	c.must(err)
	c.t.Cleanup(func() { _ = conn.Close() })
	return conversation{conn}
}

// goesOn reports whether what is said comes back, also after TCP has sent it again.
func (c conversation) goesOn(patience time.Duration) bool {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	_, err := c.Read(make([]byte, 100))
	return err == nil
}

// TestPolicyMidstream: a policy comes while connections are open. Those that it allows go on,
// whoever speaks first, and others end.
func TestPolicyMidstream(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.serves(c.get("red/web"), 8080)
	c.serves(c.get("red/far"), 8080)
	allowed, revoked := c.converse("red/near", "red/web"), c.converse("red/far", "red/web")
	outwards := c.converse("red/web", "red/far")
	// The server speaks first: what a subscriber waits for.
	listener, err := ns.ListenTCP(c.get("red/web").Sandbox(), ":9000")
	c.must(err)
	defer func() { _ = listener.Close() }()
	subscriber, err := dialFrom(c.get("red/near"), "tcp4", netip.AddrPortFrom(c.get("red/web").IP, 9000))
	c.must(err)
	defer func() { _ = subscriber.Close() }()
	publisher, err := listener.Accept()
	c.must(err)
	defer func() { _ = publisher.Close() }()

	c.policy("red/web", onlyApp("near"))
	c.waitMatrix("the policy", policyTime, toWeb("red/near", "pink/near"))
	if revoked.goesOn(3 * time.Second) {
		t.Error("a connection of a pod that may not outlives the policy")
	}
	for name, conn := range map[string]conversation{"allowed": allowed, "outwards, which is not restricted,": outwards} {
		if !conn.goesOn(5 * time.Second) {
			t.Errorf("a connection that is %s ended with the policy", name)
		}
	}
	_, err = publisher.Write([]byte("news"))
	c.must(err)
	_ = subscriber.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := subscriber.Read(make([]byte, 10)); err != nil {
		t.Errorf("a subscriber that is allowed hears no more: %v", err)
	}
}

// TestPolicyOneWay: datagrams that nobody answers are not held back, however many come:
// they are one connection, and those are what is bounded.
func TestPolicyOneWay(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{AgentArgs: []string{"--service-connection-rate=100"}})
	c.policyPods()
	c.policy("red/web", onlyApp("far"))
	c.policy("red/far", `{podSelector: {matchLabels: {app: far}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}`)
	c.waitMatrix("both ends isolated", policyTime, toWeb("red/far", "pink/far").and(func(from, to probe.Endpoint) bool {
		return from.String() != "red/far" || to.String() == "red/web"
	}))
	web := c.get("red/web")
	server, err := ns.ListenUDP(web.Sandbox(), netip.AddrPortFrom(web.IP, 514).String())
	c.must(err)
	defer func() { _ = server.Close() }()
	c.must(server.SetReadBuffer(8 << 20))
	const datagrams, pause = 4000, 500 * time.Microsecond
	got := make(chan map[uint32]bool)
	go func() {
		seen, buf := map[uint32]bool{}, make([]byte, 100)
		for len(seen) < datagrams {
			_ = server.SetReadDeadline(time.Now().Add(3 * time.Second))
			n, err := server.Read(buf)
			if err != nil || n != 4 {
				break
			}
			seen[binary.BigEndian.Uint32(buf)] = true
		}
		got <- seen
	}()
	client, err := dialFrom(c.get("red/far"), "udp4", netip.AddrPortFrom(web.IP, 514))
	c.must(err)
	defer func() { _ = client.Close() }()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for i := range uint32(datagrams) {
		_, err := client.Write(binary.BigEndian.AppendUint32(nil, i))
		c.must(err)
		<-tick.C
	}
	if seen := <-got; len(seen) != datagrams {
		t.Errorf("%d of %d datagrams arrived", len(seen), datagrams)
	}
}

// policyConnections are the connections that a node tracks for policies.
func (l *lab) policyConnections(node string) []string {
	l.t.Helper()
	out, err := l.OVS(node).AppCtl(l.t.Context(), "dpctl/dump-conntrack", "zone=65519")
	l.must(err)
	return strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
}

// TestPolicyTracksTheSelected: no connection is tracked for policies between pods that none
// selects, nor after the last one has gone.
func TestPolicyTracksTheSelected(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.policyPods()
	c.policy("red/web", onlyApp("near"))
	allowed := toWeb("red/near", "pink/near")
	c.waitMatrix("red/web selected", policyTime, allowed)
	run := c.run(probe.Exactly(allowed))
	c.traffic(run, 25)
	web := "=" + c.get("red/web").IP.String() + ","
	tracked := c.policyConnections("n1")
	if len(tracked) == 0 {
		t.Error("n1 tracks nothing for the pod that a policy selects")
	}
	for _, e := range tracked {
		if !strings.Contains(e, web) {
			t.Errorf("n1 tracks what is not red/web's: %s", e)
		}
	}
	if other := c.policyConnections("n2"); len(other) > 0 {
		t.Errorf("n2, where no pod is selected, tracks %v", other)
	}
	c.becomes(run, "no policy", allowed, withinTenants, func() { c.withdraw("red/web") })
	c.eventually("nothing is tracked", policyTime, func() error {
		if left := c.policyConnections("n1"); len(left) > 0 {
			return fmt.Errorf("%d connections: %v", len(left), left[0])
		}
		return nil
	})
	c.judgeAll(run)
}

// TestPolicyAddressReused: a pod has the address that another one had, which was allowed: it
// is not allowed for that, from its first packet on.
func TestPolicyAddressReused(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{HostSubnetLength: 3})
	c.labelled("n2", "red/web", "web")
	c.labelled("n1", "red/near", "near")
	c.policy("red/web", onlyApp("near"))
	var others []string
	for i := 0; ; i++ { // until the subnet has no other address
		name := fmt.Sprintf("red/other%d", i)
		if _, err := c.tryLabelled("n1", name, "other"); err != nil {
			if !strings.Contains(err.Error(), "address") {
				t.Fatal(err)
			}
			break
		}
		others = append(others, name)
	}
	allowed := toWeb("red/near")
	c.waitMatrix("red/near allowed", policyTime, allowed)
	was := c.get("red/near")
	c.must(c.DelPod(t.Context(), was))
	var p netlab.Pod
	c.eventuallyEach(200*time.Millisecond, "the address is given out again", time.Minute, func() (err error) {
		p, err = c.tryLabelled("n1", "red/late", "other")
		return err
	})
	if p.IP != was.IP {
		t.Fatalf("%s has %s, not %s: the subnet was to be full of %v", p, p.IP, was.IP, others)
	}
	c.requireMatrix("the same address for another pod", allowed)
	c.must(c.SetLabels(p, map[string]string{"app": "near"}))
	c.waitMatrix("and now it is allowed", policyTime, toWeb("red/late"))
}
