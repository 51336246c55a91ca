package nodemtu

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/mtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

var (
	self  = netip.MustParseAddr("198.18.0.1")
	peerB = netip.MustParseAddr("198.18.0.2")
	peerC = netip.MustParseAddr("198.18.0.3")
)

// stack is a node's: one device, ways to peers, and what an earlier agent has set.
type stack struct {
	mtu   int
	paths map[netip.Addr]int // none where there is no route
	port  ovs.Port
	route int
	holes map[netip.Addr]int
	// silent are the peers that do not answer any more.
	silent []netip.Addr
	needs  map[netip.Addr]int
	floor  int
}

// vxlan is what nodes reach each other by.
var vxlan = desired.NodeTunnels(self, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789})

func (s *stack) PathsTo(_ netip.Addr, ips []netip.Addr) map[netip.Addr]link.Path {
	found := map[netip.Addr]link.Path{}
	for _, ip := range ips {
		if size, ok := s.paths[ip]; ok {
			found[ip] = link.Path{Link: link.Link{Name: "eth0"}, MTU: size}
		}
	}
	return found
}

func (s *stack) LinkExists(string) (bool, error) { return s.port.Name != "", nil }

func (s *stack) ReadConfig(string) (link.Config, error) {
	return link.Config{Routes: []link.Route{{Dst: topology.DefaultConfig().Network, MTU: s.route}}}, nil
}

func (s *stack) Port(name string) (ovs.Port, bool) {
	return s.port, name == bridge.GatewayPort && s.port.Name != ""
}

func (s *stack) Narrowest(underlay.Underlay) (string, int, error) { return "eth0", s.mtu, nil }
func (s *stack) Changed() <-chan struct{}                         { return nil }
func (s *stack) SetPeers(floor int, needs map[netip.Addr]int)     { s.floor, s.needs = floor, needs }
func (s *stack) Holes() map[netip.Addr]int                        { return s.holes }
func (s *stack) Silent() []netip.Addr                             { return s.silent }
func (s *stack) Run(ctx context.Context)                          { <-ctx.Done() }

func (s *stack) under() underlay.Underlay {
	return underlay.Underlay{VTEP: self, Link: "eth0", Narrowest: "eth0", MTU: s.mtu}
}

func twoPeers() *topology.Snapshot {
	s := &topology.Snapshot{Config: topology.DefaultConfig(), Nodes: map[netip.Addr]topology.Node{}}
	for i, ip := range []netip.Addr{self, peerB, peerC} {
		s.Nodes[ip] = topology.Node{Host: "n", HostIP: ip, Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 11, byte(4 * i), 0}), 22)}
	}
	return s
}

// of returns the part of a node with that stack; put writes.
func of(s *stack, put func(context.Context, topology.NodeMTU) (int64, error)) (*MTU, *bytes.Buffer) {
	var said bytes.Buffer
	return New(Config{
		Name: "n1", Self: self, Policy: mtu.Clamp, Put: put, Host: s, Switch: s, Underlay: s, Prober: s,
		Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(&said, nil)),
	}), &said
}

func nowhere(context.Context, topology.NodeMTU) (int64, error) {
	return 0, errors.New("written though nobody may")
}

func wants(t *testing.T, m *MTU, s *stack, r *topology.Snapshot, fromEtcd bool, want mtu.Values) {
	t.Helper()
	got, err := m.Want(s.under(), vxlan, r, fromEtcd)
	if err != nil || got != want {
		t.Errorf("wants %+v, %v; want %+v", got, err, want)
	}
}

// A node that starts with the records on disk has what its paths carry, as nobody says what the others have.
func TestWantFromCopy(t *testing.T) {
	s := &stack{mtu: 1500, paths: map[netip.Addr]int{peerB: 1500, peerC: 1400}}
	m, _ := of(s, nowhere)
	wants(t, m, s, twoPeers(), false, mtu.Values{Receives: 1350, Sends: 1350})
	if narrow := m.Done(mtu.Values{Receives: 1450, Sends: 1350}); !cmp.Equal(narrow, map[netip.Addr]int{peerC: 1350}, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
		t.Errorf("narrow paths %v", narrow)
	}
	if !cmp.Equal(s.needs, map[netip.Addr]int{peerB: 1500, peerC: 1400}, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
		t.Errorf("probes are to try %v", s.needs)
	}
}

