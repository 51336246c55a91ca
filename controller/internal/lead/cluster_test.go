package lead

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

// kubernetes is a controller on a real etcd and a fake API server.
type kubernetes struct {
	*candidate
	t     *testing.T
	cs    *fake.Clientset
	store *store.Store
}

func startKubernetes(t *testing.T, change func(*Config)) *kubernetes {
	t.Helper()
	client, cs := kubetest.New(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
	e := etcdtest.Start(t)
	k := &kubernetes{t: t, cs: cs, store: open(t, e)}
	k.candidate = start(t, e, "one", func(c *Config) {
		c.Cluster = &Cluster{API: client, SubnetSource: cluster.FromRecords, Pod: kube.ObjectRef{Kind: "Pod", Namespace: "kube-system", Name: "controller"}}
		if change != nil {
			change(c)
		}
	})
	// The fake loses what happens between a list and its watch.
	for _, resource := range []string{"namespaces", "nodes"} {
		k.watched(resource)
	}
	return k
}

// watched waits until the controller watches.
func (k *kubernetes) watched(resource string) {
	k.t.Helper()
	eventually(k.t, "the watch of "+resource, func() bool {
		return slices.ContainsFunc(k.cs.Actions(), func(a clienttesting.Action) bool { return a.Matches("watch", resource) })
	})
}

// namespace makes or changes a Namespace; annotation "" for none.
func (k *kubernetes) namespace(name, uid, annotation string) {
	k.t.Helper()
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid), CreationTimestamp: metav1.Now()}}
	if annotation != "" {
		n.Annotations = map[string]string{topology.NetworkAnnotation: annotation}
	}
	ctx := ctxOf(k.t)
	_, err := k.cs.CoreV1().Namespaces().Create(ctx, n, metav1.CreateOptions{})
	if err != nil {
		_, err = k.cs.CoreV1().Namespaces().Update(ctx, n, metav1.UpdateOptions{})
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

func (k *kubernetes) deleteNamespace(name string) {
	k.t.Helper()
	if err := k.cs.CoreV1().Namespaces().Delete(ctxOf(k.t), name, metav1.DeleteOptions{}); err != nil {
		k.t.Fatal(err)
	}
}

// record waits until the record of a namespace is so.
func (k *kubernetes) record(name, what string, cond func(n topology.Namespace, ok bool) bool) topology.Namespace {
	k.t.Helper()
	return waitNamespace(k.t, k.store, name, what, cond)
}

// declared waits until a namespace has the netID of another by its annotation.
func (k *kubernetes) with(name, other string) {
	k.t.Helper()
	k.record(name, "with "+other, func(n topology.Namespace, ok bool) bool {
		o, err := k.store.Namespace(ctxOf(k.t), other)
		return err == nil && ok && n.Effective != nil && o.Value.Effective != nil && *n.Effective == *o.Value.Effective
	})
}

func settledRecord(n topology.Namespace, ok bool) bool {
	return ok && n.Effective != nil && n.Action == topology.None
}

// event waits for an Event in a namespace.
func (k *kubernetes) event(namespace, reason, say string) {
	k.t.Helper()
	eventually(k.t, "Event "+reason, func() bool {
		list, err := k.cs.CoreV1().Events(namespace).List(ctxOf(k.t), metav1.ListOptions{})
		if err != nil {
			k.t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.Reason == reason && strings.Contains(e.Message, say) {
				return true
			}
		}
		return false
	})
}

// A namespace's life, by annotations and by hand.
func TestFollowsNamespaces(t *testing.T) {
	k := startKubernetes(t, nil)
	for _, name := range []string{"kube-system", "a", "b"} {
		k.namespace(name, "u-"+name, "")
	}
	if n := k.record("kube-system", "global", settledRecord); *n.Effective != 0 || n.UID != "u-kube-system" {
		t.Errorf("kube-system %+v", n)
	}
	a, b := *k.record("a", "a netID", settledRecord).Effective, *k.record("b", "a netID", settledRecord).Effective
	if a == b {
		t.Fatal("two namespaces share a netID")
	}
	eventually(t, "the annotation with the netID", func() bool {
		n, err := k.cs.CoreV1().Namespaces().Get(ctxOf(t), "a", metav1.GetOptions{})
		return err == nil && n.Annotations[topology.NetIDAnnotation] == a.String()
	})

	k.namespace("a", "u-a", "blue")
	k.namespace("b", "u-b", "blue")
	k.with("b", "a")
	k.event("b", cluster.NetworkJoined, "k8s-ovs.io/network: blue")
	k.namespace("c", "u-c", "blue") // never on another network
	if n := k.record("c", "a netID", settledRecord); *n.Effective != a || n.Declared != "blue" {
		t.Errorf("c began as %+v, want netID %d", n, a)
	}

	// The annotation wins over what was written by hand, unless that is forced.
	if _, err := k.store.RequestAction(ctxOf(t), "b", topology.Isolate, ""); err == nil {
		t.Error("a request for an annotated namespace was taken")
	}
	if _, err := k.store.ForceAction(ctxOf(t), "b", topology.Isolate, ""); err != nil {
		t.Fatal(err)
	}
	alone := k.record("b", "forced", func(n topology.Namespace, ok bool) bool { return settledRecord(n, ok) && *n.Effective != a })
	if !alone.Forced {
		t.Errorf("b %+v, want it forced", alone)
	}
	k.namespace("b", "u-b", "global")
	k.record("b", "global", func(n topology.Namespace, ok bool) bool {
		return settledRecord(n, ok) && *n.Effective == 0 && !n.Forced
	})
	k.namespace("b", "u-b", "Not A Name")
	k.event("b", cluster.NetworkRefused, "Not A Name")
	k.namespace("b", "u-b", "")
	k.record("b", "isolated", func(n topology.Namespace, ok bool) bool {
		return settledRecord(n, ok) && *n.Effective != 0 && *n.Effective != a && n.Declared == ""
	})
}

// A record outlives its Namespace as long as a pod is left, and a namesake is
// another tenant.
func TestNamespacesGo(t *testing.T) {
	k := startKubernetes(t, nil)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}}
	if err := k.cs.Tracker().Add(pod); err != nil {
		t.Fatal(err)
	}
	k.namespace("a", "u1", "")
	k.namespace("people", "u2", "")
	was := *k.record("a", "a netID", settledRecord).Effective
	ensure(t, k.store, "byhand")
	k.record("byhand", "a netID", settledRecord)
	k.deleteNamespace("a")
	k.namespace("later", "u3", "")
	k.record("later", "a netID", settledRecord)
	k.record("a", "still there", settledRecord)
	if err := k.cs.CoreV1().Pods("a").Delete(ctxOf(t), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.record("a", "gone", func(_ topology.Namespace, ok bool) bool { return !ok })
	k.record("byhand", "still there", settledRecord)

	k.namespace("people", "u9", "")
	n := k.record("people", "the namesake's", func(n topology.Namespace, ok bool) bool { return settledRecord(n, ok) && n.UID == "u9" })
	if *n.Effective == was {
		t.Errorf("the namesake has netID %d", was)
	}
}

