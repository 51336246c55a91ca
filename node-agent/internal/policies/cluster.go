package policies

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// clusterKey is the name of all ClusterNetworkPolicies together, among those of NetworkPolicies:
// levels are an order among all, so they are compiled at once.
var clusterKey policy.Key

// cluster is what is known of ClusterNetworkPolicies, in order of their names. newest were read,
// at that place; force count: all the newest at once, when it is known whom they are about and
// their sets were read, or late was long enough ago.
type cluster struct {
	newest, force []*clusterRules
	at            place
	// late is since when the newest, or whom they are about, are not in force; zero where they are.
	late time.Time
}

// clusterRules is a ClusterNetworkPolicy.
type clusterRules struct {
	policy.ClusterPolicy
	record  topology.ClusterPolicyRecord
	matches func(labels map[string]string) bool
	// sets are the hashes of those whose members decide what it is about.
	sets []string
}

func clusterRulesOf(name string, r topology.ClusterPolicyRecord) *clusterRules {
	p := policy.ClusterFromRecord(name, r)
	out := &clusterRules{ClusterPolicy: p, record: r, matches: p.Subject.Pods.Matcher()}
	for _, s := range p.Sets() {
		out.sets = append(out.sets, s.Hash())
	}
	return out
}

// unreadableCluster is what a policy counts for whose record cannot be read: it denies all.
var unreadableCluster = topology.ClusterPolicyRecord{
	Tier: topology.TierAdmin, Ingress: []topology.ClusterPolicyRule{{Action: topology.ActionDeny}}, Egress: []topology.ClusterPolicyRule{{Action: topology.ActionDeny}},
}

// subjects says which ClusterNetworkPolicies are about pods of a namespace: those in the list.
type subjects struct {
	list []topology.SelectingPolicy
	// unknown is that the leader has not looked at the namespace yet: any may be.
	unknown bool
}

func (s subjects) names(policy string) bool {
	return slices.ContainsFunc(s.list, func(p topology.SelectingPolicy) bool { return p.Name == policy })
}

func (s subjects) same(other subjects) bool {
	return s.unknown == other.unknown && slices.Equal(s.list, other.list)
}

// about says whether a policy is about a pod with these labels, which are known or not, and
// whether that is sure.
func (s subjects) about(r *clusterRules, labels map[string]string, labelled bool) (is, sure bool) {
	if !s.unknown && !s.names(r.Name) || labelled && !r.matches(labels) {
		return false, true
	}
	return true, (!s.unknown || r.Subject.Namespaces == "") && (labelled || r.Subject.Pods == "")
}

// aboutAny reports whether a policy is about some pod of the namespace, by those subjects.
func (s *space) aboutAny(by subjects, r *clusterRules) bool {
	for _, one := range s.pods {
		if is, _ := by.about(r, one.labels, one.labelled); is {
			return true
		}
	}
	return false
}

// learnCluster takes in what the view has of ClusterNetworkPolicies. The first that are read
// count at once.
func (p *picture) learnCluster(first bool) {
	read := p.view.Cluster
	at := place{p.view.Listing, read.Revision}
	if p.cluster.at == at && !first {
		return
	}
	p.cluster.at = at
	records := maps.Clone(read.Policies)
	if records == nil {
		records = map[string]topology.ClusterPolicyRecord{}
	}
	for name := range read.Invalid {
		records[name] = unreadableCluster
	}
	have := map[string]*clusterRules{}
	for _, r := range p.cluster.newest {
		have[r.Name] = r
	}
	var list []*clusterRules
	for _, name := range slices.Sorted(maps.Keys(records)) {
		r := have[name]
		if r == nil || !reflect.DeepEqual(r.record, records[name]) {
			r = clusterRulesOf(name, records[name])
		}
		list = append(list, r)
	}
	if slices.Equal(list, p.cluster.newest) {
		return
	}
	p.cluster.newest, p.need = list, nil
	if first {
		p.cluster.force = list
		p.dirty[clusterKey] = true
	}
}

// clusterLate notes since when something is not in force.
func (p *picture) clusterLate(now time.Time) {
	moved := func(s *space) bool { return !s.subjects.same(s.inForce) }
	if p.cluster.late.IsZero() && (!slices.Equal(p.cluster.newest, p.cluster.force) || slices.ContainsFunc(slices.Collect(maps.Values(p.spaces)), moved)) {
		p.cluster.late = now
	}
}

// learnSubjects takes in what the newest isolation of a namespace says of ClusterNetworkPolicies.
// While it has no record, pods that run keep what they have.
func (p *picture) learnSubjects(name string, s *space) {
	iso, ok := p.view.Isolation[name]
	if !ok {
		return
	}
	s.subjects = subjects{list: iso.Value.Cluster}
	if s.inForce.unknown {
		s.inForce = s.subjects
		p.dirty[clusterKey] = true
	}
}

// unknown reports whether nobody can say yet which ClusterNetworkPolicies are about pods of a
// namespace.
func (p *picture) unknown(s *space) bool { return s.inForce.unknown && len(p.cluster.force) > 0 }

