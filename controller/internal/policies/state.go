package policies

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/nodeaddr"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// setGrace is how long a set that no policy names is kept: policies are deleted to be made anew.
const setGrace = 5 * time.Minute

// state joins what the API server says with what the nodes say. It does no I/O and has no
// clock. What is told goes in; touched says which records may have to be other than they
// are, and should what they are to be.
type state struct {
	index *policy.Index
	// policies are as they are in force, namespaces those of each as they are.
	policies   map[policy.Key]kube.NetworkPolicy
	namespaces map[string]*space
	// heard are namespaces whose policies changed since [state.admit].
	heard   map[string]bool
	cluster map[string]clusterPolicy
	// clusterNames are those of cluster, in order.
	clusterNames []string
	portNames    map[string]*named // of ports
	sets         map[policy.Set]*namedSet
	byHash       map[string]policy.Set
	nodeSets     int // how many of sets are of nodes

	spaces map[string]map[string]string // labels of namespaces
	// hosts are the API server's nodes. Whose an address is follows from all of them, and from
	// network and records; hostsChanged is that the index does not have it yet.
	hosts        map[string]kube.NodeLabels
	network      topology.Config
	records      map[netip.Addr]topology.Node
	hostsChanged bool

	labels map[kube.PodKey]kube.PodLabels
	ports  map[kube.PodKey]kube.PodPorts
	// manyPorts are pods with more named ports than count.
	manyPorts map[kube.PodKey]bool
	// static are pods that nodes made themselves, and that are in no set for that.
	static map[kube.PodKey]bool

	places    map[netip.Addr]place // of nodes by their addresses
	nodes     map[netip.Addr]*node
	addresses map[kube.PodKey]map[netip.Addr]claim // of pods, by all nodes
	// left has, by record, what stood there of nodes that have not said again what pods they
	// have since this leader began.
	left map[store.PolicyKey]map[netip.Addr]topology.SetChunk

	touched map[store.PolicyKey]bool
	// refused are the lengths of records that etcd did not take.
	refused map[store.PolicyKey]int
	// listing is that of the newest word of the nodes, wasNeeded what needed said last.
	listing   int
	wasNeeded bool
}

// clusterPolicy is a ClusterNetworkPolicy.
type clusterPolicy struct {
	kube.ClusterNetworkPolicy
	// selects says of a namespace's labels whether the subject has pods of it.
	selects func(map[string]string) bool
}

// named is what policies name, or did.
type named struct {
	by      int       // how many policies name it
	unnamed time.Time // since when none does
}

// add says that so many more policies name it, or fewer.
func (n *named) add(by int, now time.Time) {
	if n.by += by; n.by == 0 {
		n.unnamed = now
	}
}

// namedSet is a set that policies name, or did.
type namedSet struct {
	named
	hash string
	// unread is that its selectors cannot be read: whom it has is not known.
	unread bool
	// ports are the names of ports that policies look up at its members, or did.
	ports map[string]*named
	// short are those of its chunks, by their bases, whose ports etcd would not take.
	short map[netip.Addr]bool
}

func newState() *state {
	return &state{
		index: policy.NewIndex(), policies: map[policy.Key]kube.NetworkPolicy{}, namespaces: map[string]*space{}, heard: map[string]bool{}, cluster: map[string]clusterPolicy{},
		portNames: map[string]*named{}, spaces: map[string]map[string]string{}, hosts: map[string]kube.NodeLabels{},
		sets: map[policy.Set]*namedSet{}, byHash: map[string]policy.Set{}, labels: map[kube.PodKey]kube.PodLabels{}, ports: map[kube.PodKey]kube.PodPorts{},
		places: map[netip.Addr]place{}, nodes: map[netip.Addr]*node{}, addresses: map[kube.PodKey]map[netip.Addr]claim{},
		left: map[store.PolicyKey]map[netip.Addr]topology.SetChunk{}, touched: map[store.PolicyKey]bool{},
		refused: map[store.PolicyKey]int{}, manyPorts: map[kube.PodKey]bool{}, static: map[kube.PodKey]bool{},
	}
}

// needed reports whether there is anything to know of pods and namespaces.
func (s *state) needed() bool {
	return len(s.policies) > 0 || len(s.cluster) > 0 || len(s.sets) > 0 || len(s.portNames) > 0
}

// setPolicy takes in a policy as it is now; nil where it is gone.
func (s *state) setPolicy(key policy.Key, p *kube.NetworkPolicy, now time.Time) {
	s.hear(key, p)
	s.admit(now)
}