// TestFloor: a node on a small underlay agrees with the others there, who are on it too. One that is smaller than
// most says so and how it may be, and goes on all the same. A record that does not count is named.
func TestFloor(t *testing.T) {
	s := &stack{mtu: 1250, paths: map[netip.Addr]int{peerB: 1250, peerC: 1250}}
	m, said := of(s, nowhere)
	small, large := topology.NodeMTU{Carries: 1200, Receives: 1200, Sends: 1200}, topology.NodeMTU{Carries: 1450, Receives: 1450, Sends: 1450}
	wants(t, m, s, twoPeers(), false, mtu.Values{Receives: 1200, Sends: 1200})
	m.See(topology.MTUs{Revision: 4, Nodes: map[netip.Addr]topology.NodeMTU{peerB: small, peerC: small}})
	if err := m.Unwell(); err != nil || len(m.mtuView().Ignored()) > 0 {
		t.Errorf("all on a small underlay: %v, ignores %v", err, m.mtuView().Ignored())
	}
	m.See(topology.MTUs{Revision: 4, Nodes: map[netip.Addr]topology.NodeMTU{peerB: large, peerC: large}})
	if err := m.Unwell(); err == nil || !strings.Contains(err.Error(), "eth0 leaves pods packets of 1200 bytes") || !strings.Contains(err.Error(), "--mtu 1200") {
		t.Errorf("a link that is too small among others: %v", err)
	}
	wants(t, m, s, twoPeers(), false, mtu.Values{Receives: 1200, Sends: 1200})
	for range 2 {
		m.See(topology.MTUs{Revision: 5, Nodes: map[netip.Addr]topology.NodeMTU{peerB: {HostIP: peerB, Carries: 576, Receives: 576, Sends: 576}}})
		m.observe()
	}
	if n := strings.Count(said.String(), "does not count"); n != 1 || !strings.Contains(said.String(), "node="+peerB.String()) {
		t.Errorf("said %d times: %s", n, said)
	}
}

// TestTooSmall: a link that leaves less than pods can do with is why the node is not well. Pods keep what they have,
// a node without pods goes on as well, and its record stays what it was.
func TestTooSmall(t *testing.T) {
	s := &stack{mtu: 600, paths: map[netip.Addr]int{peerB: 600, peerC: 600}}
	m, _ := of(s, nowhere)
	m.See(topology.MTUs{Revision: 4})
	wants(t, m, s, twoPeers(), true, mtu.Values{Receives: topology.MinMTU, Sends: topology.MinMTU})
	s.mtu, s.paths = 1500, map[netip.Addr]int{peerB: 1500, peerC: 1500}
	m.RoutesChanged()
	if _, err := m.Want(s.under(), vxlan, twoPeers(), false); err != nil || m.Unwell() != nil {
		t.Errorf("mended: %v, %v", err, m.Unwell())
	}
	m, _ = of(s, nowhere)
	wants(t, m, s, twoPeers(), false, mtu.Values{Receives: 1450, Sends: 1450})
	m.Done(mtu.Values{Receives: 1450, Sends: 1450})
	m.See(topology.MTUs{Revision: 4})
	s.mtu = 600
	wrote := m.writer.number
	wants(t, m, s, twoPeers(), true, mtu.Values{Receives: 1450, Sends: 1450})
	m.Done(m.Has())
	if err := m.Unwell(); err == nil || !strings.Contains(err.Error(), "eth0 leaves pods packets of 550 bytes, and they need 576") {
		t.Errorf("unwell: %v", err)
	}
	if m.writer.number != wrote || m.Next(true) || !m.Next(false) {
		t.Error("it writes what no record may say, or passes follow each other at once")
	}
}

// What an earlier agent has set is read back, and kept while the others' records are not seen.
func TestWantReadsBack(t *testing.T) {
	s := &stack{mtu: 1500, port: ovs.Port{Name: bridge.GatewayPort, MTURequest: 1400}, route: 1300}
	m, _ := of(s, nowhere)
	wants(t, m, s, twoPeers(), true, mtu.Values{Receives: 1400, Sends: 1300})
}

