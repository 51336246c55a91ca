package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podroutes"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/tunnelprobe"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// uplinks are the devices of a node, and whether packets get out; tried counts the packets.
type uplinks struct {
	devices map[string]link.Link
	closed  error
	tried   int
	// astray is what leads packets for pods elsewhere, looked the pods whose routes were looked at.
	astray error
	looked []podroutes.Pods
	// alone is why there is no way to other nodes, reached the peers that were looked for.
	alone   error
	reached []exits.Peers
}

func (u *uplinks) Reach(_ context.Context, _ netip.Addr, peers exits.Peers, _ bool) error {
	u.reached = append(u.reached, peers)
	return u.alone
}

func (u *uplinks) Kept() int { return 2 }

func (u *uplinks) Check(pods podroutes.Pods) error {
	u.looked = append(u.looked, pods)
	return u.astray
}

func (u *uplinks) Link(name string) (link.Link, bool, error) {
	l, ok := u.devices[name]
	return l, ok, nil
}

func (u *uplinks) LinkByIndex(index int) (link.Link, bool, error) {
	for _, l := range u.devices {
		if l.Index == index {
			return l, true, nil
		}
	}
	return link.Link{}, false, nil
}

// Writable implements the database of [health].
func (u *uplinks) Writable(context.Context) error { return nil }

func (u *uplinks) Outside(context.Context, exits.Switch, exits.Gateway) error {
	u.tried++
	return u.closed
}

// noMesh looks at no ways to other nodes.
var noMesh = mesh{checked: checked{policy: exits.Off}, through: nobodyAsked{}}

// What is wrong with the device by which tunnel packets leave is named, with the way out.
func TestUplinkDown(t *testing.T) {
	for name, c := range map[string]struct {
		device *link.Link
		why    string
	}{
		"well":       {&link.Link{Up: true, Carrier: true}, ""},
		"loopback":   {&link.Link{Loopback: true}, ""},
		"gone":       {nil, "the uplink eth0 is gone"},
		"down":       {&link.Link{}, "ip link set eth0 up"},
		"no carrier": {&link.Link{Up: true}, "look at its cable"},
	} {
		for _, under := range []underlay.Underlay{{Link: "eth0"}, {Link: "br-phy", Uplink: "eth0"}} {
			u := &uplinks{devices: map[string]link.Link{"br-phy": {}}}
			if c.device != nil {
				u.devices["eth0"] = *c.device
			}
			h := &health{picture: &picture{under: under, records: &topology.Snapshot{}}, exits: u, way: checked{closed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "closed"})}, mesh: noMesh, links: u, routes: u, database: u}
			err := h.unwell(t.Context(), &pass{full: true, me: labSelf})
			if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s, address on %s: %v, want %q", name, under.Link, err, c.why)
			}
		}
	}
}

// A device that has the node's address and is a port of another one gets nothing that comes in: the other one is to have
// the address.
func TestUplinkEnslaved(t *testing.T) {
	for name, c := range map[string]struct {
		master link.Link
		under  underlay.Underlay
		why    string
	}{
		"bridge":       {link.Link{Name: "host0", Type: "bridge"}, underlay.Underlay{Link: "eth0"}, "is a port of host0, which takes what comes in by it: pods reach no other node; give the address and its routes to host0"},
		"bond":         {link.Link{Name: "bond0", Type: "bond"}, underlay.Underlay{Link: "eth0"}, "routes to bond0"},
		"Open vSwitch": {link.Link{Name: "ovs-system", Type: "openvswitch"}, underlay.Underlay{Link: "eth0"}, "is a port of a bridge of Open vSwitch, which takes what comes in by it: pods reach no other node; give the address and its routes to that bridge (ovs-vsctl port-to-br eth0)"},
		"VRF":          {link.Link{Name: "red", Type: "vrf"}, underlay.Underlay{Link: "eth0"}, ""},
		"userspace":    {link.Link{Name: "ovs-netdev", Type: "openvswitch"}, underlay.Underlay{Link: "br-phy", Uplink: "eth0"}, ""},
	} {
		c.master.Index = 9
		u := &uplinks{devices: map[string]link.Link{"eth0": {Name: "eth0", Up: true, Carrier: true, Master: 9}, "master": c.master}}
		h := &health{picture: &picture{under: c.under, records: &topology.Snapshot{}}, exits: u, way: checked{policy: exits.Off}, mesh: noMesh, links: u, routes: u, database: u}
		err := h.unwell(t.Context(), &pass{full: true, me: labSelf})
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
	}
}

