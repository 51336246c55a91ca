package main

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// kind is what is done: an action of people and runtimes, or a fault.
type kind string

// The actions.
const (
	addPod      kind = "pod added"
	deletePod   kind = "pod deleted"
	loseNetns   kind = "pod deleted whose network namespace is gone"
	forgetPod   kind = "pod gone without DEL, then GC"
	join        kind = "join"
	isolate     kind = "isolate"
	makeGlobal  kind = "global"
	putPolicy   kind = "policy made or changed"
	takePolicy  kind = "policy deleted"
	label       kind = "label changed"
	limit       kind = "limits changed"
	putService  kind = "service made or changed"
	takeService kind = "service deleted"
)

// decision is one thing that a run does. It says all of it: what it does to the model and to the world follows
// from it alone.
type decision struct {
	kind kind
	// pause is how long nothing else is begun before it; lasts is how long a fault does.
	pause, lasts time.Duration

	node, namespace, target string
	pod                     pod
	policy                  policy
	// network is the number of a new one.
	network int
	// limits are a pod's annotations.
	limits map[string]string
	// app is a label's new value, or that of a service's endpoints.
	app string
}

func (d *decision) String() string {
	what := string(d.kind)
	switch d.kind {
	case addPod, deletePod, loseNetns, forgetPod:
		what += fmt.Sprintf(": %s on %s", d.pod, d.pod.node)
	case join:
		what += fmt.Sprintf(": %s with %s", d.namespace, d.target)
	case isolate, makeGlobal, takeService:
		what += ": " + d.namespace
	case putPolicy:
		what += fmt.Sprintf(": %s %s", d.policy, d.policy.says())
	case takePolicy:
		what += ": " + d.policy.String()
	case label:
		what += fmt.Sprintf(": %s is app=%s", d.pod, d.app)
	case limit:
		what += fmt.Sprintf(": %s %v", d.pod, d.limits)
	case putService:
		what += fmt.Sprintf(": of %s, app=%s", d.namespace, d.app)
	default:
		what += " on " + d.node
		if faults[d.kind].end != nil {
			what += fmt.Sprintf(" for %s", d.lasts)
		}
	}
	return what
}

// changesNetwork says that it is a tenant change.
func (d *decision) changesNetwork() bool {
	return d.kind == join || d.kind == isolate || d.kind == makeGlobal
}

// moves says whether it changes who may talk to whom among pods that were there before.
func (d *decision) moves() bool {
	return d.changesNetwork() || d.kind == putPolicy || d.kind == takePolicy || d.kind == label
}

// apply does it to a state.
func (d *decision) apply(s *state) {
	switch d.kind {
	case addPod:
		s.pods[d.pod.String()] = d.pod
	case deletePod, loseNetns, forgetPod:
		delete(s.pods, d.pod.String())
	case join:
		s.networks[d.namespace] = s.networks[d.target]
	case isolate:
		s.networks[d.namespace] = d.network
		s.made = max(s.made, d.network)
	case makeGlobal:
		s.networks[d.namespace] = global
	case putPolicy:
		s.policies[d.policy.String()] = d.policy
	case takePolicy:
		delete(s.policies, d.policy.String())
	case label:
		if p, there := s.pods[d.pod.String()]; there {
			p.app = d.app
			s.pods[d.pod.String()] = p
		}
	case putService:
		s.services[d.namespace] = d.app
	case takeService:
		delete(s.services, d.namespace)
	}
}

// What is drawn from: few, so that what is drawn meets.
var (
	namespaces = []string{"red", "green", "blue", "gray"}
	apps       = []string{"a", "b", "c"}
)

const (
	// fewestPods and mostPods are how many there are between rounds.
	fewestPods, mostPods = 9, 15
	// mostPolicies keeps enough pods talking.
	mostPolicies = 3
	// mostMoves bounds what may be half done at a time: the model looks at all of its 2^n states.
	mostMoves = 5
	// longestPause is between two decisions; most faults last up to longestFault.
	longestPause, longestFault = 700 * time.Millisecond, 6 * time.Second
)

// draw draws decisions.
type draw struct {
	*rand.Rand
	nodes []string
	s     state // with all that was decided
	// plan is what was decided in this round, moves how much of it moves.
	plan  []*decision
	moves int
	// new are pods that were added in this round, broken the nodes that have a fault.
	new    map[string]bool
	broken map[string]bool
}

func one[T any](d *draw, of ...T) T { return of[d.IntN(len(of))] }

// some is a time up to most.
func (d *draw) some(most time.Duration) time.Duration {
	return time.Duration(d.Int64N(int64(most))).Round(time.Millisecond)
}

// begin are the decisions by which a run's cluster comes about: its first pods.
func begin(seed uint64, nodes []string, s state) []*decision {
	d := newDraw(seed, 0, nodes, s)
	for range (fewestPods + mostPods) / 2 {
		d.addPod()
	}
	for _, p := range d.plan {
		p.pause = 0
	}
	return d.plan
}

// round are the decisions of a round, from 1. They follow from the seed, the number of the round and the state before
// it, which follows from the rounds before: never from the time that anything took.
func round(seed uint64, number int, nodes []string, s state) []*decision {
	d := newDraw(seed, number, nodes, s)
	var draws []func()
	add := func(n int, f func()) {
		for range n {
			draws = append(draws, f)
		}
	}
	add(1+d.IntN(2), d.nodeFault)
	add(d.IntN(2), d.clusterFault)
	add(d.IntN(3), d.addPod)
	add(d.IntN(3), d.removePod)
	add(1+d.IntN(2), d.tenantChange)
	add(d.IntN(2), d.policyChange)
	add(d.IntN(2), d.label)
	add(d.IntN(2), d.limit)
	add(d.IntN(2), d.service)
	d.Shuffle(len(draws), func(i, j int) { draws[i], draws[j] = draws[j], draws[i] })
	for _, f := range draws {
		f()
	}
	return d.plan
}