// enforce has a policy in force from now on; nil where it is gone.
func (s *state) enforce(key policy.Key, p *kube.NetworkPolicy, now time.Time) {
	old, had := s.policies[key]
	if p != nil {
		s.policies[key] = *p
		s.name(p, 1, now)
	}
	if had {
		s.name(old, -1, now)
	}
	if p == nil {
		delete(s.policies, key)
	}
	s.touched[store.PolicyRecordKey(key.Namespace, key.Name)] = true
	s.touched[store.IsolationKey(key.Namespace)] = true
}

// setClusterPolicy takes in a ClusterNetworkPolicy as it is now; nil where it is gone.
func (s *state) setClusterPolicy(name string, p *kube.ClusterNetworkPolicy, now time.Time) {
	old, had := s.cluster[name]
	at, _ := slices.BinarySearch(s.clusterNames, name)
	switch {
	case p != nil:
		p = s.boundedCluster(p)
		s.cluster[name] = clusterPolicy{*p, p.Subject.Namespaces.Matcher()}
		s.name(p, 1, now)
		if !had {
			s.clusterNames = slices.Insert(s.clusterNames, at, name)
		}
	case had:
		delete(s.cluster, name)
		s.clusterNames = slices.Delete(s.clusterNames, at, at+1)
	}
	if had {
		s.name(old, -1, now)
	}
	s.touched[store.ClusterPolicyKey(name)] = true
	if had && p != nil && old.Subject == p.Subject {
		return
	}
	// With the first, and without the last, all namespaces have other records.
	all := len(s.cluster) == 0 || len(s.cluster) == 1 && !had
	for namespace, labels := range s.spaces {
		if all || had && old.selects(labels) || p != nil && s.cluster[name].selects(labels) {
			s.touched[store.IsolationKey(namespace)] = true
		}
	}
}

// naming is a policy, as far as it names sets, and ports of their members.
type naming interface {
	Sets() []policy.Set
	PortsOf() map[policy.Set][]string
}

// name says that a policy names what it does, or, by being -1, that it does no longer.
func (s *state) name(p naming, by int, now time.Time) {
	for _, set := range p.Sets() {
		n := s.sets[set]
		if n == nil {
			n = s.keep(set)
		}
		n.add(by, now)
	}
	s.namePorts(p.PortsOf(), by, now)
}

// keep has a set's members kept. One that cannot be read has none, and is never whole: it
// allows nobody.
func (s *state) keep(set policy.Set) *namedSet {
	n := &namedSet{hash: set.Hash(), ports: map[string]*named{}, short: map[netip.Addr]bool{}}
	s.sets[set], s.byHash[n.hash] = n, set
	n.unread = s.index.Want(set) != nil
	if set.OfNodes {
		s.nodeSets++
	}
	s.touched[store.SetKey(n.hash)] = true
	return n
}

// namePorts counts the names of ports that a policy looks up. A set has ports by those of its
// policies; as long as policies stay, and a while longer, so that a policy which goes means the
// same until its record is gone.
func (s *state) namePorts(ports map[policy.Set][]string, by int, now time.Time) {
	news := false
	count := func(in map[string]*named, name string) (fresh bool) {
		n := in[name]
		if fresh = n == nil; fresh {
			n = &named{}
			in[name] = n
		}
		n.add(by, now)
		return fresh
	}
	for set, names := range ports {
		of := s.sets[set]
		touch := false
		for _, name := range names {
			news = count(s.portNames, name) || news
			if of != nil {
				touch = count(of.ports, name) || touch
			}
		}
		if touch {
			s.touchChunks(set)
		}
	}
	if news {
		s.placeNamed()
	}
}

// touchChunks has all records of a set's members looked at.
func (s *state) touchChunks(set policy.Set) {
	s.index.Touch(set)
	for key := range s.left {
		if hash, _, _ := ofSet(key); hash == s.sets[set].hash {
			s.touched[key] = true
		}
	}
}

// placeNamed has the ports of all pods in sets as they are named now.
func (s *state) placeNamed() {
	for key := range s.ports {
		s.placeAll(key)
	}
}

// setNamespace takes in a namespace's labels; nil where it is gone.
func (s *state) setNamespace(name string, labels *map[string]string) {
	if len(s.cluster) > 0 {
		s.touched[store.IsolationKey(name)] = true
	}
	before := takesStatic(s.spaces[name])
	if labels == nil {
		delete(s.spaces, name)
		s.index.DeleteNamespace(name)
	} else {
		s.spaces[name] = *labels
		s.index.SetNamespace(name, *labels)
	}
	// It looks at all pods of the cluster, and few namespaces have that label.
	if takesStatic(s.spaces[name]) != before {
		s.placeStatic(name)
	}
}

// setHost takes in a node's labels and addresses; nil where it is gone.
func (s *state) setHost(name string, n *kube.NodeLabels) {
	s.hostsChanged = true
	if n == nil {
		delete(s.hosts, name)
		s.index.DeleteNode(name)
		return
	}
	s.hosts[name] = *n
}

