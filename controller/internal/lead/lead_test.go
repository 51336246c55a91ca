package lead

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// patience bounds every wait; a condition that holds ends it at once.
const patience = 30 * time.Second

func ctxOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, e *etcdtest.Server) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{Endpoints: e.Endpoints, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// candidate is a running controller.
type candidate struct {
	*Controller
	log    *syncBuffer
	cancel context.CancelFunc
	done   chan struct{}
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	if testing.Verbose() {
		os.Stderr.Write(p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t *testing.T, e *etcdtest.Server, id string, change func(*Config)) *candidate {
	t.Helper()
	log := &syncBuffer{}
	cfg := Config{
		Store: open(t, e), ID: id, Network: topology.DefaultConfig(), GlobalNamespaces: []string{"kube-system"},
		LeaderTTL: 10 * time.Second, Random: rand.Reader, Metrics: NewMetrics(prometheus.NewRegistry()),
		Logger: slog.New(slog.NewTextHandler(log, nil)).With("id", id),
	}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &candidate{Controller: New(cfg), log: log, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.Run(ctx)
	}()
	t.Cleanup(c.stop)
	return c
}

// stop is SIGTERM.
func (c *candidate) stop() {
	c.cancel()
	<-c.done
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("%s: not within %s", what, patience)
}

// value of a gauge or counter.
func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetGauge().GetValue() + d.GetCounter().GetValue()
}

// settled waits until a namespace has its netID and asks for nothing.
func settled(t *testing.T, s *store.Store, ns string) topology.Namespace {
	t.Helper()
	return waitNamespace(t, s, ns, "settled", func(n topology.Namespace, ok bool) bool {
		return ok && n.Action == topology.None && n.Effective != nil && n.NetID != nil && *n.NetID == int64(*n.Effective)
	})
}

// waitNamespace waits until the record of a namespace is so; ok is false while there is none.
func waitNamespace(t *testing.T, s *store.Store, ns, what string, cond func(n topology.Namespace, ok bool) bool) topology.Namespace {
	t.Helper()
	var n store.Versioned[topology.Namespace]
	var err error
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		n, err = s.Namespace(ctxOf(t), ns)
		if (err == nil || errors.Is(err, store.ErrNotFound)) && cond(n.Value, err == nil) {
			return n.Value
		}
	}
	t.Fatalf("record of namespace %s: not within %s: %s; it is %+v, %v", ns, patience, what, n.Value, err)
	return topology.Namespace{}
}

func id(t *testing.T, s *store.Store, ns string) netid.ID {
	t.Helper()
	return *settled(t, s, ns).Effective
}

func ensure(t *testing.T, s *store.Store, names ...string) {
	t.Helper()
	for _, ns := range names {
		if err := s.EnsureNamespace(ctxOf(t), ns); err != nil {
			t.Fatal(err)
		}
	}
}

func request(t *testing.T, s *store.Store, ns string, action topology.Action, target string) {
	t.Helper()
	if _, err := s.RequestAction(ctxOf(t), ns, action, target); err != nil {
		t.Fatal(err)
	}
}

func ready(t *testing.T, c *candidate) *store.Store {
	t.Helper()
	eventually(t, "the controller leads", func() bool { return c.State().Leader && c.Ready() == nil })
	return c.cfg.Store
}

func TestLifeOfANetwork(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := ready(t, c)
	if cfg, err := s.Config(ctxOf(t)); err != nil || !cfg.Value.Equal(topology.DefaultConfig()) {
		t.Fatalf("configuration %+v, %v", cfg, err)
	}
	ensure(t, s, "a", "b", "kube-system")
	a, b := id(t, s, "a"), id(t, s, "b")
	if a == b || a < netid.Min || id(t, s, "kube-system") != netid.Global {
		t.Errorf("a %d, b %d, kube-system %d", a, b, id(t, s, "kube-system"))
	}
	request(t, s, "a", topology.Join, "b")
	if got := id(t, s, "a"); got != b {
		t.Errorf("joined a has %d, want %d", got, b)
	}
	// As the ancestor's users did it.
	e.Put(store.DefaultPrefix+"/k8ssdn/netnamespaces/a", fmt.Sprintf(`{"NetName":"a","NetID":%d,"Action":"isolate","Namespace":""}`, b))
	if got := id(t, s, "a"); got == b || got == a {
		t.Errorf("isolated a has %d, want a fresh one", got)
	}
	ip := netip.MustParseAddr("198.18.0.1")
	if err := s.EnsureNode(ctxOf(t), "n1", ip); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a subnet", func() bool {
		n, err := s.Node(ctxOf(t), ip)
		return err == nil && n.Value.Subnet == netip.MustParsePrefix("172.11.0.0/22") && !n.Value.Assign
	})
	eventually(t, "metrics", func() bool {
		m := c.cfg.Metrics
		return value(t, m.leader) == 1 && value(t, m.netIDs.WithLabelValues("in_use")) == 2 &&
			value(t, m.subnets.WithLabelValues("free")) == 63 && value(t, m.requests.WithLabelValues("join", "done")) == 1 &&
			value(t, m.requests.WithLabelValues("isolate", "done")) == 1 && value(t, m.records.WithLabelValues("namespace")) == 3
	})
	eventually(t, "the freed netID of a", func() bool {
		r, err := s.Released(ctxOf(t), "k8ssdn")
		return err == nil && len(r.Value.NetIDs) == 1 && r.Value.NetIDs[0] == a
	})
	c.stop()
	if _, err := s.Leader(ctxOf(t), "k8ssdn"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the leader that ended is still the leader: %v", err)
	}
}

