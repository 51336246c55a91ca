package policies

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	npav1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var start = time.Unix(5000, 0)

// world is a random cluster: what the API server has, and what the nodes say. Nodes' subnets
// are smaller than the /24 of a record.
type world struct {
	random     *rand.Rand
	now        time.Time
	rev        int64
	nodes      map[netip.Addr]topology.Node
	namespaces map[string]map[string]string
	objects    map[policy.Key]*networkingv1.NetworkPolicy
	policies   map[policy.Key]kube.NetworkPolicy
	cluster    map[string]kube.ClusterNetworkPolicy
	hosts      map[string]kube.NodeLabels
	pods       map[kube.PodKey]*pod
	said       map[netip.Addr]store.Versioned[topology.NodePods]
	listing    int
	serial     int
	// settled are namespaces that a leader has had the time to write of.
	settled map[string]map[string]string
}

// pod is one of the API server, and where it is.
type pod struct {
	uid    string
	labels map[string]string
	ports  []policy.NamedPort
	node   netip.Addr
	at     netip.Addr
}

func newWorld(seed uint64) *world {
	w := &world{
		random: rand.New(rand.NewPCG(seed, 0)), now: start, rev: 10, listing: 1, nodes: map[netip.Addr]topology.Node{}, namespaces: map[string]map[string]string{},
		objects: map[policy.Key]*networkingv1.NetworkPolicy{}, policies: map[policy.Key]kube.NetworkPolicy{}, cluster: map[string]kube.ClusterNetworkPolicy{}, hosts: map[string]kube.NodeLabels{}, pods: map[kube.PodKey]*pod{}, said: map[netip.Addr]store.Versioned[topology.NodePods]{},
	}
	for i := range 5 {
		ip := netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)})
		w.nodes[ip] = topology.Node{Host: fmt.Sprintf("n%d", i+1), HostIP: ip, Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 11, byte(i / 4), byte(i % 4 * 64)}), 26)}
		w.hosts[w.nodes[ip].Host] = kube.NodeLabels{Labels: w.label(), Node: kube.Node{Name: w.nodes[ip].Host, Addresses: []netip.Addr{ip}, Every: []netip.Addr{ip, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})}, Internal: 1}}
		w.say(ip)
	}
	return w
}

// say has a node publish its pods.
func (w *world) say(ip netip.Addr) {
	n := topology.NodePods{Host: w.nodes[ip].Host, HostIP: ip}
	for _, key := range slices.SortedFunc(maps.Keys(w.pods), kube.PodKey.Compare) {
		if p := w.pods[key]; p.node == ip {
			n.Pods = append(n.Pods, topology.NodePod{Namespace: key.Namespace, Name: key.Name, UID: p.uid, Address: p.at})
		}
	}
	w.rev++
	w.said[ip] = store.Versioned[topology.NodePods]{Value: n, Revision: w.rev}
}

func (w *world) label() map[string]string {
	out := map[string]string{}
	for _, key := range []string{"app", "tier"} {
		if value := w.random.IntN(4); value > 0 {
			out[key] = fmt.Sprintf("v%d", value)
		}
	}
	return out
}

func pick[T any](random *rand.Rand, list []T) T { return list[random.IntN(len(list))] }

// feeder is what a change is told to.
type feeder interface {
	setPolicy(policy.Key, *kube.NetworkPolicy, time.Time)
	setClusterPolicy(string, *kube.ClusterNetworkPolicy, time.Time)
	setHost(string, *kube.NodeLabels)
	setNamespace(string, *map[string]string)
	setLabels(kube.PodKey, *kube.PodLabels)
	setPorts(kube.PodKey, *kube.PodPorts)
	setPods(store.NodePods)
}