// setNetwork takes in what is not a node's: the networks, and the addresses that records have.
func (s *state) setNetwork(network topology.Config, records map[netip.Addr]topology.Node) {
	s.network, s.records, s.hostsChanged = network, records, true
}

// placeHosts has the nodes in sets by the addresses that are taken for theirs.
func (s *state) placeHosts() {
	if !s.hostsChanged {
		return
	}
	s.hostsChanged = false
	nodes := make(map[string]kube.Node, len(s.hosts))
	for name, host := range s.hosts {
		nodes[name] = host.Node
	}
	for name, have := range nodeaddr.Of(s.network, nodes, s.records) {
		s.index.SetNode(name, s.hosts[name].Labels, have.Own)
	}
}

// setLabels takes in a pod's labels; nil where it is gone.
func (s *state) setLabels(key kube.PodKey, labels *kube.PodLabels) {
	if labels == nil {
		delete(s.labels, key)
	} else {
		s.labels[key] = *labels
	}
	s.placeAll(key)
}

// setPorts takes in a pod's named ports; nil where it is gone.
func (s *state) setPorts(key kube.PodKey, ports *kube.PodPorts) {
	delete(s.manyPorts, key)
	if ports == nil || len(ports.Ports) == 0 {
		delete(s.ports, key)
	} else {
		s.ports[key] = *ports
		if len(ports.Ports) > maxPodPorts {
			s.manyPorts[key] = true
		}
	}
	s.placeAll(key)
}

// forget drops what is known of pods and namespaces, when it is not needed any more.
func (s *state) forget() {
	s.labels, s.ports, s.manyPorts = map[kube.PodKey]kube.PodLabels{}, map[kube.PodKey]kube.PodPorts{}, map[kube.PodKey]bool{}
	s.spaces, s.hosts = map[string]map[string]string{}, map[string]kube.NodeLabels{}
	s.static = map[kube.PodKey]bool{}
	s.index = policy.NewIndex()
}

// forgetHosts drops nodes, when no policy names any more.
func (s *state) forgetHosts() {
	for name := range s.hosts {
		s.setHost(name, nil)
	}
}

// forgetPorts drops the ports, when no policy names one any more.
func (s *state) forgetPorts() {
	had := s.ports
	s.ports, s.manyPorts = map[kube.PodKey]kube.PodPorts{}, map[kube.PodKey]bool{}
	for key := range had {
		s.placeAll(key)
	}
}

// begin takes in the records that former leaders left, once all else is known: sets that no
// policy names stay for a while, the names of ports too, and members of nodes that do not say
// what pods they have.
func (s *state) begin(is map[store.PolicyKey]store.Versioned[string], now time.Time) {
	for key, v := range is {
		s.touched[key] = true
		hash, last, ok := ofSet(key)
		if !ok || last != "of" {
			continue
		}
		of, err := topology.ParseAddressSet(hash, []byte(v.Value))
		if set := policy.SetFromRecord(of.PodSet); err == nil && set.Hash() == hash && s.sets[set] == nil {
			s.keep(set).unnamed = now
		}
	}
	for key, v := range is {
		if name, ok := strings.CutPrefix(string(key), "clusterpolicies/"); ok {
			s.beginClusterPolicy(name, v.Value, now)
		}
		hash, last, ok := ofSet(key)
		if _, wanted := s.byHash[hash]; !ok || last == "of" || !wanted {
			continue
		}
		if base, chunk, err := topology.ParseSetChunk(hash+"/"+last, []byte(v.Value)); err == nil {
			s.leave(key, base, chunk)
		}
	}
}

// beginClusterPolicy keeps the ports that a record names in the sets that were left, for as long as
// it may stand: who is denied by them is denied until it is gone.
func (s *state) beginClusterPolicy(name, text string, now time.Time) {
	record, err := topology.ParseClusterPolicy(name, []byte(text))
	if err != nil {
		return
	}
	ports := policy.ClusterFromRecord(name, record).PortsOf()
	s.namePorts(ports, 1, now)
	s.namePorts(ports, -1, now)
}