// What a newer release has written in a record is there after whatever a leader does with it.
func TestLeaderKeepsRest(t *testing.T) {
	e := etcdtest.Start(t)
	s := ready(t, start(t, e, "one", nil))
	const rest, want = `,"Color":"red"}`, topology.Rest(`"Color":"red"`)
	put := func(ns, record string) {
		e.Put(store.DefaultPrefix+"/k8ssdn/netnamespaces/"+ns, strings.TrimSuffix(record, "}")+rest)
	}
	put("first", `{"NetName":"first"}`)
	put("other", `{"NetName":"other"}`)
	first, other := settled(t, s, "first"), settled(t, s, "other")
	ids := fmt.Sprintf(`"NetID":%d,"Effective":%d`, *first.NetID, *first.Effective)
	put("first", `{"NetName":"first","Action":"join","Namespace":"other",`+ids+`}`)
	joined := waitNamespace(t, s, "first", "joined", func(n topology.Namespace, ok bool) bool {
		return ok && n.Action == topology.None && *n.Effective == *other.Effective && !n.Change.UnderWay()
	})
	put("other", fmt.Sprintf(`{"NetName":"other","Action":"join","Namespace":"nobody","NetID":%d,"Effective":%d}`, *other.NetID, *other.Effective))
	refused := waitNamespace(t, s, "other", "refused", func(n topology.Namespace, ok bool) bool { return ok && n.Status.Is(topology.Refused) })
	for what, n := range map[string]topology.Namespace{"a first netID": first, "a join": joined, "a refusal": refused} {
		if n.Rest != want {
			t.Errorf("%s: %+v", what, n)
		}
	}
	for ip, good := range map[string]bool{"198.18.0.1": true, "172.11.0.9": false} {
		e.Put(store.DefaultPrefix+"/k8ssdn/subnets/"+ip, fmt.Sprintf(`{"Host":"n","HostIP":"%s","Subnet":"","Assign":true`, ip)+rest)
		eventually(t, "an answer to "+ip, func() bool {
			n, err := s.Node(ctxOf(t), netip.MustParseAddr(ip))
			if err != nil || n.Value.Assign || n.Value.Ready() != good {
				return false
			}
			if n.Value.Rest != want {
				t.Errorf("a node: %+v", n.Value)
			}
			return true
		})
	}
}

// Failure 17: refused under one leader, it does not fire under the next.
func TestRefusedNeverFires(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := open(t, e)
	ready(t, c)
	ensure(t, s, "a")
	a := id(t, s, "a")
	e.Put(store.DefaultPrefix+"/k8ssdn/netnamespaces/a", fmt.Sprintf(`{"NetName":"a","NetID":%d,"Action":"join","Namespace":"later"}`, a))
	eventually(t, "the refusal", func() bool {
		n, err := s.Namespace(ctxOf(t), "a")
		return err == nil && n.Value.Action == topology.None && n.Value.Status != nil && strings.Contains(n.Value.Status.Message, "there is no namespace later")
	})
	c.stop()
	ready(t, start(t, e, "two", nil))
	ensure(t, s, "later")
	later := id(t, s, "later")
	if got := id(t, s, "a"); got != a || got == later {
		t.Errorf("a has %d, had %d; later has %d", got, a, later)
	}
}

