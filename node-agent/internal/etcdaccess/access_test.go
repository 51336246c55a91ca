package etcdaccess

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/test/mounts"
)

const etcdRef = "kube-system/k8s-ovs-etcd"

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// fakeAccess stands in for the API server and the controller behind it.
type fakeAccess struct {
	places chan kube.EtcdAccess
	uids   chan string

	mu     sync.Mutex // guards what follows
	ca     *pki.Pair
	broken error
	asked  []string // users
	keys   map[string]bool
}

func newFakeAccess(t *testing.T) *fakeAccess {
	return &fakeAccess{places: make(chan kube.EtcdAccess, 10), uids: make(chan string, 10), ca: newCA(t), keys: map[string]bool{}}
}

func newCA(t *testing.T) *pki.Pair {
	t.Helper()
	ca, err := pki.NewCA("etcd", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (f *fakeAccess) WatchEtcdPlace(_ context.Context, ref string) <-chan kube.EtcdAccess {
	if ref != etcdRef {
		panic("asked for " + ref)
	}
	return f.places
}

func (f *fakeAccess) WatchNodeUID(_ context.Context, name string) <-chan string {
	if name != "n1" {
		panic("asked for " + name)
	}
	return f.uids
}

func (f *fakeAccess) RequestCertificate(ctx context.Context, prefix string, requestPEM []byte, signer string, lifetime time.Duration) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := pki.ParseRequest(requestPEM)
	if err != nil || signer != "k8s-ovs.io/agent" || prefix != "k8s-ovs-agent-n1-" {
		panic("asks for what nobody signs")
	}
	f.asked, f.keys[string(r.RawSubjectPublicKeyInfo)] = append(f.asked, r.Subject.CommonName), true
	if f.broken != nil {
		return nil, f.broken
	}
	return f.ca.Sign(requestPEM, r.Subject.CommonName, lifetime, time.Now())
}

func (f *fakeAccess) set(broken error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

// seen are who asked, and with how many keys.
func (f *fakeAccess) seen() (users []string, keys int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.asked...), len(f.keys)
}

// at says where etcd is.
func (f *fakeAccess) at(address string) kube.EtcdAccess {
	return kube.EtcdAccess{Endpoints: []string{"https://" + address}, CA: f.ca.CertPEM}
}

func accessTo(t *testing.T, f *fakeAccess, dir string) *Access {
	return New(t.Context(), f, Config{
		Ref: etcdRef, Node: "n1", StateDir: dir, Patience: 3 * time.Second, Metrics: identity.NewMetrics(prometheus.NewRegistry()), Logger: quiet(),
	})
}

func noFlags() options.Etcd {
	return options.Etcd{Prefix: "/k8s.ovs.com/ovs/network", DialTimeout: time.Second}
}

func unheard(error) {}

// start is a first start that finds the etcd of f.
func (f *fakeAccess) start(t *testing.T, dir string) (*Access, Way) {
	t.Helper()
	f.places <- f.at("192.0.2.1:2379")
	f.uids <- "u1"
	a := accessTo(t, f, dir)
	w, err := a.First(t.Context(), noFlags(), unheard)
	if err != nil {
		t.Fatal(err)
	}
	return a, w
}

// TestAccessFirst: the node's certificate is asked for once, and is enough from then on.
func TestAccessFirst(t *testing.T) {
	f, dir := newFakeAccess(t), t.TempDir()
	_, w := f.start(t, dir)
	want := noFlags()
	path := identity.NewFile(dir).Path()
	want.Endpoints, want.CAFile, want.CertFile, want.KeyFile = []string{"https://192.0.2.1:2379"}, path, path, path
	if diff := cmp.Diff(want, w.Etcd); diff != "" || w.user() != "k8s-ovs-node:n1:u1" {
		t.Errorf("%s reaches etcd by (-want +got):\n%s", w.user(), diff)
	}
	// Nobody answers any more.
	again, err := accessTo(t, newFakeAccess(t), dir).First(t.Context(), noFlags(), unheard)
	if err != nil || again.user() != w.user() {
		t.Errorf("started again as %q, %v", again.user(), err)
	}
	if users, _ := f.seen(); len(users) != 1 {
		t.Errorf("asked as %v", users)
	}
	// A certificate whose time is over is better than none: it is renewed beside.
	old, err := f.ca.Client("k8s-ovs-node:n1:u1", time.Minute, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.NewFile(dir).Save(pki.Bundle{Endpoints: w.Etcd.Endpoints, CA: f.ca.CertPEM, Pair: old}); err != nil {
		t.Fatal(err)
	}
	if again, err = accessTo(t, newFakeAccess(t), dir).First(t.Context(), noFlags(), unheard); err != nil || again.user() != w.user() {
		t.Errorf("started late as %q, %v", again.user(), err)
	}
}

// TestAccessOfAnotherNode: what is on a disk that was copied is not used.
func TestAccessOfAnotherNode(t *testing.T) {
	f, dir := newFakeAccess(t), t.TempDir()
	other, err := f.ca.Client("k8s-ovs-node:n10:u1", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.NewFile(dir).Save(pki.Bundle{Endpoints: []string{"https://192.0.2.1:2379"}, CA: f.ca.CertPEM, Pair: other}); err != nil {
		t.Fatal(err)
	}
	if _, w := f.start(t, dir); w.user() != "k8s-ovs-node:n1:u1" {
		t.Errorf("started as %q", w.user())
	}
}

// TestAccessWaits: it says what it waits for, and asks again and again, with one key.
func TestAccessWaits(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeAccess(t)
		f.set(errors.New("the API server is away"))
		a := accessTo(t, f, dir)
		var mu sync.Mutex
		var last error
		type result struct {
			way Way
			err error
		}
		done := make(chan result)
		go func() {
			w, err := a.First(t.Context(), noFlags(), func(err error) { mu.Lock(); defer mu.Unlock(); last = err })
			done <- result{w, err}
		}()
		waits := func(say string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if last == nil || !strings.Contains(last.Error(), say) {
				t.Errorf("waits for %v, want %q", last, say)
			}
		}
		waits("ConfigMap " + etcdRef)
		f.places <- f.at("192.0.2.1:2379")
		waits("Node n1")
		f.uids <- "u1"
		waits("the API server is away")
		time.Sleep(24 * time.Hour)
		users, keys := f.seen()
		if n := len(users); n < 24*6 || n > 24*30 || keys != 1 {
			t.Errorf("asked %d times a day, with %d keys", n, keys)
		}
		f.set(kube.ErrDenied)
		time.Sleep(time.Hour)
		if _, keys := f.seen(); keys < 3 {
			t.Errorf("asked with %d keys although they are denied", keys)
		}
		f.set(nil)
		if r := <-done; r.err != nil || r.way.user() != "k8s-ovs-node:n1:u1" {
			t.Errorf("%q, %v", r.way.user(), r.err)
		}
	})
}

// following runs follow in a bubble.
func following(t *testing.T, test func(t *testing.T, f *fakeAccess, file identity.File, ended <-chan error)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeAccess(t)
		a, w := f.start(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Follow(ctx, w) }()
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("ended with %v though nothing changed", err)
		default:
		}
		test(t, f, identity.NewFile(dir), ended)
		cancel()
		synctest.Wait()
	})
}