// expire drops what was kept for a while, where that is over, and returns which sets it
// dropped, by their hashes, and when to call again; zero for as soon as something changes.
func (s *state) expire(now time.Time) (dropped []string, again time.Time) {
	over := func(since time.Time, grace time.Duration) bool {
		end := since.Add(grace)
		if now.Before(end) && (again.IsZero() || end.Before(again)) {
			again = end
		}
		return !now.Before(end)
	}
	for ip, n := range s.nodes {
		if !n.silent || len(s.places[ip].subnets) > 0 {
			continue
		}
		delete(s.nodes, ip)
		s.dropLeft(ip)
		s.touched[store.AcknowledgedKey(ip)] = true
	}
	unnamed := func(_ string, n *named) bool { return n.by == 0 && over(n.unnamed, setGrace) }
	for set, n := range s.sets {
		if names := len(n.ports); names > 0 {
			if maps.DeleteFunc(n.ports, unnamed); len(n.ports) < names {
				s.touchChunks(set)
			}
		}
		if n.by > 0 || !over(n.unnamed, setGrace) {
			continue
		}
		s.index.Drop(set)
		delete(s.sets, set)
		delete(s.byHash, n.hash)
		if set.OfNodes {
			s.nodeSets--
		}
		dropped = append(dropped, n.hash)
	}
	names := len(s.portNames)
	if maps.DeleteFunc(s.portNames, unnamed); len(s.portNames) < names {
		s.placeNamed()
	}
	return dropped, again
}

// take returns the records that may have to be other than they are, and forgets them.
func (s *state) take() map[store.PolicyKey]bool {
	s.placeHosts()
	for _, c := range s.index.Changed() {
		if n := s.sets[c.Set]; n != nil {
			s.touched[store.ChunkKey(n.hash, c.Base)] = true
		}
	}
	if needed := s.needed(); needed != s.wasNeeded {
		// Nodes wait for acknowledgements only while there are policies.
		s.wasNeeded = needed
		for ip := range s.nodes {
			s.touched[store.AcknowledgedKey(ip)] = true
		}
	}
	all := s.touched
	s.touched = map[store.PolicyKey]bool{}
	return all
}

// should is what a record is to be; empty where there is to be none. One that etcd does not take is
// an error.
func (s *state) should(key store.PolicyKey) (string, error) {
	text, err := s.fitting(key)
	if err == nil && len(text) > s.limit(key) {
		return "", fmt.Errorf("record %s would have %d bytes, at most %d are possible", key, len(text), s.limit(key))
	}
	return text, err
}

// fitting is what a record is to be, closed where the whole of it is too large and it can be closed.
func (s *state) fitting(key store.PolicyKey) (string, error) {
	kind, rest, _ := strings.Cut(string(key), "/")
	switch kind {
	case "isolation":
		return s.isolation(rest)
	case "policies":
		namespace, name, _ := strings.Cut(rest, "/")
		p, there := s.policies[policy.Key{Namespace: namespace, Name: name}]
		if !there {
			return "", nil
		}
		return encode(p.Record())
	case "clusterpolicies":
		p, there := s.cluster[rest]
		if !there {
			return "", nil
		}
		return encode(p.Record())
	case "sets":
		hash, last, _ := strings.Cut(rest, "/")
		set, there := s.byHash[hash]
		if !there {
			return "", nil
		}
		if last == "of" {
			n := s.sets[set]
			return encode(topology.AddressSet{PodSet: set.Record(), Whole: !n.unread && len(n.short) == 0})
		}
		return s.chunk(key, set, last)
	case "acknowledged":
		ip, err := netip.ParseAddr(rest)
		n := s.nodes[ip]
		if err != nil || n == nil || n.silent || !s.needed() {
			return "", nil
		}
		return encode(topology.Acknowledged{Revision: n.told.Revision})
	}
	return "", fmt.Errorf("record %s is of no kind that is written here", key)
}

func encode(v any) (string, error) {
	data, err := json.Marshal(v)
	return string(data), err
}

// tooMany stands in a record in place of policies that are too many for it.
const tooMany = "too-many-policies"

// isolation is what the record of a namespace is to be. While there are ClusterNetworkPolicies
// each one has a record: by that agents tell it from one that they do not know of yet.
func (s *state) isolation(namespace string) (string, error) {
	var out topology.Isolation
	if of := s.namespaces[namespace]; of != nil {
		for _, key := range slices.SortedFunc(maps.Keys(of.policies), policy.Key.Compare) {
			out.Policies = append(out.Policies, s.policies[key].Isolation())
		}
	}
	labels, known := s.spaces[namespace]
	for _, name := range s.clusterNames {
		if p := s.cluster[name]; known && p.selects(labels) {
			out.Cluster = append(out.Cluster, p.Selecting())
		}
	}
	if len(out.Policies) == 0 && (!known || len(s.cluster) == 0) {
		return "", nil
	}
	text, err := encode(out)
	if len(text) > s.limit(store.IsolationKey(namespace)) {
		// Some 10,000 policies of one namespace: all of its pods are isolated.
		return encode(topology.Isolation{Policies: []topology.IsolatingPolicy{{Name: tooMany, Ingress: true, Egress: true}}})
	}
	return text, err
}

// ofSet splits the key of a record of a set.
func ofSet(key store.PolicyKey) (hash, last string, ok bool) {
	rest, ok := strings.CutPrefix(string(key), "sets/")
	hash, last, _ = strings.Cut(rest, "/")
	return hash, last, ok
}
