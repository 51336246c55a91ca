package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// releaseFile names the commit of the release before this version.
const releaseFile = "../previous-release"

// sharedCertificate is the commit of the last release whose nodes shared one certificate.
const sharedCertificate = "9b8a585087c622df9cb505e8026b97e1045e81b1"

// previousRelease builds the programs of the release before.
func previousRelease(t *testing.T) (bin string) {
	t.Helper()
	needsHistory(t)
	data, err := os.ReadFile(releaseFile)
	if err != nil {
		t.Fatal(err)
	}
	return release(t, strings.TrimSpace(string(data)))
}

// needsHistory skips where there is no repository: what is booted to run tests has the tests only.
func needsHistory(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skipf("an older release cannot be built here, `make test` does: %v", err)
	}
}

// release builds the programs of a release from the repository's history, and keeps them.
func release(t *testing.T, commit string) (bin string) {
	t.Helper()
	needsHistory(t)
	if out, err := exec.Command("git", "cat-file", "-e", commit+"^{commit}").CombinedOutput(); err != nil {
		missing := fmt.Sprintf("the commit of an older release, %s, is not in this clone: make it a full one with `git fetch --unshallow`: %v: %s", commit, err, out)
		if shallow, err := exec.Command("git", "rev-parse", "--is-shallow-repository").Output(); err != nil || string(shallow) != "false\n" {
			t.Skip(missing)
		}
		t.Fatal(missing)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	bin = filepath.Join(cache, "k8s-ovs-releases", commit)
	if _, err := os.Stat(filepath.Join(bin, "k8s-ovs")); err == nil {
		return bin
	}
	source := t.TempDir()
	for _, step := range []string{
		fmt.Sprintf("git -C \"$(git rev-parse --show-toplevel)\" archive %s | tar -x -C %q", commit, source),
		fmt.Sprintf("mkdir -p %[2]q && cd %[1]q && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o %[2]q/ ./cni ./node-agent ./controller && mv %[2]q/node-agent %[2]q/k8s-ovs-agent && mv %[2]q/controller %[2]q/k8s-ovs-controller && mv %[2]q/cni %[2]q/k8s-ovs", source, bin),
	} {
		if out, err := exec.Command("bash", "-e", "-o", "pipefail", "-c", step).CombinedOutput(); err != nil {
			t.Fatalf("build release %s: %v: %s", commit, err, out)
		}
	}
	return bin
}

// serveCluster has an API server in the lab, with its nodes and these namespaces.
func (l *lab) serveCluster(namespaces ...string) *cluster {
	l.t.Helper()
	nodes, err := l.Nodes()
	l.must(err)
	addresses := map[string]netip.Addr{}
	for _, n := range nodes {
		addresses[n.Name] = n.VTEP
	}
	api, err := kubetest.NewCluster(addresses, namespaces...)
	l.must(err)
	c := &cluster{l, api}
	c.serveAPI()
	l.t.Cleanup(func() { _ = c.api.Away() })
	l.must(l.UseKubernetes(true))
	l.must(l.ShowPods(c.api))
	return c
}

// records opens the lab's etcd as the holder of access does.
func (c *cluster) records(access kube.EtcdAccess) *clientv3.Client {
	c.t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(access.CA)
	pair, err := tls.X509KeyPair(access.Cert, access.Key)
	c.must(err)
	config.Certificates = []tls.Certificate{pair}
	e, err := clientv3.New(clientv3.Config{
		Endpoints: access.Endpoints, TLS: config, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return ns.DialTCP(ns.Path(c.ControllerNetns()), netlab.EtcdAddress, 5*time.Second)
		})},
	})
	c.must(err)
	c.t.Cleanup(func() { _ = e.Close() })
	return e
}

// lets reports whether etcd lets somebody read.
func (c *cluster) lets(e *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	_, err := e.Get(ctx, netlab.EtcdPrefix+"/config")
	return err
}

