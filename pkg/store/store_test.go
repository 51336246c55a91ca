package store

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func (s *Store) connectOrDie(t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := s.connect()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOpenRefuses(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := []string{"http://127.0.0.1:2379"}
	for name, test := range map[string]struct {
		cfg Config
		say string
	}{
		"no endpoints":        {Config{}, "no endpoints"},
		"no port":             {Config{Endpoints: []string{"http://127.0.0.1"}}, "needs a host and a port"},
		"path":                {Config{Endpoints: []string{"http://127.0.0.1:2379/v2"}}, "nothing else"},
		"scheme":              {Config{Endpoints: []string{"ftp://127.0.0.1:2379"}}, "none of http"},
		"relative socket":     {Config{Endpoints: []string{"unix://run/x"}}, "whole path"},
		"second is bad":       {Config{Endpoints: []string{"http://127.0.0.1:2379", "x"}}, `"x"`},
		"prefix":              {Config{Endpoints: good, Prefix: "x"}, "must begin with a slash"},
		"empty prefix":        {Config{Endpoints: good, Prefix: "/"}, "must begin with a slash"},
		"CA is not there":     {Config{Endpoints: []string{"127.0.0.1:2379"}, CAFile: "/nowhere"}, "/nowhere"},
		"CA is junk":          {Config{Endpoints: []string{"127.0.0.1:2379"}, CAFile: junk}, "no PEM certificate"},
		"certificate is junk": {Config{Endpoints: []string{"127.0.0.1:2379"}, CertFile: junk, KeyFile: junk}, "client certificate " + junk},
		"key is missing":      {Config{Endpoints: []string{"127.0.0.1:2379"}, CertFile: junk}, "go together"},
		"TLS over http":       {Config{Endpoints: good, CAFile: junk}, "not encrypted"},
		"password alone":      {Config{Endpoints: good, Password: "x"}, "without a user name"},
		"user alone":          {Config{Endpoints: good, Username: "x"}, "without a password"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(test.cfg)
			if err == nil {
				s.Close()
			}
			if err == nil || !contains(err.Error(), test.say) {
				t.Errorf("error %v, want one with %q", err, test.say)
			}
		})
	}
}

// An etcd that is not there: Open does not wait, calls fail in seconds, and say
// where and why.
func TestUnreachable(t *testing.T) {
	for name, cfg := range map[string]Config{
		"plain": {Endpoints: []string{"unix:///nowhere/a.sock", "unix:///nowhere/b.sock"}},
		"user":  {Endpoints: []string{"unix:///nowhere/a.sock", "unix:///nowhere/b.sock"}, Username: "u", Password: "p"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.DialTimeout, cfg.Logger = 2*time.Second, testLogger(t)
			began := time.Now()
			s, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if d := time.Since(began); d >= cfg.DialTimeout {
				t.Errorf("Open took %s", d)
			}
			_, _, err = s.Snapshot(ctxOf(t))
			if d := time.Since(began); d > 15*time.Second {
				t.Errorf("the call took %s", d)
			}
			if !errors.Is(err, ErrUnavailable) {
				t.Fatalf("error %v, want ErrUnavailable", err)
			}
			for _, part := range []string{"read network configuration", "unix:///nowhere/a.sock, unix:///nowhere/b.sock", "no such file"} {
				if !contains(err.Error(), part) {
					t.Errorf("error %q, want %q in it", err, part)
				}
			}
			if !errors.Is(s.Healthy(), ErrUnavailable) {
				t.Errorf("Healthy: %v", s.Healthy())
			}
		})
	}
}

// The caller's own end of a call is not etcd's fault.
func TestCancelled(t *testing.T) {
	_, s := network(t)
	ctx, cancel := context.WithCancel(ctxOf(t))
	cancel()
	if _, _, err := s.Snapshot(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v, want context.Canceled only", err)
	}
}

