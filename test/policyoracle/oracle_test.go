// Package policyoracle compares what pkg/policy says of packets with what the engine of
// sigs.k8s.io/kube-network-policies says, for policies, pods and packets drawn at random.
package policyoracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	engine "sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	clusterengine "sigs.k8s.io/kube-network-policies/plugins/npa-v1alpha2"
	npav1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	npav1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"
	npaclient "sigs.k8s.io/network-policy-api/pkg/client/clientset/versioned"
	npainformers "sigs.k8s.io/network-policy-api/pkg/client/informers/externalversions"
	"sigs.k8s.io/yaml"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// cases are how many clusters a test draws, packets how many packets in each.
const cases, packets = 3000, 60

// TestNetworkPolicy: the same verdicts, in the same direction.
func TestNetworkPolicy(t *testing.T) {
	count := test(t, draw.withPolicies)
	t.Logf("%d packets: %v", cases*packets, count)
}

// TestClusterNetworkPolicy: the same beside ClusterNetworkPolicies, of which each tier has
// something to say.
func TestClusterNetworkPolicy(t *testing.T) {
	count := test(t, draw.withClusterPolicies)
	t.Logf("%d packets: %v", cases*packets, count)
	for _, tier := range []npav1beta1.Tier{npav1beta1.AdminTier, npav1beta1.BaselineTier} {
		for _, said := range []string{" accepts", " denies"} {
			if what := "ClusterNetworkPolicy" + string(tier) + said; count[what] < cases*packets/50 {
				t.Errorf("%s only %d packets: what is drawn asks too little", what, count[what])
			}
		}
	}
}

// test compares for every seed, and counts what became of packets.
func test(t *testing.T, drawn func(draw) cluster) map[string]int {
	count := map[string]int{}
	for seed := range uint64(cases) {
		compare(t, seed, drawn, count)
		if t.Failed() {
			t.FailNow()
		}
	}
	for v := policy.Allowed; v <= policy.DeniedIngress; v++ {
		if count[v.String()] < cases*packets/10 {
			t.Errorf("only %d packets were %v: what is drawn asks too little", count[v.String()], v)
		}
	}
	return count
}

// FuzzNetworkPolicy and FuzzClusterNetworkPolicy go on where the tests end.
func FuzzNetworkPolicy(f *testing.F) {
	f.Add(uint64(cases))
	f.Fuzz(func(t *testing.T, seed uint64) { compare(t, seed, draw.withPolicies, map[string]int{}) })
}

func FuzzClusterNetworkPolicy(f *testing.F) {
	f.Add(uint64(cases))
	f.Fuzz(func(t *testing.T, seed uint64) { compare(t, seed, draw.withClusterPolicies, map[string]int{}) })
}

// compare draws a cluster and packets in it, and asks both.
func compare(t *testing.T, seed uint64, drawn func(draw) cluster, count map[string]int) {
	d := draw{rand.New(rand.NewPCG(seed, 0))}
	c := drawn(d)
	ours, theirs := c.ours(t), c.theirs(t)
	reaches := c.reaches(ours)
	for range packets {
		p := d.packet(c)
		got, want := ours.Verdict(p), theirs.verdict(t, p, count)
		count[want.String()]++
		if got != want {
			t.Fatalf("seed %d, %v to %v, protocol %d, port %d: %v; the engine says %v, with\n%s", seed, p.Src, p.Dst, p.Protocol, p.DstPort, got, want, c)
		}
		if reach, pod := reaches[p.Src]; pod && slices.Contains(outside, p.Dst) && reach.Lets(p) != (want == policy.Allowed) {
			t.Fatalf("seed %d, %v to %v, protocol %d, port %d: past the switch it reaches %+v; the engine says %v, with\n%s", seed, p.Src, p.Dst, p.Protocol, p.DstPort, reach, want, c)
		}
	}
}

// reaches is what the pods may reach past the switch.
func (c cluster) reaches(ours policy.Compiled) map[netip.Addr]policy.Reach {
	isolated := map[netip.Addr]bool{}
	for _, p := range c.pods {
		isolated[p.Address] = slices.Contains(ours.Egress.Isolated, p.Address)
	}
	reach, _ := ours.Outside().Reaches(isolated)
	return reach
}

// cluster is what was drawn.
type cluster struct {
	namespaces      map[string]map[string]string
	pods            []policy.Pod
	nodes           []*corev1.Node
	policies        []*networkingv1.NetworkPolicy
	clusterPolicies []*npav1beta1.ClusterNetworkPolicy
}

