package policies

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// This file has what becomes of records that would be too large, and of policies that would come
// to too much: they close, and whoever made them is told. What one namespace makes must not keep
// anything from being written of others.

// limit is how long a record may be, bytes.
func (s *state) limit(key store.PolicyKey) int {
	if refused, ok := s.refused[key]; ok {
		return min(maxRecord, refused-1)
	}
	return maxRecord
}

// refuse takes in that etcd did not take a record of that length. From now on the record is closed
// where it would be as long; one that cannot be closed is left as it is.
func (s *state) refuse(key store.PolicyKey, length int, now time.Time) {
	s.refused[key] = min(length, s.limit(key)+1)
	s.touched[key] = true
	_, rest, _ := strings.Cut(string(key), "/")
	switch kindOf(key) {
	case "policies":
		namespace, name, _ := strings.Cut(rest, "/")
		k := policy.Key{Namespace: namespace, Name: name}
		if of := s.namespaces[namespace]; of != nil && of.policies[k] != nil {
			s.setPolicy(k, &of.policies[k].NetworkPolicy, now)
		}
	case "clusterpolicies":
		if p, there := s.cluster[rest]; there {
			s.setClusterPolicy(rest, &p.ClusterNetworkPolicy, now)
		}
	}
}

// notInForce ends what people are told of a policy that comes to too much.
const notInForce = ": none of them is in force, "

// space is the NetworkPolicies of a namespace.
type space struct {
	policies map[policy.Key]*heardPolicy
	// all is what these come to, together, and crowded how many are closed for that.
	all     tally
	crowded int
	// news are those that changed since [state.admit].
	news map[policy.Key]bool
}

// heardPolicy is a policy as the API server has it, closed where it alone comes to too much.
type heardPolicy struct {
	kube.NetworkPolicy
	extent policy.Extent
	// crowded is that it is closed because of what older ones of the namespace come to.
	crowded bool
}

// tally is what several policies come to.
type tally struct {
	policy.Extent                    // without sets
	sets          map[policy.Set]int // by how many policies name them
}

// add takes in what one more comes to, or, by being -1, one fewer.
func (t *tally) add(e policy.Extent, by int) {
	t.Peers, t.Ports, t.Names = t.Peers+by*e.Peers, t.Ports+by*e.Ports, t.Names+by*e.Names
	for _, set := range e.Sets {
		if t.sets[set] += by; t.sets[set] == 0 {
			delete(t.sets, set)
		}
	}
}

// admits takes in what a policy comes to where that is not too much, and else says what is.
func (t *tally) admits(e policy.Extent) (exceeded string) {
	together := policy.Extent{Peers: t.Peers + e.Peers, Ports: t.Ports + e.Ports, Names: t.Names + e.Names}
	sets := len(t.sets)
	for _, set := range e.Sets {
		if t.sets[set] == 0 {
			sets++
		}
	}
	if exceeded = policy.OfNamespace.Exceeded(sets, together); exceeded == "" {
		t.add(e, 1)
	}
	return exceeded
}

// hear takes in a policy as it is now; nil where it is gone. It comes to be in force, or not,
// with [state.admit].
func (s *state) hear(key policy.Key, p *kube.NetworkPolicy) {
	of := s.namespaces[key.Namespace]
	if of == nil {
		of = &space{policies: map[policy.Key]*heardPolicy{}, all: tally{sets: map[policy.Set]int{}}, news: map[policy.Key]bool{}}
		s.namespaces[key.Namespace] = of
	}
	if old := of.policies[key]; old != nil {
		of.all.add(old.extent, -1)
		if old.crowded {
			of.crowded--
		}
		delete(of.policies, key)
	}
	if p != nil {
		p, extent := s.bounded(p)
		of.policies[key] = &heardPolicy{NetworkPolicy: *p, extent: extent}
		of.all.add(extent, 1)
	}
	of.news[key] = true
	s.heard[key.Namespace] = true
}