func newDraw(seed uint64, number int, nodes []string, s state) *draw {
	return &draw{Rand: rand.New(rand.NewPCG(seed, uint64(number))), nodes: nodes, s: s.clone(), new: map[string]bool{}, broken: map[string]bool{}}
}

// decide takes a decision.
func (d *draw) decide(what *decision) {
	if what.moves() {
		if d.moves == mostMoves {
			return
		}
		d.moves++
	}
	what.pause = d.some(longestPause)
	what.apply(&d.s)
	d.plan = append(d.plan, what)
}

func (d *draw) addPod() {
	if len(d.s.pods) >= mostPods {
		return
	}
	p := pod{namespace: one(d, namespaces...), node: one(d, d.nodes...), app: one(d, apps...)}
	// The number is the plan's own, so that names do not depend on what else was made.
	for n := len(d.s.pods); ; n++ {
		p.name = fmt.Sprint("p", n)
		if _, there := d.s.pods[p.String()]; !there && !d.named(p) {
			break
		}
	}
	d.new[p.String()] = true
	d.decide(&decision{kind: addPod, pod: p})
}

// named says that a pod of this name was removed in this round: it may still be there.
func (d *draw) named(p pod) bool {
	return slices.ContainsFunc(d.plan, func(o *decision) bool { return o.pod.String() == p.String() })
}

// old is one of the pods that were there before this round; false where there is none.
func (d *draw) old() (pod, bool) {
	pods := slices.DeleteFunc(d.s.named(), func(p pod) bool { return d.new[p.String()] })
	if len(pods) == 0 {
		return pod{}, false
	}
	return one(d, pods...), true
}

func (d *draw) removePod() {
	if p, there := d.old(); there && len(d.s.pods) > fewestPods {
		d.decide(&decision{kind: one(d, deletePod, deletePod, loseNetns, forgetPod), pod: p})
	}
}

func (d *draw) tenantChange() {
	namespace, target := one(d, namespaces...), one(d, namespaces...)
	own := d.s.networks[namespace]
	shared := slices.ContainsFunc(namespaces, func(other string) bool { return other != namespace && d.s.networks[other] == own })
	switch what := d.IntN(10); {
	case what < 1 && own != global:
		d.decide(&decision{kind: makeGlobal, namespace: namespace})
	case what < 5 && (own == global || shared):
		d.decide(&decision{kind: isolate, namespace: namespace, network: d.s.next()})
	case d.s.networks[target] != own && d.s.networks[target] != global:
		d.decide(&decision{kind: join, namespace: namespace, target: target})
	}
}

func (d *draw) policyChange() {
	names := slices.Sorted(maps.Keys(d.s.policies))
	if len(names) > 0 && (len(names) >= mostPolicies || d.IntN(3) == 0) {
		d.decide(&decision{kind: takePolicy, policy: d.s.policies[one(d, names...)]})
		return
	}
	p := policy{namespace: one(d, namespaces...), name: one(d, "x", "y"), app: one(d, append(apps, "")...)}
	switch d.IntN(3) {
	case 0:
		p.ingress = d.side()
	case 1:
		p.egress = d.side()
	default:
		p.ingress, p.egress = d.side(), d.side()
	}
	d.decide(&decision{kind: putPolicy, policy: p})
}

func (d *draw) side() side {
	s := side{isolates: true}
	for range d.IntN(3) {
		s.rules = append(s.rules, rule{
			namespace: one(d, append(namespaces, "", anyNamespace, anyNamespace)...),
			app:       one(d, append(apps, "", "")...),
			transport: one(d, "", "", "UDP", "TCP"),
		})
	}
	return s
}

func (d *draw) label() {
	if p, there := d.old(); there {
		d.decide(&decision{kind: label, pod: p, app: one(d, apps...)})
	}
}

// limits are above what the probe sends, so that nothing may be lost by them.
var limits = []string{"20M", "40M", "100M"}

func (d *draw) limit() {
	p, there := d.old()
	if !there {
		return
	}
	annotations := map[string]string{}
	for _, direction := range []string{"ingress", "egress"} {
		if d.IntN(2) == 0 {
			annotations["kubernetes.io/"+direction+"-bandwidth"] = one(d, limits...)
		}
	}
	d.decide(&decision{kind: limit, pod: p, limits: annotations})
}

func (d *draw) service() {
	namespace := one(d, namespaces...)
	if _, there := d.s.services[namespace]; there && d.IntN(3) == 0 {
		d.decide(&decision{kind: takeService, namespace: namespace})
		return
	}
	d.decide(&decision{kind: putService, namespace: namespace, app: one(d, apps...)})
}

// nodeFault breaks a node that has no fault yet.
func (d *draw) nodeFault() {
	whole := slices.DeleteFunc(slices.Clone(d.nodes), func(n string) bool { return d.broken[n] })
	if len(whole) == 0 {
		return
	}
	node := one(d, whole...)
	d.broken[node] = true
	d.fault(one(d, kindsOf(ofNode)...), node)
}

// clusterFault breaks what all nodes share.
func (d *draw) clusterFault() {
	d.fault(one(d, kindsOf(ofCluster)...), "all nodes")
}

func (d *draw) fault(k kind, node string) {
	d.decide(&decision{kind: k, node: node, lasts: d.some(cmp.Or(faults[k].longest, longestFault))})
}
