package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// tenantChange is one that somebody asks for.
type tenantChange struct {
	action, namespace, target string
	// own is the network that isolate gives.
	own string
}

func (c tenantChange) args() []string {
	if c.action == "join" {
		return []string{"join", c.namespace, c.target}
	}
	return []string{c.action, c.namespace}
}

// after is what becomes of the tenants by it.
func (c tenantChange) after(now tenants) tenants {
	switch c.action {
	case "join":
		return now.with(c.namespace, now[c.target])
	case "global":
		return now.with(c.namespace, "0")
	}
	if now.alone(c.namespace) {
		return now
	}
	return now.with(c.namespace, c.own)
}

// outcomes are what may become of the tenants by it when others are under way that were begun before it. Who is alone because
// others leave just now is isolated all the same: they have not left its netID on all nodes.
func (c tenantChange) outcomes(begun, now tenants) []tenants {
	if c.action == "isolate" && now.alone(c.namespace) && !begun.alone(c.namespace) {
		return []tenants{now, now.with(c.namespace, c.own)}
	}
	return []tenants{c.after(now)}
}

// alone says that nobody else is in a namespace's network.
func (ts tenants) alone(namespace string) bool {
	for other, network := range ts {
		if other != namespace && network == ts[namespace] {
			return false
		}
	}
	return ts[namespace] != "0"
}

// drawChanges draws changes of different namespaces, each of which would change something now. Few make global, which hides what
// others do. own names networks.
func drawChanges(random *rand.Rand, now tenants, names []string, n int, own func() string) (drawn []tenantChange) {
	order := random.Perm(len(names))
	for _, i := range order[:n] {
		c := tenantChange{namespace: names[i], own: own()}
		for {
			c.target = names[random.IntN(len(names))]
			c.action = []string{"join", "join", "join", "join", "isolate", "isolate", "isolate", "global"}[random.IntN(8)]
			byJoin := c.action == "join" && now[c.target] == "0"
			if c.target != c.namespace && !byJoin && !cmp.Equal(c.after(now), now) {
				break
			}
		}
		drawn = append(drawn, c)
	}
	return drawn
}

// possibleState is one in which the tenants may be while changes are under way: some are made.
type possibleState struct {
	now  tenants
	made []bool
}

// possibleStates are all of them. The changes were asked for at once, so in any order: who joins a namespace that leaves its
// network gets the old one or the new one.
type possibleStates []possibleState

func possibleFrom(now tenants, begun []tenantChange) possibleStates {
	states := possibleStates{{now, make([]bool, len(begun))}}
	for i := 0; i < len(states); i++ {
		for n, c := range begun {
			if !states[i].made[n] {
				made := slices.Clone(states[i].made)
				made[n] = true
				for _, after := range c.outcomes(now, states[i].now) {
					states = append(states, possibleState{after, made})
				}
			}
		}
	}
	return states
}

// with are those in which a change is made.
func (p possibleStates) with(n int) possibleStates {
	return slices.DeleteFunc(slices.Clone(p), func(s possibleState) bool { return !s.made[n] })
}

// rule demands what every state allows, and permits what any does.
func (p possibleStates) rule(allowed func(now tenants, from, to probe.Endpoint) bool) probe.Rule {
	return probe.Rule{
		Must: func(from, to probe.Endpoint) bool {
			return !slices.ContainsFunc(p, func(s possibleState) bool { return !allowed(s.now, from, to) })
		},
		May: func(from, to probe.Endpoint) bool {
			return slices.ContainsFunc(p, func(s possibleState) bool { return allowed(s.now, from, to) })
		},
	}
}

// sight is what nodes know: the tenants as they are, but for a node that is cut off, which knows those of then.
type sight struct {
	cutOff string
	then   tenants
}

func (s sight) of(node string, now tenants) tenants {
	if s.cutOff != "" && node == s.cutOff {
		return s.then
	}
	return now
}

// direct says who may reach whom. The sender's node says which network a packet is from, the receiver's which it takes:
// docs/tenant-changes.md, "what a node that is cut off knows".
func (s sight) direct(now tenants, from, to probe.Endpoint) bool {
	a, b := s.of(from.Node, now)[from.Namespace], s.of(to.Node, now)[to.Namespace]
	return a == b || a == "0" || b == "0"
}

// service says who may reach whom through a service of the receiver's namespace, which the sender's node looks up.
func (s sight) service(now tenants, from, to probe.Endpoint) bool {
	return s.of(from.Node, now).allowed(from, to) && s.direct(now, from, to)
}

// networks are the netIDs that networks of the model turned out to have.
type networks map[string]int64

