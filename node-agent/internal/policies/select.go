package policies

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Pod is a pod of this node, as its attachment has it.
type Pod struct {
	Namespace, Name string
	// UID is the pod's as the runtime said it; empty where it did not.
	UID string
	// Address is its IPv4 address.
	Address netip.Addr
}

// key is the pod's name.
func (p Pod) key() policy.Key { return policy.Key{Namespace: p.Namespace, Name: p.Name} }

// pod is what is known of one.
type pod struct {
	Pod
	// labels count once they were seen; a pod without is selected by every policy of its
	// namespace.
	labels   map[string]string
	labelled bool
	// pending are its labels, where they are others since the time that it has: they count
	// once the sets were read that they make needed.
	pending map[string]string
	since   time.Time
	// fresh is that it came since its namespace's policies changed: it follows the newest
	// at once, as it has no connections that could be lost.
	fresh bool
	// loaded is that it was there before the agent started.
	loaded bool
	// selected is what selects it; given is what its flows were told of it, once told.
	selected selection
	given    pipeline.PodPolicy
	told     bool
	// tracked is that the switch may know connections of it: it was selected, and they were
	// not forgotten since.
	tracked bool
	// midstream is until when its flows let through what belongs to no connection.
	midstream time.Time
	// asked numbers the newest change that concerns it.
	asked uint64
}

// policy is what its flows are to be told.
func (p *pod) policy(now time.Time) pipeline.PodPolicy {
	out := p.selected.PodPolicy
	out.Midstream = out.Selected() && now.Before(p.midstream)
	return out
}

// selection is which policies isolate a pod, and which ClusterNetworkPolicies are about it, by
// their names in order.
type selection struct {
	pipeline.PodPolicy
	ingress, egress, cluster []string
}

// isolation is which pods of a namespace are isolated, and which way.
type isolation []isolating

type isolating struct {
	topology.IsolatingPolicy
	matches func(labels map[string]string) bool
}

// isolationOf is a record of a namespace, ready to be asked.
func isolationOf(r topology.Isolation) isolation {
	var out isolation
	for _, p := range r.Policies {
		out = append(out, isolating{p, policy.Selector(p.Selector).Matcher()})
	}
	return out
}

// unreadable is the isolation of a namespace whose record cannot be read.
func unreadable() isolation {
	return isolation{{topology.IsolatingPolicy{Name: "(unreadable)", Ingress: true, Egress: true}, func(map[string]string) bool { return true }}}
}

// of is what selects a pod.
func (list isolation) of(p *pod) (s selection) {
	for _, i := range list {
		if p.labelled && !i.matches(p.labels) {
			continue
		}
		if i.Ingress {
			s.Ingress, s.ingress = true, append(s.ingress, i.Name)
		}
		if i.Egress {
			s.Egress, s.egress = true, append(s.egress, i.Name)
		}
	}
	return s
}

// names reports whether a policy is in the list.
func (list isolation) names(policy string) bool {
	return slices.ContainsFunc(list, func(i isolating) bool { return i.Name == policy })
}

// space is a namespace with pods here.
type space struct {
	pods map[netip.Addr]*pod
	// newest is what its record says, at that place; force is what counts for pods that run:
	// the same once its policies are as new, or late is over.
	newest, force isolation
	at            place
	// late is since when newest is not in force; zero where it is.
	late time.Time
	// policies are those that were read, at the place readAt; read is that they were. Those
	// in gone are not there any more, and stay for as long as pods are isolated by them.
	policies map[string]*rules
	gone     map[string]bool
	// olds are those that have another beside them: see rules.
	olds   map[string]bool
	readAt place
	read   bool
	// subjects are the newest of ClusterNetworkPolicies, inForce those that count: see cluster.
	subjects, inForce subjects
}

// place is a revision of etcd, which counts within one listing.
type place struct {
	listing  int
	revision int64
}

