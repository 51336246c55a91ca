package identity

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

const user = "k8s-ovs-node:n1:1"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// signer is an Issuer that can fail.
type signer struct {
	ca       *pki.Pair
	lifetime time.Duration

	mu     sync.Mutex
	broken error
	as     string
	issued int
}

func (s *signer) Issue(_ context.Context, request []byte, user string) (cert, ca []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil, nil, s.broken
	}
	s.issued++
	if s.as != "" {
		cert = must(s.ca.Client(s.as, s.lifetime, time.Now())).CertPEM
	} else {
		cert, err = s.ca.Sign(request, user, s.lifetime, time.Now())
	}
	return cert, s.ca.CertPEM, err
}

func (s *signer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued
}

func (s *signer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
}

// renewing runs a Renewer in a bubble, on a bundle that lives for lifetime.
func renewing(t *testing.T, lifetime time.Duration, test func(t *testing.T, r *Renewer, s *signer, f File)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := &signer{ca: must(pki.NewCA("ca", time.Now())), lifetime: lifetime}
		f := NewFile(dir)
		must(f.Obtain(t.Context(), s, user, []string{"https://192.0.2.1:2379"}, ""))
		r := NewRenewer(f, s, NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		synctest.Wait()
		test(t, r, s, f)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ends with %v", err)
		}
	})
}

func TestRenew(t *testing.T) {
	renewing(t, 24*time.Hour, func(t *testing.T, r *Renewer, s *signer, f File) {
		first, _, _ := f.Load()
		time.Sleep(10 * time.Hour)
		if n := s.count(); n != 1 {
			t.Fatalf("%d certificates after 10 h, want the first only", n)
		}
		time.Sleep(3 * time.Hour)
		if n := s.count(); n != 2 {
			t.Fatalf("%d certificates after 13 h, want two", n)
		}
		now, _, err := f.Load()
		if err != nil || now.User() != user || now.Endpoints[0] != first.Endpoints[0] || !now.Pair.Cert.NotAfter.After(first.Pair.Cert.NotAfter) {
			t.Errorf("renewed %+v, %v", now, err)
		}
		if info, err := os.Stat(f.Path()); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		// A new CA.
		r.Renew()
		synctest.Wait()
		if n := s.count(); n != 3 {
			t.Errorf("%d certificates when one was asked for, want three", n)
		}
		synctest.Wait()
		if n := s.count(); n != 3 {
			t.Errorf("%d certificates, want no more than asked for", n)
		}
	})
}

// TestDeleted: a bundle that somebody deletes, with its directory too, is put back, also where the
// one that somebody gave is not there any more, and is renewed as ever. One by which nothing was
// reached yet is not made up.
func TestDeleted(t *testing.T) {
	renewing(t, 24*time.Hour, func(t *testing.T, _ *Renewer, s *signer, f File) {
		before, _, _ := f.Load()
		for _, gone := range []string{f.Path(), filepath.Dir(f.Path())} {
			if err := os.RemoveAll(gone); err != nil {
				t.Fatal(err)
			}
			time.Sleep(lookEvery)
			synctest.Wait()
			b, held, err := f.Load()
			if err != nil || !held || !bytes.Equal(b.Pair.CertPEM, before.Pair.CertPEM) || s.count() != 1 {
				t.Errorf("%s was deleted: there is a bundle: %t, %v; %d certificates were asked for", gone, held, err, s.count())
			}
			if info, err := os.Stat(f.Path()); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
		}
		time.Sleep(14 * time.Hour)
		if n := s.count(); n != 2 {
			t.Errorf("%d certificates after 14 h, want two", n)
		}
	})
	none := NewFile(t.TempDir())
	if put, err := none.Restore(); put || err != nil {
		t.Errorf("restored %t, %v", put, err)
	}
}

// TestRenewFails: who signs is away, and comes back.
func TestRenewFails(t *testing.T) {
	renewing(t, 24*time.Hour, func(t *testing.T, _ *Renewer, s *signer, f File) {
		s.fail(errors.New("away"))
		time.Sleep(20 * time.Hour)
		if b, held, err := f.Load(); !held || err != nil || s.count() != 1 {
			t.Fatalf("%+v %v %v", b, held, err)
		}
		s.fail(nil)
		time.Sleep(2 * lastRetry)
		if n := s.count(); n != 2 {
			t.Errorf("%d certificates, want two", n)
		}
	})
}

