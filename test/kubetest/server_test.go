package kubetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

func serve(t *testing.T, s *Server, address string) string {
	t.Helper()
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(l)
	t.Cleanup(func() { _ = s.Away() })
	return l.Addr().String()
}

func put(t *testing.T, s *Server, objects ...object) {
	t.Helper()
	for _, o := range objects {
		if err := s.Put(o); err != nil {
			t.Fatal(err)
		}
	}
}

func aService(name, vip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: vip, Ports: []corev1.ServicePort{{Port: 80}}}}
}

func aSlice(name, of, address string) *discoveryv1.EndpointSlice {
	port := int32(8080)
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "a", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: of}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}},
	}
}

// TestServer drives the real client: what it lists, watches, sees again after
// the server was away, and gets.
func TestServer(t *testing.T) {
	s := NewServer()
	address := serve(t, s, freeport.Loopback(t).String()) // and again later
	put(t, s, aService("web", "10.96.0.1"), aSlice("web-1", "web", "10.1.0.1"),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "etcd"}, Data: map[string][]byte{"x": []byte("y")}})
	client, err := kube.Open(kube.Config{Kubeconfig: kubeconfig(t, address)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	waiting, release := s.Hold("endpointslices")
	updates := client.WatchServices(ctx, "n1")
	for waiting() == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	select {
	case u := <-updates:
		t.Fatalf("told %v while the slices are held", u)
	default:
	}
	release()
	expect := func(full bool, name string, endpoints ...string) {
		t.Helper()
		u, open := <-updates
		if !open || u.Full != full {
			t.Fatalf("update %v (open: %v), want full: %v", u, open, full)
		}
		got := u.Services[service.Key{Namespace: "a", Name: name}]
		if len(endpoints) == 0 && len(got.Ports) == 0 {
			return
		}
		if len(got.Ports) != 1 || len(got.Ports[0].Endpoints) != len(endpoints) || got.Ports[0].Endpoints[0].Address.String() != endpoints[0] {
			t.Fatalf("%s is %v, want endpoints %v", name, got, endpoints)
		}
	}
	expect(true, "web", "10.1.0.1")
	put(t, s, aSlice("web-1", "web", "10.1.0.2"))
	expect(false, "web", "10.1.0.2")

	if err := s.Away(); err != nil {
		t.Fatal(err)
	}
	put(t, s, aSlice("web-1", "web", "10.1.0.3"))
	serve(t, s, address)
	expect(false, "web", "10.1.0.3")
	if err := s.Delete(aService("web", "")); err != nil {
		t.Fatal(err)
	}
	expect(false, "web")

	resp, err := http.Get("http://" + address + "/api/v1/nodes?fieldSelector=metadata.name%3Dn2")
	if err != nil {
		t.Fatal(err)
	}
	var nodes corev1.NodeList
	if err := json.NewDecoder(resp.Body).Decode(&nodes); err != nil || len(nodes.Items) != 1 || nodes.Items[0].Name != "n2" || nodes.Kind != "NodeList" {
		t.Errorf("listed as JSON: %+v, %v", nodes, err)
	}
	_ = resp.Body.Close()

	data, err := client.Secret(ctx, "kube-system/etcd")
	if err != nil || string(data["x"]) != "y" {
		t.Errorf("Secret: %v, %v", data, err)
	}
	if _, err := client.Secret(ctx, "kube-system/none"); err == nil {
		t.Error("a Secret that is not there was read")
	}
	if wants, err := client.DaemonSetWants(ctx, "kube-system", "none", "n1"); wants || err != nil {
		t.Errorf("DaemonSet that is not there: %v, %v", wants, err)
	}
}

// TestServerPods: the pods of one node, by the real client, and Events about them.
func TestServerPods(t *testing.T) {
	s := NewServer()
	client, err := kube.Open(kube.Config{Kubeconfig: kubeconfig(t, serve(t, s, "127.0.0.1:0"))})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	pod := func(name, uid, node string, annotations map[string]string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, UID: types.UID(uid), Annotations: annotations},
			Spec:       corev1.PodSpec{NodeName: node},
		}
	}
	put(t, s, pod("here", "u", "n1", nil), pod("there", "v", "n2", nil))
	pods := client.WatchPods(ctx, "n1")
	here := kube.PodKey{Namespace: "a", Name: "here"}
	// The same may be told twice.
	told := func(what string, cond func(map[kube.PodKey]kube.Pod) bool) {
		t.Helper()
		var last map[kube.PodKey]kube.Pod
		for last = range pods {
			if cond(last) {
				return
			}
		}
		t.Fatalf("%s: not told; last %+v", what, last)
	}
	told("pods of n1", func(got map[kube.PodKey]kube.Pod) bool { return len(got) == 1 && got[here].UID == "u" })
	const limit = "kubernetes.io/egress-bandwidth"
	put(t, s, pod("here", "u", "n1", map[string]string{limit: "1M"}))
	told("a limit", func(got map[kube.PodKey]kube.Pod) bool { return got[here].Annotations[limit] == "1M" })
	if p, err := client.Pod(ctx, "n1", here); err != nil || p.Annotations[limit] != "1M" {
		t.Errorf("read: %+v, %v", p, err)
	}
	if p, err := client.Pod(ctx, "n2", here); !errors.Is(err, kube.ErrNotFound) {
		t.Errorf("read as a pod of another node: %+v, %v", p, err)
	}
	if has, err := client.HasPods(ctx, "a"); err != nil || !has {
		t.Errorf("a namespace with pods has none (%v)", err)
	}
	if has, err := client.HasPods(ctx, "b"); err != nil || has {
		t.Errorf("a namespace without pods has some (%v)", err)
	}
	if err := s.Delete(pod("here", "u", "n1", nil)); err != nil {
		t.Fatal(err)
	}
	told("its end", func(got map[kube.PodKey]kube.Pod) bool { return len(got) == 0 })
	client.Event(kube.ObjectRef{Kind: "Pod", Namespace: "a", Name: "here", UID: "u"}, true, "Refused", "for a reason")
	for len(s.Events()) == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if e := s.Events(); len(e) != 1 || e[0].InvolvedObject.Name != "here" || e[0].Message != "for a reason" {
		t.Errorf("events %+v", e)
	}
}