func (c cluster) String() string {
	text := fmt.Sprintf("namespaces %v\npods %+v\n", c.namespaces, c.pods)
	for _, n := range c.nodes {
		text += fmt.Sprintf("node %v %v\n", n.Labels, n.Status.Addresses)
	}
	for _, p := range c.policies {
		spec, _ := yaml.Marshal(p.Spec)
		text += fmt.Sprintf("policy %s/%s:\n%s", p.Namespace, p.Name, spec)
	}
	for _, p := range c.clusterPolicies {
		spec, _ := yaml.Marshal(p.Spec)
		text += fmt.Sprintf("policy %s:\n%s", p.Name, spec)
	}
	return text
}

var clusterNetwork = netip.MustParsePrefix("10.0.0.0/16")

// ours is what the policies come to for all pods, as if they were one node's. Nodes have no
// subnets: that a pod is never cut from its own is no matter of the engine.
func (c cluster) ours(t *testing.T) policy.Compiled {
	index := c.index()
	want := func(sets []policy.Set, err error) {
		for _, s := range sets {
			err = errors.Join(err, index.Want(s))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var policies []policy.Policy
	for _, np := range c.policies {
		p, err := policy.Parse(np)
		want(p.Sets(), err)
		policies = append(policies, p)
	}
	var clusterPolicies []policy.ClusterPolicy
	for _, cnp := range c.clusterPolicies {
		p, err := policy.ParseCluster(cnp)
		want(p.Sets(), err)
		clusterPolicies = append(clusterPolicies, p)
	}
	return policy.NewCompiler(policy.Input{
		Subjects: c.pods, Network: clusterNetwork,
		Members: func(s policy.Set) ([]policy.Member, bool) { return index.All(s), true },
		Selects: func(p policy.ClusterPolicy, namespace string) bool { return p.Selects(c.namespaces[namespace]) },
	}).Compile(policies, clusterPolicies)
}

// index has all that is in the cluster.
func (c cluster) index() *policy.Index {
	index := policy.NewIndex()
	for name, labels := range c.namespaces {
		index.SetNamespace(name, labels)
	}
	for _, p := range c.pods {
		index.SetPod(p)
	}
	for _, n := range c.nodes {
		index.SetNode(n.Name, n.Labels, []netip.Addr{netip.MustParseAddr(n.Status.Addresses[0].Address)})
	}
	return index
}

// evaluator is the engine over a cluster: what it asks for each direction, in order.
type evaluator struct {
	egress, ingress []api.PolicyEvaluator
	pods            map[netip.Addr]*api.PodInfo
}

// theirs is the engine over the cluster, with policies as the API server stores them.
func (c cluster) theirs(t *testing.T) evaluator {
	admin, baseline := c.tiers(t)
	e := evaluator{pods: map[netip.Addr]*api.PodInfo{}}
	e.egress = []api.PolicyEvaluator{admin, c.standard(networkingv1.PolicyTypeEgress), baseline}
	e.ingress = []api.PolicyEvaluator{admin, c.standard(networkingv1.PolicyTypeIngress), baseline}
	for _, p := range c.pods {
		info := &api.PodInfo{Name: p.Name, Labels: p.Labels, Namespace: &api.Namespace{Name: p.Namespace, Labels: c.namespaces[p.Namespace]}}
		for _, port := range p.Ports {
			info.ContainerPorts = append(info.ContainerPorts, &api.ContainerPort{Name: port.Name, Port: int32(port.Port), Protocol: port.Protocol.String()})
		}
		e.pods[p.Address] = info
	}
	return e
}

// standard is the engine's NetworkPolicy, with the policies that have a direction: a pod that
// has one of the other direction only it takes for decided about, so that the Baseline tier is
// not asked. The API speaks of the two as two sorts of isolation.
func (c cluster) standard(direction networkingv1.PolicyType) api.PolicyEvaluator {
	factory := informers.NewSharedInformerFactory((*kubernetes.Clientset)(nil), 0)
	policies := factory.Networking().V1().NetworkPolicies()
	for _, np := range c.policies {
		if np := stored(np); slices.Contains(np.Spec.PolicyTypes, direction) {
			add(policies.Informer(), np)
		}
	}
	return engine.NewStandardNetworkPolicy("node", factory.Core().V1().Namespaces(), factory.Core().V1().Pods(), policies)
}

// tiers are the engine's of ClusterNetworkPolicy, which reads version v1alpha2.
func (c cluster) tiers(t *testing.T) (admin, baseline api.PolicyEvaluator) {
	nodes := informers.NewSharedInformerFactory((*kubernetes.Clientset)(nil), 0).Core().V1().Nodes()
	for _, n := range c.nodes {
		add(nodes.Informer(), n)
	}
	policies := npainformers.NewSharedInformerFactory((*npaclient.Clientset)(nil), 0).Policy().V1alpha2().ClusterNetworkPolicies()
	for _, cnp := range c.clusterPolicies {
		old := &npav1alpha2.ClusterNetworkPolicy{}
		text, err := json.Marshal(cnp)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, old); err != nil {
			t.Fatal(err)
		}
		add(policies.Informer(), old)
	}
	tier := func(t npav1alpha2.Tier) api.PolicyEvaluator {
		return clusterengine.NewClusterNetworkPolicy(t, policies, nil, nodes.Lister())
	}
	return tier(npav1alpha2.AdminTier), tier(npav1alpha2.BaselineTier)
}

// add puts an object where the engine looks for it.
func add(informer cache.SharedIndexInformer, object any) {
	if err := informer.GetStore().Add(object); err != nil {
		panic(err)
	}
}

// stored is a policy with what the API server fills in: protocols and directions. The engine
// takes them as given.
func stored(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	np = np.DeepCopy()
	fill := func(ports []networkingv1.NetworkPolicyPort) {
		for i := range ports {
			if ports[i].Protocol == nil {
				ports[i].Protocol = new(corev1.ProtocolTCP)
			}
		}
	}
	for _, r := range np.Spec.Ingress {
		fill(r.Ports)
	}
	for _, r := range np.Spec.Egress {
		fill(r.Ports)
	}
	if len(np.Spec.PolicyTypes) == 0 {
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(np.Spec.Egress) != 0 {
			np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	return np
}

var protocols = map[uint8]corev1.Protocol{1: "ICMP", 6: corev1.ProtocolTCP, 17: corev1.ProtocolUDP, 132: corev1.ProtocolSCTP}

// verdict is the engine's, and counts whose it was.
func (e evaluator) verdict(t *testing.T, p policy.Packet, count map[string]int) policy.Verdict {
	packet := &network.Packet{SrcIP: p.Src.AsSlice(), DstIP: p.Dst.AsSlice(), Proto: protocols[p.Protocol], SrcPort: 40000, DstPort: int(p.DstPort)}
	src, dst := e.pods[p.Src], e.pods[p.Dst]
	denied := func(order []api.PolicyEvaluator, ask func(api.PolicyEvaluator) (api.Verdict, error)) bool {
		for _, by := range order {
			v, err := ask(by)
			switch {
			case err != nil:
				t.Fatal(err)
			case v == api.VerdictAccept:
				count[by.Name()+" accepts"]++
				return false
			case v == api.VerdictDeny:
				count[by.Name()+" denies"]++
				return true
			}
		}
		return false
	}
	ctx := context.Background()
	switch {
	case denied(e.egress, func(by api.PolicyEvaluator) (api.Verdict, error) { return by.EvaluateEgress(ctx, packet, src, dst) }):
		return policy.DeniedEgress
	case denied(e.ingress, func(by api.PolicyEvaluator) (api.Verdict, error) { return by.EvaluateIngress(ctx, packet, src, dst) }):
		return policy.DeniedIngress
	}
	return policy.Allowed
}

// draw draws what there is few of, so that what it draws meets.
type draw struct{ *rand.Rand }

func one[T any](d draw, of ...T) T { return of[d.IntN(len(of))] }

// some are up to max of what f draws; nil for none: the engine takes a list that is there and
// empty for one that allows all, which the API server never sends it.
func some[T any](d draw, max int, f func() T) []T {
	var out []T
	for range d.IntN(max + 1) {
		out = append(out, f())
	}
	return out
}

// withPolicies is a cluster with NetworkPolicies.
func (d draw) withPolicies() cluster {
	c := d.cluster()
	for i := range 1 + d.IntN(4) {
		c.policies = append(c.policies, d.policy(i))
	}
	return c
}

// withClusterPolicies is one with ClusterNetworkPolicies, and a few NetworkPolicies.
func (d draw) withClusterPolicies() cluster {
	c := d.cluster()
	for i := range d.IntN(3) {
		c.policies = append(c.policies, d.policy(i))
	}
	for i := range 1 + d.IntN(5) {
		c.clusterPolicies = append(c.clusterPolicies, d.clusterPolicy(i))
	}
	return c
}

// perLevel are how many namespaces a cluster has, and how many pods each: podsDrawn in all.
const perLevel, podsDrawn = 3, 9

func (d draw) cluster() cluster {
	c := cluster{namespaces: map[string]map[string]string{}}
	for i := range perLevel {
		name := fmt.Sprint("ns", i)
		c.namespaces[name] = d.labels()
		for j := range perLevel {
			p := policy.Pod{Key: policy.Key{Namespace: name, Name: fmt.Sprint("pod", j)}, Labels: d.labels()}
			p.Address = netip.AddrFrom4([4]byte{10, 0, byte(i), byte(64*j + 5)})
			p.Ports = some(d, 3, d.namedPort)
			c.pods = append(c.pods, p)
		}
	}
	for i, address := range outside {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node", i), Labels: d.labels()}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address.String()}}
		c.nodes = append(c.nodes, n)
	}
	return c
}

func (d draw) labels() map[string]string {
	out := map[string]string{}
	for _, key := range []string{"a", "b"} {
		if d.IntN(3) > 0 {
			out[key] = one(d, "x", "y", "")
		}
	}
	return out
}

func (d draw) namedPort() policy.NamedPort {
	return policy.NamedPort{Name: one(d, "http", "dns"), Protocol: one(d, service.TCP, service.UDP, service.SCTP), Port: one[uint16](d, 53, 80, 81)}
}

func (d draw) policy(i int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("policy", i), Namespace: one(d, "ns0", "ns1", "ns2")}}
	np.Spec.PodSelector = d.selector()
	np.Spec.PolicyTypes = one(d, nil,
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress})
	np.Spec.Ingress = some(d, 3, func() networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{From: some(d, 3, d.peer), Ports: some(d, 3, d.port)}
	})
	np.Spec.Egress = some(d, 3, func() networkingv1.NetworkPolicyEgressRule {
		return networkingv1.NetworkPolicyEgressRule{To: some(d, 3, d.peer), Ports: some(d, 3, d.port)}
	})
	return np
}

