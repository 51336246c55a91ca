package policies

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

// patience bounds every wait; a condition that holds ends it at once.
const patience = 20 * time.Second

// lab is a keeper on a real etcd and an API server of its own.
type lab struct {
	t      *testing.T
	api    *kubetest.Server
	store  *store.Store
	nodes  map[netip.Addr]topology.Node
	follow *store.PolicyFollower
	view   store.PolicyView
	lead   *store.Leadership
	stop   func()
	// later is how far the keeper's clock is ahead.
	later atomic.Int64
}

var n1, n2 = netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")

func newLab(t *testing.T) *lab {
	t.Helper()
	e := etcdtest.Start(t)
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	s, err := store.Open(store.Config{Endpoints: e.Endpoints, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.PutConfig(t.Context(), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, api: kubetest.NewServer(), store: s, nodes: map[netip.Addr]topology.Node{
		n1: {Host: "n1", HostIP: n1, Subnet: netip.MustParsePrefix("172.11.0.0/22")},
		n2: {Host: "n2", HostIP: n2, Subnet: netip.MustParsePrefix("172.11.4.0/22")},
	}}
	l.follow = s.FollowPolicies(t.Context(), n1)
	client := kubetest.Open(t, l.api)
	l.start(func() *Keeper {
		return New(Config{API: client, Nodes: s, Writer: l.lead, Counted: func(Counts) {}, Logger: log, Now: func() time.Time { return time.Now().Add(time.Duration(l.later.Load())) }})
	})
	return l
}

// start elects a leader and has it work.
func (l *lab) start(make func() *Keeper) {
	l.t.Helper()
	lead, err := l.store.Campaign(l.t.Context(), "k8ssdn", "one", 5*time.Second)
	if err != nil {
		l.t.Fatal(err)
	}
	l.lead = lead
	k := make()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { k.Run(ctx) })
	k.SetNodes(topology.DefaultConfig(), l.nodes)
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			running.Wait()
			if err := lead.Resign(); err != nil && !errors.Is(err, context.Canceled) {
				l.t.Error(err)
			}
		})
	}
	l.t.Cleanup(stop)
	l.stop = func() { stop(); l.start(make) }
}

// until waits until a node sees it so.
func (l *lab) until(what string, cond func(v store.PolicyView) bool) {
	l.t.Helper()
	timeout := time.After(patience)
	for !cond(l.view) {
		select {
		case v, ok := <-l.follow.Updates():
			if !ok {
				l.t.Fatalf("%s: the watch ended", what)
			}
			l.view = v
		case <-timeout:
			l.t.Fatalf("%s: not within %s; last %+v", what, patience, l.view)
		}
	}
}

func (l *lab) put(objects ...runtime.Object) {
	l.t.Helper()
	for _, o := range objects {
		if err := l.api.Put(o); err != nil {
			l.t.Fatal(err)
		}
	}
}

func aPod(name string, labels map[string]string, ports ...corev1.ContainerPort) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("u-" + name), Labels: labels}, Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Ports: ports}}}}
}

// publish has a node say what pods it has: names and addresses in turn.
func (l *lab) publish(p *store.PodsPublisher, host string, ip netip.Addr, pods ...string) {
	n := topology.NodePods{Host: host, HostIP: ip}
	for i := 0; i < len(pods); i += 2 {
		n.Pods = append(n.Pods, topology.NodePod{Namespace: "shop", Name: pods[i], UID: "u-" + pods[i], Address: netip.MustParseAddr(pods[i+1])})
	}
	p.Set(n)
}

func (l *lab) members(hash string) []string {
	var all []string
	for base, c := range l.view.Sets[hash].Value.Chunks {
		all = append(all, strings.TrimSuffix(base.String(), "0")+c.Addresses.String())
	}
	return all
}