func TestFailoverOnSigterm(t *testing.T) {
	e := etcdtest.Start(t)
	one := start(t, e, "one", func(c *Config) { c.LeaderTTL = 60 * time.Second })
	s := open(t, e)
	ready(t, one)
	two := start(t, e, "two", nil)
	eventually(t, "the second is ready", func() bool { return two.Ready() == nil })
	if two.State().Leader {
		t.Fatal("two leaders")
	}
	began := time.Now()
	one.stop()
	ready(t, two)
	// Far below the lease, which would be the other way.
	if d := time.Since(began); d > 25*time.Second {
		t.Errorf("failover took %s", d)
	}
	ensure(t, s, "a")
	id(t, s, "a")
}

// A leader that dies without a word: the next one leads when its lease is over,
// and finishes what it began.
// TestDuties: only the leader has them, and a term that ends waits for their end.
func TestDuties(t *testing.T) {
	e := etcdtest.Start(t)
	on := make(chan string, 10)
	with := func(id string) func(*Config) {
		return func(c *Config) {
			c.Duties = []func(context.Context){
				func(context.Context) {}, // done before the term is
				func(ctx context.Context) {
					on <- id
					<-ctx.Done()
					on <- id + " off"
				},
			}
		}
	}
	first := start(t, e, "first", with("first"))
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-on:
			if got != want {
				t.Fatalf("%s, want %s", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("not %s within %s", want, patience)
		}
	}
	expect("first")
	start(t, e, "second", with("second"))
	first.stop()
	expect("first off")
	expect("second")
}

func TestFailoverOnDeath(t *testing.T) {
	e := etcdtest.Start(t)
	one := start(t, e, "one", func(c *Config) { c.LeaderTTL = 2 * time.Second })
	s := open(t, e)
	ready(t, one)
	ensure(t, s, "a", "b")
	b := id(t, s, "b")
	id(t, s, "a")
	one.cfg.Store.Close() // nothing reaches etcd any more
	request(t, s, "a", topology.Join, "b")
	two := start(t, e, "two", nil)
	ready(t, two)
	if got := id(t, s, "a"); got != b {
		t.Errorf("a has %d, want %d", got, b)
	}
}

// Failure 18: a leader whose lease is taken away under it writes nothing more,
// notices, and stands for election again.
func TestDeposedCampaignsAgain(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := open(t, e)
	ready(t, c)
	client := e.Client()
	for round := range 3 {
		leases, err := client.Leases(ctxOf(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases.Leases {
			// One may be gone by itself.
			_, _ = client.Revoke(ctxOf(t), l.ID)
		}
		ns := fmt.Sprintf("ns%d", round)
		ensure(t, s, ns)
		id(t, s, ns)
	}
	eventually(t, "it leads again", func() bool { return value(t, c.cfg.Metrics.terms) >= 2 && c.State().Leader })
}

// etcd goes away and comes back: nothing is forgotten, and work goes on.
func TestEtcdRestarts(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := open(t, e)
	ready(t, c)
	ensure(t, s, "a", "b")
	a := id(t, s, "a")
	id(t, s, "b")
	for range 2 {
		e.Stop()
		eventually(t, "not ready without etcd", func() bool { return errors.Is(c.Ready(), store.ErrUnavailable) })
		e.Restart()
		request(t, s, "b", topology.Join, "a")
		if got := id(t, s, "b"); got != a {
			t.Errorf("b has %d, want %d", got, a)
		}
		request(t, s, "b", topology.Isolate, "")
		if got := id(t, s, "b"); got == a {
			t.Error("b was not isolated")
		}
		eventually(t, "ready", func() bool { return c.Ready() == nil })
	}
}

// etcd restored from an older backup: what it says is what holds.
func TestEtcdRestored(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", nil)
	s := open(t, e)
	ready(t, c)
	ensure(t, s, "a", "b")
	a, b := id(t, s, "a"), id(t, s, "b")
	e.Stop()
	restore := e.Save()
	e.Restart()
	request(t, s, "a", topology.Join, "b")
	id(t, s, "a")
	for range 10 {
		ensure(t, s, "later")
		id(t, s, "later")
		if err := s.DeleteNamespace(ctxOf(t), "later"); err != nil {
			t.Fatal(err)
		}
	}
	e.Stop()
	restore()
	e.Restart()
	ensure(t, s, "c")
	cID := id(t, s, "c")
	if id(t, s, "a") != a || id(t, s, "b") != b || cID == a || cID == b {
		t.Errorf("a %d (%d), b %d (%d), c %d", id(t, s, "a"), a, id(t, s, "b"), b, cID)
	}
}

// Many operators and agents at once, two controllers that take turns: in the
// end every namespace has a netID, every request was answered, and those that
// share are those that joined.
func TestManyAtOnce(t *testing.T) {
	e := etcdtest.Start(t)
	s := open(t, e)
	cs := []*candidate{start(t, e, "one", nil), start(t, e, "two", nil)}
	eventually(t, "a leader", func() bool { return cs[0].State().Leader || cs[1].State().Leader })
	const n = 40
	name := func(i int) string { return fmt.Sprintf("ns%d", i) }
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { ensure(t, s, name(i)) })
	}
	wg.Wait()
	for i := range n {
		id(t, s, name(i))
	}
	// Odd ones join their even neighbours while the leader is deposed again and again, and each time a little later:
	// a busy machine needs longer to elect one and to get something done.
	stop := make(chan struct{})
	var chaos sync.WaitGroup
	chaos.Go(func() {
		client := e.Client()
		for pause := 300 * time.Millisecond; ; pause += pause / 10 {
			select {
			case <-stop:
				return
			case <-time.After(pause):
			}
			if leases, err := client.Leases(context.Background()); err == nil {
				for _, l := range leases.Leases {
					_, _ = client.Revoke(context.Background(), l.ID)
				}
			}
		}
	})
	for i := 1; i < n; i += 2 {
		wg.Go(func() { request(t, s, name(i), topology.Join, name(i-1)) })
	}
	wg.Wait()
	for i := range n {
		settled(t, s, name(i))
	}
	close(stop)
	chaos.Wait()
	groups := map[netid.ID][]int{}
	for i := range n {
		groups[id(t, s, name(i))] = append(groups[id(t, s, name(i))], i)
	}
	if len(groups) != n/2 {
		t.Errorf("%d netIDs, want %d", len(groups), n/2)
	}
	for nid, members := range groups {
		if len(members) != 2 || members[0]/2 != members[1]/2 {
			t.Errorf("netID %d is shared by %v", nid, members)
		}
	}
}