// A packet is sent out at first, in every full pass, and in every pass while none gets out.
func TestWayOutIsTried(t *testing.T) {
	u := &uplinks{devices: map[string]link.Link{"eth0": {Up: true, Carrier: true}}}
	h := &health{picture: &picture{under: underlay.Underlay{Link: "eth0"}, records: &topology.Snapshot{}}, exits: u, way: checked{closed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "closed"})}, mesh: noMesh, links: u, routes: u, database: u}
	closed := errors.New("a firewall drops them")
	for i, s := range []struct {
		full   bool
		closed error
		tried  int
		why    error
	}{
		{false, nil, 1, nil}, {false, closed, 1, nil}, {true, closed, 2, closed}, {false, closed, 3, closed}, {false, nil, 4, nil}, {false, nil, 4, nil}, {true, nil, 5, nil},
	} {
		u.closed = s.closed
		p := &pass{me: labSelf, full: s.full}
		if err := h.look(t.Context(), p); err != nil || !errors.Is(p.unwell, s.why) || u.tried != s.tried {
			t.Errorf("pass %d: %v, unwell %v, %d packets sent; want %v, %d", i, err, p.unwell, u.tried, s.why, s.tried)
		}
	}
}

// The routes to pods are looked at in the first pass, in every full one, and in every one while something is wrong
// with them: with --exit-check=off too. Those of all nodes that have pods are meant.
func TestRoutesToPods(t *testing.T) {
	u := &uplinks{devices: map[string]link.Link{"eth0": {Name: "eth0", Up: true, Carrier: true}}}
	s := snapshot(0, 3, labSelf, labPeer)
	h := &health{
		picture: &picture{self: labSelf.HostIP, under: underlay.Underlay{Link: "eth0"}, records: &s}, exits: u, mesh: noMesh, links: u, routes: u, database: u,
		way: checked{policy: exits.Off, closed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "closed"})},
	}
	astray := errors.New("the node has a route to 172.11.3.0/24")
	for i, s := range []struct {
		full   bool
		astray error
		looks  int
		why    error
	}{
		{false, nil, 1, nil}, {false, astray, 1, nil}, {true, astray, 2, astray}, {false, astray, 3, astray}, {false, nil, 4, nil}, {false, nil, 4, nil}, {true, nil, 5, nil},
	} {
		u.astray = s.astray
		if why := h.unwell(t.Context(), &pass{me: labSelf, full: s.full}); !errors.Is(why, s.why) || len(u.looked) != s.looks {
			t.Errorf("pass %d: %v, %d looks; want %v, %d", i, why, len(u.looked), s.why, s.looks)
		}
	}
	want := podroutes.Pods{
		Device: "tun0", Network: s.Config.Network, Own: labSelf.Subnet, Subnets: []netip.Prefix{labPeer.Subnet}, Outside: "eth0", Beyond: exits.Beyond,
	}
	if diff := cmp.Diff(want, u.looked[0], cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("looked at (-want +got):\n%s", diff)
	}
}