// TestKeeper: the whole way from objects and nodes to what an agent sees, over a change of
// the leader.
func TestKeeper(t *testing.T) {
	l := newLab(t)
	wrote := make(chan int64, 100)
	p := l.store.PodsPublisher("k8ssdn", 0, func(_ topology.NodePods, rev int64) { wrote <- rev })
	t.Cleanup(p.Close)
	l.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "a"}}}, aPod("web", map[string]string{"app": "web"}))
	l.publish(p, "n1", n1, "web", "172.11.0.5")
	rev := <-wrote
	l.follow.Want([]string{"shop"}, []string{webSet})

	web := metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	db := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "p-db"}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &web}}}},
	}}
	l.put(db)
	l.until("the policy, its set and the acknowledgement", func(v store.PolicyView) bool {
		return len(v.Isolation["shop"].Value.Policies) == 1 && v.Policies["shop"].Revision >= v.Isolation["shop"].Revision && v.Sets[webSet].Value.Of.Whole && v.Acknowledged == rev &&
			cmp.Equal([]string{"172.11.0.5"}, l.members(webSet))
	})

	// Pods come and go, and change their labels.
	l.put(aPod("web2", map[string]string{"app": "web"}))
	l.publish(p, "n1", n1, "web", "172.11.0.5", "web2", "172.11.0.6")
	l.until("another pod", func(store.PolicyView) bool { return cmp.Equal([]string{"172.11.0.5-6"}, l.members(webSet)) })
	l.put(aPod("web2", map[string]string{"app": "other"}))
	l.until("other labels", func(store.PolicyView) bool { return cmp.Equal([]string{"172.11.0.5"}, l.members(webSet)) })

	// Another leader goes on; what changed meanwhile is there, and nothing else was touched.
	untouched := l.view.Isolation["shop"].Revision
	l.publish(p, "n1", n1, "web", "172.11.0.9")
	for rev = range wrote {
		if len(wrote) == 0 {
			break
		}
	}
	l.stop()
	l.until("the new leader's work", func(v store.PolicyView) bool {
		return cmp.Equal([]string{"172.11.0.9"}, l.members(webSet)) && v.Acknowledged >= rev
	})
	if got := l.view.Isolation["shop"].Revision; got != untouched {
		t.Errorf("isolation was written anew at %d, before it was %d", got, untouched)
	}

	// The policy goes, its set stays a while.
	if err := l.api.Delete(db); err != nil {
		t.Fatal(err)
	}
	l.until("no policy", func(v store.PolicyView) bool {
		return len(v.Isolation) == 0 && len(v.Policies["shop"].Policies) == 0 && len(v.Sets[webSet].Value.Chunks) == 1
	})
}

// TestNamedPorts: ports of pods are read while a policy names one, and only their names and
// numbers are in the records.
func TestNamedPorts(t *testing.T) {
	l := newLab(t)
	p := l.store.PodsPublisher("k8ssdn", 0, nil)
	t.Cleanup(p.Close)
	l.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		aPod("web", map[string]string{"app": "web"}, corev1.ContainerPort{Name: "http", ContainerPort: 8080}, corev1.ContainerPort{Name: "admin", ContainerPort: 9}))
	l.publish(p, "n1", n1, "web", "172.11.0.5")
	l.follow.Want([]string{"shop"}, []string{webSet})
	web := metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	out := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "out", UID: "p"}, Spec: networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		Egress:      []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &web}}}},
	}}
	ports := func(v store.PolicyView) []topology.ChunkPort {
		return v.Sets[webSet].Value.Chunks[netip.MustParseAddr("172.11.0.0")].Ports
	}
	l.put(out)
	l.until("the member", func(store.PolicyView) bool { return len(l.members(webSet)) == 1 })
	if got := ports(l.view); len(got) > 0 {
		t.Errorf("ports %v that no policy names", got)
	}
	http := intstr.FromString("http")
	named := out.DeepCopy()
	named.Spec.Egress[0].Ports = []networkingv1.NetworkPolicyPort{{Port: &http}}
	l.put(named)
	l.until("its port", func(v store.PolicyView) bool {
		return len(ports(v)) == 1 && len(v.Policies["shop"].Policies["out"].Egress[0].Ports) == 1
	})
	want := topology.ChunkPort{Name: "http", Protocol: "TCP", Port: 8080, Addresses: topology.Octets{1 << 5}}
	if got := ports(l.view)[0]; got != want {
		t.Errorf("port %+v, want %+v", got, want)
	}
	l.put(out.DeepCopy())
	l.until("no name", func(v store.PolicyView) bool { return v.Policies["shop"].Policies["out"].Egress[0].Ports == nil })
	l.later.Store(int64(setGrace))
	l.publish(p, "n1", n1, "web", "172.11.0.5", "web2", "172.11.0.6")
	l.until("no port", func(v store.PolicyView) bool { return len(l.members(webSet)) == 1 && len(ports(v)) == 0 })
}