func endsWith(t *testing.T, ended <-chan error, say string) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-ended:
		if !strings.Contains(err.Error(), say) {
			t.Errorf("ended with %v, want %q", err, say)
		}
	default:
		t.Errorf("goes on, want %q", say)
	}
}

func TestAccessNodeRegisteredAnew(t *testing.T) {
	following(t, func(t *testing.T, f *fakeAccess, file identity.File, ended <-chan error) {
		f.uids <- "u2"
		endsWith(t, ended, "the node is k8s-ovs-node:n1:u2 now")
		if b, _, err := file.Load(); err != nil || b.User() != "k8s-ovs-node:n1:u2" {
			t.Errorf("keeps %+v, %v", b, err)
		}
	})
}

func TestAccessEtcdElsewhere(t *testing.T) {
	following(t, func(t *testing.T, f *fakeAccess, file identity.File, ended <-chan error) {
		f.places <- f.at("192.0.2.2:2379")
		endsWith(t, ended, "etcd is elsewhere")
		if b, _, err := file.Load(); err != nil || b.Endpoints[0] != "https://192.0.2.2:2379" || b.User() != "k8s-ovs-node:n1:u1" {
			t.Errorf("keeps %+v, %v", b, err)
		}
	})
}

// TestAccessDiskFull: what cannot be written down does not end the agent, which would begin anew with what it has on
// disk, and end again: it is written when there is room, and then it counts.
func TestAccessDiskFull(t *testing.T) {
	following(t, func(t *testing.T, f *fakeAccess, file identity.File, ended <-chan error) {
		writable := mounts.ReadOnly(t, filepath.Dir(file.Path()))
		for _, place := range []string{"192.0.2.2:2379", "192.0.2.3:2379"} {
			f.places <- f.at(place)
			time.Sleep(time.Minute)
			synctest.Wait()
			select {
			case err := <-ended:
				t.Fatalf("ended with %v while nothing can be written down", err)
			default:
			}
		}
		writable()
		time.Sleep(saveAgainAfter)
		endsWith(t, ended, "etcd is elsewhere")
		if b, _, err := file.Load(); err != nil || b.Endpoints[0] != "https://192.0.2.3:2379" {
			t.Errorf("keeps %+v, %v", b, err)
		}
	})
}