func (d draw) selector() metav1.LabelSelector {
	s := metav1.LabelSelector{}
	for _, key := range []string{"a", "b"} {
		switch d.IntN(8) {
		case 0:
			s.MatchLabels = map[string]string{key: one(d, "x", "y", "")}
		case 1, 2:
			r := metav1.LabelSelectorRequirement{Key: key, Operator: one(d, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
			if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
				r.Values = one(d, []string{"x"}, []string{"y", "x"}, []string{""}, []string{"", "y"})
			}
			s.MatchExpressions = append(s.MatchExpressions, r)
		}
	}
	return s
}

func (d draw) peer() networkingv1.NetworkPolicyPeer {
	switch d.IntN(4) {
	case 0:
		return networkingv1.NetworkPolicyPeer{PodSelector: new(d.selector())}
	case 1:
		return networkingv1.NetworkPolicyPeer{NamespaceSelector: new(d.selector())}
	case 2:
		return networkingv1.NetworkPolicyPeer{PodSelector: new(d.selector()), NamespaceSelector: new(d.selector())}
	}
	return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{
		CIDR:   one(d, "0.0.0.0/0", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.7/25", "10.0.2.5/32", "203.0.113.0/24", "::/0"),
		Except: some(d, 2, func() string { return one(d, "10.0.0.0/23", "10.0.1.0/26", "10.0.1.5/32", "203.0.113.128/25") }),
	}}
}

func (d draw) port() networkingv1.NetworkPolicyPort {
	p := networkingv1.NetworkPolicyPort{}
	if d.IntN(3) > 0 {
		p.Protocol = new(one(d, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP))
	}
	switch d.IntN(4) {
	case 0:
		p.Port = new(intstr.FromString(one(d, "http", "dns")))
	case 1:
		p.Port = new(intstr.FromInt32(one[int32](d, 53, 80, 81)))
	case 2:
		p.Port = new(intstr.FromInt32(one[int32](d, 1, 53, 80)))
		p.EndPort = new(one[int32](d, 80, 81, 65535))
	}
	return p
}

func (d draw) clusterPolicy(i int) *npav1beta1.ClusterNetworkPolicy {
	cnp := &npav1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("policy", i)}}
	cnp.Spec.Tier = one(d, npav1beta1.AdminTier, npav1beta1.BaselineTier)
	cnp.Spec.Priority = one[int32](d, 0, 7, 7, 1000)
	cnp.Spec.Subject = one(d, npav1beta1.ClusterNetworkPolicySubject{Namespaces: new(d.selector())}, npav1beta1.ClusterNetworkPolicySubject{Pods: d.pods()})
	action := func() npav1beta1.ClusterNetworkPolicyRuleAction {
		return one(d, npav1beta1.ClusterNetworkPolicyRuleActionAccept, npav1beta1.ClusterNetworkPolicyRuleActionDeny, npav1beta1.ClusterNetworkPolicyRuleActionPass)
	}
	cnp.Spec.Ingress = some(d, 4, func() npav1beta1.ClusterNetworkPolicyIngressRule {
		r := npav1beta1.ClusterNetworkPolicyIngressRule{Action: action(), Protocols: some(d, 3, d.protocol)}
		for range 1 + d.IntN(2) {
			p := d.clusterPeer(2)
			r.From = append(r.From, npav1beta1.ClusterNetworkPolicyIngressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		return r
	})
	cnp.Spec.Egress = some(d, 4, func() npav1beta1.ClusterNetworkPolicyEgressRule {
		r := npav1beta1.ClusterNetworkPolicyEgressRule{Action: action(), Protocols: some(d, 3, d.protocol)}
		for range 1 + d.IntN(2) {
			r.To = append(r.To, d.clusterPeer(4))
		}
		return r
	})
	return cnp
}

func (d draw) pods() *npav1beta1.NamespacedPod {
	return &npav1beta1.NamespacedPod{NamespaceSelector: d.selector(), PodSelector: d.selector()}
}

// clusterPeer is a peer of the first few kinds: two are those of ingress.
func (d draw) clusterPeer(kinds int) npav1beta1.ClusterNetworkPolicyEgressPeer {
	switch d.IntN(kinds) {
	case 0:
		return npav1beta1.ClusterNetworkPolicyEgressPeer{Namespaces: new(d.selector())}
	case 1:
		return npav1beta1.ClusterNetworkPolicyEgressPeer{Pods: d.pods()}
	case 2:
		return npav1beta1.ClusterNetworkPolicyEgressPeer{Nodes: new(d.selector())}
	}
	networks := some(d, 2, func() npav1beta1.CIDR {
		return one[npav1beta1.CIDR](d, "0.0.0.0/0", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.0/25", "10.0.2.5/32", "203.0.113.128/25", "::/0")
	})
	return npav1beta1.ClusterNetworkPolicyEgressPeer{Networks: append(networks, "10.0.0.0/23")}
}

func (d draw) protocol() npav1beta1.ClusterNetworkPolicyProtocol {
	port := &npav1beta1.Port{Number: one[int32](d, 53, 80, 81)}
	if d.IntN(3) == 0 {
		port = &npav1beta1.Port{Range: &npav1beta1.PortRange{Start: one[int32](d, 1, 53, 80), End: one[int32](d, 81, 65535)}}
	}
	switch d.IntN(5) {
	case 0:
		return npav1beta1.ClusterNetworkPolicyProtocol{UDP: &npav1beta1.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}}
	case 1:
		return npav1beta1.ClusterNetworkPolicyProtocol{SCTP: &npav1beta1.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}}
	case 2:
		return npav1beta1.ClusterNetworkPolicyProtocol{DestinationNamedPort: one(d, "http", "dns")}
	}
	return npav1beta1.ClusterNetworkPolicyProtocol{TCP: &npav1beta1.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}}
}

// outside are addresses that are no pod's.
var outside = []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("203.0.113.200")}

// packet is one between two different pods, or a pod and the outside.
func (d draw) packet(c cluster) policy.Packet {
	ends := slices.Clone(outside)
	for _, p := range c.pods {
		ends = append(ends, p.Address)
	}
	d.Shuffle(len(ends), func(i, j int) { ends[i], ends[j] = ends[j], ends[i] })
	return policy.Packet{Src: ends[0], Dst: ends[1], Protocol: one[uint8](d, 1, 6, 6, 17, 132), DstPort: one[uint16](d, 1, 53, 54, 79, 80, 81, 82, 65535)}
}
