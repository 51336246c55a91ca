// Package policyoracle compares what pkg/policy says of packets with what the engine of
// sigs.k8s.io/kube-network-policies says, for policies, pods and packets drawn at random.
package policyoracle

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	engine "sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	"sigs.k8s.io/yaml"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// cases are how many clusters [TestAgainstEngine] draws, packets how many packets in each.
const cases, packets = 3000, 60

// TestAgainstEngine: the same verdicts, in the same direction.
func TestAgainstEngine(t *testing.T) {
	count := map[policy.Verdict]int{}
	for seed := range uint64(cases) {
		compare(t, seed, count)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d packets: %v", cases*packets, count)
	for v := policy.Allowed; v <= policy.DeniedIngress; v++ {
		if count[v] < cases*packets/10 {
			t.Errorf("only %d packets were %v: what is drawn asks too little", count[v], v)
		}
	}
}

// FuzzAgainstEngine goes on where the test ends.
func FuzzAgainstEngine(f *testing.F) {
	f.Add(uint64(cases))
	f.Fuzz(func(t *testing.T, seed uint64) { compare(t, seed, map[policy.Verdict]int{}) })
}

// compare draws a cluster and packets in it, and asks both.
func compare(t *testing.T, seed uint64, count map[policy.Verdict]int) {
	d := draw{rand.New(rand.NewPCG(seed, 0))}
	c := d.cluster()
	ours, theirs := c.ours(t), c.theirs()
	for range packets {
		p := d.packet(c)
		got, want := ours.Verdict(p), theirs.verdict(t, p)
		count[want]++
		if got != want {
			t.Fatalf("seed %d, %v to %v, protocol %d, port %d: %v; the engine says %v, with\n%s", seed, p.Src, p.Dst, p.Protocol, p.DstPort, got, want, c)
		}
	}
}

// cluster is what was drawn.
type cluster struct {
	namespaces map[string]map[string]string
	pods       []policy.Pod
	policies   []*networkingv1.NetworkPolicy
}

func (c cluster) String() string {
	text := fmt.Sprintf("namespaces %v\npods %+v\n", c.namespaces, c.pods)
	for _, p := range c.policies {
		spec, _ := yaml.Marshal(p.Spec)
		text += fmt.Sprintf("policy %s/%s:\n%s", p.Namespace, p.Name, spec)
	}
	return text
}

var clusterNetwork = netip.MustParsePrefix("10.0.0.0/16")

// ours is what the policies come to for all pods, as if they were one node's. There are no
// nodes: that a pod is never cut from its own is no matter of the engine.
func (c cluster) ours(t *testing.T) policy.Compiled {
	in := policy.Input{Subjects: c.pods, Network: clusterNetwork}
	known := map[policy.Set][]policy.Member{}
	for _, np := range c.policies {
		p, err := policy.Parse(np)
		if err != nil {
			t.Fatal(err)
		}
		in.Policies = append(in.Policies, p)
		for _, s := range p.Sets() {
			if known[s], err = s.Members(c.namespaces, c.pods); err != nil {
				t.Fatal(err)
			}
		}
	}
	in.Members = func(s policy.Set) []policy.Member { return known[s] }
	return policy.Compile(in)
}

// evaluator is the engine over a cluster.
type evaluator struct {
	*engine.StandardNetworkPolicy
	pods map[netip.Addr]*api.PodInfo
}

// theirs is the engine over the cluster, with policies as the API server stores them.
func (c cluster) theirs() evaluator {
	factory := informers.NewSharedInformerFactory((*kubernetes.Clientset)(nil), 0)
	policies := factory.Networking().V1().NetworkPolicies()
	for _, np := range c.policies {
		if err := policies.Informer().GetStore().Add(stored(np)); err != nil {
			panic(err)
		}
	}
	e := evaluator{engine.NewStandardNetworkPolicy("node", factory.Core().V1().Namespaces(), factory.Core().V1().Pods(), policies), map[netip.Addr]*api.PodInfo{}}
	for _, p := range c.pods {
		info := &api.PodInfo{Name: p.Name, Labels: p.Labels, Namespace: &api.Namespace{Name: p.Namespace, Labels: c.namespaces[p.Namespace]}}
		for _, port := range p.Ports {
			info.ContainerPorts = append(info.ContainerPorts, &api.ContainerPort{Name: port.Name, Port: int32(port.Port), Protocol: port.Protocol.String()})
		}
		e.pods[p.Address] = info
	}
	return e
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

func (e evaluator) verdict(t *testing.T, p policy.Packet) policy.Verdict {
	packet := &network.Packet{SrcIP: p.Src.AsSlice(), DstIP: p.Dst.AsSlice(), Proto: protocols[p.Protocol], SrcPort: 40000, DstPort: int(p.DstPort)}
	src, dst := e.pods[p.Src], e.pods[p.Dst]
	out, err := e.EvaluateEgress(context.Background(), packet, src, dst)
	if err != nil {
		t.Fatal(err)
	}
	if out == api.VerdictDeny {
		return policy.DeniedEgress
	}
	in, err := e.EvaluateIngress(context.Background(), packet, src, dst)
	if err != nil {
		t.Fatal(err)
	}
	if in == api.VerdictDeny {
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

func (d draw) cluster() cluster {
	c := cluster{namespaces: map[string]map[string]string{}}
	for i := range 3 {
		name := fmt.Sprint("ns", i)
		c.namespaces[name] = d.labels()
		for j := range 3 {
			p := policy.Pod{Key: policy.Key{Namespace: name, Name: fmt.Sprint("pod", j)}, Labels: d.labels()}
			p.Address = netip.AddrFrom4([4]byte{10, 0, byte(i), byte(64*j + 5)})
			p.Ports = some(d, 3, d.namedPort)
			c.pods = append(c.pods, p)
		}
	}
	for i := range 1 + d.IntN(4) {
		np := d.policy()
		np.Name, np.Namespace = fmt.Sprint("policy", i), one(d, "ns0", "ns1", "ns2")
		c.policies = append(c.policies, np)
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

func (d draw) policy() *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{}
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

// packet is one between two different pods, or a pod and the outside.
func (d draw) packet(c cluster) policy.Packet {
	ends := []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("203.0.113.200")}
	for _, p := range c.pods {
		ends = append(ends, p.Address)
	}
	d.Shuffle(len(ends), func(i, j int) { ends[i], ends[j] = ends[j], ends[i] })
	return policy.Packet{Src: ends[0], Dst: ends[1], Protocol: one[uint8](d, 1, 6, 6, 17, 132), DstPort: one[uint16](d, 1, 53, 54, 79, 80, 81, 82, 65535)}
}
