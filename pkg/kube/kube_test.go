package kube_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

func TestOpen(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := kube.Open(kube.Config{}); err == nil || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("error %v, want one with the way out", err)
	}
	file := filepath.Join(t.TempDir(), "config")
	must(t, os.WriteFile(file, []byte("nonsense: ["), 0o600))
	if _, err := kube.Open(kube.Config{Kubeconfig: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v, want one that names the file", err)
	}
	must(t, os.WriteFile(file, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:9"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`), 0o600))
	if _, err := kube.Open(kube.Config{Kubeconfig: file}); err != nil {
		t.Error(err)
	}
}

func TestWatchCluster(t *testing.T) {
	created := metav1.NewTime(time.Unix(1000, 0))
	client, cs := kubetest.New(t,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "ua", CreationTimestamp: created, Annotations: map[string]string{topology.NetworkAnnotation: "x", topology.NetIDAnnotation: "7"}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b", UID: "ub", CreationTimestamp: created, DeletionTimestamp: &created, Finalizers: []string{"f"}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "un", CreationTimestamp: created}, Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"fd00::/64", "10.1.0.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: "fd00::1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}})
	ctx, cancel := context.WithCancel(t.Context())
	clusters := client.WatchCluster(ctx)
	network := "x"
	want := kube.Cluster{
		Namespaces: map[string]kube.Namespace{
			"a": {Name: "a", UID: "ua", Created: created.Time, Network: &network, NetID: "7"},
			"b": {Name: "b", UID: "ub", Created: created.Time, Terminating: true},
		},
		Nodes: map[string]kube.Node{"n1": {Name: "n1", UID: "un", Created: created.Time,
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Every: []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("192.0.2.1")}, Internal: 2, PodCIDR: netip.MustParsePrefix("10.1.0.0/24")}},
		KubernetesService: netip.MustParseAddr("10.96.0.1"),
	}
	if diff := cmp.Diff(want, next(t, clusters), byValue); diff != "" {
		t.Fatalf("cluster (-want +got):\n%s", diff)
	}
	watching(t, cs, 2)
	must(t, cs.CoreV1().Nodes().Delete(ctx, "n1", metav1.DeleteOptions{}))
	for got := next(t, clusters); len(got.Nodes) != 0; got = next(t, clusters) {
	}
	cancel()
	for range clusters {
	}
}

// TestManyAddresses: a kubelet may report any number of addresses; InternalIPs come before others.
func TestManyAddresses(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	for i := range 20000 {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}).String()})
	}
	own := netip.MustParseAddr("192.0.2.1")
	for range 2 { // the same address twice is one
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: own.String()})
	}
	client, _ := kubetest.New(t, node)
	got := taken(t, client.WatchNodeLabels(t.Context()))["n1"].Node
	if len(got.Every) != kube.MaxNodeAddresses || got.Every[0] != own || got.Internal != 1 || len(got.Addresses) != 1 || got.Addresses[0] != own || got.MoreAddresses != 20001-kube.MaxNodeAddresses {
		t.Errorf("%d addresses, %d more, the first %s, InternalIPs %s", len(got.Every), got.MoreAddresses, got.Every[0], got.Addresses)
	}
}

// secret is a Secret of kube-system.
func secret(name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}, Data: data}
}