// admit has those policies in force that were heard of, as far as their namespace may have them: the
// oldest first, so that one that is made closes none of before, and that each leader comes to the same.
func (s *state) admit(now time.Time) {
	for namespace := range s.heard {
		of := s.namespaces[namespace]
		if of.crowded > 0 || policy.OfNamespace.Exceeded(len(of.all.sets), of.all.Extent) != "" {
			s.admitOldest(namespace, of, now)
		} else {
			for key := range of.news {
				if p := of.policies[key]; p != nil {
					s.enforce(key, &p.NetworkPolicy, now)
				}
			}
		}
		for key := range of.news {
			if of.policies[key] == nil {
				s.enforce(key, nil, now)
			}
		}
		if clear(of.news); len(of.policies) == 0 {
			delete(s.namespaces, namespace)
		}
	}
	clear(s.heard)
}

// admitOldest has those policies of a namespace in force that it may have, and closes the others.
func (s *state) admitOldest(namespace string, of *space, now time.Time) {
	in := tally{sets: map[policy.Set]int{}}
	of.crowded = 0
	for _, p := range slices.SortedFunc(maps.Values(of.policies), func(a, b *heardPolicy) int {
		return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key))
	}) {
		exceeded := in.admits(p.extent)
		was := p.crowded
		if p.crowded = exceeded != ""; p.crowded {
			of.crowded++
		}
		switch {
		case p.crowded && (!was || of.news[p.Key]):
			s.enforce(p.Key, closedPolicy(&p.NetworkPolicy, "its rules come with those of older policies of namespace "+namespace+" to "+exceeded+notInForce+"have policies of the namespace name less"), now)
		case !p.crowded && (was || of.news[p.Key]):
			s.enforce(p.Key, &p.NetworkPolicy, now)
		}
	}
}

// bounded is the policy, and what it comes to, where that is not too much and etcd takes its
// record, and else one that allows nothing.
func (s *state) bounded(p *kube.NetworkPolicy) (*kube.NetworkPolicy, policy.Extent) {
	record, _ := encode(p.Record())
	if most := s.limit(store.PolicyRecordKey(p.Namespace, p.Name)); len(record) > most {
		return closedPolicy(p, tooLong(len(record), most)), policy.Extent{}
	}
	e := p.Extent()
	if exceeded := policy.OfPolicy.Exceeded(len(e.Sets), e); exceeded != "" {
		return closedPolicy(p, tooMuch(exceeded)), policy.Extent{}
	}
	return p, e
}

// closedPolicy is what is left of a policy whose rules cannot be in force: it isolates whom it
// isolated, and allows nothing.
func closedPolicy(p *kube.NetworkPolicy, problem string) *kube.NetworkPolicy {
	closed := *p
	closed.Ingress.Rules, closed.Egress.Rules = nil, nil
	closed.Problem = problem
	return &closed
}

// boundedCluster is the policy where it does not come to too much and etcd takes its record, and
// else one that closes.
func (s *state) boundedCluster(p *kube.ClusterNetworkPolicy) *kube.ClusterNetworkPolicy {
	record, _ := encode(p.Record())
	closed := *p
	if most := s.limit(store.ClusterPolicyKey(p.Name)); len(record) > most {
		closed.Problem = tooLong(len(record), most)
	} else if e := p.Extent(); policy.OfCluster.Exceeded(len(e.Sets), e) != "" {
		closed.Problem = tooMuch(policy.OfCluster.Exceeded(len(e.Sets), e))
	} else {
		return p
	}
	closed.ClusterPolicy = p.Closed()
	return &closed
}

func tooLong(length, most int) string {
	return fmt.Sprintf("its rules make a record of %d bytes, at most %d are possible"+notInForce+"write several policies", length, most)
}

func tooMuch(exceeded string) string {
	return "its rules come to " + exceeded + notInForce + "write several policies, or name less"
}