// TestAccessNewCA: another CA is trusted at once, and its signature asked for, without a new
// start: the store reads the file at its next connection.
func TestAccessNewCA(t *testing.T) {
	following(t, func(t *testing.T, f *fakeAccess, file identity.File, ended <-chan error) {
		old, fresh := f.ca, newCA(t)
		place := f.at("192.0.2.1:2379")
		place.CA = append(append([]byte{}, old.CertPEM...), fresh.CertPEM...)
		f.places <- place
		synctest.Wait()
		b, _, err := file.Load()
		if users, _ := f.seen(); err != nil || !pki.Signs(b.CA, fresh.Cert) || len(users) != 1 {
			t.Errorf("%v; asked as %v", err, users)
		}
		f.mu.Lock()
		f.ca = fresh
		f.mu.Unlock()
		place.CA = append(append([]byte{}, fresh.CertPEM...), old.CertPEM...)
		f.places <- place
		synctest.Wait()
		if b, _, err := file.Load(); err != nil || !pki.Signs(fresh.CertPEM, b.Pair.Cert) {
			t.Errorf("%v; not signed by the new CA", err)
		}
		select {
		case err := <-ended:
			t.Errorf("ended with %v", err)
		default:
		}
	})
}

func TestAccessRenewed(t *testing.T) {
	following(t, func(t *testing.T, f *fakeAccess, file identity.File, ended <-chan error) {
		first, _, _ := file.Load()
		time.Sleep(20 * time.Hour)
		if b, _, err := file.Load(); err != nil || !b.Pair.Cert.NotAfter.After(first.Pair.Cert.NotAfter) {
			t.Errorf("not renewed after 20 h: %v", err)
		}
		select {
		case err := <-ended:
			t.Errorf("ended with %v", err)
		default:
		}
	})
}

// TestAccessShared: an agent that begins with what the release before left goes on with it
// for as long as it has no certificate of its own, and starts anew with that.
func TestAccessShared(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeAccess(t)
		p, err := f.ca.Client(pki.SharedUser, time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		shared := kube.EtcdAccess{Endpoints: []string{"https://192.0.2.1:2379"}, CA: f.ca.CertPEM, Cert: p.CertPEM, Key: p.KeyPEM}
		data, err := json.Marshal(shared)
		if err != nil {
			t.Fatal(err)
		}
		a := accessTo(t, f, dir)
		if err := os.WriteFile(a.shared, data, 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := a.First(t.Context(), noFlags(), unheard)
		if err != nil || w.user() != "" || !cmp.Equal(w.Etcd.Cert, p.CertPEM) || w.Etcd.Endpoints[0] != shared.Endpoints[0] {
			t.Fatalf("%+v, %v", w, err)
		}
		ended := make(chan error, 1)
		go func() { ended <- a.Follow(t.Context(), w) }()
		f.places <- f.at("192.0.2.1:2379")
		f.uids <- "u1"
		endsWith(t, ended, "the node is k8s-ovs-node:n1:u1 now")
		if w, err = accessTo(t, newFakeAccess(t), dir).First(t.Context(), noFlags(), unheard); err != nil || w.user() != "k8s-ovs-node:n1:u1" {
			t.Errorf("%q, %v", w.user(), err)
		}
		if _, err := os.Stat(a.shared); err == nil {
			t.Error("the key that all nodes shared is still there")
		}
	})
}

// TestAccessSharedUnfit: a damaged copy is none, nor is one of an earlier version that is not encrypted.
func TestAccessSharedUnfit(t *testing.T) {
	for _, copied := range []string{"{", "{}", `{"Endpoints": ["http://192.0.2.9:2379"]}`} {
		a := accessTo(t, newFakeAccess(t), t.TempDir())
		if err := os.WriteFile(a.shared, []byte(copied), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, held := a.loadShared(); held {
			t.Errorf("%s is taken for %+v", copied, got)
		}
	}
}

func TestAccessEnds(t *testing.T) {
	f := newFakeAccess(t)
	close(f.places) // as the watches do when ctx ends
	close(f.uids)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := accessTo(t, f, t.TempDir()).First(ctx, noFlags(), unheard); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