func TestEtcdAccess(t *testing.T) {
	const ref = "kube-system/etcd"
	api := kubetest.NewServer()
	client := kubetest.Open(t, api)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	updates := client.WatchEtcdAccess(ctx, ref)
	cert, private := pair(t)
	ca, err := pki.NewCA("clients", time.Now())
	must(t, err)
	want := kube.EtcdAccess{Endpoints: []string{"https://192.0.2.1:2379", "https://192.0.2.2:2379"}, CA: cert, Cert: cert, Key: private, Prefix: "/p", SignerCert: ca.CertPEM, SignerKey: ca.KeyPEM}
	// Half of it does not count.
	half := want.Data()
	delete(half, kube.KeyKey)
	must(t, api.Put(secret("etcd", half)))
	must(t, api.Put(secret("etcd", want.Data())))
	got := next(t, updates)
	if !got.Equal(want) || got.Signer() == nil || !got.Signer().Cert.Equal(ca.Cert) {
		t.Errorf("access %+v, want %+v", got, want)
	}
	must(t, api.Put(secret("etcd", half)))
	want.Prefix, want.SignerCert, want.SignerKey = "", nil, nil
	must(t, api.Put(secret("etcd", want.Data())))
	if got := next(t, updates); !got.Equal(want) || got.Signer() != nil {
		t.Errorf("access %+v, want %+v", got, want)
	}
	if data, err := client.Secret(ctx, ref); err != nil || !bytes.Equal(data[kube.KeyKey], private) {
		t.Errorf("Secret %v, %v", data, err)
	}
	for range 2 { // one that is not there is no error
		must(t, client.DeleteSecret(ctx, ref))
	}
	if _, err := client.Secret(ctx, ref); !errors.Is(err, kube.ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
	if _, err := client.Secret(ctx, "etcd"); err == nil || !strings.Contains(err.Error(), "NAMESPACE/NAME") {
		t.Errorf("error %v, want the form of a reference", err)
	}
	if _, open := <-client.WatchEtcdAccess(ctx, "etcd"); open {
		t.Error("tells of a reference that is none")
	}
}

// TestEtcdPlace: what agents read has nothing secret in it, whatever somebody put there.
func TestEtcdPlace(t *testing.T) {
	const ref = "kube-system/etcd"
	client := kubetest.Open(t, kubetest.NewServer())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := client.ConfigMap(ctx, ref); !errors.Is(err, kube.ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
	updates := client.WatchEtcdPlace(ctx, ref)
	put := func(data map[string]string) {
		t.Helper()
		_, err := client.PutConfigMap(ctx, ref, data)
		must(t, err)
	}
	cert, private := pair(t)
	all := kube.EtcdAccess{Endpoints: []string{"https://192.0.2.1:2379", "https://192.0.2.2:2379"}, CA: cert, Cert: cert, Key: private, Prefix: "/p", SignerCert: cert, SignerKey: private}
	want := kube.EtcdAccess{Endpoints: all.Endpoints, CA: cert, Prefix: "/p"}
	if diff := cmp.Diff(want.Place(), all.Place()); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	put(all.Place())
	if got := next(t, updates); !got.Equal(want) {
		t.Errorf("place %+v, want %+v", got, want)
	}
	want.Prefix = ""
	put(want.Place())
	if got := next(t, updates); !got.Equal(want) {
		t.Errorf("place %+v, want %+v", got, want)
	}
	for key, value := range map[string]string{"endpoints": "http://192.0.2.1:2379", "ca.crt": "", "prefix": ""} {
		data := want.Place()
		data[key] = value
		if _, err := kube.ParseEtcdPlace(data); (err == nil) != (key == "prefix") || err != nil && !strings.Contains(err.Error(), key) {
			t.Errorf("%s %q: %v", key, value, err)
		}
	}
}

// TestNodeUID: of the one Node, now, and when it is registered anew.
func TestNodeUID(t *testing.T) {
	api := kubetest.NewServer()
	client := kubetest.Open(t, api)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	node := func(name, uid, label string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid), Labels: map[string]string{"x": label}}}
	}
	must(t, api.Put(node("n2", "u2", "")))
	uids := client.WatchNodeUID(ctx, "n1")
	must(t, api.Put(node("n1", "u1", "")))
	if got := next(t, uids); got != "u1" {
		t.Errorf("UID %s", got)
	}
	must(t, api.Put(node("n1", "u1", "changed")))
	must(t, api.Delete(node("n1", "u1", "")))
	must(t, api.Put(node("n1", "u3", "")))
	if got := next(t, uids); got != "u3" {
		t.Errorf("then UID %s", got)
	}
}