func aNode(name, ip string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("u-" + name)},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}}}
}

func TestFollowsNodes(t *testing.T) {
	k := startKubernetes(t, nil)
	nodes := k.cs.CoreV1().Nodes()
	for _, n := range []*corev1.Node{aNode("n1", "192.0.2.1"), aNode("bad", "172.11.0.9")} {
		if _, err := nodes.Create(ctxOf(t), n, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	at := func(ip string) (topology.Node, bool) {
		n, err := k.store.Node(ctxOf(t), netip.MustParseAddr(ip))
		return n.Value, err == nil && n.Value.Ready()
	}
	eventually(t, "a subnet for n1", func() bool { _, ok := at("192.0.2.1"); return ok })
	k.event("default", cluster.NodeRefused, "inside the pod network")
	before, _ := at("192.0.2.1")

	// Nobody else has its address, and it goes nowhere without somebody's word.
	for _, n := range []*corev1.Node{aNode("n2", "192.0.2.1"), aNode("n1", "192.0.2.7")} {
		_, err := nodes.Create(ctxOf(t), n, metav1.CreateOptions{})
		if err != nil {
			_, err = nodes.Update(ctxOf(t), n, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	k.event("default", cluster.NodeRefused, "is the address of node n1")
	k.event("default", cluster.NodeAddressWaiting, "netns nodes confirm n1 192.0.2.7")
	if now, _ := at("192.0.2.1"); !reflect.DeepEqual(now, before) {
		t.Errorf("the record is %+v, was %+v", now, before)
	}
	if _, err := k.store.ConfirmNode(ctxOf(t), "n1", netip.MustParseAddr("192.0.2.7"), false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a record at the new address", func() bool { n, ok := at("192.0.2.7"); return ok && !n.Assign })
	if after, _ := at("192.0.2.7"); after.Subnet != before.Subnet || after.UID != "u-n1" || after.Status != nil {
		t.Errorf("after the move %+v, before it %+v", after, before)
	}
	eventually(t, "the old address for the one that claims it now", func() bool { n, ok := at("192.0.2.1"); return ok && n.UID == "u-n2" })
	if err := nodes.Delete(ctxOf(t), "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of its record", func() bool { _, ok := at("192.0.2.7"); return !ok })
}

// A node whose agent reports from its old address waits; one that is silent for long
// enough moves by itself.
func TestNodeMovesInSilence(t *testing.T) {
	clock := &clock{now: time.Now()}
	k := startKubernetes(t, func(c *Config) { c.Now = clock.Now })
	nodes, here := k.cs.CoreV1().Nodes(), netip.MustParseAddr("192.0.2.1")
	if _, err := nodes.Create(ctxOf(t), aNode("n1", "192.0.2.1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var was topology.Node
	eventually(t, "a subnet", func() bool {
		n, err := k.store.Node(ctxOf(t), here)
		was = n.Value
		return err == nil && was.Ready()
	})
	agent := k.store.StatusPublisher("k8ssdn", 0)
	t.Cleanup(agent.Close)
	agent.Set(topology.NodeStatus{Host: "n1", HostIP: here})
	eventually(t, "the agent's report", func() bool { all, err := k.store.Statuses(ctxOf(t)); return err == nil && len(all) == 1 })
	if _, err := nodes.Update(ctxOf(t), aNode("n1", "192.0.2.7"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.event("default", cluster.NodeAddressWaiting, "stays at 192.0.2.1")
	// poke has the controller plan at a time that is further on.
	pokes := 0
	poke := func() {
		clock.add(30 * time.Second)
		pokes++
		name := fmt.Sprintf("poke-%d", pokes)
		k.namespace(name, "u-"+name, "")
		k.record(name, "a netID", settledRecord)
	}
	for range 8 {
		poke()
	}
	if n, err := k.store.Node(ctxOf(t), here); err != nil || !reflect.DeepEqual(n.Value, was) {
		t.Errorf("with an agent that reports: %+v, %v; it was %+v", n.Value, err, was)
	}
	agent.Close()
	for range 5 {
		poke()
	}
	eventually(t, "the move", func() bool {
		n, err := k.store.Node(ctxOf(t), netip.MustParseAddr("192.0.2.7"))
		return err == nil && n.Value.Subnet == was.Subnet && n.Value.UID == "u-n1"
	})
}

// NetworkPolicies are compiled while this controller leads, and who wrote one is told where it
// is not enforced.
func TestKeepsPolicies(t *testing.T) {
	k := startKubernetes(t, nil)
	policies := k.cs.NetworkingV1().NetworkPolicies("a")
	k.watched("networkpolicies")
	status := k.store.StatusPublisher("k8ssdn", 0)
	t.Cleanup(status.Close)
	status.Set(topology.NodeStatus{Host: "old", HostIP: netip.MustParseAddr("192.0.2.1")})
	eventually(t, "a live node", func() bool { all, err := k.store.Statuses(ctxOf(t)); return err == nil && len(all) == 1 })
	if _, err := policies.Create(ctxOf(t), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "deny", UID: "u"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its record", func() bool {
		all, err := k.store.Policies(ctxOf(t), "a")
		return err == nil && len(all.Policies) == 1
	})
	k.event("a", "NetworkPolicyNotEnforced", "do not know NetworkPolicy: old.")
	count := func() float64 { return value(t, k.cfg.Metrics.notEnforced) }
	if got := count(); got != 1 {
		t.Errorf("counted %v", got)
	}
	if err := policies.Delete(ctxOf(t), "deny", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "none counted, no record", func() bool {
		all, err := k.store.Policies(ctxOf(t), "a")
		return count() == 0 && err == nil && len(all.Policies) == 0
	})
}

// clock is one that the test moves on.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A configuration that does not fit the cluster is not written; the controller
// says why and writes it once it fits.
func TestMisfitIsNotWritten(t *testing.T) {
	k := startKubernetes(t, func(c *Config) {
		c.Network.ServiceNetwork = netip.MustParsePrefix("10.200.0.0/16")
	})
	k.event("kube-system", cluster.ConfigRefused, "does not contain 10.96.0.1")
	if err := k.Ready(); err == nil || !strings.Contains(err.Error(), "10.96.0.1") {
		t.Errorf("ready: %v", err)
	}
	if _, err := k.store.Config(ctxOf(t)); err == nil {
		t.Error("the configuration was written")
	}
	// People know better: what they write counts.
	if _, err := k.store.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready", func() bool { return k.Ready() == nil })
}

// Without a whole word of the API server nothing is deleted.
func TestNothingGoesUnseen(t *testing.T) {
	e := etcdtest.Start(t)
	s := open(t, e)
	if _, err := s.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	client, _ := kubetest.New(t) // no default/kubernetes: it never is whole
	l, err := s.Campaign(ctxOf(t), "k8ssdn", "setup", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.PutNamespace(ctxOf(t), "a", topology.Namespace{NetName: "a", UID: "u"}, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Resign(); err != nil {
		t.Fatal(err)
	}
	start(t, e, "one", func(c *Config) { c.Cluster = &Cluster{API: client, SubnetSource: cluster.FromRecords} })
	if n := settled(t, s, "a"); n.UID != "u" {
		t.Errorf("record %+v", n)
	}
}
