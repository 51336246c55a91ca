package lead

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/restore"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// holder is as much of an agent as reports what it holds.
type holder struct {
	status *store.StatusPublisher
	cancel context.CancelFunc
	ended  chan struct{}
	// held is what it had when it ended.
	held topology.Snapshot
}

// hold starts one; held is what it knows from before.
func hold(t *testing.T, s *store.Store, host string, ip netip.Addr, held topology.Snapshot) *holder {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h := &holder{status: s.StatusPublisher("k8ssdn", 0), cancel: cancel, ended: make(chan struct{}), held: held}
	go func() {
		defer close(h.ended)
		for now := range s.Watch(ctx) {
			st := topology.NodeStatus{Host: host, HostIP: ip, Revision: now.Revision}
			if now.History.Holds(h.held.History.Now) {
				h.held = now
			} else {
				lost := topology.HeldBeside(h.held, now, func(string) bool { return false })
				st.Held, st.Revision = &lost, 0
			}
			st.Subnet = h.held.Nodes[ip].Subnet
			h.status.Set(st)
		}
	}()
	t.Cleanup(h.end)
	return h
}

func (h *holder) end() {
	h.cancel()
	<-h.ended
	h.status.Close()
}

func subnetOf(t *testing.T, s *store.Store, ip netip.Addr) netip.Prefix {
	t.Helper()
	var n store.Versioned[topology.Node]
	eventually(t, "a subnet of "+ip.String(), func() (done bool) {
		var err error
		n, err = s.Node(ctxOf(t), ip)
		return err == nil && n.Value.Ready() && !n.Value.Assign
	})
	return n.Value.Subnet
}

// TestRestoredUnderNodes: etcd is restored from a backup that lacks a node, a namespace and a
// change of tenants. Nodes hold them, so they are put back; a node that is new gets the subnet
// of none. It is the same whether the leader lives on, or another leads.
func TestRestoredUnderNodes(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"the same leader": false, "another leader": true} {
		t.Run(name, func(t *testing.T) {
			e := etcdtest.Start(t)
			c := start(t, e, "one", nil)
			s := open(t, e)
			ready(t, c)
			addr := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, i}) }
			node := func(i byte) netip.Prefix {
				if err := s.EnsureNode(ctxOf(t), string(rune('m'+i)), addr(i)); err != nil {
					t.Fatal(err)
				}
				return subnetOf(t, s, addr(i))
			}
			ensure(t, s, "red", "blue", "idle")
			first := node(1)
			h1 := hold(t, open(t, e), "n", addr(1), topology.Snapshot{})
			red, blue, idle := id(t, s, "red"), id(t, s, "blue"), id(t, s, "idle")
			eventually(t, "the first node reports", func() bool {
				all, err := s.Statuses(ctxOf(t))
				return err == nil && all[addr(1)].Subnet == first
			})
			e.Stop()
			restore := e.Save()
			e.Restart()
			second := node(2)
			h2 := hold(t, open(t, e), "o", addr(2), topology.Snapshot{})
			ensure(t, s, "new")
			fresh := id(t, s, "new")
			request(t, s, "red", topology.Join, "blue")
			waitNamespace(t, s, "red", "joined", func(n topology.Namespace, ok bool) bool {
				return ok && n.Action == topology.None && n.Effective != nil && *n.Effective == blue && !n.Change.UnderWay()
			})
			last, err := s.Namespace(ctxOf(t), "red")
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "both nodes know all", func() bool {
				all, err := s.Statuses(ctxOf(t))
				return err == nil && all[addr(1)].Revision >= last.Revision && all[addr(2)].Revision >= last.Revision && all[addr(2)].Subnet == second
			})
			e.Stop()
			if again {
				c.stop()
			}
			restore()
			e.Restart()
			if again {
				c = start(t, e, "two", nil)
			}
			// At once somebody else wants a subnet and a netID.
			third := node(3)
			ensure(t, s, "later")
			later := id(t, s, "later")
			eventually(t, "what was lost is put back", func() bool { return strings.Contains(c.log.String(), "the records are whole again") })
			if got := subnetOf(t, s, addr(2)); got != second || third == first || third == second || subnetOf(t, s, addr(1)) != first {
				t.Errorf("subnets %v and %v, were %v and %v; the new node has %v", subnetOf(t, s, addr(1)), got, first, second, third)
			}
			if id(t, s, "red") != blue || id(t, s, "blue") != blue || id(t, s, "idle") != idle || id(t, s, "new") != fresh || later == fresh || later == red {
				t.Errorf("red %d, blue %d (%d), idle %d (%d), new %d (%d), later %d", id(t, s, "red"), id(t, s, "blue"), blue, id(t, s, "idle"), idle, id(t, s, "new"), fresh, later)
			}
			// Nodes take what etcd has from now on, and leaders go on.
			request(t, s, "red", topology.Isolate, "")
			waitNamespace(t, s, "red", "isolated", func(n topology.Namespace, ok bool) bool {
				return ok && n.Action == topology.None && n.Effective != nil && *n.Effective != blue && !n.Change.UnderWay()
			})
			for _, h := range []*holder{h1, h2} {
				h.end()
				if _, there := h.held.Namespaces["later"]; !there || len(h.held.Nodes) != 3 {
					t.Errorf("a node still holds %+v", h.held)
				}
			}
		})
	}
}