// pair is a certificate by itself, and its key; PEM.
func pair(t *testing.T) (cert, private []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

func TestParseEtcdAccess(t *testing.T) {
	cert, private := pair(t)
	whole := func() map[string][]byte {
		return kube.EtcdAccess{Endpoints: []string{"https://h:1"}, CA: cert, Cert: cert, Key: private}.Data()
	}
	for _, missing := range []string{kube.EndpointsKey, kube.CAKey, kube.CertKey, kube.KeyKey} {
		data := whole()
		delete(data, missing)
		if _, err := kube.ParseEtcdAccess(data); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: error %v", missing, err)
		}
		if missing == kube.EndpointsKey {
			continue
		}
		data[missing] = []byte("garbage")
		if _, err := kube.ParseEtcdAccess(data); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("with garbage as %s: error %v", missing, err)
		}
	}
	for _, endpoints := range []string{"http://a:1", "https://a:1,http://b:1", "a:1", "unix:///run/etcd.sock"} {
		data := whole()
		data[kube.EndpointsKey] = []byte(endpoints)
		_, err := kube.ParseEtcdAccess(data)
		if !errors.Is(err, kube.ErrNotEncrypted) || !strings.Contains(err.Error(), "write https://") {
			t.Errorf("%s: error %v", endpoints, err)
		}
	}
	ca, err := pki.NewCA("clients", time.Now())
	must(t, err)
	for say, signer := range map[string][2][]byte{
		"no CA with its key":                  {ca.CertPEM, nil},
		"are no CA":                           {nil, ca.KeyPEM},
		"not the certificate of a CA":         {cert, private},
		`"client-ca.crt" and "client-ca.key"`: {ca.CertPEM, private},
	} {
		data := whole()
		data[kube.SignerCertKey], data[kube.SignerKeyKey] = signer[0], signer[1]
		if _, err := kube.ParseEtcdAccess(data); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want %s", err, say)
		}
	}
	data := whole()
	data[kube.EndpointsKey] = []byte(" https://a:1 ,\nhttps://b:1,")
	if a, err := kube.ParseEtcdAccess(data); err != nil || len(a.Endpoints) != 2 || a.Endpoints[1] != "https://b:1" {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestDaemonSetWants(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"network": "ovs"}}}
	set := func(selector map[string]string, deleted bool) *appsv1.DaemonSet {
		d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "agent"}}
		d.Spec.Template.Spec.NodeSelector = selector
		if deleted {
			d.DeletionTimestamp, d.Finalizers = &metav1.Time{Time: time.Unix(1, 0)}, []string{"foregroundDeletion"}
		}
		return d
	}
	for name, test := range map[string]struct {
		set  *appsv1.DaemonSet
		node string
		want bool
	}{
		"gone":      {nil, "n1", false},
		"deleted":   {set(nil, true), "n1", false},
		"all nodes": {set(nil, false), "n1", true},
		"this node": {set(map[string]string{"network": "ovs"}, false), "n1", true},
		"others":    {set(map[string]string{"network": "other"}, false), "n1", false},
		"no node":   {set(nil, false), "n2", false},
	} {
		client, cs := kubetest.New(t, node)
		if test.set != nil {
			must(t, cs.Tracker().Add(test.set))
		}
		if got, err := client.DaemonSetWants(t.Context(), "kube-system", "agent", test.node); err != nil || got != test.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestNamespaceCalls(t *testing.T) {
	client, cs := kubetest.New(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u", Annotations: map[string]string{"x": "y"}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}})
	ctx := t.Context()
	must(t, client.Annotate(ctx, "a", "u", topology.NetIDAnnotation, "12"))
	n, err := cs.CoreV1().Namespaces().Get(ctx, "a", metav1.GetOptions{})
	must(t, err)
	if diff := cmp.Diff(map[string]string{"x": "y", topology.NetIDAnnotation: "12"}, n.Annotations); diff != "" {
		t.Errorf("annotations:\n%s", diff)
	}
	if err := client.Annotate(ctx, "none", "u", "k", "v"); !errors.Is(err, kube.ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
	for ns, want := range map[string]bool{"a": true, "b": false} {
		if has, err := client.HasPods(ctx, ns); err != nil || has != want {
			t.Errorf("pods of %s: %v, %v", ns, has, err)
		}
	}
}

// TestEventFlood: Events of one reason that never end hide no other reason of the same object.
func TestEventFlood(t *testing.T) {
	client, cs := kubetest.New(t)
	node := kube.ObjectRef{Kind: "Node", Name: "n1", UID: "n1"}
	for i := range 100 {
		client.Event(node, true, "NetworkNotReady", fmt.Sprint("reason ", i))
	}
	client.Event(node, true, "OpenVSwitchCrashed", "why")
	var events []corev1.Event
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		list, err := cs.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		must(t, err)
		events = list.Items
		if slices.ContainsFunc(events, func(e corev1.Event) bool { return e.Reason == "OpenVSwitchCrashed" }) {
			if len(events) > 50 {
				t.Errorf("%d Events: the flood is not cut off", len(events))
			}
			return
		}
	}
	t.Errorf("it is not among %d Events", len(events))
}

func TestEvent(t *testing.T) {
	client, cs := kubetest.New(t)
	client.Event(kube.ObjectRef{Kind: "Namespace", Namespace: "a", Name: "a", UID: "u"}, true, "NetworkRefused", "no such thing")
	client.Event(kube.ObjectRef{Kind: "Node", Name: "n1", UID: "n1"}, false, "Fine", "all is well")
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		a, err := cs.CoreV1().Events("a").List(t.Context(), metav1.ListOptions{})
		must(t, err)
		d, err := cs.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		must(t, err)
		if len(a.Items) == 0 || len(d.Items) == 0 {
			continue
		}
		if e := a.Items[0]; e.Type != corev1.EventTypeWarning || e.Reason != "NetworkRefused" || e.InvolvedObject.Name != "a" || e.Message != "no such thing" {
			t.Errorf("event %+v", e)
		}
		if e := d.Items[0]; e.Type != corev1.EventTypeNormal || e.InvolvedObject.Kind != "Node" {
			t.Errorf("event %+v", e)
		}
		return
	}
	t.Error("no events came")
}