// The ways to other nodes are looked at in the first pass, in every full one, and in every one while there is none: to those
// that have pods. --tunnel-check says what becomes of the node.
func TestWaysToNodes(t *testing.T) {
	s := snapshot(0, 3, labSelf, labPeer)
	for policy, want := range map[exits.Policy]struct {
		why    string
		looks  []int
		events nodeEvents
	}{
		exits.NotReady: {"a firewall drops them; where pods do reach those of other nodes, the agent's flag --tunnel-check=warn keeps the node ready", []int{1, 1, 2, 3, 4, 4, 5}, nil},
		exits.Warn:     {"", []int{1, 1, 2, 2, 2, 2, 3}, nodeEvents{"Node n1: TunnelsClosed: a firewall drops them"}},
		exits.Off:      {"", []int{0, 0, 0, 0, 0, 0, 0}, nil},
	} {
		u := &uplinks{devices: map[string]link.Link{"eth0": {Name: "eth0", Up: true, Carrier: true}}}
		var said nodeEvents
		closed, kept := prometheus.NewGauge(prometheus.GaugeOpts{Name: "closed"}), prometheus.NewGauge(prometheus.GaugeOpts{Name: "kept"})
		h := &health{
			picture: &picture{self: labSelf.HostIP, under: underlay.Underlay{Link: "eth0"}, records: &s, tunnels: tunnels{as: tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}}},
			exits:   u, links: u, routes: u, database: u, way: checked{policy: exits.Off},
			mesh: mesh{nodes: u, through: nobodyAsked{}, kept: kept, checked: checked{
				policy: policy, flag: "tunnel-check", unless: "pods do reach those of other nodes", event: "TunnelsClosed", node: "n1", closed: closed, events: &said, log: slog.New(slog.DiscardHandler),
			}},
		}
		down := errors.New("a firewall drops them")
		for i, c := range []struct {
			full  bool
			alone error
		}{{false, nil}, {false, down}, {true, down}, {false, down}, {false, nil}, {false, nil}, {true, nil}} {
			u.alone = c.alone
			before := len(u.reached)
			p := &pass{full: c.full, me: labSelf}
			if err := h.look(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			got := ""
			if p.unwell != nil {
				got = p.unwell.Error()
			}
			why := want.why
			if c.alone == nil || len(u.reached) == before {
				why = ""
			}
			if got != why || len(u.reached) != want.looks[i] {
				t.Errorf("--tunnel-check=%s, pass %d: %q after %d looks, want %q after %d", policy, i, got, len(u.reached), why, want.looks[i])
			}
		}
		if diff := cmp.Diff(want.events, said); diff != "" {
			t.Errorf("--tunnel-check=%s (-want +got):\n%s", policy, diff)
		}
		if policy == exits.Off {
			continue
		}
		if len(u.reached[0]) != 1 || u.reached[0][labPeer.HostIP] != 4789 || valueOf(t, closed) != 0 || valueOf(t, kept) != 2 {
			t.Errorf("--tunnel-check=%s: looked for %v, closed %v, kept %v", policy, u.reached[0], valueOf(t, closed), valueOf(t, kept))
		}
	}
}

// silence is other nodes that do not answer through the tunnels.
type silence struct {
	kept  int
	all   bool
	nodes []tunnelprobe.Node
}

func (s *silence) SetNodes(_ netip.Prefix, _ tunnel.Port, nodes []tunnelprobe.Node) { s.nodes = nodes }
func (s *silence) Why() string                                                      { return "" }
func (s *silence) Changed() <-chan struct{}                                         { return nil }
func (s *silence) Kept() int                                                        { return s.kept }

func (s *silence) Reach() error {
	if s.all {
		return tunnelprobe.ErrCut
	}
	return nil
}

// TestSilence: nodes that do not answer through the tunnels make the node not ready where none does, and have the datapath
// look them up anew, not at each look while that lasts; --tunnel-check=off does not go by them, and has them answered still.
func TestSilence(t *testing.T) {
	s := snapshot(0, 3, labSelf, labPeer)
	for _, policy := range []exits.Policy{exits.NotReady, exits.Off} {
		u := &uplinks{devices: map[string]link.Link{"eth0": {Name: "eth0", Up: true, Carrier: true}}}
		through, relearned := &silence{}, 0
		kept := prometheus.NewGauge(prometheus.GaugeOpts{Name: "kept"})
		h := &health{
			picture: &picture{self: labSelf.HostIP, under: underlay.Underlay{Link: "eth0"}, records: &s, tunnels: tunnels{as: tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}}},
			exits:   u, links: u, routes: u, database: u, way: checked{policy: exits.Off},
			mesh: mesh{nodes: u, through: through, kept: kept, relearn: func(context.Context) error { relearned++; return nil }, checked: checked{
				policy: policy, flag: "tunnel-check", node: "n1", closed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "closed"}), log: slog.New(slog.DiscardHandler),
			}},
		}
		for i, c := range []struct {
			silence
			relearned int
		}{{silence{}, 0}, {silence{kept: 3}, 0}, {silence{kept: 1, all: true}, 1}, {silence{kept: 1, all: true}, 1}, {silence{}, 1}, {silence{kept: 2, all: true}, 2}} {
			through.kept, through.all = c.kept, c.all
			p := &pass{full: true, me: labSelf}
			if err := h.look(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if policy == exits.Off {
				c.all, c.relearned = false, 0
			} else if got := valueOf(t, kept); got != float64(max(2, c.kept)) {
				t.Errorf("look %d: %v kept back, want the more of 2 and %d", i, got, c.kept)
			}
			if errors.Is(p.unwell, tunnelprobe.ErrCut) != c.all || relearned != c.relearned {
				t.Errorf("--tunnel-check=%s, look %d: %v, looked up %d times; want not ready: %t, %d times", policy, i, p.unwell, relearned, c.all, c.relearned)
			}
		}
		want := []tunnelprobe.Node{{Tunnel: labPeer.HostIP, Overlay: labPeer.Gateway()}}
		if diff := cmp.Diff(want, through.nodes, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("--tunnel-check=%s: nodes to be asked (-want +got):\n%s", policy, diff)
		}
	}
}

