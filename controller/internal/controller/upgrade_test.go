package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// before is what a release whose nodes shared one certificate leaves: its data directory,
// and the Secret.
type before struct {
	dir    string
	access kube.EtcdAccess
}

// newBefore makes it as that release did: ten years, keys as SEC 1, a file each.
func newBefore(t *testing.T, listen string) before {
	t.Helper()
	b := before{dir: t.TempDir(), access: kube.EtcdAccess{Endpoints: []string{listen}}}
	pki := filepath.Join(b.dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		t.Fatal(err)
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	pair := func(file, name string, template x509.Certificate) (cert, keyPEM []byte) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template.Subject, template.SerialNumber = pkix.Name{CommonName: name}, big.NewInt(1)
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(10*365*24*time.Hour)
		parent, signer := ca, caKey
		if ca == nil {
			parent, signer, caKey = &template, key, key
		}
		der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		if ca == nil {
			if ca, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
		keyDER, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		keyPEM = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
		for ending, data := range map[string][]byte{".crt": cert, ".key": keyPEM} {
			if err := os.WriteFile(filepath.Join(pki, file+ending), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return cert, keyPEM
	}
	b.access.CA, _ = pair("ca", "k8s-ovs-etcd-ca", x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature})
	b.access.Cert, b.access.Key = pair("client", "k8s-ovs", x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	b.records(t)
	return b
}

// records are of an etcd without users.
func (b before) records(t *testing.T) {
	t.Helper()
	url := "http://" + freeport.Loopback(t).String()
	e, err := etcd.Start(t.Context(), etcd.Config{DataDir: b.dir, ListenClientURLs: []string{url}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s := openStore(t, store.Config{Endpoints: []string{url}})
	defer s.Close()
	if _, err := s.PutConfig(t.Context(), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureNode(t.Context(), "n1", netip.MustParseAddr("192.0.2.1")); err != nil {
		t.Fatal(err)
	}
}

func (b before) store(t *testing.T) *store.Store {
	return openStore(t, store.Config{Endpoints: b.access.Endpoints, CA: b.access.CA, Cert: b.access.Cert, Key: b.access.Key})
}

func (b before) status(identity string) topology.NodeStatus {
	return topology.NodeStatus{Host: "n1", HostIP: netip.MustParseAddr("192.0.2.1"), Identity: identity}
}

// TestUpgrade: nodes that share a certificate go on until each has its own; then that one is
// refused, wherever the controller ended meanwhile.
func TestUpgrade(t *testing.T) {
	client, api := clusterOf(t)
	listen := "https://" + freeport.Loopback(t).String()
	old := newBefore(t, listen)
	put(t, api, secret("k8s-ovs-etcd", old.access.Data()))
	start := func() *running {
		return inCluster(t, client, "--data-dir="+old.dir, "--listen-client-urls="+listen, "--pod=kube-system/c/u")
	}
	c := start()
	c.leads(t)
	place := published(t, client, etcdRef)
	if string(place.CA) != string(old.access.CA) {
		t.Error("the CA is another one: nodes do not trust it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience) // three controllers start
	defer cancel()
	agent := old.store(t)
	if _, err := agent.WaitConfig(ctx, nil); err != nil {
		t.Fatal(err)
	}
	status := agent.StatusPublisher(topology.DefaultConfig().Name, 0)
	status.Set(old.status(""))
	told := func(reason, message string) bool {
		for _, e := range api.Events() {
			if e.Reason == reason && strings.Contains(e.Message, message) {
				return true
			}
		}
		return false
	}
	eventually(t, "saying whom it waits for", func() bool { return told("SharedIdentityInUse", ": n1") })
	// Everything stays when it is interrupted.
	c.stop(t)
	c = start()
	c.leads(t)
	eventually(t, "the old certificate good after a restart", func() bool {
		_, err := agent.PutNodeMTU(ctx, topology.NodeMTU{Host: "n1", HostIP: netip.MustParseAddr("192.0.2.1")})
		return err == nil
	})
	watching := agent.WatchStatuses(ctx)
	<-watching
	if api.Object("secrets", "kube-system", "k8s-ovs-etcd") == nil {
		t.Error("the Secret went before its time")
	}

	// The agent is upgraded.
	status.Close()
	eventually(t, "n1 without an agent", func() bool { all, err := agent.Statuses(ctx); return err == nil && len(all) == 0 })
	own := openStore(t, identity(t, client, place, "k8s-ovs-node:n1:u1"))
	mine := own.StatusPublisher(topology.DefaultConfig().Name, 0)
	t.Cleanup(mine.Close)
	mine.Set(old.status("k8s-ovs-node:n1:u1"))
	eventually(t, "the old certificate refused", func() bool { _, err := agent.Config(ctx); return errors.Is(err, store.ErrDenied) })
	eventually(t, "a new connection with it refused", func() bool { _, err := old.store(t).Config(ctx); return errors.Is(err, store.ErrDenied) })
	eventually(t, "the Secret gone", func() bool { return api.Object("secrets", "kube-system", "k8s-ovs-etcd") == nil })
	eventually(t, "the certificate gone", func() bool {
		left, err := filepath.Glob(filepath.Join(old.dir, "pki", "client*"))
		return err == nil && len(left) == 0
	})
	eventually(t, "an Event", func() bool { return told("SharedIdentityEnded", "refused from now on") })

	// A start after that, also one that finds the certificate still there, lets nobody in with it.
	c.stop(t)
	for name, data := range map[string][]byte{"client.crt": old.access.Cert, "client.key": old.access.Key} {
		if err := os.WriteFile(filepath.Join(old.dir, "pki", name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c = start()
	c.leads(t)
	eventually(t, "the old certificate refused after a restart", func() bool { _, err := agent.Config(ctx); return errors.Is(err, store.ErrDenied) })
	eventually(t, "the certificate gone again", func() bool {
		left, err := filepath.Glob(filepath.Join(old.dir, "pki", "client*"))
		return err == nil && len(left) == 0
	})
	if _, err := own.Config(ctx); err != nil {
		t.Errorf("the node itself: %v", err)
	}
}