// A new node takes no pods before the others know of it, and its record says what it carries.
func TestWantIsAgreed(t *testing.T) {
	s := &stack{mtu: 1500, paths: map[netip.Addr]int{peerB: 1500, peerC: 1500}}
	puts := make(chan topology.NodeMTU, 1)
	m, said := of(s, func(_ context.Context, r topology.NodeMTU) (int64, error) { puts <- r; return 7, nil })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); m.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	r := twoPeers()
	if _, err := m.Want(s.under(), vxlan, r, true); !errors.Is(err, ErrNotAgreed) {
		t.Fatalf("before the others' records are seen: %v", err)
	}
	other := topology.NodeMTU{HostIP: peerB, Carries: 1350, Receives: 1450, Sends: 1350}
	m.See(topology.MTUs{Revision: 5, Nodes: map[netip.Addr]topology.NodeMTU{peerB: other}})
	if _, err := m.Want(s.under(), vxlan, r, true); !errors.Is(err, ErrNotAgreed) {
		t.Fatalf("before it has written: %v", err)
	}
	wrote := <-puts
	if wrote.Carries != 1450 || wrote.HostIP != self || wrote.Host != "n1" {
		t.Errorf("wrote %+v", wrote)
	}
	m.TakeWritten(<-m.Written())
	m.See(topology.MTUs{Revision: 7, Nodes: map[netip.Addr]topology.NodeMTU{peerB: other, self: wrote}})
	if !m.Next(true) {
		t.Error("no pass is asked for though there is something to set")
	}
	set, err := m.Want(s.under(), vxlan, r, true)
	if err != nil || set.Sends != 1350 || set.Receives < 1350 {
		t.Errorf("the node that carries least decides: %+v, %v", set, err)
	}
	m.Done(set)
	if m.Has() != set || !strings.Contains(said.String(), "MTU of pods") {
		t.Errorf("has %+v, said %q", m.Has(), said)
	}
}

// TestSilentPeers: peers that do not answer any more are told once each, and counted.
func TestSilentPeers(t *testing.T) {
	s := &stack{mtu: 1500, paths: map[netip.Addr]int{peerB: 1500, peerC: 1500}}
	m, said := of(s, nowhere)
	for _, silent := range [][]netip.Addr{nil, {peerB}, {peerB}, {peerB, peerC}, nil, {peerB}} {
		s.silent = silent
		wants(t, m, s, twoPeers(), false, mtu.Values{Receives: 1450, Sends: 1450})
		m.Done(mtu.Values{Receives: 1450, Sends: 1450})
	}
	var told []string
	for line := range strings.Lines(said.String()) {
		if _, nodes, ok := strings.Cut(line, "nodes="); ok {
			told = append(told, strings.TrimSpace(nodes))
		}
	}
	if want := []string{peerB.String(), peerC.String(), peerB.String()}; !slices.Equal(told, want) {
		t.Errorf("told of %v, want %v", told, want)
	}
}

// TestRecordSwings: another node's record that changes without end has this one write its own and set its pods' MTU a few times
// only, and once it rests it counts as it is.
func TestRecordSwings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stack{mtu: 1500, paths: map[netip.Addr]int{peerB: 1500, peerC: 1500}}
		revision, puts, sets := int64(0), 0, 0
		nodes := map[netip.Addr]topology.NodeMTU{}
		m, said := of(s, func(_ context.Context, r topology.NodeMTU) (int64, error) {
			puts++
			revision++
			nodes[self] = r
			return revision, nil
		})
		defer runs(t, m)()
		pass := func() {
			m.See(topology.MTUs{Revision: revision, Nodes: maps.Clone(nodes)})
			if set, err := m.Want(s.under(), vxlan, twoPeers(), true); err == nil {
				if set != m.Has() {
					sets++
				}
				m.Done(set)
			}
			takeWritten(m)
		}
		swing := func(times, size int) {
			for i := range times {
				r := topology.NodeMTU{HostIP: peerB, Carries: 1450, Receives: 1450, Sends: 1450}
				if i%2 == 1 {
					r.Carries, r.Receives, r.Sends = size, size, size
				}
				revision++
				nodes[peerB] = r
				for range 5 {
					pass()
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		swing(1000, 1300)
		if puts > 100 || sets > 100 || sets < 2 {
			t.Errorf("a record that changed 1,000 times had this node write %d times and set %d times", puts, sets)
		}
		if got := m.Has(); got.Sends != 1300 {
			t.Errorf("it sends %+v while the record swings", got)
		}
		if got := strings.Count(said.String(), "changes again and again"); got != 1 {
			t.Errorf("it said %d times that the record swings: %s", got, said)
		}
		swing(1, 0)
		time.Sleep(time.Minute)
		for range 5 {
			pass()
		}
		if got := m.Has(); got.Sends != 1450 {
			t.Errorf("it sends %+v after the record has rested", got)
		}
	})
}

// runs has m write its records until stop is called.
func runs(t *testing.T, m *MTU) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); m.Run(ctx) }()
	return func() { cancel(); <-ended }
}

// takeWritten takes in what m has written, if anything.
func takeWritten(m *MTU) {
	synctest.Wait()
	select {
	case w := <-m.Written():
		m.TakeWritten(w)
	default:
	}
}