// TestDeafUplink: a device that was told not to look up neighbours any more leads nowhere; one that never did is meant so.
func TestDeafUplink(t *testing.T) {
	s := snapshot(0, 3, labSelf)
	look := func(h *health) string {
		p := &pass{full: true, me: labSelf}
		if err := h.look(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(p.unwell)
	}
	u := &uplinks{devices: map[string]link.Link{"eth0": {Name: "eth0", Index: 3, Up: true, Carrier: true, Deaf: true}}}
	h := &health{picture: &picture{self: labSelf.HostIP, under: underlay.Underlay{Link: "eth0"}, records: &s}, exits: u, links: u, routes: u, database: u, way: checked{policy: exits.Off}, mesh: noMesh}
	if why := look(h); why != "<nil>" {
		t.Errorf("it never did: not ready because of %s", why)
	}
	for _, deaf := range []bool{false, true, false} {
		l := u.devices["eth0"]
		l.Deaf = deaf
		u.devices["eth0"] = l
		if why := look(h); strings.Contains(why, "ip link set eth0 arp on") != deaf {
			t.Errorf("it does not look up neighbours: %t; the node is not ready because of %s", deaf, why)
		}
	}
}

// nodeEvents stands in for the API server.
type nodeEvents []string

func (e *nodeEvents) Event(ref kube.ObjectRef, _ bool, reason kube.EventReason, message string) {
	*e = append(*e, ref.Kind+" "+ref.Name+": "+string(reason)+": "+message)
}

func valueOf(t *testing.T, gauge prometheus.Gauge) float64 {
	t.Helper()
	var m dto.Metric
	if err := gauge.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}

// What becomes of a way out that is closed is for --exit-check to say: the node is not ready, and
// why names the flag; or it is ready, and people are told once; or nobody looks.
func TestExitCheck(t *testing.T) {
	closed := errors.New("a firewall drops them")
	type result struct {
		Why             string
		Tried, Warnings int
		Closed          float64
		Events          nodeEvents
	}
	for policy, want := range map[exits.Policy]result{
		exits.NotReady: {"a firewall drops them; where pods do get out, the agent's flag --exit-check=warn keeps the node ready", 3, 0, 1, nil},
		exits.Warn:     {"", 3, 1, 1, nodeEvents{"Node n1: OutsideClosed: a firewall drops them"}},
		exits.Off:      {},
	} {
		u := &uplinks{devices: map[string]link.Link{"eth0": {Up: true, Carrier: true}}, closed: closed}
		var said nodeEvents
		log, gauge := &bytes.Buffer{}, prometheus.NewGauge(prometheus.GaugeOpts{Name: "closed"})
		h := &health{
			picture: &picture{under: underlay.Underlay{Link: "eth0"}, records: &topology.Snapshot{}}, exits: u, mesh: noMesh, links: u, routes: u, database: u,
			way: checked{
				policy: policy, flag: "exit-check", unless: "pods do get out", open: "pods reach the outside again", shut: "pods may not reach the outside", event: "OutsideClosed",
				node: "n1", closed: gauge, events: &said, log: slog.New(slog.NewTextHandler(log, nil)),
			},
		}
		var got result
		for range 3 {
			if why := h.unwell(t.Context(), &pass{full: true, me: labSelf}); why != nil {
				got.Why = why.Error()
			}
		}
		got.Tried, got.Warnings, got.Closed, got.Events = u.tried, strings.Count(log.String(), "WARN"), valueOf(t, gauge), said
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("--exit-check=%s (-want +got):\n%s", policy, diff)
		}
		u.closed = nil
		if why := h.unwell(t.Context(), &pass{full: true, me: labSelf}); why != nil || valueOf(t, gauge) != 0 {
			t.Errorf("--exit-check=%s, open again: %v, metric %v", policy, why, valueOf(t, gauge))
		}
	}
}