// step changes one thing, and tells to.
func (w *world) step(to feeder) {
	ns := fmt.Sprintf("ns%d", w.random.IntN(4))
	switch w.random.IntN(13) {
	case 0:
		w.namespaces[ns] = w.label()
		w.tellNamespace(to, ns)
	case 1:
		if w.random.IntN(4) == 0 {
			delete(w.namespaces, ns)
			w.tellNamespace(to, ns)
		}
	case 2, 3:
		key := policy.Key{Namespace: ns, Name: fmt.Sprintf("p%d", w.random.IntN(4))}
		w.objects[key] = w.policy(key)
		w.tellPolicy(to, key)
	case 4:
		key := policy.Key{Namespace: ns, Name: fmt.Sprintf("p%d", w.random.IntN(4))}
		delete(w.objects, key)
		w.tellPolicy(to, key)
	case 5, 6, 7:
		w.comes(to, kube.PodKey{Namespace: ns, Name: fmt.Sprintf("pod%d", w.random.IntN(12))})
	case 8:
		w.goes(to, kube.PodKey{Namespace: ns, Name: fmt.Sprintf("pod%d", w.random.IntN(12))})
	case 9:
		key := kube.PodKey{Namespace: ns, Name: fmt.Sprintf("pod%d", w.random.IntN(12))}
		if p := w.pods[key]; p != nil {
			p.labels = w.label()
			w.tellPod(to, key)
		}
	case 10:
		name := fmt.Sprintf("c%d", w.random.IntN(4))
		w.cluster[name] = w.clusterPolicy(name)
		w.tellClusterPolicy(to, name)
	case 11:
		name := fmt.Sprintf("c%d", w.random.IntN(4))
		delete(w.cluster, name)
		w.tellClusterPolicy(to, name)
	case 12:
		name := fmt.Sprintf("n%d", w.random.IntN(5)+1)
		host := w.hosts[name]
		host.Labels = w.label()
		w.hosts[name] = host
		w.tellHost(to, name)
	}
}

func (w *world) comes(to feeder, key kube.PodKey) {
	ip := netip.AddrFrom4([4]byte{198, 18, 0, byte(w.random.IntN(5) + 1)})
	low := topology.Low32(w.nodes[ip].Subnet.Addr())
	at := topology.WithLow32(netip.IPv4Unspecified(), low+2+uint32(w.random.IntN(60)))
	for other, p := range w.pods {
		if p.at == at && other != key {
			return
		}
	}
	old := w.pods[key]
	w.serial++
	p := &pod{uid: fmt.Sprintf("u%d", w.serial), labels: w.label(), node: ip, at: at}
	for _, port := range []policy.NamedPort{{Name: "http", Protocol: service.TCP, Port: uint16(8000 + w.random.IntN(3))}, {Name: "dns", Protocol: service.UDP, Port: 53}} {
		if w.random.IntN(2) == 0 {
			p.ports = append(p.ports, port)
		}
	}
	w.pods[key] = p
	w.say(ip)
	if old != nil && old.node != ip {
		w.say(old.node)
	}
	w.tellPod(to, key)
	w.tellNodes(to)
}

func (w *world) goes(to feeder, key kube.PodKey) {
	p := w.pods[key]
	if p == nil {
		return
	}
	delete(w.pods, key)
	w.tellPod(to, key)
	w.say(p.node)
	w.tellNodes(to)
}

func (w *world) tellNamespace(to feeder, name string) {
	if have, there := w.namespaces[name]; there {
		to.setNamespace(name, &have)
	} else {
		to.setNamespace(name, nil)
	}
}

func (w *world) tellPolicy(to feeder, key policy.Key) {
	object, there := w.objects[key]
	if !there {
		delete(w.policies, key)
		to.setPolicy(key, nil, w.now)
		return
	}
	parsed, err := policy.Parse(object)
	p := kube.NetworkPolicy{Policy: parsed, UID: string(object.UID)}
	if err != nil {
		p.Problem = err.Error()
	}
	w.policies[key] = p
	to.setPolicy(key, &p, w.now)
}

func (w *world) tellClusterPolicy(to feeder, name string) {
	if p, there := w.cluster[name]; there {
		to.setClusterPolicy(name, &p, w.now)
	} else {
		to.setClusterPolicy(name, nil, w.now)
	}
}

func (w *world) tellHost(to feeder, name string) {
	host := w.hosts[name]
	to.setHost(name, &host)
}

func (w *world) tellPod(to feeder, key kube.PodKey) {
	p := w.pods[key]
	if p == nil {
		to.setLabels(key, nil)
		to.setPorts(key, nil)
		return
	}
	to.setLabels(key, &kube.PodLabels{UID: p.uid, Node: w.nodes[p.node].Host, Labels: p.labels})
	to.setPorts(key, &kube.PodPorts{UID: p.uid, Ports: p.ports})
}

func (w *world) tellNodes(to feeder) {
	to.setPods(store.NodePods{Listing: w.listing, Nodes: maps.Clone(w.said)})
}

// tellAll tells everything, as a new leader hears it.
func (w *world) tellAll(to feeder) {
	for key := range w.objects {
		w.tellPolicy(to, key)
	}
	for name := range w.namespaces {
		w.tellNamespace(to, name)
	}
	for name := range w.cluster {
		w.tellClusterPolicy(to, name)
	}
	for name := range w.hosts {
		w.tellHost(to, name)
	}
	for key := range w.pods {
		w.tellPod(to, key)
	}
	w.tellNodes(to)
}