// A record that somebody deleted is written again, as long as the node is there.
func TestRecordDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stack{mtu: 1500, paths: map[netip.Addr]int{peerB: 1500, peerC: 1500}}
		puts := 0
		m, _ := of(s, func(context.Context, topology.NodeMTU) (int64, error) {
			puts++
			return int64(puts), nil
		})
		defer runs(t, m)()
		pass := func(records *topology.Snapshot, seen map[netip.Addr]topology.NodeMTU) {
			t.Helper()
			m.See(topology.MTUs{Revision: int64(puts), Nodes: seen})
			set, err := m.Want(s.under(), vxlan, records, true)
			if err == nil {
				m.Done(set)
			}
			takeWritten(m)
		}
		there := map[netip.Addr]topology.NodeMTU{self: {Host: "n1", HostIP: self, Carries: 1450, Receives: 1450, Sends: 1450, Limit: "eth0"}}
		for range 3 {
			pass(twoPeers(), there)
		}
		before := puts
		pass(twoPeers(), there)
		if before != 1 || puts != before {
			t.Fatalf("written %d times, then %d: %+v", before, puts, m.view)
		}
		pass(twoPeers(), nil)
		if puts != before+1 {
			t.Errorf("written %d times after somebody deleted it", puts-before)
		}
		pass(twoPeers(), there)
		gone := twoPeers()
		delete(gone.Nodes, self)
		before = puts
		pass(gone, nil)
		if puts != before {
			t.Error("written for a node that left")
		}
	})
}

// What changes on the node is seen: a device, a route that went, a black hole.
func TestMeasure(t *testing.T) {
	s := &stack{mtu: 1500, paths: map[netip.Addr]int{peerB: 1500, peerC: 1500}}
	m, said := of(s, nowhere)
	r := twoPeers()
	if m.LinksChanged() {
		t.Error("links changed before they were looked at")
	}
	wants(t, m, s, r, false, mtu.Values{Receives: 1450, Sends: 1450})
	s.mtu = 1400
	if !m.LinksChanged() {
		t.Error("a device that carries less is not seen")
	}
	s.mtu = 1500
	// A route changes: looked at when asked for only.
	s.paths = map[netip.Addr]int{peerB: 1300}
	m.RoutesChanged()
	wants(t, m, s, r, false, mtu.Values{Receives: 1250, Sends: 1250})
	if ways := m.Ways(); ways[peerC].MTU != 1500 || ways[peerB].MTU != 1300 {
		t.Errorf("ways %v: one without a route keeps what it had", ways)
	}
	s.holes = map[netip.Addr]int{peerB: 1280}
	wants(t, m, s, r, false, mtu.Values{Receives: 1230, Sends: 1230})
	if !strings.Contains(said.String(), "a black hole") {
		t.Errorf("said %q", said)
	}
	// A path that takes less than pods need is that peer's trouble alone.
	s.holes = map[netip.Addr]int{peerB: 500}
	wants(t, m, s, r, false, mtu.Values{Receives: 1250, Sends: 1250})
	if n := strings.Count(said.String(), "the path to a node carries less than pods need"); n != 1 {
		t.Errorf("said %d times: %s", n, said)
	}
}

// TestTunnelAppears: a tunnel that the node is to have later, and that adds more, counts from then on in what pods
// are to have and in what probes take to pass, and no more when it is gone.
func TestTunnelAppears(t *testing.T) {
	s := &stack{mtu: 1500, paths: map[netip.Addr]int{peerB: 1500, peerC: 1500}}
	m, _ := of(s, nowhere)
	r := twoPeers()
	wider := append(slices.Clone(vxlan), desired.Tunnel{Tunnel: tunnel.Tunnel{Name: "vxlan6", Type: tunnel.VXLAN, Port: 4789, Family: tunnel.IPv6}, Ofport: 3})
	for _, step := range []struct {
		tunnels     desired.Tunnels
		mtu, floor  int
		description string
	}{{vxlan, 1450, topology.MinMTU + 50, "one"}, {wider, 1430, topology.MinMTU + 70, "a second"}, {vxlan, 1450, topology.MinMTU + 50, "one again"}} {
		got, err := m.Want(s.under(), step.tunnels, r, false)
		if want := (mtu.Values{Receives: step.mtu, Sends: step.mtu}); err != nil || got != want || s.floor != step.floor {
			t.Errorf("%s: %+v, %v, probes from %d on; want %+v, %d", step.description, got, err, s.floor, want, step.floor)
		}
	}
}