// say publishes what a node says that etcd has lost; nil for nothing.
func say(t *testing.T, s *store.Store, i int, held *topology.Held) *store.StatusPublisher {
	t.Helper()
	p := s.StatusPublisher("k8ssdn", 0)
	t.Cleanup(p.Close)
	p.Set(topology.NodeStatus{Host: "n", HostIP: netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), Held: held})
	return p
}

// says publishes what nodes say that etcd has lost; nil for those that say nothing of it.
func says(t *testing.T, s *store.Store, held ...*topology.Held) {
	t.Helper()
	for i, h := range held {
		say(t, s, i+1, h)
	}
	eventually(t, "all report", func() bool { all, err := s.Statuses(ctxOf(t)); return err == nil && len(all) == len(held) })
}

// history is the one in etcd.
func history(t *testing.T, s *store.Store) topology.History {
	t.Helper()
	now, _, err := s.Snapshot(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	return now.History
}

// TestFewHold: a single node of three that says that etcd has lost records is not believed, as it
// may lie: nobody is joined, no name and no node made, no term ended or called put back. Others do not wait for it.
func TestFewHold(t *testing.T) {
	t.Parallel()
	for name, term := range map[string]func(topology.History) string{
		"a term that nobody knows": func(topology.History) string { return "x" },
		"the present term":         func(h topology.History) string { return h.Now.Term },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := etcdtest.Start(t)
			c := start(t, e, "one", nil)
			s := open(t, e)
			ready(t, c)
			ensure(t, s, "red", "blue")
			red, blue := id(t, s, "red"), id(t, s, "blue")
			before := history(t, s)
			unused := blue ^ 1<<16
			if unused == red {
				unused ^= 1 << 17
			}
			node := topology.Node{Host: "evil", HostIP: netip.MustParseAddr("198.18.0.9"), Subnet: netip.MustParsePrefix("172.11.0.0/22")}
			lie := topology.Held{At: topology.Point{Term: term(before), Revision: 1 << 40}, Nodes: []topology.Node{node}, Namespaces: []topology.Namespace{
				{NetName: "red", Effective: &blue},
				{NetName: "future", Effective: &unused, Action: topology.MakeGlobal},
				{NetName: "squatted", Effective: &unused},
			}}
			says(t, s, &lie, nil, nil)
			eventually(t, "it is seen", func() bool { return value(t, c.cfg.Metrics.lost) == 1 })
			ensure(t, s, "later")
			if id(t, s, "later"); id(t, s, "red") != red {
				t.Errorf("red is on another network")
			}
			eventually(t, "it is over", func() bool { return strings.Contains(c.log.String(), "now follow etcd") })
			ensure(t, s, "last")
			if id(t, s, "last"); id(t, s, "red") != red {
				t.Errorf("red is on another network")
			}
			if _, err := s.Node(ctxOf(t), node.HostIP); err == nil {
				t.Error("a node was made")
			}
			for _, name := range []string{"future", "squatted"} {
				if n, err := s.Namespace(ctxOf(t), name); err == nil {
					t.Errorf("a namespace was made: %+v", n.Value)
				}
			}
			if n, err := s.Namespace(ctxOf(t), "red"); err != nil || n.Value.Action != topology.None || n.Value.Change.UnderWay() {
				t.Errorf("red: %+v, %v", n.Value, err)
			}
			// What a restoration will lose of this term must still be noticed.
			now := history(t, s)
			if lost := (topology.Point{Term: before.Now.Term, Revision: now.Now.Revision + 1}); now.Now.Term != before.Now.Term || now.Holds(lost) {
				t.Errorf("the term has ended, or holds what there never was: %+v", now)
			}
		})
	}
}