// Failure 32: 1,000 nodes come and go through a network of four subnets.
func TestNodesComeAndGo(t *testing.T) {
	e := etcdtest.Start(t)
	c := start(t, e, "one", func(c *Config) {
		c.Network.Network, c.Network.HostSubnetLength = netip.MustParsePrefix("172.11.0.0/24"), 6
	})
	s := ready(t, c)
	snapshots := s.WatchRecords(ctxOf(t))
	client := e.Client()
	nodeKey := func(ip netip.Addr) string { return store.DefaultPrefix + "/k8ssdn/subnets/" + ip.String() }
	for round := range 250 {
		var ips []netip.Addr
		for n := range 4 {
			ip := netip.AddrFrom4([4]byte{198, 18, byte(round), byte(n)})
			if _, err := client.Put(ctxOf(t), nodeKey(ip), fmt.Sprintf(`{"Host":"n","HostIP":"%s","Subnet":"","Assign":true}`, ip)); err != nil {
				t.Fatal(err)
			}
			ips = append(ips, ip)
		}
		for r := range snapshots {
			seen := map[netip.Prefix]bool{}
			for _, ip := range ips {
				seen[r.Nodes[ip].Subnet] = r.Nodes[ip].Ready()
			}
			if delete(seen, netip.Prefix{}); len(seen) == 4 && len(r.Nodes) == 4 {
				break
			}
		}
		for _, ip := range ips {
			if _, err := client.Delete(ctxOf(t), nodeKey(ip)); err != nil {
				t.Fatal(err)
			}
		}
	}
	snapshot, _, err := s.Snapshot(ctxOf(t))
	if err != nil || len(snapshot.Nodes) != 0 {
		t.Errorf("nodes %+v, %v", snapshot.Nodes, err)
	}
}