// TestRenewOtherUser: a certificate of somebody else does not take the place of one's own.
func TestRenewOtherUser(t *testing.T) {
	renewing(t, time.Hour, func(t *testing.T, _ *Renewer, s *signer, f File) {
		s.mu.Lock()
		s.as = "k8s-ovs-node:n2:1"
		s.mu.Unlock()
		time.Sleep(50 * time.Minute)
		if b, _, _ := f.Load(); b.User() != user || s.count() < 2 {
			t.Errorf("%s after %d attempts", b.User(), s.count())
		}
	})
}

func TestImport(t *testing.T) {
	now := time.Now()
	ca := must(pki.NewCA("ca", now))
	bundle := func(user string, at time.Time) pki.Bundle {
		return pki.Bundle{Endpoints: []string{"https://192.0.2.1:2379"}, CA: ca.CertPEM, Pair: must(ca.Client(user, time.Hour, at))}
	}
	f := NewFile(t.TempDir())
	if _, held, err := f.Load(); held || err != nil {
		t.Fatalf("%v, %v", held, err)
	}
	given, renewed := bundle(user, now), bundle(user, now.Add(time.Minute))
	for _, step := range []struct {
		name  string
		b     pki.Bundle
		taken bool
	}{{"the first", given, true}, {"again", given, false}, {"a later one", renewed, true}, {"the first after that", given, false},
		{"a new identity", bundle("k8s-ovs-node:n1:2", now.Add(2*time.Minute)), true}} {
		if taken, err := f.Import(step.b); taken != step.taken || err != nil {
			t.Errorf("%s: taken %v, %v; want %v", step.name, taken, err, step.taken)
		}
	}
	if b, held, err := f.Load(); !held || err != nil || b.User() != "k8s-ovs-node:n1:2" {
		t.Errorf("%+v %v %v", b, held, err)
	}
	if err := os.WriteFile(f.Path(), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Load(); err == nil {
		t.Error("garbage is read")
	}
	if taken, err := f.Import(given); !taken || err != nil {
		t.Errorf("over garbage: %v, %v", taken, err)
	}
}

// keys remembers what keys were asked with, and answers as it is told.
type keys struct {
	signer
	seen []string
	err  error
}

func (k *keys) Issue(ctx context.Context, request []byte, user string) (cert, ca []byte, err error) {
	r := must(pki.ParseRequest(request))
	k.seen = append(k.seen, string(r.RawSubjectPublicKeyInfo))
	if k.err != nil {
		return nil, nil, k.err
	}
	return k.signer.Issue(ctx, request, user)
}

// TestObtainAsksOnce: until there is an answer a certificate is asked for with the same key,
// also by an agent that started anew; each certificate has a key of its own.
func TestObtainAsksOnce(t *testing.T) {
	dir := t.TempDir()
	k := &keys{signer: signer{ca: must(pki.NewCA("ca", time.Now())), lifetime: time.Hour}}
	ask := func(answer error) string {
		t.Helper()
		k.err = answer
		_, err := NewFile(dir).Obtain(t.Context(), k, user, []string{"https://192.0.2.1:2379"}, "")
		if !errors.Is(err, answer) {
			t.Errorf("error %v, want %v", err, answer)
		}
		return k.seen[len(k.seen)-1]
	}
	away := errors.New("away")
	first := ask(away)
	if info, err := os.Stat(NewFile(dir).next); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	if ask(away) != first || ask(ErrRefused) != first {
		t.Error("asked with another key before there was an answer")
	}
	second := ask(nil)
	if second == first {
		t.Error("asked with a key that was refused")
	}
	if third := ask(nil); third == second {
		t.Error("two certificates for one key")
	}
	if _, err := os.Stat(NewFile(dir).next); err == nil {
		t.Error("the key is still there without its certificate")
	}
}