// TestEvents: people are told what is not in force, and where; not while all nodes enforce.
func TestEvents(t *testing.T) {
	l := newLab(t)
	for ip, n := range l.nodes {
		s := l.store.StatusPublisher("k8ssdn", 0)
		t.Cleanup(s.Close)
		st := topology.NodeStatus{Host: n.Host, HostIP: ip}
		if ip == n1 {
			st.Enforces = []string{topology.EnforcesNetworkPolicy}
		}
		s.Set(st)
	}
	l.wait("two nodes", func() bool { all, err := l.store.Statuses(t.Context()); return err == nil && len(all) == 2 })
	l.put(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "odd", UID: "p"}, Spec: networkingv1.NetworkPolicySpec{
		Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{}}}},
	}})
	told := func(reason, say string) func() bool {
		return func() bool {
			for _, e := range l.api.Events() {
				if e.Reason == reason && strings.Contains(e.Message, say) && e.InvolvedObject.Name == "odd" {
					return true
				}
			}
			return false
		}
	}
	l.wait("an Event that names the node", told(NotEnforced, "do not know NetworkPolicy: n2."))
	l.wait("an Event that names what was not understood", told(NotHonoured, "ingress[0]"))
	l.until("a policy that isolates and allows nothing", func(v store.PolicyView) bool {
		l.follow.Want([]string{"shop"}, nil)
		r := v.Policies["shop"].Policies["odd"]
		return len(r.Ingress) == 1 && r.Ingress[0].Peers != nil && len(r.Ingress[0].Peers) == 0
	})
}

// clusterDeny denies pods of team a what pods of team b send to their port http, and reaching
// nodes of zone b; it has a peer that is not understood in a rule that accepts.
const clusterDeny = `
tier: Admin
priority: 5
subject: {namespaces: {matchLabels: {team: a}}}
ingress:
- {action: Deny, from: [{namespaces: {matchLabels: {team: b}}}], protocols: [{destinationNamedPort: http}]}
egress:
- {action: Accept, to: [{domainNames: [example.com]}]}
- {action: Deny, to: [{nodes: {matchLabels: {zone: b}}}]}
`

func aNamespace(name, team string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": team}}}
}