// settleCluster puts the newest in force: policies and whom they are about at once, so that what
// takes another's place leaves nothing open or closed between.
func (p *picture) settleCluster(now time.Time) {
	if p.cluster.late.IsZero() || now.Before(p.cluster.late.Add(policiesLate)) && !p.clusterCome() {
		return
	}
	p.cluster.force, p.cluster.late, p.need = p.cluster.newest, time.Time{}, nil
	p.dirty[clusterKey] = true
	for _, s := range p.spaces {
		s.inForce = s.subjects
		p.chooseAll(s)
	}
}

// clusterCome reports whether policies and subjects were read as new as each other, and the sets of
// those that are about pods here.
func (p *picture) clusterCome() bool {
	is := map[string]bool{}
	for _, r := range p.cluster.newest {
		is[r.Name] = true
	}
	for _, s := range p.spaces {
		if behind := s.at.listing != p.cluster.at.listing || s.at.revision > p.cluster.at.revision; behind && s.subjects.gains(s.inForce) {
			return false
		}
		for _, r := range p.cluster.force {
			if !is[r.Name] && s.subjects.names(r.Name) {
				return false
			}
		}
		for _, r := range p.cluster.newest {
			if late(r.sets, p.members) && s.aboutAny(s.subjects, r) {
				return false
			}
		}
	}
	return true
}

// gains reports whether a policy is about more pods than by others.
func (s subjects) gains(others subjects) bool {
	return slices.ContainsFunc(s.list, func(p topology.SelectingPolicy) bool { return !slices.Contains(others.list, p) })
}

// late reports whether one of some sets was not read.
func late(sets []string, members map[string]setMembers) bool {
	return slices.ContainsFunc(sets, func(hash string) bool { _, read := members[hash]; return !read })
}

// concernCluster notes that a pod is or was another, for ClusterNetworkPolicies that may be about it.
func (p *picture) concernCluster(s *space) {
	if len(p.cluster.force)+len(p.cluster.newest) == 0 {
		return
	}
	p.need = nil
	if s.inForce.unknown || len(s.inForce.list) > 0 {
		p.dirty[clusterKey] = true
	}
}

// aboutHere are those of a list that are about pods here, by those subjects of each namespace.
func (p *picture) aboutHere(list []*clusterRules, by func(*space) subjects) (about []*clusterRules) {
	for _, r := range list {
		for _, s := range p.spaces {
			if s.aboutAny(by(s), r) {
				about = append(about, r)
				break
			}
		}
	}
	return about
}

// inCluster are the ClusterNetworkPolicies in force that are about pods here.
func (p *picture) inCluster() []*clusterRules {
	return p.aboutHere(p.cluster.force, func(s *space) subjects { return s.inForce })
}

// needCluster adds the sets of ClusterNetworkPolicies that are about pods here, or come to be.
func (p *picture) needCluster(needed map[string]bool) {
	list := p.inCluster()
	if !p.cluster.late.IsZero() {
		list = append(list, p.aboutHere(p.cluster.newest, func(s *space) subjects { return s.subjects })...)
	}
	for _, r := range list {
		for _, hash := range r.sets {
			needed[hash] = true
		}
	}
}

// clusterJob is what ClusterNetworkPolicies are compiled from, beside pods and sets.
type clusterJob struct {
	policies []policy.ClusterPolicy
	subjects map[string]subjects
	// doubts are whether somebody is a subject that nobody can say that of.
	doubts      map[doubt]bool
	noSCTPPorts bool
}

// doubt is a policy, by its name, and a pod.
type doubt struct {
	policy string
	pod    netip.Addr
}

// clusterJob is what counts now.
func (p *picture) clusterJob() *clusterJob {
	job := &clusterJob{subjects: map[string]subjects{}, doubts: map[doubt]bool{}}
	for _, r := range p.cluster.force {
		job.policies = append(job.policies, r.ClusterPolicy)
	}
	for name, s := range p.spaces {
		job.subjects[name] = s.inForce
		for _, one := range s.pods {
			if one.labelled && !s.inForce.unknown {
				continue
			}
			for _, r := range p.cluster.force {
				if is, sure := s.inForce.about(r, one.labels, one.labelled); is && !sure {
					job.doubts[doubt{r.Name, one.Address}] = true
				}
			}
		}
	}
	return job
}

// compile is what they come to.
func (j *clusterJob) compile(in policy.Input) policy.Compiled {
	in.Selects = func(p policy.ClusterPolicy, namespace string) bool {
		s := j.subjects[namespace]
		return s.unknown && p.Subject.Namespaces == "" || s.names(p.Name)
	}
	in.Doubt = func(p policy.ClusterPolicy, pod policy.Pod) bool { return j.doubts[doubt{p.Name, pod.Address}] }
	in.NoSCTPPorts = j.noSCTPPorts
	return policy.NewCompiler(in).Compile(nil, j.policies)
}