func (w *world) selector() metav1.LabelSelector {
	switch w.random.IntN(4) {
	case 0:
		return metav1.LabelSelector{}
	case 1:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"v1", "v2"}}}}
	}
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("v%d", w.random.IntN(3)+1)}}
}

func (w *world) policy(key policy.Key) *networkingv1.NetworkPolicy {
	w.serial++
	n := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, UID: types.UID(fmt.Sprint("p", w.serial))}}
	n.Spec.PodSelector = w.selector()
	if w.random.IntN(2) == 0 {
		n.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	for range w.random.IntN(3) {
		n.Spec.Ingress = append(n.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: w.peers(), Ports: w.ports()})
		n.Spec.Egress = append(n.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: w.peers(), Ports: w.ports()})
	}
	return n
}

func (w *world) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range w.random.IntN(3) {
		pods, spaces := w.selector(), w.selector()
		out = append(out, pick(w.random, []networkingv1.NetworkPolicyPeer{
			{PodSelector: &pods}, {NamespaceSelector: &spaces}, {PodSelector: &pods, NamespaceSelector: &spaces},
			{IPBlock: &networkingv1.IPBlock{CIDR: "172.11.0.0/23", Except: []string{"172.11.0.64/26"}}},
			{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "not a value!"}}}, // refused
		}))
	}
	return out
}

func (w *world) ports() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	http, number, dns := intstr.FromString("http"), intstr.FromInt32(80), intstr.FromString("dns")
	for range w.random.IntN(3) {
		out = append(out, pick(w.random, []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &http}, {Protocol: &tcp, Port: &number}, {Protocol: &udp, Port: &dns}, {Protocol: &udp}}))
	}
	return out
}

