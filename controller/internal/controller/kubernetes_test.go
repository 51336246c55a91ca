package controller

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

func TestCompleteKubernetes(t *testing.T) {
	c, err := parse(t, "--kubernetes", "--node-ip=192.0.2.1", "--pod=kube-system/c/u")
	if err != nil {
		t.Fatal(err)
	}
	if u := c.Embedded.ListenClientURLs; len(u) != 1 || u[0] != "https://192.0.2.1:2389" || c.servedEndpoint() != u[0] {
		t.Errorf("listens on %v, serves at %s", u, c.servedEndpoint())
	}
	if c.Network.Network.String() != "10.128.0.0/14" || c.Network.HostSubnetLength != 9 || len(c.explicit) != 0 {
		t.Errorf("network %+v, explicit %v", c.Network, c.explicit)
	}
	if want := (kube.ObjectRef{Kind: "Pod", Namespace: "kube-system", Name: "c", UID: "u"}); c.Kube.Pod != want {
		t.Errorf("pod %+v", c.Kube.Pod)
	}
	if c, err = parse(t, "--kubernetes", "--node-ip=192.0.2.1", "--network=172.16.0.0/16", "--listen-client-urls=https://0.0.0.0:9"); err != nil ||
		c.Network.HostSubnetLength != topology.DefaultConfig().HostSubnetLength || c.servedEndpoint() != "https://192.0.2.1:9" {
		t.Errorf("%+v, %v", c.Network, err)
	}
	for args, say := range map[string]string{
		"--kubernetes":                           "--node-ip is missing",
		"--kubernetes --node-ip=fd00::1":         "--node-ip",
		"--kubernetes --etcd-secret=x":           "--etcd-secret",
		"--kubernetes --subnet-source=x":         "--subnet-source",
		"--kubernetes --pod=x":                   "--pod",
		"--kubernetes --agent-service-account=x": "--agent-service-account",
		"--kubeconfig=/nonexistent":              "--kubeconfig",
		"--embedded-etcd=false":                  "--etcd-endpoints",
		"--kubernetes --node-ip=192.0.2.1 --listen-client-urls=http://192.0.2.1:9": "not encrypted",
		"--kubernetes --node-ip=192.0.2.1 --listen-client-cert=x":                  "own making",
	} {
		if _, err := parse(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: error %v, want one with %q", args, err, say)
		}
	}
	if _, err := parse(t, "--kubernetes", "--embedded-etcd=false"); err != nil {
		t.Error(err)
	}
}

// inCluster runs a controller with a client of a fake API server.
func inCluster(t *testing.T, client *kube.Client, args ...string) *running {
	t.Helper()
	dir := t.TempDir()
	c, err := parse(t, append([]string{"--metrics-address=unix://" + dir + "/m.sock", "--kubernetes", "--node-ip=127.0.0.1"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{dir: dir, cancel: cancel, done: make(chan error, 1), log: &lockedBuffer{}}
	go func() { r.done <- runWith(ctx, c, client, slog.New(slog.NewTextHandler(r.log, nil))) }()
	t.Cleanup(func() { r.stop(t) })
	return r
}

// clusterOf is an API server with Node n1, UID u1, and its client. Whoever asks for a
// certificate is the agent of that node.
func clusterOf(t *testing.T) (*kube.Client, *kubetest.Server) {
	t.Helper()
	api := kubetest.NewServer()
	api.Who = func(*http.Request) (string, map[string][]string) {
		return "system:serviceaccount:kube-system:k8s-ovs-agent", map[string][]string{
			"authentication.kubernetes.io/node-name": {"n1"}, "authentication.kubernetes.io/node-uid": {"u1"}, "authentication.kubernetes.io/pod-uid": {"p1"},
		}
	}
	put(t, api, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
	put(t, api, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}})
	return kubetest.Open(t, api), api
}

func put(t *testing.T, api *kubetest.Server, o runtime.Object) {
	t.Helper()
	if err := api.Put(o); err != nil {
		t.Fatal(err)
	}
}

func secret(name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}, Data: data}
}

const etcdRef = "kube-system/k8s-ovs-etcd"

// published waits until agents know where etcd is.
func published(t *testing.T, client *kube.Client, ref string) kube.EtcdAccess {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for a := range client.WatchEtcdPlace(ctx, ref) {
		return a
	}
	t.Fatal("the ConfigMap is not written")
	panic("unreachable")
}

