package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// secured starts an etcd with users, in which nothing is yet, and opens it as root.
func secured(t *testing.T, options ...etcdtest.Option) (*etcdtest.Server, *Store) {
	t.Helper()
	e := etcdtest.StartSecured(t, options...)
	return e, as(t, e, pki.RootUser)
}

// as opens the records as user.
func as(t *testing.T, e *etcdtest.Server, user string) *Store {
	t.Helper()
	return openFile(t, e, e.BundleFile(user, time.Hour))
}

func openFile(t *testing.T, e *etcdtest.Server, path string) *Store {
	t.Helper()
	s, err := Open(Config{Endpoints: e.Endpoints, CAFile: path, CertFile: path, KeyFile: path, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestFilesRenewed: certificate and CA are those of the file at each new connection.
func TestFilesRenewed(t *testing.T) {
	e, s := secured(t)
	if _, err := s.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	good, err := e.Bundle(pki.RootUser, time.Hour).Encode()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := pki.NewCA("stranger", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	bad := e.Bundle(pki.RootUser, time.Hour)
	bad.CA = stranger.CertPEM
	badData, err := bad.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bundle.pem")
	write := func(data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(badData)
	c := openFile(t, e, path)
	if _, err := c.Config(ctxOf(t)); err == nil {
		t.Fatal("an etcd of another CA is taken")
	}
	write(good)
	eventually(t, "the new CA counts", func() bool { _, err := c.Config(ctxOf(t)); return err == nil })
	// And the other way round, with a connection that is lost.
	write(badData)
	e.Stop()
	e.Restart()
	if _, err := c.Config(ctxOf(t)); err == nil {
		t.Fatal("an etcd whose CA is trusted no more is taken")
	}
}

// TestFilesGone: where certificates and key are gone when a connection is lost, the store says
// that it is them, as long as they are, and is well again when they are there again.
func TestFilesGone(t *testing.T) {
	e, s := secured(t)
	if _, err := s.PutConfig(ctxOf(t), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	path := e.BundleFile(pki.RootUser, time.Hour)
	c := openFile(t, e, path)
	snapshots := c.Watch(t.Context())
	<-snapshots
	go func() {
		for range snapshots {
		}
	}()
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := c.Healthy(); err != nil {
		t.Errorf("while the connection stands: %v", err)
	}
	e.Stop()
	e.Restart()
	eventually(t, "it says what is missing", func() bool {
		err := c.Healthy()
		return errors.Is(err, ErrCredentials) && errors.Is(err, fs.ErrNotExist) && strings.Contains(err.Error(), path)
	})
	// No handshake says that they are there again while etcd is away.
	e.Stop()
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := c.Healthy(); err == nil || errors.Is(err, ErrCredentials) {
		t.Errorf("the files are there again, and etcd is away: %v", err)
	}
	e.Restart()
	eventually(t, "it is in step again", func() bool { return c.Healthy() == nil })
}
