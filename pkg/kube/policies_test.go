package kube_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

func aPolicy(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, UID: "u-1"},
		Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}}
}

// taken waits for the next changes.
func taken[K comparable, T any](t *testing.T, c *kube.Changes[K, T]) map[K]*T {
	t.Helper()
	for {
		next(t, c.News())
		if changed, ok := c.Take(); ok && len(changed) > 0 {
			return changed
		}
	}
}

func TestWatchNetworkPolicies(t *testing.T) {
	bad := aPolicy("bad")
	bad.UID, bad.Spec.Ingress = "u-2", []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{}}}}
	client, cs := kubetest.New(t, aPolicy("deny"), bad)
	ctx, cancel := context.WithCancel(t.Context())
	policies := client.WatchNetworkPolicies(ctx)
	deny, odd := policy.Key{Namespace: "a", Name: "deny"}, policy.Key{Namespace: "a", Name: "bad"}
	got := taken(t, policies)
	want := kube.NetworkPolicy{Policy: policy.Policy{Key: deny, Ingress: policy.Side{Isolates: true}}, UID: "u-1"}
	if diff := cmp.Diff(&want, got[deny]); diff != "" || len(got) != 2 {
		t.Errorf("%d policies (-want +got):\n%s", len(got), diff)
	}
	if p := got[odd]; p == nil || !strings.Contains(p.Problem, "ingress[0]") || !p.Ingress.Isolates {
		t.Errorf("what was not understood: %+v", p)
	}
	watching(t, cs, 1)
	must(t, cs.NetworkingV1().NetworkPolicies("a").Delete(ctx, "deny", metav1.DeleteOptions{}))
	if diff := cmp.Diff(map[policy.Key]*kube.NetworkPolicy{deny: nil}, taken(t, policies)); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
	cancel()
	for range policies.News() {
	}
	ref := kube.ObjectRef{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "a", Name: "deny", UID: "u-1"}
	if got := want.Ref(); got != ref {
		t.Errorf("%+v, want %+v", got, ref)
	}
}

// TestWatchPodPorts: labels come without specifications; ports are those that have names,
// of containers that run beside each other.
func TestWatchPodPorts(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "web", UID: "u", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "static"}}}
	pod.Spec.NodeName = "n1"
	pod.Spec.Containers = []corev1.Container{
		{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {ContainerPort: 9}, {Name: "dns", Protocol: corev1.ProtocolUDP, ContainerPort: 53}}},
		{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}},
	}
	pod.Spec.InitContainers = []corev1.Container{
		{Ports: []corev1.ContainerPort{{Name: "once", ContainerPort: 1}}}, {RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 2}}},
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "b"}}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.7"}}
	client, _ := kubetest.New(t, pod, node, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"team": "x"}}})
	key := kube.PodKey{Namespace: "a", Name: "web"}
	ports := taken(t, client.WatchPodPorts(t.Context()))
	want := map[kube.PodKey]*kube.PodPorts{key: {UID: "u", Ports: []policy.NamedPort{{Name: "dns", Protocol: service.UDP, Port: 53}, {Name: "http", Protocol: service.TCP, Port: 8080}, {Name: "side", Protocol: service.TCP, Port: 2}}}}
	if diff := cmp.Diff(want, ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	labels := taken(t, client.WatchPodLabels(t.Context()))
	if diff := cmp.Diff(map[kube.PodKey]*kube.PodLabels{key: {UID: "u", Mirrors: "static", Mirror: true, Node: "n1", Labels: map[string]string{"app": "web"}}}, labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if l := labels[key]; !l.Is("u") || !l.Is("static") || !l.Is("") || l.Is("other") {
		t.Error("the pod is not who it is")
	}
	spaces := taken(t, client.WatchNamespaceLabels(t.Context()))
	if diff := cmp.Diff(map[string]*map[string]string{"a": {"team": "x"}}, spaces); diff != "" {
		t.Errorf("namespaces (-want +got):\n%s", diff)
	}
	nodes := taken(t, client.WatchNodeLabels(t.Context()))
	own := netip.MustParseAddr("192.0.2.1")
	wantNodes := map[string]*kube.NodeLabels{"n1": {Labels: map[string]string{"zone": "b"}, Node: kube.Node{
		Name: "n1", Addresses: []netip.Addr{own}, Every: []netip.Addr{own, netip.MustParseAddr("203.0.113.7")}, Internal: 1,
	}}}
	if diff := cmp.Diff(wantNodes, nodes, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
}

// TestPoliciesForbidden: with a role that lacks the right there is one line in the log,
// and all is told once the right is there.
func TestPoliciesForbidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cs := fake.NewClientset(aPolicy("deny"))
		var mu sync.Mutex // guards what follows
		asked, problem := 0, error(errors.New("away"))
		// becomes is what is wrong from now on; it returns how often was asked until now.
		becomes := func(err error) int {
			mu.Lock()
			defer mu.Unlock()
			was := asked
			asked, problem = 0, err
			return was
		}
		cs.PrependReactor("list", "networkpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return problem != nil, nil, problem
		})
		var log bytes.Buffer
		client := kube.New(kube.Interfaces{Networking: cs.NetworkingV1(), Clientset: cs}, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		policies := client.WatchNetworkPolicies(ctx)
		time.Sleep(time.Minute)
		if asked := becomes(apierrors.NewForbidden(networkingv1.Resource("networkpolicies"), "", errors.New("no"))); asked < 10 {
			t.Errorf("an API server that is away was asked %d times in a minute", asked)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if asked := becomes(nil); asked == 0 || asked > 13 || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "ClusterRole") {
			t.Errorf("asked %d times in an hour, log %q", asked, log.String())
		}
		<-policies.News()
		if got, ok := policies.Take(); len(got) != 1 || !ok {
			t.Errorf("told %v", got)
		}
		cancel()
		for range policies.News() {
		}
	})
}