// identity asks for a certificate as the agent of the Node does.
func identity(t *testing.T, client *kube.Client, place kube.EtcdAccess, user string) store.Config {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.Request(key, user)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := client.RequestCertificate(ctx, "k8s-ovs-agent-", csr, kube.AgentSigner, kube.AgentLifetime)
	if err != nil {
		t.Fatal(err)
	}
	return store.Config{Endpoints: place.Endpoints, CA: place.CA, Cert: certPEM, Key: keyPEM}
}

func openStore(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := store.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not %s", what)
}

// waitNamespace waits until a namespace has a record that is so.
func waitNamespace(t *testing.T, s *store.Store, ns string, cond func(topology.Namespace) bool) (n topology.Namespace) {
	t.Helper()
	eventually(t, "the record of "+ns+" as it should be", func() bool {
		r, err := s.Namespace(t.Context(), ns)
		n = r.Value
		return err == nil && cond(n)
	})
	return n
}

// TestNodesReachEtcd: a fresh cluster has where etcd is in a ConfigMap, and no Secret. A node gets its own
// certificate, with which it is itself and nobody else.
func TestNodesReachEtcd(t *testing.T) {
	client, api := clusterOf(t)
	dir := t.TempDir()
	first := inCluster(t, client, "--data-dir="+dir, "--listen-client-urls=https://"+freeport.Loopback(t).String())
	first.leads(t)
	place := published(t, client, etcdRef)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := openStore(t, identity(t, client, place, "k8s-ovs-node:n1:u1"))
	if _, err := s.WaitConfig(ctx, nil); err != nil {
		t.Fatal(err)
	}
	mtu := func(host, ip string) error {
		_, err := s.PutNodeMTU(ctx, topology.NodeMTU{Host: host, HostIP: netip.MustParseAddr(ip)})
		return err
	}
	eventually(t, "the node writes its own record", func() bool { return mtu("n1", "192.0.2.1") == nil })
	if err := mtu("n2", "192.0.2.2"); !errors.Is(err, store.ErrDenied) {
		t.Errorf("another's record: %v", err)
	}
	put(t, api, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u"}})
	waitNamespace(t, s, "a", func(n topology.Namespace) bool { return n.Effective != nil && n.UID == "u" })
	without := openStore(t, store.Config{Endpoints: place.Endpoints, CA: place.CA, DialTimeout: time.Second})
	if _, err := without.Config(ctx); err == nil {
		t.Error("etcd answers without a client certificate")
	}
	if api.Object("secrets", "kube-system", "k8s-ovs-etcd") != nil {
		t.Error("there is a Secret")
	}
	if shared, err := filepath.Glob(filepath.Join(dir, "pki", "client*")); err != nil || len(shared) > 0 {
		t.Errorf("there is a certificate for all: %v, %v", shared, err)
	}
	// What a node may do ends with its record.
	if err := api.Delete(api.Object("nodes", "", "n1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node locked out", func() bool { _, err := s.Config(ctx); return errors.Is(err, store.ErrDenied) })
}

// TestExternalEtcd: the controllers' Secret leads to etcd, with the CA that signs for nodes, or they
// do not start.
func TestExternalEtcd(t *testing.T) {
	client, api := clusterOf(t)
	e := etcdtest.StartSecured(t)
	nodes, err := pki.NewCA("clients", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own := e.Bundle(pki.RootUser, time.Hour)
	access := kube.EtcdAccess{Endpoints: e.Endpoints, CA: own.CA, Cert: own.Pair.CertPEM, Key: own.Pair.KeyPEM}
	c := inCluster(t, client, "--embedded-etcd=false")
	eventually(t, "saying what it waits for", func() bool { _, body := c.get("/readyz"); return strings.Contains(body, "Secret "+etcdRef) })
	if code, _ := c.get("/healthz"); code != 200 {
		t.Errorf("one that waits is not alive: %d", code)
	}
	put(t, api, secret("k8s-ovs-etcd", access.Data()))
	eventually(t, "saying what is missing", func() bool { _, body := c.get("/readyz"); return strings.Contains(body, `no keys "client-ca.crt"`) })
	access.SignerCert, access.SignerKey = nodes.CertPEM, nodes.KeyPEM
	put(t, api, secret("k8s-ovs-etcd", access.Data()))
	c.leads(t)
	place := published(t, client, etcdRef)
	if diff := cmp.Diff(kube.EtcdAccess{Endpoints: e.Endpoints, CA: own.CA}, place); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	cert := identity(t, client, place, "k8s-ovs-node:n1:u1")
	p, err := pki.ParsePair(cert.Cert, cert.Key)
	if err != nil || !pki.Signs(nodes.CertPEM, p.Cert) {
		t.Errorf("the node's certificate: %v", err)
	}
	if api.Object("secrets", "kube-system", "k8s-ovs-etcd") == nil {
		t.Error("the controllers' Secret is gone")
	}
}

// What the ConfigMap says is left alone if it is right.
func TestPublisherLeavesGoodConfigMap(t *testing.T) {
	client, _ := clusterOf(t)
	p := publisherAt(t, client, t.TempDir(), "--etcd-prefix=/p")
	for _, want := range []bool{true, false} {
		if wrote, err := p.ensure(t.Context()); err != nil || wrote != want {
			t.Errorf("wrote %v, %v; want %v", wrote, err, want)
		}
	}
	if a := published(t, client, etcdRef); a.Prefix != "/p" || a.Endpoints[0] != "https://127.0.0.1:2389" {
		t.Errorf("place %+v", a)
	}
	for key, value := range map[string]string{"endpoints": "https://127.0.0.2:1", "ca.crt": "", "prefix": "/q"} {
		own, err := p.place()
		if err != nil {
			t.Fatal(err)
		}
		data := own.Place()
		data[key] = value
		if _, err := client.PutConfigMap(t.Context(), etcdRef, data); err != nil {
			t.Fatal(err)
		}
		if wrote, err := p.ensure(t.Context()); err != nil || !wrote {
			t.Errorf("%v: wrote %v, %v", data, wrote, err)
		}
	}
}

// TestUnencryptedEtcdIsNotTakenOver: it may have the records.
func TestUnencryptedEtcdIsNotTakenOver(t *testing.T) {
	client, api := clusterOf(t)
	p := publisherAt(t, client, t.TempDir())
	put(t, api, secret("k8s-ovs-etcd", map[string][]byte{"endpoints": []byte("http://192.0.2.1:2379")}))
	if err := p.mine(t.Context()); err == nil || !strings.Contains(err.Error(), "another etcd") || !strings.Contains(err.Error(), "--embedded-etcd=false") {
		t.Errorf("says %v", err)
	}
}

// publisherAt is that of a controller with an authority in dir.
func publisherAt(t *testing.T, client *kube.Client, dir string, args ...string) *publisher {
	t.Helper()
	c, err := parse(t, append([]string{"--kubernetes", "--node-ip=127.0.0.1", "--data-dir=" + dir}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.EnsureAuthority(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	return c.publisher(client, slog.New(slog.DiscardHandler))
}

// A controller on a machine without the records does not take the nodes over, whether they know of
// etcd by the ConfigMap or by the Secret of a release before.
func TestForeignEtcdIsNotTakenOver(t *testing.T) {
	for kind, publish := range map[string]func(*testing.T, *kubetest.Server, *publisher) runtime.Object{
		"ConfigMap": func(t *testing.T, api *kubetest.Server, p *publisher) runtime.Object {
			if _, err := p.ensure(t.Context()); err != nil {
				t.Fatal(err)
			}
			return api.Object("configmaps", "kube-system", "k8s-ovs-etcd")
		},
		"Secret": func(t *testing.T, api *kubetest.Server, p *publisher) runtime.Object {
			own, err := p.place()
			if err != nil {
				t.Fatal(err)
			}
			put(t, api, secret("k8s-ovs-etcd", own.Data()))
			return secret("k8s-ovs-etcd", nil)
		},
	} {
		t.Run(kind, func(t *testing.T) {
			client, api := clusterOf(t)
			here, there := publisherAt(t, client, t.TempDir()), publisherAt(t, client, t.TempDir())
			never := func(err error) { t.Errorf("waits: %v", err) }
			if err := here.claim(t.Context(), never); err != nil {
				t.Fatal(err)
			}
			o := publish(t, api, here)
			if err := here.claim(t.Context(), never); err != nil { // it starts again
				t.Fatal(err)
			}
			why := make(chan error, 1)
			claimed := make(chan error, 1)
			go func() {
				claimed <- there.claim(t.Context(), func(err error) {
					select {
					case why <- err:
					default:
					}
				})
			}()
			if err := <-why; !strings.Contains(err.Error(), "https://127.0.0.1:2389") || !strings.Contains(err.Error(), "delete the "+kind) {
				t.Errorf("says %v", err)
			}
			if err := api.Delete(o); err != nil {
				t.Fatal(err)
			}
			if err := <-claimed; err != nil {
				t.Error(err)
			}
		})
	}
}