// TestServerPolicies: NetworkPolicies are listed and watched as a real server's are.
func TestServerPolicies(t *testing.T) {
	s := NewServer()
	client, err := kube.Open(kube.Config{Kubeconfig: kubeconfig(t, serve(t, s, "127.0.0.1:0"))})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	policies := client.WatchNetworkPolicies(ctx)
	next := func() map[policy.Key]*kube.NetworkPolicy {
		t.Helper()
		select {
		case <-policies.News():
		case <-ctx.Done():
			t.Fatal("nothing is told")
		}
		changed, ok := policies.Take()
		if !ok {
			t.Fatal("told before all were seen")
		}
		return changed
	}
	if got := next(); len(got) != 0 {
		t.Errorf("told %v", got)
	}
	deny := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "deny", UID: "u"}}
	put(t, s, deny)
	key := policy.Key{Namespace: "a", Name: "deny"}
	if got := next()[key]; got == nil || got.Ref() != (kube.ObjectRef{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: "a", Name: "deny", UID: "u"}) {
		t.Errorf("told %v", got)
	}
	if err := s.Delete(deny); err != nil {
		t.Fatal(err)
	}
	if got := next(); len(got) != 1 || got[key] != nil {
		t.Errorf("told %v", got)
	}
}

// TestServerWrites: what programs write, by the real client; who else was quicker is told.
func TestServerWrites(t *testing.T) {
	s := NewServer()
	client := Open(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	put(t, s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u", Annotations: map[string]string{"has": "this"}}})
	if err := client.Annotate(ctx, "a", "u", "also", "that"); err != nil {
		t.Fatal(err)
	}
	n := s.Object("namespaces", "", "a").(*corev1.Namespace)
	if n.Annotations["has"] != "this" || n.Annotations["also"] != "that" || n.UID != "u" {
		t.Errorf("annotated: %+v", n)
	}
	if err := client.Annotate(ctx, "none", "u", "also", "that"); err == nil {
		t.Error("annotated a namespace that is not there")
	}
	for _, at := range []string{"https://192.0.2.1:1", "https://192.0.2.2:1"} {
		if _, err := client.PutConfigMap(ctx, "a/b", map[string]string{"endpoints": at}); err != nil {
			t.Fatal(err)
		}
		if data, err := client.ConfigMap(ctx, "a/b"); err != nil || data["endpoints"] != at {
			t.Errorf("ConfigMap: %v, %v", data, err)
		}
	}
	put(t, s, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}})
	if err := client.DeleteSecret(ctx, "a/b"); err != nil || s.Object("secrets", "a", "b") != nil {
		t.Errorf("deleted a Secret: %v", err)
	}
	old := s.Object("configmaps", "a", "b").(*corev1.ConfigMap).DeepCopy()
	put(t, s, old.DeepCopy())
	old.Kind, old.APIVersion = "ConfigMap", "v1"
	body, err := json.Marshal(old)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/api/v1/namespaces/a/configmaps/b", bytes.NewReader(body)))
	if w.Code != http.StatusConflict {
		t.Errorf("wrote over what somebody else changed: %d %s", w.Code, w.Body)
	}
}

// TestServerReaders: the same objects go to many who ask at once; the race detector
// looks on.
func TestServerReaders(t *testing.T) {
	s := NewServer()
	address := serve(t, s, "127.0.0.1:0")
	const objects = 50
	for i := range objects {
		put(t, s, aService(fmt.Sprintf("s%d", i), "10.96.0.1"))
	}
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			resp, err := http.Get("http://" + address + "/api/v1/services?watch=true&sendInitialEvents=true")
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			for i, events := 0, json.NewDecoder(resp.Body); i < objects; i++ {
				var e struct {
					Type   string
					Object corev1.Service
				}
				if err := events.Decode(&e); err != nil || e.Type != "ADDED" || e.Object.Kind != "Service" || e.Object.APIVersion != "v1" {
					t.Errorf("event %d: %+v, %v", i, e, err)
					return
				}
			}
		})
	}
	readers.Wait()
}

// kubeconfig is a file that leads to address.
func kubeconfig(t *testing.T, address string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	conf := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://" + address + "'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