func TestUsers(t *testing.T) {
	e := etcdtest.Start(t)
	c := e.Client()
	ctx := ctxOf(t)
	for _, step := range []func() error{
		func() error { _, err := c.UserAdd(ctx, "root", "rootpw"); return err },
		func() error { _, err := c.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := c.UserAdd(ctx, "guest", "guestpw"); return err },
		func() error { _, err := c.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	try := func(user, password string) error {
		s, err := Open(Config{Endpoints: e.Endpoints, Username: user, Password: password, Logger: testLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = s.PutConfig(ctx, topology.DefaultConfig())
		return err
	}
	for _, test := range []struct{ user, password, say string }{
		{"", "", "etcd refuses access"}, {"guest", "guestpw", "permission denied"}, {"root", "wrong", "authentication failed"}, {"nobody", "x", "authentication failed"},
	} {
		if err := try(test.user, test.password); !errors.Is(err, ErrDenied) || !contains(err.Error(), test.say) {
			t.Errorf("%s: %v, want ErrDenied with %q", test.user, err, test.say)
		}
	}
	if err := try("root", "rootpw"); err != nil {
		t.Errorf("root: %v", err)
	}
}

func TestPutConfigOnce(t *testing.T) {
	_, s := network(t)
	other := topology.DefaultConfig()
	other.Name = "other"
	if _, err := s.PutConfig(ctxOf(t), other); !errors.Is(err, ErrConflict) {
		t.Errorf("a second configuration: %v, want ErrConflict", err)
	}
	got, err := s.Config(ctxOf(t))
	if err != nil || !got.Value.Equal(topology.DefaultConfig()) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.PutConfig(ctxOf(t), topology.Config{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an invalid one: %v, want ErrInvalid", err)
	}
}

func TestRequestAction(t *testing.T) {
	e, s := network(t)
	ctx := ctxOf(t)
	e.Put(key("a"), nsRecord("a", 100))
	e.Put(key("b"), nsRecord("b", 200))
	e.Put(key("broken"), `{"NetName":"x"}`)
	for name, test := range map[string]struct {
		ns     string
		action topology.Action
		target string
		want   error
	}{
		"unknown":         {"nobody", topology.Isolate, "", ErrNotFound},
		"unknown target":  {"a", topology.Join, "nobody", ErrNotFound},
		"itself":          {"a", topology.Join, "a", ErrInvalid},
		"no target":       {"a", topology.Join, "", ErrInvalid},
		"no action":       {"a", topology.None, "", ErrInvalid},
		"bad action":      {"a", "explode", "", ErrInvalid},
		"bad name":        {"a/b", topology.Isolate, "", ErrInvalid},
		"no name":         {"", topology.Isolate, "", ErrInvalid},
		"broken":          {"broken", topology.Isolate, "", ErrInvalid},
		"target's broken": {"a", topology.Join, "broken", ErrInvalid},
	} {
		if _, err := s.RequestAction(ctx, test.ns, test.action, test.target); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if _, err := s.Namespace(ctx, "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a request created a record: %v", err)
	}
	rev, err := s.RequestAction(ctx, "a", topology.Join, "b")
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Namespace(ctx, "a")
	if err != nil || n.Revision != rev || n.Value.Action != topology.Join || n.Value.Namespace != "b" || *n.Value.Effective != 100 {
		t.Errorf("record %+v, %v", n, err)
	}
	if again, err := s.RequestAction(ctx, "a", topology.Join, "b"); err != nil || again != rev {
		t.Errorf("the same request: revision %d, %v; want %d", again, err, rev)
	}
	if _, err := s.RequestAction(ctx, "a", topology.Isolate, ""); !errors.Is(err, ErrConflict) || !contains(err.Error(), `"join b" is still pending`) {
		t.Errorf("another request: %v, want ErrConflict that names the pending one", err)
	}
	// Withdrawn it is gone; at another revision it is someone else's.
	if err := s.WithdrawAction(ctx, "a", rev-1); err != nil {
		t.Fatal(err)
	}
	if n, _ := s.Namespace(ctx, "a"); n.Value.Action != topology.Join {
		t.Error("another request was withdrawn")
	}
	if err := s.WithdrawAction(ctx, "a", rev); err != nil {
		t.Fatal(err)
	}
	if n, _ := s.Namespace(ctx, "a"); n.Value.Action != topology.None || n.Value.Namespace != "" || *n.Value.Effective != 100 {
		t.Errorf("withdrawn: %+v", n.Value)
	}
	if err := s.WithdrawAction(ctx, "nobody", 5); err != nil {
		t.Errorf("withdraw of what is gone: %v", err)
	}
}

// Several operators at once: one request stands, the others are told.
// An annotation rules its namespace unless a request is forced, which shows in
// the record.
func TestForceAction(t *testing.T) {
	e, s := network(t)
	ctx := ctxOf(t)
	e.Put(key("a"), `{"NetName":"a","NetID":100,"Action":"","Namespace":"","Effective":100,"UID":"u","Declared":"blue"}`)
	e.Put(key("b"), nsRecord("b", 200))
	if _, err := s.RequestAction(ctx, "a", topology.Isolate, ""); !errors.Is(err, ErrConflict) || !contains(err.Error(), "blue") {
		t.Errorf("not forced: %v, want ErrConflict that names the network", err)
	}
	if _, err := s.RequestAction(ctx, "b", topology.Join, "a"); err != nil {
		t.Errorf("one without an annotation: %v", err)
	}
	rev, err := s.ForceAction(ctx, "a", topology.Isolate, "")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Namespace(ctx, "a"); err != nil || !n.Value.Forced || n.Value.Action != topology.Isolate || n.Value.UID != "u" || n.Value.Declared != "blue" {
		t.Errorf("forced: %+v, %v", n, err)
	}
	if again, err := s.ForceAction(ctx, "a", topology.Isolate, ""); err != nil || again != rev {
		t.Errorf("the same request: revision %d, %v; want %d", again, err, rev)
	}
	if _, err := s.ForceAction(ctx, "b", topology.Join, "a"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Namespace(ctx, "b"); err != nil || n.Value.Forced {
		t.Errorf("forced where there is nothing to overrule: %+v, %v", n, err)
	}
}

func TestRequestsAtOnce(t *testing.T) {
	e, s := network(t)
	ctx := ctxOf(t)
	e.Put(key("a"), nsRecord("a", 100))
	actions := []topology.Action{topology.Isolate, topology.MakeGlobal}
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = s.RequestAction(ctx, "a", actions[i%2], "") })
	}
	wg.Wait()
	n, err := s.Namespace(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range errs {
		if stands := actions[i%2] == n.Value.Action; stands && err != nil || !stands && !errors.Is(err, ErrConflict) {
			t.Errorf("request %s, while %s stands: %v", actions[i%2], n.Value.Action, err)
		}
	}
}

func TestEnsureNamespace(t *testing.T) {
	e, s := network(t)
	ctx := ctxOf(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.EnsureNamespace(ctx, "a"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n, err := s.Namespace(ctx, "a")
	if err != nil || n.Value != (topology.Namespace{NetName: "a"}) {
		t.Errorf("record %+v, %v; want one that asks for a netID", n, err)
	}
	e.Put(key("b"), nsRecord("b", 100))
	before, _ := s.Namespace(ctx, "b")
	if err := s.EnsureNamespace(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if after, _ := s.Namespace(ctx, "b"); after.Revision != before.Revision {
		t.Error("a record that is there was written")
	}
	if err := s.EnsureNamespace(ctx, "Not_A_Label"); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
	e.Put(key("broken"), `{}`)
	if err := s.EnsureNamespace(ctx, "broken"); !errors.Is(err, ErrInvalid) {
		t.Errorf("broken record: %v", err)
	}
}

func TestEnsureNode(t *testing.T) {
	e, s := network(t)
	ctx := ctxOf(t)
	ip := netip.MustParseAddr("198.18.0.1")
	node := func() Versioned[topology.Node] {
		t.Helper()
		n, err := s.Node(ctx, ip)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ensure := func(host string) {
		t.Helper()
		if err := s.EnsureNode(ctx, host, ip); err != nil {
			t.Fatal(err)
		}
	}
	ensure("n1")
	if got := node().Value; !reflect.DeepEqual(got, topology.Node{Host: "n1", HostIP: ip, Assign: true}) {
		t.Errorf("new: %+v", got)
	}
	e.Put(DefaultPrefix+"/k8ssdn/subnets/198.18.0.1", `{"Host":"n1","HostIP":"198.18.0.1","Subnet":"172.11.0.0/22"}`)
	before := node()
	ensure("n1")
	if after := node(); !reflect.DeepEqual(after, before) {
		t.Errorf("written although nothing was to do: %+v", after)
	}
	ensure("renamed")
	if got := node().Value; !reflect.DeepEqual(got, topology.Node{Host: "renamed", HostIP: ip, Subnet: netip.MustParsePrefix("172.11.0.0/22")}) {
		t.Errorf("renamed: %+v", got)
	}
	e.Put(DefaultPrefix+"/k8ssdn/subnets/198.18.0.1", `{"Host":"n1","HostIP":"198.18.0.1","Subnet":"","Assign":false,"Status":{"Message":"refused"}}`)
	ensure("n1")
	if got := node().Value; !reflect.DeepEqual(got, topology.Node{Host: "n1", HostIP: ip, Assign: true}) {
		t.Errorf("asked again: %+v", got)
	}
	for _, bad := range []string{"172.11.0.9", "10.96.0.1", "::1", "127.0.0.1"} {
		if err := s.EnsureNode(ctx, "x", netip.MustParseAddr(bad)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", bad, err)
		}
	}
	if err := s.DeleteNode(ctx, ip); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteNode(ctx, ip); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if err := s.DeleteNamespace(ctx, "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted nobody: %v", err)
	}
}

func TestWaitCertificate(t *testing.T) {
	e, s := network(t)
	ip := netip.MustParseAddr("192.0.2.1")
	key := DefaultPrefix + "/k8ssdn/certificates/" + ip.String()
	e.Put(key, `{"CA":"first"}`)
	type answer struct {
		c   topology.Certificate
		err error
	}
	done, asked := make(chan answer, 1), make(chan struct{}, 100)
	go func() {
		c, err := s.WaitCertificate(ctxOf(t), ip, func(c topology.Certificate) bool {
			asked <- struct{}{}
			return c.CA == "second"
		})
		done <- answer{c, err}
	}()
	<-asked
	// etcd goes away meanwhile, and the record is broken for a while.
	e.Stop()
	e.Restart()
	e.Put(key, `{`)
	e.Put(key, `{"CA":"second"}`)
	select {
	case a := <-done:
		if a.err != nil || a.c.CA != "second" {
			t.Errorf("%+v, %v", a.c, a.err)
		}
	case <-time.After(patience):
		t.Fatal("it waits still")
	}
	ctx, cancel := context.WithTimeout(ctxOf(t), 50*time.Millisecond)
	defer cancel()
	if _, err := s.WaitCertificate(ctx, ip, func(topology.Certificate) bool { return false }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("end of the wait: %v", err)
	}
}

func TestStatus(t *testing.T) {
	e, s := network(t)
	ctx := ctxOf(t)
	ch := s.WatchStatuses(ctx)
	ip := netip.MustParseAddr("198.18.0.1")
	p := s.StatusPublisher("k8ssdn", 2*time.Second)
	until(t, ch, "no status", func(m map[netip.Addr]topology.NodeStatus) bool { return len(m) == 0 })
	st := topology.NodeStatus{Host: "n1", HostIP: ip, Revision: 1, Version: "v", Datapath: "netdev", MTU: 1450}
	for n := range 200 {
		st.Revision = int64(n)
		p.Set(st)
	}
	until(t, ch, "the newest status", func(m map[netip.Addr]topology.NodeStatus) bool { return cmp.Equal(m[ip], st, byValue) })
	got, err := s.Statuses(ctx)
	if err != nil || !cmp.Equal(got[ip], st, byValue) {
		t.Errorf("Statuses %+v, %v", got, err)
	}
	// The lease is lost, as after a long partition: it comes back by itself.
	c := e.Client()
	leases, err := c.Leases(ctx)
	if err != nil || len(leases.Leases) != 1 {
		t.Fatalf("leases %+v, %v; want one", leases, err)
	}
	if _, err := c.Revoke(ctx, leases.Leases[0].ID); err != nil {
		t.Fatal(err)
	}
	// Who watches may see it gone, or only the next.
	eventually(t, "another lease", func() bool {
		now, err := c.Leases(ctx)
		return err == nil && len(now.Leases) == 1 && now.Leases[0].ID != leases.Leases[0].ID
	})
	eventually(t, "status back", func() bool {
		got, err := s.Statuses(ctx)
		return err == nil && cmp.Equal(got[ip], st, byValue)
	})
	until(t, ch, "status still known", func(m map[netip.Addr]topology.NodeStatus) bool { return cmp.Equal(m[ip], st, byValue) })
	// etcd restarts.
	e.Stop()
	st.Revision = 500
	p.Set(st)
	e.Restart()
	until(t, ch, "status after a restart", func(m map[netip.Addr]topology.NodeStatus) bool { return cmp.Equal(m[ip], st, byValue) })
	p.Close()
	until(t, ch, "status gone with its agent", func(m map[netip.Addr]topology.NodeStatus) bool { return len(m) == 0 })
}

// An agent that dies without a word: its status goes with its lease.
func TestStatusExpires(t *testing.T) {
	e, s := network(t)
	ch := s.WatchStatuses(ctxOf(t))
	dying := open(t, e)
	ip := netip.MustParseAddr("198.18.0.1")
	dying.StatusPublisher("k8ssdn", 2*time.Second).Set(topology.NodeStatus{Host: "n1", HostIP: ip})
	until(t, ch, "status", func(m map[netip.Addr]topology.NodeStatus) bool { return len(m) == 1 })
	dying.Close()
	until(t, ch, "status gone", func(m map[netip.Addr]topology.NodeStatus) bool { return len(m) == 0 })
}