// TestClusterPolicies: the whole way of a ClusterNetworkPolicy: its records, those of each
// namespace, now and of later ones, its sets, its condition, its Events; over changes of the
// leader, and with a definition that comes late and goes.
func TestClusterPolicies(t *testing.T) {
	l := newLab(t)
	p := l.store.PodsPublisher("k8ssdn", 0, nil)
	t.Cleanup(p.Close)
	status := l.store.StatusPublisher("k8ssdn", 0)
	t.Cleanup(status.Close)
	status.Set(topology.NodeStatus{Host: "n1", HostIP: n1, Enforces: []string{topology.EnforcesNetworkPolicy}})
	l.wait("a node", func() bool { all, err := l.store.Statuses(t.Context()); return err == nil && len(all) == 1 })
	l.api.DefineClusterPolicies()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", Labels: map[string]string{"zone": "b"}}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n2.String()}}
	l.put(aNamespace("shop", "a"), aNamespace("other", "b"), node, aPod("web", map[string]string{"app": "web"}, corev1.ContainerPort{Name: "http", ContainerPort: 8080}))
	l.publish(p, "n1", n1, "web", "172.11.0.5")
	nodes := policy.Set{OfNodes: true, Nodes: "zone=b"}.Hash()
	teamA := policy.Set{Namespaces: "team=a", PortName: "http"}.Hash()
	teamB := policy.Set{Namespaces: "team=b"}.Hash()
	l.follow.Want(nil, []string{nodes, teamA, teamB})

	// There is no definition at first.
	l.api.DefineClusterPolicies(kubetest.ClusterPolicyVersions...)
	l.must(l.api.PutClusterPolicy("deny", clusterDeny))
	selects := func(v store.PolicyView, namespace string) bool {
		i, there := v.Isolation[namespace]
		return there && len(i.Value.Cluster) == 1 && i.Value.Cluster[0] == topology.SelectingPolicy{Name: "deny"}
	}
	subjects := func(v store.PolicyView) []topology.ChunkPort {
		return v.Sets[teamA].Value.Chunks[netip.MustParseAddr("172.11.0.0")].Ports
	}
	l.until("the policy and its sets", func(v store.PolicyView) bool {
		_, other := v.Isolation["other"]
		return len(subjects(v)) == 1 && len(v.Cluster.Policies) == 1 && v.Cluster.Revision >= v.Isolation["shop"].Revision && selects(v, "shop") && other &&
			v.Sets[nodes].Value.Of.Whole && v.Sets[teamA].Value.Of.Whole && v.Sets[teamB].Value.Of.Whole
	})
	if selects(l.view, "other") {
		t.Errorf("isolation of other: %+v", l.view.Isolation["other"])
	}
	want := topology.ClusterPolicyRecord{
		Tier: topology.TierAdmin, Priority: 5, Subject: topology.PodSet{Namespaces: "team=a"},
		Ingress: []topology.ClusterPolicyRule{{Action: topology.ActionDeny, PolicyRule: topology.PolicyRule{
			Peers: []topology.PolicyPeer{{Set: &topology.PodSet{Namespaces: "team=b"}}},
			Ports: []topology.PolicyPort{{Protocol: "TCP", Name: "http"}, {Protocol: "UDP", Name: "http"}, {Protocol: "SCTP", Name: "http"}},
		}}},
		Egress: []topology.ClusterPolicyRule{{Action: topology.ActionDeny, PolicyRule: topology.PolicyRule{Peers: []topology.PolicyPeer{{Set: &topology.PodSet{OfNodes: true, Nodes: "zone=b"}}}}}},
	}
	if diff := cmp.Diff(want, l.view.Cluster.Policies["deny"], byValue); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if got := l.members(nodes); !cmp.Equal([]string{"198.18.0.2"}, got) {
		t.Errorf("nodes are %v", got)
	}
	if got := subjects(l.view)[0]; got.Name != "http" || got.Port != 8080 {
		t.Errorf("port of the subjects: %+v", got)
	}

	// What people are told.
	l.wait("a condition", func() bool {
		all := l.api.ClusterPolicy("deny").Status.Conditions
		return len(all) == 1 && all[0].Type == "k8s-ovs.io/Honoured" && all[0].Status == metav1.ConditionFalse && all[0].Reason == NotHonoured &&
			all[0].ObservedGeneration == 1 && strings.Contains(all[0].Message, "egress[0]: to[0]: k8s-ovs does not support domainNames")
	})
	told := func(reason, say string) func() bool {
		return func() bool {
			for _, e := range l.api.Events() {
				if e.Reason == reason && strings.Contains(e.Message, say) && e.InvolvedObject.Name == "deny" && e.InvolvedObject.Kind == "ClusterNetworkPolicy" {
					return true
				}
			}
			return false
		}
	}
	l.wait("an Event that names what was not understood", told(NotHonoured, "egress[0]"))
	l.wait("an Event that names the node", told(ClusterNotEnforced, "do not know ClusterNetworkPolicy: n1."))

	// Namespaces come, change, and go; a new leader goes on.
	l.put(aNamespace("late", "a"))
	l.until("a later namespace", func(v store.PolicyView) bool { return selects(v, "late") })
	l.put(aNamespace("late", "b"))
	l.until("other labels", func(v store.PolicyView) bool {
		i, there := v.Isolation["late"]
		return there && len(i.Value.Cluster) == 0
	})
	untouched := l.view.Isolation["shop"].Revision
	l.stop()
	l.must(l.api.Delete(aNamespace("late", "b")))
	l.put(aNamespace("later", "a"))
	l.until("the new leader's work", func(v store.PolicyView) bool {
		_, late := v.Isolation["late"]
		return selects(v, "later") && !late
	})
	if got := l.view.Isolation["shop"].Revision; got != untouched {
		t.Errorf("isolation was written anew at %d, before it was %d", got, untouched)
	}

	// Well written it is honoured.
	l.must(l.api.PutClusterPolicy("deny", strings.Replace(clusterDeny, "domainNames: [example.com]", "networks: [192.0.2.0/24]", 1)))
	l.until("what changed", func(v store.PolicyView) bool { return len(v.Cluster.Policies["deny"].Egress) == 2 })
	l.wait("the condition", func() bool {
		all := l.api.ClusterPolicy("deny").Status.Conditions
		return len(all) == 1 && all[0].Status == metav1.ConditionTrue && all[0].ObservedGeneration == 2
	})
	l.must(l.api.DeleteClusterPolicy("deny"))
	l.until("no policy", func(v store.PolicyView) bool { return len(v.Cluster.Policies) == 0 && len(v.Isolation) == 0 })
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) wait(what string, cond func() bool) {
	l.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	l.t.Fatalf("%s: not within %s", what, patience)
}