// rules is a policy of a namespace.
type rules struct {
	policy.Policy
	record  topology.PolicyRecord
	matches func(labels map[string]string) bool
	// sets are the hashes of those whose members decide what it allows.
	sets []string
	// pods are those here that it is about: all are that whose labels nobody knows.
	pods map[netip.Addr]bool
	// was is what the policy was until since, where that counts as well: until the sets that
	// it names now were read, so that what both allow goes on.
	was   *rules
	since time.Time
}

// rulesOf is the policy whose record this is, for the pods of its namespace.
func rulesOf(key policy.Key, r topology.PolicyRecord, pods map[netip.Addr]*pod) *rules {
	p := policy.FromRecord(key, r)
	out := &rules{Policy: p, record: r, matches: p.Subject.Matcher(), pods: map[netip.Addr]bool{}}
	for _, s := range p.Sets() {
		out.sets = append(out.sets, s.Hash())
	}
	for _, one := range pods {
		out.take(one)
	}
	return out
}

// take notes whether the policy is about a pod, and reports whether it is or was.
func (r *rules) take(one *pod) bool {
	is, was := !one.labelled || r.matches(one.labels), r.pods[one.Address]
	if is {
		r.pods[one.Address] = true
	} else {
		delete(r.pods, one.Address)
	}
	return is || was
}

// learn takes in what the view has of the namespace called name, and returns the policies
// that may come to something else now.
func (s *space) learn(name string, v store.PolicyView, now time.Time) (changed []string) {
	changed = s.learnIsolation(name, v, now)
	read, ok := v.Policies[name]
	at := place{v.Listing, read.Revision}
	if !ok || s.read && s.readAt == at {
		return changed
	}
	s.read, s.readAt = true, at
	for n, r := range read.Policies {
		delete(s.gone, n)
		if have, ok := s.policies[n]; !ok || !reflect.DeepEqual(have.record, r) {
			fresh := rulesOf(policy.Key{Namespace: name, Name: n}, r, s.pods)
			if ok {
				have.was = nil
				fresh.was, fresh.since, s.olds[n] = have, now, true
			}
			s.policies[n] = fresh
			changed = append(changed, n)
		}
	}
	for n := range s.policies {
		_, there := read.Policies[n]
		_, broken := read.Invalid[n]
		switch {
		case there:
		case broken || !s.newest.names(n) && !s.force.names(n):
			delete(s.policies, n)
			changed = append(changed, n)
		default:
			s.gone[n] = true
		}
	}
	return changed
}

// learnIsolation takes in the namespace's record.
func (s *space) learnIsolation(name string, v store.PolicyView, now time.Time) (changed []string) {
	iso, ok := v.Isolation[name]
	_, broken := v.Invalid[isolationKey+name]
	at := place{v.Listing, iso.Revision}
	if broken {
		at.revision = -1
	}
	if s.at == at {
		return nil
	}
	before := s.newest
	switch {
	case broken:
		s.newest = unreadable()
	case ok:
		s.newest = isolationOf(iso.Value)
	default:
		s.newest = nil
	}
	s.at = at
	if s.late.IsZero() && !same(s.newest, s.force) {
		s.late = now
	}
	for n := range s.policies {
		if before.names(n) != s.newest.names(n) {
			changed = append(changed, n)
		}
	}
	return changed
}

// isolationKey begins the keys of records of isolation in [store.PolicyView].
const isolationKey = "isolation/"

func same(a, b isolation) bool {
	return slices.EqualFunc(a, b, func(x, y isolating) bool { return x.IsolatingPolicy == y.IsolatingPolicy })
}

