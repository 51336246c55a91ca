package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// global is the network of namespaces that reach all and are reached by all.
const global = 0

// pod is one that should be there. Its address is the world's to choose.
type pod struct {
	namespace, name, node string
	// app is the value of its label.
	app string
}

func (p pod) String() string { return p.namespace + "/" + p.name }

// state is what the cluster should be. It says who may talk to whom by itself: nothing of the programs
// under test is asked.
type state struct {
	// networks are the namespaces': those with the same number reach each other.
	networks map[string]int
	pods     map[string]pod
	policies map[string]policy
	// services are the values of the label app of their endpoints, by namespace: each has at most one.
	services map[string]string
	// made counts what was made, for names that nothing had before.
	made int
}

func newState(namespaces []string) state {
	s := state{networks: map[string]int{}, pods: map[string]pod{}, policies: map[string]policy{}, services: map[string]string{}}
	for _, name := range namespaces {
		s.networks[name] = s.next()
	}
	return s
}

// next is a number that was not given before.
func (s *state) next() int { s.made++; return s.made }

func (s state) clone() state {
	s.networks, s.pods = maps.Clone(s.networks), maps.Clone(s.pods)
	s.policies, s.services = maps.Clone(s.policies), maps.Clone(s.services)
	return s
}

// joined says whether two namespaces may talk.
func (s state) joined(a, b string) bool {
	x, y := s.networks[a], s.networks[b]
	return x == y || x == global || y == global
}

// allows says whether one pod may reach another by a protocol: the networks of their namespaces let it, and
// the policies of both. A policy judges the connection, so answers go with what they answer.
func (s state) allows(from, to pod, p probe.Protocol) bool {
	return s.joined(from.namespace, to.namespace) &&
		s.permits(from, to, p, func(p policy) side { return p.egress }) &&
		s.permits(to, from, p, func(p policy) side { return p.ingress })
}

// permits says whether the policies about subject let it meet peer in one direction.
func (s state) permits(subject, peer pod, p probe.Protocol, direction func(policy) side) bool {
	isolated := false
	for _, policy := range s.policies {
		side := direction(policy)
		if !policy.selects(subject) || !side.isolates {
			continue
		}
		isolated = true
		if slices.ContainsFunc(side.rules, func(r rule) bool { return r.allows(subject.namespace, peer, p) }) {
			return true
		}
	}
	return !isolated
}

// policy is a NetworkPolicy of the few kinds that are drawn.
type policy struct {
	namespace, name string
	// app chooses pods by their label; empty for all.
	app             string
	ingress, egress side
}

func (p policy) String() string { return p.namespace + "/" + p.name }

// says is all of it.
func (p policy) says() string {
	return fmt.Sprintf("app=%s ingress=%+v egress=%+v", p.app, p.ingress, p.egress)
}

func (p policy) selects(subject pod) bool {
	return subject.namespace == p.namespace && (p.app == "" || p.app == subject.app)
}

// side is one direction of a policy.
type side struct {
	isolates bool
	rules    []rule
}

// rule allows some peers, by one protocol or by all.
type rule struct {
	// namespace is that of the peers: empty for the policy's own, anyNamespace for all.
	namespace string
	// app chooses peers by their label; empty for all.
	app string
	// transport is UDP or TCP; empty for all, pings among them.
	transport string
}

const anyNamespace = "*"

func (r rule) allows(own string, peer pod, p probe.Protocol) bool {
	switch r.namespace {
	case anyNamespace:
	case "":
		if peer.namespace != own {
			return false
		}
	default:
		if peer.namespace != r.namespace {
			return false
		}
	}
	return (r.app == "" || r.app == peer.app) && (r.transport == "" || r.transport == transport(p))
}

// transport is what carries a protocol of the probe.
func transport(p probe.Protocol) string {
	switch p {
	case probe.UDP:
		return "UDP"
	case probe.TCP, probe.HTTP, probe.Stream:
		return "TCP"
	}
	return "ICMP"
}

// model is what the world may be now: what is settled, and any of what was changed after that.
type model struct {
	settled state
	// pending are the changes of who may talk to whom that may be in force somewhere, or not yet, in the
	// order in which they were made. All other changes are in settled at once.
	pending []*decision
}

// now is the state that the world comes to.
func (m *model) now() state {
	s := m.settled.clone()
	for _, d := range m.pending {
		d.apply(&s)
	}
	return s
}

// change makes a change that the world has not taken up yet.
func (m *model) change(d *decision) {
	if d.moves() {
		m.pending = append(m.pending, d)
		return
	}
	d.apply(&m.settled)
}

// settle says that the world has taken up all changes.
func (m *model) settle() { m.settled, m.pending = m.now(), nil }

// settleOne says that it has taken up one, unless one that it builds on is pending.
func (m *model) settleOne(d *decision) {
	for i, other := range m.pending {
		if other == d {
			d.apply(&m.settled)
			m.pending = slices.Delete(m.pending, i, i+1)
			return
		}
		if other.changesNetwork() {
			return
		}
	}
}

// possible are all states in which the world may be: whichever of the pending changes are in force. A
// node that was away while others changed has only some of them.
func (m *model) possible() []state {
	states := []state{m.settled.clone()}
	for _, d := range m.pending {
		for _, s := range states[:len(states):len(states)] {
			with := s.clone()
			d.apply(&with)
			states = append(states, with)
		}
	}
	return states
}

// rule says what must arrive, which every possible state allows, and what may, which some state allows.
func (m *model) rule(p probe.Protocol) probe.Rule {
	possible := m.possible()
	allowed := func(s state, from, to probe.Endpoint) bool {
		return s.allows(s.pods[from.String()], s.pods[to.String()], p)
	}
	return probe.Rule{
		Must: func(from, to probe.Endpoint) bool {
			return !slices.ContainsFunc(possible, func(s state) bool { return !allowed(s, from, to) })
		},
		May: func(from, to probe.Endpoint) bool {
			return slices.ContainsFunc(possible, func(s state) bool { return allowed(s, from, to) })
		},
	}
}

// named are the pods in the order of their names.
func (s state) named() []pod {
	return slices.SortedFunc(maps.Values(s.pods), func(a, b pod) int { return strings.Compare(a.String(), b.String()) })
}

// String is the state for people who look for what went wrong.
func (s state) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.networks)) {
		fmt.Fprintf(&b, "namespace %s: network %d", name, s.networks[name])
		if app, there := s.services[name]; there {
			fmt.Fprintf(&b, ", its service has the pods app=%s", app)
		}
		b.WriteString("\n")
	}
	for _, p := range s.named() {
		fmt.Fprintf(&b, "pod %s on %s, app=%s\n", p, p.node, p.app)
	}
	for _, name := range slices.Sorted(maps.Keys(s.policies)) {
		fmt.Fprintf(&b, "policy %s %s\n", name, s.policies[name].says())
	}
	return b.String()
}