// secret is what the Secret says; false where there is none.
func (c *cluster) secret() (kube.EtcdAccess, bool) {
	o, there := c.api.Object("secrets", "kube-system", "k8s-ovs-etcd").(*corev1.Secret)
	if !there {
		return kube.EtcdAccess{}, false
	}
	access, err := kube.ParseEtcdAccess(o.Data)
	c.must(err)
	return access, true
}

// TestUpgradeFromSharedCertificate: from the last release whose nodes shared one certificate
// to this version: the controller first, then the agents one by one. Nothing is lost; at the end the
// old certificate is refused.
func TestUpgradeFromSharedCertificate(t *testing.T) {
	long(t)
	old := release(t, sharedCertificate)
	l := up(t, netlab.Options{Bare: true})
	ctx := t.Context()
	c := l.serveCluster("red", "blue")
	c.must(l.StartInCluster(ctx, old))
	for _, node := range []string{"n1", "n2"} {
		c.must(l.Agent(node).StartInCluster(ctx, old))
	}
	l.pods(quartet)
	l.requireMatrix("the older release", redAndBlue.allowed)
	copied := filepath.Join(l.Dir(), "n1", "state", "etcd-access.json")
	access, err := os.ReadFile(copied)
	c.must(err)
	shared, there := c.secret()
	if !there {
		t.Fatal("the older release made no Secret")
	}
	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 50)

	c.must(l.Controller().Stop())
	l.traffic(run, 20)
	c.must(l.StartInCluster(ctx, binDir))
	l.traffic(run, 50)
	if err := c.lets(c.records(shared)); err != nil {
		t.Errorf("the shared certificate, in use on both nodes: %v", err)
	}
	// Old agents work with the new controller: a pod comes, a network changes.
	c.must(c.api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "green", UID: "uid-green"}}))
	l.pod("n1", "green/a")
	for _, node := range []string{"n1", "n2"} {
		if _, there := c.secret(); !there {
			t.Errorf("the Secret went before %s had its own certificate", node)
		}
		c.must(l.Agent(node).Stop())
		l.traffic(run, 20) // without agent
		c.must(l.Agent(node).StartInCluster(ctx, binDir))
		l.traffic(run, 50)
	}
	l.eventually("the shared certificate refused", 30*time.Second, func() error {
		if err := c.lets(c.records(shared)); err == nil || !strings.Contains(err.Error(), "permission denied") {
			return fmt.Errorf("etcd says %v", err)
		}
		return nil
	})
	l.eventually("the Secret and the certificate gone", 30*time.Second, func() error {
		if _, there := c.secret(); there {
			return errors.New("the Secret is there")
		}
		left, err := filepath.Glob(filepath.Join(l.DataDir(), "pki", "client*"))
		if len(left) > 0 {
			err = fmt.Errorf("there are %v", left)
		}
		return err
	})
	l.traffic(run, 50)
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Errorf("the upgrade: %v", err)
	}
	t.Logf("%d messages, %d lost", rep.Sent(), rep.Lost())

	// A node that was away meanwhile comes back with its agent of the older release. That is let in no
	// more and says so; its pods keep their network. Upgraded it is a node like the others.
	c.must(l.Agent("n1").Stop())
	c.must(os.WriteFile(copied, access, 0o600))
	c.must(l.Agent("n1").StartInCluster(ctx, old))
	l.requireMatrix("an agent of the older release", redAndBlue.with("green", "g").allowed)
	l.eventually("it says why", 30*time.Second, func() error {
		log, err := os.ReadFile(filepath.Join(l.Dir(), "log", "n1-agent.log"))
		if err == nil && !strings.Contains(string(log), "permission denied") {
			err = errors.New("no word of it")
		}
		return err
	})
	c.must(l.Agent("n1").Stop())
	c.must(l.Agent("n1").StartInCluster(ctx, binDir))
	l.pod("n1", "blue/c")
	l.requireMatrix("upgraded", redAndBlue.with("green", "g").allowed)
	for _, node := range []string{"n1", "n2"} {
		if _, err := os.Stat(filepath.Join(l.Dir(), node, "state", "etcd-access.json")); err == nil {
			t.Errorf("%s still has the key that all shared", node)
		}
	}
}