// learn takes in what netIDs namespaces have. False, and nothing is learned, where that is not how the model has it: a network
// has one netID, which no other has or had.
func (n networks) learn(now tenants, have map[string]int64) bool {
	learned, of := networks{"0": 0}, map[int64]string{0: "0"}
	for network, id := range n {
		learned[network], of[id] = id, network
	}
	for namespace, network := range now {
		id, there := have[namespace]
		known, isKnown := learned[network]
		other, isTaken := of[id]
		if !there || isKnown && known != id || isTaken && other != network {
			return false
		}
		learned[network], of[id] = id, network
	}
	for network, id := range learned {
		n[network] = id
	}
	return true
}

// TestChangeModel: what becomes of the tenants by changes that are under way at once.
func TestChangeModel(t *testing.T) {
	leave := tenantChange{action: "isolate", namespace: "red", own: "r"}
	for _, c := range []struct {
		name   string
		now    tenants
		second tenantChange
		want   []tenants
	}{
		{
			"blue follows red to its new network, or is first and is with green",
			tenants{"red": "x", "green": "x", "blue": "b"}, tenantChange{action: "join", namespace: "blue", target: "red"},
			[]tenants{{"red": "r", "green": "x", "blue": "r"}, {"red": "r", "green": "x", "blue": "x"}},
		},
		{
			"of two that leave each other, who is second is alone already, or leaves a netID that is still in use",
			tenants{"red": "x", "green": "x"}, tenantChange{action: "isolate", namespace: "green", own: "g"},
			[]tenants{{"red": "r", "green": "x"}, {"red": "r", "green": "g"}, {"red": "x", "green": "g"}, {"red": "r", "green": "g"}},
		},
	} {
		var got []tenants
		for _, s := range possibleFrom(c.now, []tenantChange{leave, c.second}).with(0).with(1) {
			got = append(got, s.now)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestChangeRules: who must and who may be heard while changes are under way, and while a node is cut off.
func TestChangeRules(t *testing.T) {
	at := func(node, namespace string) probe.Endpoint {
		return probe.Endpoint{Namespace: namespace, Name: "on-" + node, Node: node}
	}
	from := []probe.Endpoint{at("n1", "red"), at("n1", "green"), at("n1", "blue"), at("n1", "outsider")}
	to := append(slices.Clone(from), at("n2", "red"), at("n2", "green"))
	said := func(rule func(from, to probe.Endpoint) bool) (pairs []string) {
		for _, a := range from {
			for _, b := range to {
				if a.Namespace != b.Namespace && rule(a, b) {
					pairs = append(pairs, fmt.Sprintf("%s>%s@%s", a.Namespace, b.Namespace, b.Node))
				}
			}
		}
		return pairs
	}
	joined := tenants{"red": "x", "green": "x", "blue": "b", "outsider": "o"}
	followed := tenants{"red": "r", "green": "x", "blue": "r", "outsider": "o"}
	both := possibleFrom(joined, []tenantChange{{action: "isolate", namespace: "red", own: "r"}, {action: "join", namespace: "blue", target: "red"}})
	cut := sight{cutOff: "n2", then: joined}
	// What red and blue have on n1 is new to n2; what green has there is taken as before.
	taken := []string{"red>blue@n1", "green>red@n2", "blue>red@n1"}
	for _, c := range []struct {
		name      string
		rule      probe.Rule
		must, may []string
	}{
		{"both are under way", both.rule(sight{}.direct), nil, []string{
			"red>green@n1", "red>blue@n1", "red>green@n2", "green>red@n1", "green>blue@n1", "green>red@n2",
			"blue>red@n1", "blue>green@n1", "blue>red@n2", "blue>green@n2",
		}},
		{"n2 is cut off", possibleFrom(followed, nil).rule(cut.direct), taken, taken},
		{"n2 is cut off, through services", possibleFrom(followed, nil).rule(cut.service), []string{"red>blue@n1", "blue>red@n1"}, []string{"red>blue@n1", "blue>red@n1"}},
	} {
		if diff := cmp.Diff(c.must, said(c.rule.Must)); diff != "" {
			t.Errorf("%s: demanded (-want +got):\n%s", c.name, diff)
		}
		if diff := cmp.Diff(c.may, said(c.rule.May)); diff != "" {
			t.Errorf("%s: permitted (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestNetworksLearn: a network has one netID, which no other has.
func TestNetworksLearn(t *testing.T) {
	now, n := tenants{"red": "r", "green": "x", "blue": "r"}, networks{}
	for _, c := range []struct {
		have map[string]int64
		ok   bool
	}{
		{map[string]int64{"red": 11, "green": 10}, false},
		{map[string]int64{"red": 11, "green": 10, "blue": 11}, true},
		{map[string]int64{"red": 12, "green": 10, "blue": 12}, false}, // another than before
		{map[string]int64{"red": 11, "green": 11, "blue": 11}, false},
		{map[string]int64{"red": 11, "green": 0, "blue": 11}, false},
	} {
		if got := n.learn(now, c.have); got != c.ok {
			t.Errorf("learn(%v) = %v", c.have, got)
		}
	}
}