// settle puts the newest in force, where it has come or was waited for long enough: isolation
// once the policies are as new and their sets were read, and policies in place of what they
// were. It returns the policies that may come to something else now.
func (s *space) settle(now time.Time, members map[string]setMembers) (changed []string) {
	for n := range s.olds {
		if r := s.policies[n]; r == nil || r.was == nil || r.come(members) || !now.Before(r.since.Add(policiesLate)) {
			if r != nil {
				r.was = nil
			}
			delete(s.olds, n)
			changed = append(changed, n)
		}
	}
	if s.late.IsZero() || now.Before(s.late.Add(policiesLate)) && !(s.caughtUp() && s.come(members)) {
		return changed
	}
	for n := range s.policies {
		if s.force.names(n) != s.newest.names(n) {
			changed = append(changed, n)
		}
	}
	s.force, s.late = s.newest, time.Time{}
	for n := range s.gone {
		if !s.force.names(n) {
			delete(s.policies, n)
			delete(s.gone, n)
			changed = append(changed, n)
		}
	}
	return changed
}

// come reports whether the sets that a policy names were read.
func (r *rules) come(members map[string]setMembers) bool {
	return !late(r.sets, members)
}

// come reports whether those were read that the policies of the newest isolation name, as far as
// they are about pods here.
func (s *space) come(members map[string]setMembers) bool {
	for n, r := range s.policies {
		if s.newest.names(n) && len(r.pods) > 0 && !r.come(members) {
			return false
		}
	}
	return true
}

// caughtUp reports whether the policies are as new as the isolation. A record that is gone
// has no revision: its policies went with it.
func (s *space) caughtUp() bool {
	switch {
	case !s.read || s.at.listing != s.readAt.listing:
		return false
	case s.at.revision == 0:
		return len(s.gone) == len(s.policies)
	}
	return s.at.revision > 0 && s.readAt.revision >= s.at.revision
}

// counts is the policy called name, where it counts: those that no isolation names say
// nothing, whatever their records have.
func (s *space) counts(name string) (*rules, bool) {
	r, ok := s.policies[name]
	return r, ok && (s.newest.names(name) || s.force.names(name))
}

// picture is what is known of policies and of the node's pods. It has no lock and no clock.
type picture struct {
	// told is that the records were told once.
	told bool
	view store.PolicyView
	// spaces are the namespaces that have pods here.
	spaces map[string]*space
	pods   map[netip.Addr]*pod
	// dirty are the policies that may come to something else than the rules have.
	dirty map[policy.Key]bool
	// members are those of sets, by hash; they follow from view.
	members map[string]setMembers
	cluster cluster
	// need is what [picture.needs] said; nil where that may be something else by now.
	need *wanted
}

// wanted are namespaces, and sets by their hashes, both in order.
type wanted struct{ namespaces, sets []string }

// and is what one of two wants.
func (w wanted) and(more wanted) wanted {
	return wanted{union(w.namespaces, more.namespaces), union(w.sets, more.sets)}
}

