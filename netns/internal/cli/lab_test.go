package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// bcryptMinCost is the least that bcrypt takes (golang.org/x/crypto/bcrypt).
const bcryptMinCost = 4

// lab is a real etcd with records in it, and stand-ins for the controller and
// the agents that do what those do to the records.
type lab struct {
	t     *testing.T
	etcd  *etcdtest.Server
	store *store.Store
	name  string
}

// newLab makes records: namespaces with their netIDs, nodes n1, n2, ...
func newLab(t *testing.T, cfg topology.Config, nodes int, spaces ...topology.Namespace) *lab {
	t.Helper()
	// Cheap hashes of passwords: etcd's default takes seconds under -race.
	cheap := func(cfg *embed.Config) { cfg.BcryptCost = bcryptMinCost }
	l := &lab{t: t, etcd: etcdtest.Start(t, cheap), name: cfg.Name}
	l.store = l.open()
	if _, err := l.store.PutConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	lead, err := l.store.Campaign(t.Context(), l.name, "setup", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range spaces {
		if _, err := lead.PutNamespace(t.Context(), n.NetName, n, 0); err != nil {
			t.Fatal(err)
		}
	}
	for i := range nodes {
		n := topology.Node{Host: fmt.Sprintf("n%d", i+1), HostIP: address(i + 1), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 11, byte(4 * i), 0}), 22)}
		if _, err := lead.PutNode(t.Context(), n.HostIP.String(), n, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := lead.Resign(); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) open() *store.Store {
	l.t.Helper()
	s, err := store.Open(store.Config{Endpoints: l.etcd.Endpoints})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { s.Close() })
	return s
}

func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

func space(name string, id netid.ID) topology.Namespace {
	n := int64(id)
	return topology.Namespace{NetName: name, NetID: &n, Effective: &id}
}

// background runs f until the test ends and waits for it then.
func (l *lab) background(f func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	l.t.Cleanup(func() { cancel(); <-done })
}

// controller carries out requests as the real one does, in one write each.
func (l *lab) controller() {
	s := l.open()
	lead, err := s.Campaign(l.t.Context(), l.name, "stand-in", 0)
	if err != nil {
		l.t.Fatal(err)
	}
	next := int64(5000)
	l.background(func(ctx context.Context) {
		for rec := range s.WatchRecords(ctx) {
			for name, n := range rec.Namespaces {
				if n.Action == topology.None {
					continue
				}
				r := plan.Of(n)
				n.Action, n.Namespace, n.Status = topology.None, "", nil
				id, ok := rec.NetID(r.Target)
				switch {
				case r.Action == topology.Isolate:
					next++
					id = netid.ID(next)
				case r.Action == topology.MakeGlobal:
					id = netid.Global
				case !ok || r.Target == "forbidden":
					n.Status = &topology.Status{Message: "namespace " + r.Target + " cannot be joined", Time: time.Now()}
					id, _ = rec.NetID(name)
				}
				written := int64(id)
				n.NetID, n.Effective = &written, &id
				if _, err := lead.PutNamespace(ctx, name, n, rec.Revs.Namespaces[name].Mod); err != nil && !errors.Is(err, store.ErrConflict) && ctx.Err() == nil {
					l.t.Errorf("stand-in controller: %v", err)
				}
			}
		}
	})
}

// agent reports for node i what it has applied; at once, or, where gate is not
// nil, only up to what it had when it started until gate is closed.
func (l *lab) agent(i int, gate <-chan struct{}) {
	s := l.open()
	started := make(chan struct{})
	l.background(func(ctx context.Context) {
		p := s.StatusPublisher(l.name, 0)
		defer p.Close()
		status := topology.NodeStatus{Host: fmt.Sprintf("n%d", i), HostIP: address(i), Version: "v1.0.0", Datapath: "netdev", MTU: 1450, Pods: i}
		first := true
		for snap := range s.Watch(ctx) {
			if !first && gate != nil {
				select {
				case <-gate:
				case <-ctx.Done():
					return
				}
			}
			status.Revision = snap.Revision
			p.Set(status)
			if first {
				first = false
				close(started)
			}
		}
	})
	<-started
	l.eventually(func() bool {
		all, err := l.store.Statuses(l.t.Context())
		return err == nil && all[address(i)].Host != ""
	})
}

// eventually waits for a condition.
func (l *lab) eventually(cond func() bool) {
	l.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			l.t.Fatal("it does not come to pass")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// record is what stands in etcd about a namespace.
func (l *lab) record(name string) topology.Namespace {
	l.t.Helper()
	n, err := l.store.Namespace(l.t.Context(), name)
	if err != nil {
		l.t.Fatal(err)
	}
	return n.Value
}

// netns runs the CLI against the lab.
func (l *lab) netns(args ...string) outcome {
	l.t.Helper()
	return netns(l.t.Context(), append([]string{"--etcd-endpoints", strings.Join(l.etcd.Endpoints, ",")}, args...)...)
}

// outcome is one run of the CLI.
type outcome struct {
	code     int
	out, err string
}

// buffer may be written and read at once.
type buffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	onWrite func(all string)
}

func (b *buffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.b.Write(data)
	if b.onWrite != nil {
		b.onWrite(b.b.String())
	}
	return n, err
}

func netns(ctx context.Context, args ...string) outcome {
	return netnsIO(ctx, &buffer{}, false, args...)
}

func netnsIO(ctx context.Context, stderr *buffer, terminal bool, args ...string) outcome {
	var out bytes.Buffer
	code := Run(ctx, args, IO{Out: &out, Err: stderr, Terminal: terminal})
	return outcome{code: code, out: out.String(), err: stderr.b.String()}
}

// expect checks the exit code and that both outputs say all of what is wanted.
func (o outcome) expect(t *testing.T, code int, out, err []string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d", o.code, code)
	}
	for _, w := range out {
		if !strings.Contains(o.out, w) {
			t.Errorf("output lacks %q", w)
		}
	}
	for _, w := range err {
		if !strings.Contains(o.err, w) {
			t.Errorf("stderr lacks %q", w)
		}
	}
	if t.Failed() {
		t.Logf("exit code %d\n%s%s", o.code, o.out, o.err)
	}
}