// TestOnlyReporter: a node that is the first to report, or keeps others from it, is not all there are. It does not
// have the controller say that all is put back before the others could speak.
func TestOnlyReporter(t *testing.T) {
	clock := &clock{now: time.Now()}
	e := etcdtest.Start(t)
	c := start(t, e, "one", func(c *Config) { c.Now = clock.Now })
	s := ready(t, c)
	ensure(t, s, "red", "blue")
	red, blue := id(t, s, "red"), id(t, s, "blue")
	for _, ip := range []string{"198.18.0.1", "198.18.0.2"} {
		if err := s.EnsureNode(ctxOf(t), "n"+ip, netip.MustParseAddr(ip)); err != nil {
			t.Fatal(err)
		}
		subnetOf(t, s, netip.MustParseAddr(ip))
	}
	lie := topology.Held{At: topology.Point{Term: "x", Revision: 1 << 40}, Namespaces: []topology.Namespace{{NetName: "red", Effective: &blue}}}
	says(t, s, &lie)
	eventually(t, "it is seen", func() bool { return value(t, c.cfg.Metrics.lost) == 1 })
	clock.add(settleFew + again)
	ensure(t, s, "later") // which has it look again
	id(t, s, "later")
	if id(t, s, "red") != red || history(t, s).Holds(lie.At) {
		t.Errorf("it is believed: %+v", history(t, s))
	}
	clock.add(settleAway)
	ensure(t, s, "last")
	eventually(t, "it is over", func() bool { return history(t, s).Holds(lie.At) })
	if id(t, s, "red") != red {
		t.Errorf("red is on another network")
	}
}

// late is a leader under three nodes that all hold what etcd has lost. Two hold the namespace red as it is joined
// with all, and one of these, which is the third, does not report yet; the other and one that is older do, and
// the leader has put back what these two hold.
type late struct {
	*candidate
	s        *store.Store
	clock    *clock
	held     topology.Held
	red, all netid.ID
	says     [2]*store.StatusPublisher
}

func startLate(t *testing.T) *late {
	t.Helper()
	began := time.Now()
	l := &late{clock: &clock{now: began}}
	// Its clock goes on by itself.
	l.candidate = start(t, etcdtest.Start(t), "one", func(c *Config) { c.Now = func() time.Time { return l.clock.Now().Add(time.Since(began)) } })
	l.s = ready(t, l.candidate)
	ensure(t, l.s, "red")
	l.red = id(t, l.s, "red")
	l.all = l.red ^ 1<<16
	for i := range 3 {
		ip := netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)})
		if err := l.s.EnsureNode(ctxOf(t), fmt.Sprint("n", i), ip); err != nil {
			t.Fatal(err)
		}
		subnetOf(t, l.s, ip)
	}
	older := topology.Held{At: topology.Point{Term: "x", Revision: 90}, Namespaces: []topology.Namespace{{NetName: "all", Effective: &l.all}}}
	l.held = topology.Held{At: topology.Point{Term: "x", Revision: 100}, Namespaces: []topology.Namespace{{NetName: "all", Effective: &l.all}, {NetName: "red", Effective: &l.all}}}
	l.says[0], l.says[1] = say(t, l.s, 1, &l.held), say(t, l.s, 2, &older)
	eventually(t, "it waits for the third", func() bool { return strings.Contains(l.log.String(), "waiting for nodes that may hold") })
	if id(t, l.s, "all") != l.all || id(t, l.s, "red") != l.red || history(t, l.s).Holds(l.held.At) {
		t.Errorf("red is %d, and %+v", id(t, l.s, "red"), history(t, l.s))
	}
	return l
}

// sees waits until the leader sees that so many nodes hold what etcd has lost.
func (l *late) sees(t *testing.T, nodes float64) {
	t.Helper()
	eventually(t, "it is seen", func() bool { return value(t, l.cfg.Metrics.lost) == nodes })
}

// TestLateHolder: what etcd has is not called whole before nodes have reported that may hold more. Else those that
// report late would follow it, without what most nodes hold. Where they never report, it is over in time.
func TestLateHolder(t *testing.T) {
	t.Parallel()
	for name, comes := range map[string]bool{"it reports": true, "it never reports": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLate(t)
			want := l.red
			if comes {
				want = l.all
				say(t, l.s, 3, &l.held)
			} else {
				l.clock.add(settleAway)
			}
			eventually(t, "it is over", func() bool { return history(t, l.s).Holds(l.held.At) })
			if got := id(t, l.s, "red"); got != want {
				t.Errorf("red is %d, want %d", got, want)
			}
			ensure(t, l.s, "last")
			id(t, l.s, "last")
		})
	}
}