// union is what one of two lists has, in order.
func union(a, b []string) []string {
	if len(b) == 0 {
		return a
	}
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// setMembers is a set as it was last read.
type setMembers struct {
	list  []policy.Member
	whole bool
	at    place
}

func newPicture() picture {
	return picture{spaces: map[string]*space{}, pods: map[netip.Addr]*pod{}, dirty: map[policy.Key]bool{}, members: map[string]setMembers{}}
}

// see takes in the newest records.
func (p *picture) see(v store.PolicyView, now time.Time) {
	first := !p.told
	p.view, p.told = v, true
	p.learnCluster(first)
	for name, s := range p.spaces {
		p.learn(name, s, now)
	}
	p.clusterLate(now)
	p.seeSets(v)
}

// learn takes in what the view has of a namespace.
func (p *picture) learn(name string, s *space, now time.Time) {
	before := s.at
	p.soil(name, s.learn(name, p.view, now))
	if s.at != before {
		p.need = nil
		p.learnSubjects(name, s)
		p.chooseAll(s)
	}
}

// choose computes anew what selects a pod of a namespace.
func (p *picture) choose(s *space, one *pod) {
	one.fresh = one.fresh && !s.late.IsZero()
	list := s.force
	if one.fresh {
		list = s.newest
	}
	one.selected = list.of(one)
	for _, r := range p.cluster.force {
		if is, _ := s.inForce.about(r, one.labels, one.labelled); is {
			one.selected.Cluster, one.selected.cluster = true, append(one.selected.cluster, r.Name)
		}
	}
}

// chooseAll does so for all of them.
func (p *picture) chooseAll(s *space) {
	for _, one := range s.pods {
		p.choose(s, one)
	}
}

// seeSets takes in the members of sets that changed, and forgets those that are not told of.
func (p *picture) seeSets(v store.PolicyView) {
	var changed []string
	for hash, set := range v.Sets {
		at := place{v.Listing, set.Revision}
		if have, ok := p.members[hash]; ok && have.at == at {
			continue
		}
		p.members[hash] = setMembers{policy.MembersOf(set.Value.Chunks), set.Value.Of.Whole, at}
		changed = append(changed, hash)
	}
	for hash := range p.members {
		if _, ok := v.Sets[hash]; !ok {
			delete(p.members, hash)
			changed = append(changed, hash)
		}
	}
	if len(changed) == 0 {
		return
	}
	isChanged := func(hash string) bool { return slices.Contains(changed, hash) }
	if slices.ContainsFunc(p.inCluster(), func(r *clusterRules) bool { return slices.ContainsFunc(r.sets, isChanged) }) {
		p.dirty[clusterKey] = true
	}
	for namespace, s := range p.spaces {
		for name, r := range s.policies {
			if len(r.pods) > 0 && slices.ContainsFunc(r.sets, isChanged) {
				p.soil(namespace, []string{name})
			}
		}
	}
}

// soil notes that policies may come to something else.
func (p *picture) soil(namespace string, names []string) {
	for _, n := range names {
		p.need = nil
		p.dirty[policy.Key{Namespace: namespace, Name: n}] = true
	}
}

// enter puts a pod into the picture, in place of one with its address.
func (p *picture) enter(fresh *pod, now time.Time) {
	if before, ok := p.pods[fresh.Address]; ok {
		fresh.tracked = fresh.tracked || before.tracked
	}
	p.leave(fresh.Address)
	p.pods[fresh.Address] = fresh
	s, ok := p.spaces[fresh.Namespace]
	if !ok {
		s = &space{pods: map[netip.Addr]*pod{}, policies: map[string]*rules{}, gone: map[string]bool{}, olds: map[string]bool{}}
		p.spaces[fresh.Namespace] = s
		p.learn(fresh.Namespace, s, now)
		s.force, s.late = s.newest, time.Time{} // nobody here has followed another
		_, known := p.view.Isolation[fresh.Namespace]
		s.subjects.unknown = !known && len(p.cluster.newest) > 0
		s.inForce = s.subjects
	}
	s.pods[fresh.Address] = fresh
	p.concern(fresh)
	p.choose(s, fresh)
}

// leave takes the pod with that address out of the picture, and its namespace with the last
// one.
func (p *picture) leave(a netip.Addr) {
	gone, ok := p.pods[a]
	if !ok {
		return
	}
	s := p.spaces[gone.Namespace]
	delete(p.pods, a)
	delete(s.pods, a)
	for n, r := range s.policies {
		if r.pods[a] {
			delete(r.pods, a)
			p.soil(gone.Namespace, []string{n})
		}
	}
	p.concernCluster(s)
	if len(s.pods) == 0 {
		p.need = nil
		delete(p.spaces, gone.Namespace)
	}
}

// label notes what a pod's labels are, and reports whether that is news. Others of a pod that
// runs count when the sets have come that they make needed, or were waited for long enough:
// see [picture.settle].
func (p *picture) label(one *pod, labels map[string]string, now time.Time) bool {
	switch {
	case !one.since.IsZero() && maps.Equal(one.pending, labels):
		return false
	case one.labelled && maps.Equal(one.labels, labels):
		if one.since.IsZero() {
			return false
		}
		one.pending, one.since, p.need = nil, time.Time{}, nil
	case one.labelled && one.told:
		if one.since.IsZero() {
			one.since = now
		}
		one.pending, p.need = labels, nil
	default:
		p.relabel(one, labels)
	}
	return true
}

// relabel makes these the labels of a pod that count.
func (p *picture) relabel(one *pod, labels map[string]string) {
	one.labels, one.labelled = labels, true
	one.pending, one.since, p.need = nil, time.Time{}, nil
	p.concern(one)
	p.choose(p.spaces[one.Namespace], one)
}

// awaited are the sets of the policies that are about a pod once its pending labels count.
func (p *picture) awaited(one *pod) (sets []string) {
	if one.since.IsZero() {
		return nil
	}
	s := p.spaces[one.Namespace]
	for n := range s.policies {
		if r, ok := s.counts(n); ok && r.matches(one.pending) {
			sets = append(sets, r.sets...)
		}
	}
	for _, r := range p.cluster.force {
		if is, _ := s.inForce.about(r, one.pending, true); is {
			sets = append(sets, r.sets...)
		}
	}
	return sets
}

// concern notes that a pod is another now, for the policies that are or were about it.
func (p *picture) concern(one *pod) {
	s := p.spaces[one.Namespace]
	for n, r := range s.policies {
		if r.take(one) {
			p.soil(one.Namespace, []string{n})
		}
	}
	p.concernCluster(s)
}

// settle has namespaces follow their newest isolation, and pods their labels, as far as it is
// time.
func (p *picture) settle(now time.Time) {
	for _, one := range p.pods {
		if !one.since.IsZero() && !(now.Before(one.since.Add(policiesLate)) && late(p.awaited(one), p.members)) {
			p.relabel(one, one.pending)
		}
	}
	for name, s := range p.spaces {
		waited := !s.late.IsZero()
		p.soil(name, s.settle(now, p.members))
		if waited && s.late.IsZero() {
			p.need = nil
			p.chooseAll(s)
		}
	}
	p.settleCluster(now)
}

// needs are the namespaces whose policies have to be read, and the sets that the policies of
// pods here name.
func (p *picture) needs() wanted {
	if p.need != nil {
		return *p.need
	}
	var namespaces []string
	needed := map[string]bool{}
	for _, one := range p.pods {
		for _, hash := range p.awaited(one) {
			needed[hash] = true
		}
	}
	p.needCluster(needed)
	for name, s := range p.spaces {
		if len(s.newest)+len(s.force) > 0 {
			namespaces = append(namespaces, name)
		}
		for n := range s.policies {
			if r, ok := s.counts(n); ok && len(r.pods) > 0 {
				for _, hash := range r.sets {
					needed[hash] = true
				}
				if r.was != nil {
					for _, hash := range r.was.sets {
						needed[hash] = true
					}
				}
			}
		}
	}
	slices.Sort(namespaces)
	p.need = &wanted{namespaces, slices.Sorted(maps.Keys(needed))}
	return *p.need
}

// lacks reports whether something was not read yet that the rules of a pod follow from.
func (p *picture) lacks(one *pod) bool {
	s := p.spaces[one.Namespace]
	if p.unread(s) {
		return true
	}
	for n := range s.policies {
		if r, ok := s.counts(n); ok && r.pods[one.Address] && late(r.sets, p.members) {
			return true
		}
	}
	return slices.ContainsFunc(p.cluster.force, func(r *clusterRules) bool {
		is, _ := s.inForce.about(r, one.labels, one.labelled)
		return is && late(r.sets, p.members)
	})
}

// lateSets counts the sets that are needed and not whole.
func (p *picture) lateSets() (late int) {
	for _, hash := range p.needs().sets {
		if !p.members[hash].whole {
			late++
		}
	}
	return late
}

// whole reports whether all that the rules of this node follow from was read.
func (p *picture) whole() bool {
	for _, s := range p.spaces {
		if p.unread(s) {
			return false
		}
	}
	return p.told && p.lateSets() == 0
}

// any reports whether there are policies in the cluster.
func (p *picture) any() bool {
	for key := range p.view.Invalid {
		if strings.HasPrefix(key, isolationKey) {
			return true
		}
	}
	return len(p.view.Isolation) > 0
}
