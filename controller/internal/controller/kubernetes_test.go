package controller

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
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
		"--kubernetes":                   "--node-ip is missing",
		"--kubernetes --node-ip=fd00::1": "--node-ip",
		"--kubernetes --etcd-secret=x":   "--etcd-secret",
		"--kubernetes --subnet-source=x": "--subnet-source",
		"--kubernetes --pod=x":           "--pod",
		"--kubeconfig=/nonexistent":      "--kubeconfig",
		"--embedded-etcd=false":          "--etcd-endpoints",
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

// freePort is a port that nobody listens on just now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
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

// The embedded etcd serves whoever has the Secret, and nobody else; a second
// controller finds it by the Secret.
func TestSecretOpensEtcd(t *testing.T) {
	const ref = "kube-system/k8s-ovs-etcd"
	client, cs := kubetest.New(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
	if _, err := client.PutSecret(t.Context(), ref, map[string][]byte{"ca.crt": []byte("old")}, false); err != nil {
		t.Fatal(err)
	}
	first := inCluster(t, client, "--data-dir="+t.TempDir(), "--listen-client-urls=https://127.0.0.1:"+freePort(t))
	waiting := inCluster(t, client, "--embedded-etcd=false", "--etcd-secret=kube-system/later")
	first.leads(t)
	if code, _ := waiting.get("/healthz"); code != 200 {
		t.Errorf("one that waits for the Secret is not alive: %d", code)
	}
	access := published(t, client, ref)
	s := openStore(t, store.Config{Endpoints: access.Endpoints, CA: access.CA, Cert: access.Cert, Key: access.Key})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.WaitConfig(ctx, nil); err != nil {
		t.Fatal(err)
	}
	without := openStore(t, store.Config{Endpoints: access.Endpoints, CA: access.CA, DialTimeout: time.Second})
	if _, err := without.Config(ctx); err == nil {
		t.Error("etcd answers without a client certificate")
	}

	if _, err := client.PutSecret(ctx, "kube-system/later", access.Data(), false); err != nil {
		t.Fatal(err)
	}
	eventuallyReady(t, waiting)
	if _, err := cs.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitNamespace(ctx, "a", func(n store.Versioned[topology.Namespace], ok bool) bool {
		return ok && n.Value.Effective != nil && n.Value.UID == "u"
	}); err != nil {
		t.Error(err)
	}
}

func published(t *testing.T, client *kube.Client, ref string) kube.EtcdAccess {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		data, err := client.Secret(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := kube.ParseEtcdAccess(data); err == nil && !bytes.Equal(a.CA, []byte("old")) {
			return a
		}
	}
	t.Fatal("the Secret is not written")
	panic("unreachable")
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

func eventuallyReady(t *testing.T, r *running) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if code, _ := r.get("/readyz"); code == 200 {
			return
		}
	}
	t.Fatalf("not ready; log:\n%s", r.log)
}

// ensure is the CA of a configuration.
func ensure(t *testing.T, c Config) *etcd.Authority {
	t.Helper()
	a, err := etcd.EnsureAuthority(c.Embedded.DataDir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What the Secret says is left alone if it gives the same access.
func TestPublisherLeavesGoodSecret(t *testing.T) {
	client, _ := kubetest.New(t)
	c, err := parse(t, "--kubernetes", "--node-ip=127.0.0.1", "--data-dir="+t.TempDir(), "--etcd-prefix=/p")
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.serve(client, ensure(t, c), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if wrote, err := p.ensure(t.Context()); err != nil || wrote != want {
			t.Errorf("wrote %v, %v; want %v", wrote, err, want)
		}
	}
	// One that leads to somebody's etcd, encrypted or not, is never taken over.
	for _, endpoint := range []string{"https://192.0.2.1:2379", "http://192.0.2.1:2379"} {
		other := p.access
		other.Endpoints, other.CA = []string{endpoint}, append(slices.Clone(other.CA), other.CA...)
		if _, err := client.PutSecret(t.Context(), "kube-system/other", other.Data(), false); err != nil {
			t.Fatal(err)
		}
		q := *p
		q.ref = "kube-system/other"
		if err := q.mine(t.Context()); err == nil || !strings.Contains(err.Error(), "another etcd") {
			t.Errorf("%s: error %v", endpoint, err)
		}
	}
	if a := published(t, client, c.Kube.EtcdSecret); a.Prefix != "/p" {
		t.Errorf("access %+v", a)
	}
	for _, change := range []func(map[string][]byte){
		func(d map[string][]byte) { d["endpoints"] = []byte("https://127.0.0.2:1") },
		func(d map[string][]byte) { d["tls.key"] = nil },
		func(d map[string][]byte) { d["prefix"] = []byte("/q") },
	} {
		data := p.access.Data()
		change(data)
		if _, err := client.PutSecret(t.Context(), p.ref, data, false); err != nil {
			t.Fatal(err)
		}
		if wrote, err := p.ensure(t.Context()); err != nil || !wrote {
			t.Errorf("%v: wrote %v, %v", data, wrote, err)
		}
	}
}

// A controller on a machine without the records does not take the nodes over.
func TestForeignSecretIsNotTakenOver(t *testing.T) {
	client, cs := kubetest.New(t)
	publisherAt := func(dir string) *publisher {
		c, err := parse(t, "--kubernetes", "--node-ip=127.0.0.1", "--data-dir="+dir)
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.serve(client, ensure(t, c), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	here, there := publisherAt(t.TempDir()), publisherAt(t.TempDir())
	never := func(err error) { t.Errorf("waits: %v", err) }
	if err := here.claim(t.Context(), never); err != nil {
		t.Fatal(err)
	}
	if _, err := here.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
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
	if err := <-why; !strings.Contains(err.Error(), here.access.Endpoints[0]) || !strings.Contains(err.Error(), "delete the Secret") {
		t.Errorf("says %v", err)
	}
	if err := cs.CoreV1().Secrets("kube-system").Delete(t.Context(), "k8s-ovs-etcd", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-claimed; err != nil {
		t.Error(err)
	}
}