// TestLateHolderGivesUp: while a leader waits for a node, those that hold something cease to say so, one after the
// other. It plans nothing more in a term that has put back records, and ends it.
func TestLateHolderGivesUp(t *testing.T) {
	t.Parallel()
	l := startLate(t)
	ensure(t, l.s, "later")
	for i, left := range []float64{1, 0} {
		l.says[1-i].Set(topology.NodeStatus{Host: "n", HostIP: netip.AddrFrom4([4]byte{198, 18, 0, byte(2 - i)})})
		l.sees(t, left)
	}
	id(t, l.s, "later")
	if ended, given := strings.Index(l.log.String(), errRestored.Error()), strings.Index(l.log.String(), "tenant=later"); ended < 0 || given >= 0 && given < ended {
		t.Errorf("the term went on:\n%s", l.log.String())
	}
}

// TestShort: nodes that may hold a record too are waited for, and for no longer whatever others say meanwhile.
func TestShort(t *testing.T) {
	now := time.Now()
	for what, tt := range map[string]struct {
		v     voters
		votes int
		want  time.Duration
	}{
		"nothing is left out":                         {voters{2, 2, 3}, 0, 0},
		"another does not report":                     {voters{2, 2, 3}, 1, settleAway},
		"another reports no loss, maybe of before":    {voters{2, 3, 3}, 1, settleFew},
		"all say what they hold":                      {voters{3, 3, 3}, 1, 0},
		"a laggard of a bare majority":                {voters{51, 51, 100}, 50, settleAway},
		"those that do not report come to half":       {voters{51, 51, 100}, 1, 0},
		"too few to be believed":                      {voters{2, 2, 4}, 1, 0},
		"the others report no loss, some do not":      {voters{51, 70, 100}, 10, settleFew},
		"one of two":                                  {voters{2, 2, 2}, 1, 0},
		"one that is alone says what others may hold": {voters{1, 1, 2}, 1, 0},
	} {
		r := restoration{}
		first, short := r.short(tt.v, tt.votes, now)
		if waits := tt.want > 0; first != waits || short != waits {
			t.Errorf("%s: %t, %t", what, first, short)
		}
		if tt.want == 0 {
			continue
		}
		// A node that takes back what it said, and says it again, begins nothing anew.
		r.see(voters{1, tt.v.reporting, tt.v.known}, now)
		r.see(tt.v, now.Add(tt.want-1))
		if first, short := r.short(tt.v, tt.votes, now.Add(tt.want-1)); first || !short {
			t.Errorf("%s: %t, %t just before", what, first, short)
		}
		if first, short := r.short(tt.v, tt.votes, now.Add(tt.want)); first || short {
			t.Errorf("%s: %t, %t at last", what, first, short)
		}
	}
}

// TestManyHoldInKubernetes: what most nodes hold is put back for the Namespaces that the API server has.
func TestManyHoldInKubernetes(t *testing.T) {
	k := startKubernetes(t, nil)
	k.namespace("red", "uid-red", "")
	is := *k.record("red", "has a netID", settledRecord).Effective
	was, unused := is^1<<16, is^1<<17
	lost := topology.Held{At: topology.Point{Term: "x", Revision: 1 << 40}, Namespaces: []topology.Namespace{
		{NetName: "red", UID: "uid-red", Effective: &was},
		{NetName: "ghost", Effective: &unused, Action: topology.MakeGlobal},
	}}
	says(t, k.store, &lost, &lost)
	eventually(t, "it is over", func() bool { return strings.Contains(k.log.String(), "the records are whole again") })
	k.record("red", "has the netID that nodes hold", func(n topology.Namespace, ok bool) bool { return ok && *n.Effective == was })
	if n, err := k.store.Namespace(ctxOf(t), "ghost"); err == nil {
		t.Errorf("a namespace that there is not: %+v", n.Value)
	}
}

// put is a leader that notes which nodes it writes.
type put struct {
	writer
	nodes []topology.Node
}

func (p *put) PutNode(_ context.Context, _ string, n topology.Node, _ int64) (int64, error) {
	p.nodes = append(p.nodes, n)
	return 1, nil
}