func TestConfigurationRecordWins(t *testing.T) {
	e := etcdtest.Start(t)
	e.Put(store.DefaultPrefix+"/config", `{"Name":"mine","Network":"10.128.0.0/14","HostSubnetLength":9,"ServiceNetwork":"172.30.0.0/16","PluginName":"k8s-ovs-subnet"}`)
	c := start(t, e, "one", func(c *Config) {
		c.Explicit = map[string]bool{"Network": true, "PluginName": true}
		c.Network.PluginName = topology.SingleTenant
	})
	s := ready(t, c)
	if got := c.State().Network; got.Name != "mine" || got.HostSubnetLength != 9 {
		t.Errorf("network %+v", got)
	}
	log := c.log.String()
	if !strings.Contains(log, "which wins") || !strings.Contains(log, "flag=172.11.0.0/16 record=10.128.0.0/14") {
		t.Errorf("no warning that names both in\n%s", log)
	}
	if strings.Contains(log, "field=PluginName") || strings.Contains(log, "field=HostSubnetLength") {
		t.Errorf("a warning of what is the same, or was not given, in\n%s", log)
	}
	// In single-tenant mode netIDs are given as ever: nodes ignore them.
	ensure(t, s, "a")
	if got := id(t, s, "a"); got < netid.Min {
		t.Errorf("a has %d", got)
	}
}

// The record is the first k8s-ovs's, and names the port of the tunnels where that is asked for.
func TestConfigurationIsWritten(t *testing.T) {
	const asEver = `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}`
	for port, want := range map[tunnel.Port]string{0: asEver, 8472: strings.TrimSuffix(asEver, "}") + `,"VXLANPort":8472}`} {
		e := etcdtest.Start(t)
		ready(t, start(t, e, "one", func(c *Config) { c.Network.VXLANPort = port }))
		got, err := e.Client().Get(ctxOf(t), store.DefaultPrefix+"/config")
		if err != nil || len(got.Kvs) != 1 {
			t.Fatalf("%v, %v", got, err)
		}
		if diff := cmp.Diff(want, string(got.Kvs[0].Value)); diff != "" {
			t.Errorf("port %d: %s", port, diff)
		}
	}
}

func TestConfigurationIsMended(t *testing.T) {
	e := etcdtest.Start(t)
	e.Put(store.DefaultPrefix+"/config", `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":99}`)
	c := start(t, e, "one", nil)
	eventually(t, "not ready", func() bool {
		return errors.Is(c.Ready(), store.ErrInvalid) && strings.Contains(c.Ready().Error(), "ServiceNetwork")
	})
	e.Put(store.DefaultPrefix+"/config", `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":99,"ServiceNetwork":"10.96.0.0/12"}`)
	eventually(t, "still not ready", func() bool { return c.Ready() != nil && strings.Contains(c.Ready().Error(), "HostSubnetLength") })
	e.Put(store.DefaultPrefix+"/config", `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}`)
	s := ready(t, c)
	ensure(t, s, "a")
	id(t, s, "a")
	// Another Name: another tree, another election.
	e.Put(store.DefaultPrefix+"/config", `{"Name":"other","Network":"172.12.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}`)
	eventually(t, "leading the other network", func() bool {
		leader, err := s.Leader(ctxOf(t), "other")
		return err == nil && leader == "one" && c.State().Leader && c.State().Network.Name == "other"
	})
	ensure(t, s, "b")
	id(t, s, "b")
}

// A tree of the first k8s-ovs is taken over once.
func TestImport(t *testing.T) {
	e := etcdtest.Start(t)
	e.Put(store.DefaultPrefix+"/config", `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}`)
	for _, ns := range []string{"helloworld1", "helloworld2"} {
		e.Put(store.DefaultPrefix+"/k8ssdn/netnamespaces/"+ns, fmt.Sprintf(`{"NetName":"%s","NetID":300924,"Action":"","Namespace":""}`, ns))
	}
	e.Put(store.DefaultPrefix+"/k8ssdn/subnets/198.18.0.1", `{"Host":"sdn-test1","HostIP":"198.18.0.1","Subnet":"172.11.8.0/22","Assign":false}`)
	c := start(t, e, "one", nil)
	s := ready(t, c)
	if a, b := id(t, s, "helloworld1"), id(t, s, "helloworld2"); a != 300924 || b != 300924 {
		t.Errorf("imported as %d and %d", a, b)
	}
	eventually(t, "the mark of completion", func() bool { _, err := s.Released(ctxOf(t), "k8ssdn"); return err == nil })
	e.Put(store.DefaultPrefix+"/k8ssdn/netnamespaces/third", `{"NetName":"third","NetID":300924}`)
	if got := id(t, s, "third"); got == 300924 {
		t.Error("a collision after the import was accepted")
	}
	n, err := s.Node(ctxOf(t), netip.MustParseAddr("198.18.0.1"))
	if err != nil || n.Value.Subnet != netip.MustParsePrefix("172.11.8.0/22") || n.Value.Status != nil {
		t.Errorf("node %+v, %v", n, err)
	}
}