// clusterPolicy is a random one, which is not understood now and then.
func (w *world) clusterPolicy(name string) kube.ClusterNetworkPolicy {
	w.serial++
	object := &npav1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(fmt.Sprint("c", w.serial))}}
	object.Spec.Tier = pick(w.random, []npav1beta1.Tier{npav1beta1.AdminTier, npav1beta1.AdminTier, npav1beta1.BaselineTier, npav1beta1.BaselineTier, "Other"})
	object.Spec.Priority = w.random.Int32N(3)
	spaces := w.selector()
	object.Spec.Subject = npav1beta1.ClusterNetworkPolicySubject{Namespaces: &spaces}
	if w.random.IntN(2) == 0 {
		object.Spec.Subject = npav1beta1.ClusterNetworkPolicySubject{Pods: &npav1beta1.NamespacedPod{NamespaceSelector: w.selector(), PodSelector: w.selector()}}
	}
	for range w.random.IntN(3) {
		object.Spec.Ingress = append(object.Spec.Ingress, npav1beta1.ClusterNetworkPolicyIngressRule{Action: w.action(), From: w.clusterPeers(), Protocols: w.protocols()})
		rule := npav1beta1.ClusterNetworkPolicyEgressRule{Action: w.action(), Protocols: w.protocols()}
		for _, p := range w.clusterPeers() {
			rule.To = append(rule.To, npav1beta1.ClusterNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		if nodes := w.selector(); w.random.IntN(2) == 0 {
			rule.To = append(rule.To, pick(w.random, []npav1beta1.ClusterNetworkPolicyEgressPeer{
				{Nodes: &nodes}, {Networks: []npav1beta1.CIDR{"172.11.0.0/25", "203.0.113.0/24"}}, {DomainNames: []npav1beta1.DomainName{"example.com"}},
			}))
		}
		object.Spec.Egress = append(object.Spec.Egress, rule)
	}
	parsed, err := policy.ParseCluster(object)
	p := kube.ClusterNetworkPolicy{ClusterPolicy: parsed, UID: string(object.UID), Version: "v1beta1", Generation: 1}
	if err != nil {
		p.Problem = err.Error()
	}
	return p
}

func (w *world) action() npav1beta1.ClusterNetworkPolicyRuleAction {
	return pick(w.random, []npav1beta1.ClusterNetworkPolicyRuleAction{npav1beta1.ClusterNetworkPolicyRuleActionAccept, npav1beta1.ClusterNetworkPolicyRuleActionDeny, npav1beta1.ClusterNetworkPolicyRuleActionPass})
}

func (w *world) clusterPeers() []npav1beta1.ClusterNetworkPolicyIngressPeer {
	var out []npav1beta1.ClusterNetworkPolicyIngressPeer
	for range w.random.IntN(2) + 1 {
		spaces := w.selector()
		out = append(out, pick(w.random, []npav1beta1.ClusterNetworkPolicyIngressPeer{
			{Namespaces: &spaces}, {Pods: &npav1beta1.NamespacedPod{NamespaceSelector: w.selector(), PodSelector: w.selector()}},
		}))
	}
	return out
}

func (w *world) protocols() []npav1beta1.ClusterNetworkPolicyProtocol {
	var out []npav1beta1.ClusterNetworkPolicyProtocol
	for range w.random.IntN(3) {
		out = append(out, pick(w.random, []npav1beta1.ClusterNetworkPolicyProtocol{
			{TCP: &npav1beta1.ClusterNetworkPolicyProtocolTCP{DestinationPort: &npav1beta1.Port{Number: 80}}},
			{UDP: &npav1beta1.ClusterNetworkPolicyProtocolUDP{DestinationPort: &npav1beta1.Port{Range: &npav1beta1.PortRange{Start: 50, End: 60}}}},
			{DestinationNamedPort: "http"}, {DestinationNamedPort: "dns"},
		}))
	}
	return out
}

// members are those of a set as the cluster has them, found by asking every pod.
func (w *world) members(t testing.TB, set policy.Set) []policy.Member {
	parse := func(s policy.Selector) labels.Selector {
		parsed, err := labels.Parse(string(s))
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	spaces, pods, nodes := parse(set.Namespaces), parse(set.Pods), parse(set.Nodes)
	var out []policy.Member
	if set.OfNodes {
		for _, host := range w.hosts {
			if nodes.Matches(labels.Set(host.Labels)) {
				for _, a := range host.Node.Every {
					out = append(out, policy.Member{Address: a})
				}
			}
		}
		slices.SortFunc(out, func(a, b policy.Member) int { return a.Address.Compare(b.Address) })
		return out
	}
	for key, p := range w.pods {
		have, known := w.namespaces[key.Namespace]
		named := slices.ContainsFunc(p.ports, func(n policy.NamedPort) bool { return n.Name == set.PortName })
		switch {
		case set.Namespace != "" && set.Namespace != key.Namespace, set.Namespace == "" && (!known || !spaces.Matches(labels.Set(have))):
		case !pods.Matches(labels.Set(p.labels)), set.PortName != "" && !named:
		default:
			out = append(out, policy.Member{Address: p.at, Ports: p.ports})
		}
	}
	slices.SortFunc(out, func(a, b policy.Member) int { return a.Address.Compare(b.Address) })
	return out
}

// meaning is policies, and who is in the namespaces and sets that they name.
type meaning struct {
	policies []policy.Policy
	cluster  []policy.ClusterPolicy
	selects  func(p policy.ClusterPolicy, namespace string) bool
	members  func(policy.Set) []policy.Member
}

// compile is what policies come to on every node.
func (w *world) compile(m meaning) map[netip.Addr]policy.Compiled {
	out := map[netip.Addr]policy.Compiled{}
	slices.SortFunc(m.policies, func(a, b policy.Policy) int { return a.Key.Compare(b.Key) })
	for ip, own := range w.nodes {
		in := policy.Input{Network: netip.MustParsePrefix("172.11.0.0/16"), Own: own, Selects: m.selects}
		in.Nodes = slices.SortedFunc(maps.Values(w.nodes), func(a, b topology.Node) int { return a.HostIP.Compare(b.HostIP) })
		in.Members = func(s policy.Set) ([]policy.Member, bool) { return m.members(s), true }
		for key, p := range w.pods {
			if p.node == ip {
				in.Subjects = append(in.Subjects, policy.Pod{Key: policy.Key(key), Labels: p.labels, Member: policy.Member{Address: p.at}})
			}
		}
		slices.SortFunc(in.Subjects, func(a, b policy.Pod) int { return a.Key.Compare(b.Key) })
		out[ip] = policy.NewCompiler(in).Compile(m.policies, m.cluster)
	}
	return out
}

// direct is what the cluster's policies come to on every node.
func (w *world) direct(t testing.TB) map[netip.Addr]policy.Compiled {
	m := meaning{
		members: func(s policy.Set) []policy.Member { return w.members(t, s) },
		selects: func(p policy.ClusterPolicy, namespace string) bool {
			have, known := w.namespaces[namespace]
			return known && p.Selects(have)
		},
	}
	for _, p := range w.policies {
		m.policies = append(m.policies, p.Policy)
	}
	for _, p := range w.cluster {
		m.cluster = append(m.cluster, p.ClusterPolicy)
	}
	return w.compile(m)
}

// read is what the records come to on every node, as agents read them.
func (w *world) read(t testing.TB, records map[store.PolicyKey]store.Versioned[string]) map[netip.Addr]policy.Compiled {
	var m meaning
	sets := map[string]map[netip.Addr]topology.SetChunk{}
	whole := map[string]bool{}
	selected := map[policy.Key]bool{} // by namespace and ClusterNetworkPolicy
	for key, v := range records {
		kind, rest, _ := strings.Cut(string(key), "/")
		switch kind {
		case "isolation":
			isolation := must(topology.ParseIsolation(rest, []byte(v.Value)))(t)
			for _, p := range isolation.Policies {
				record := records[store.PolicyRecordKey(rest, p.Name)]
				m.policies = append(m.policies, policy.FromRecord(policy.Key{Namespace: rest, Name: p.Name}, must(topology.ParsePolicy(rest+"/"+p.Name, []byte(record.Value)))(t)))
			}
			for _, p := range isolation.Cluster {
				selected[policy.Key{Namespace: rest, Name: p.Name}] = true
			}
		case "clusterpolicies":
			m.cluster = append(m.cluster, policy.ClusterFromRecord(rest, must(topology.ParseClusterPolicy(rest, []byte(v.Value)))(t)))
		case "sets":
			hash, last, _ := strings.Cut(rest, "/")
			if last == "of" {
				whole[hash] = must(topology.ParseAddressSet(hash, []byte(v.Value)))(t).Whole
				continue
			}
			base, chunk, err := topology.ParseSetChunk(rest, []byte(v.Value))
			if err != nil {
				t.Fatal(err)
			}
			if sets[hash] == nil {
				sets[hash] = map[netip.Addr]topology.SetChunk{}
			}
			sets[hash][base] = chunk
		}
	}
	m.selects = func(p policy.ClusterPolicy, namespace string) bool {
		return selected[policy.Key{Namespace: namespace, Name: p.Name}]
	}
	m.members = func(s policy.Set) []policy.Member {
		if !whole[s.Hash()] {
			t.Fatalf("set %s is not whole", s)
		}
		return policy.MembersOf(sets[s.Hash()])
	}
	return w.compile(m)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// memory is records as etcd would hold them.
type memory struct {
	rev     int64
	records map[store.PolicyKey]store.Versioned[string]
	// fail, if not nil, may have a transaction fail, before or after it was made.
	fail func() (made bool, err error)
	// wrote hears of each transaction.
	wrote func([]store.PolicyChange)
	// counted
	transactions, changes, bytes int
}

func newMemory() *memory { return &memory{records: map[store.PolicyKey]store.Versioned[string]{}} }

func (m *memory) PolicyRecords(context.Context) (map[store.PolicyKey]store.Versioned[string], error) {
	return maps.Clone(m.records), nil
}

func (m *memory) PutPolicies(_ context.Context, changes []store.PolicyChange) (int64, error) {
	made, err := true, error(nil)
	if m.fail != nil {
		made, err = m.fail()
	}
	if !made {
		return 0, err
	}
	size := 0
	for _, c := range changes {
		size += len(c.Key) + len(c.Value)
	}
	if len(changes) > store.MaxBatch || size > store.MaxBatchBytes {
		return 0, store.ErrInvalid
	}
	for _, c := range changes {
		if m.records[c.Key].Revision != c.Revision {
			return 0, store.ErrConflict
		}
	}
	m.rev++
	m.transactions++
	for _, c := range changes {
		m.changes++
		m.bytes += len(c.Key) + len(c.Value)
		if c.Value == "" {
			delete(m.records, c.Key)
		} else {
			m.records[c.Key] = store.Versioned[string]{Value: c.Value, Revision: m.rev}
		}
	}
	if m.wrote != nil && err == nil {
		m.wrote(changes)
	}
	return m.rev, err
}

// keeper is one that a test drives step by step, in a world.
func keeper(w *world, m Writer) *Keeper {
	k := New(Config{Writer: m, Now: func() time.Time { return w.now }, Counted: func(Counts) {}, Logger: slog.New(slog.DiscardHandler)})
	k.known = inputs{true, true, true, true, true, true, true, true}
	k.state.setSubnets(w.nodes)
	return k
}

// settle has the keeper write until nothing is left.
func settle(t testing.TB, k *Keeper) {
	t.Helper()
	for range 100 {
		k.expire()
		again, err := k.write(context.Background())
		if err == nil && !again {
			return
		}
	}
	t.Fatal("it goes on writing")
}