// TestWriteBack: a node is written when what etcd has of it is not what nodes agreed on, whatever field of that differs.
func TestWriteBack(t *testing.T) {
	ip, subnet := netip.MustParseAddr("198.18.0.1"), netip.MustParsePrefix("172.11.0.0/22")
	won := topology.Node{Host: "n1", HostIP: ip, Subnet: subnet, UID: "u", Identity: "i", HostIPs: []netip.Addr{ip}, Subnets: []netip.Prefix{subnet}}
	for i := range reflect.TypeFor[topology.Node]().NumField() {
		is, name := won, reflect.TypeFor[topology.Node]().Field(i).Name
		reflect.ValueOf(&is).Elem().Field(i).SetZero()
		p := &put{}
		term := &term{writer: p, log: slog.New(slog.DiscardHandler)}
		term.last.Nodes = map[netip.Addr]topology.Node{ip: is}
		if wrote, err := term.writeBack(ctxOf(t), restore.Plan{Nodes: []topology.Node{won}}); err != nil || wrote == is.SameClaim(won) || wrote != (len(p.nodes) == 1) {
			t.Errorf("etcd lacks its %s: wrote %v, %v", name, p.nodes, err)
		}
	}
}

// TestVoters: nodes that do not report count: those of the records, and those of the API server.
func TestVoters(t *testing.T) {
	addr := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, i}) }
	node := func(i byte) topology.Node {
		return topology.Node{HostIP: addr(i), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 11, 4 * i, 0}), 22)}
	}
	term := &term{c: &Controller{world: newWorld()}}
	term.live.now = map[netip.Addr]topology.NodeStatus{addr(1): {}, addr(9): {}}
	term.last.Nodes = map[netip.Addr]topology.Node{addr(1): node(1), addr(2): node(2), addr(3): {HostIP: addr(3), Assign: true}}
	if v, live, ok := term.voters(1); v != (voters{1, 2, 3}) || live != nil || !ok {
		t.Errorf("%+v, %v, %t", v, live, ok)
	}
	term.follower = &follower{}
	if _, _, ok := term.voters(1); ok {
		t.Error("the API server has said nothing")
	}
	nodes := map[string]kube.Node{}
	for i := range 5 {
		nodes[fmt.Sprint(i)] = kube.Node{}
	}
	term.c.world.newest = &kube.Cluster{Nodes: nodes, Namespaces: map[string]kube.Namespace{"red": {UID: "uid-red"}}}
	if v, live, ok := term.voters(1); v != (voters{1, 2, 5}) || live["red"] != "uid-red" || !ok {
		t.Errorf("%+v, %v, %t", v, live, ok)
	}
}

// TestRipe: a node that says again and again that etcd has lost records, each time others, is gone by
// now and then only.
func TestRipe(t *testing.T) {
	now := time.Now()
	many, few, away, only := voters{2, 3, 3}, voters{1, 3, 3}, voters{1, 1, 3}, voters{1, 1, 1}
	for what, tt := range map[string]struct {
		r    restoration
		v    voters
		few  time.Time
		want time.Time
	}{
		"most":                        {restoration{since: now, mostSince: now}, many, time.Time{}, now.Add(settle)},
		"most, and one long before":   {restoration{since: now.Add(-time.Hour), mostSince: now}, many, time.Time{}, now.Add(settle)},
		"most, and few just before":   {restoration{since: now, mostSince: now}, many, now, now.Add(settle)},
		"few":                         {restoration{since: now}, few, time.Time{}, now.Add(settleFew)},
		"few, and just before":        {restoration{since: now}, few, now.Add(-time.Second), now.Add(fewEvery - time.Second)},
		"few, and long before":        {restoration{since: now}, few, now.Add(-time.Hour), now.Add(settleFew)},
		"few, others do not report":   {restoration{since: now}, away, time.Time{}, now.Add(settleAway)},
		"the only one":                {restoration{since: now}, only, time.Time{}, now.Add(settleFew)},
		"half of all, others deny it": {restoration{since: now}, voters{1, 2, 2}, time.Time{}, now.Add(settleFew)},
		"one more of most has come":   {restoration{since: now.Add(-time.Minute), mostSince: now.Add(-time.Minute), notBefore: now.Add(again)}, many, time.Time{}, now.Add(again)},
		"one more of a few has come":  {restoration{since: now.Add(-time.Minute), notBefore: now.Add(again)}, few, time.Time{}, now.Add(again)},
	} {
		if got := tt.r.ripe(tt.v, tt.few); !got.Equal(tt.want) {
			t.Errorf("%s: in %s, want %s", what, got.Sub(now), tt.want.Sub(now))
		}
	}
}
