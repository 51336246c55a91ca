package agent

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/backoff"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// TestRoutePeers: ways that Open vSwitch refuses are tried again soon, and said once
// when that goes on; a source other than the VTEP binds the tunnel.
func TestRoutePeers(t *testing.T) {
	o := ovstest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: "unix:" + o.DB, RunDir: o.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var said bytes.Buffer
	peer, self := netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.1")
	n := &node{
		datapath: ovs.DatapathNetdev, self: self, agreement: &agreement{}, log: slog.New(slog.NewTextHandler(&said, nil)),
		routes: tunnelRoutes{Routes: underlay.NewRoutes(client)},
	}
	route := func(device string) (source netip.Addr) {
		n.agreement.ways = map[netip.Addr]link.Path{peer: {Link: link.Link{Name: device}}}
		n.routes.forget()
		return n.routePeers(ctx, underlay.Underlay{Link: device})
	}
	if got := route("lo"); got.IsValid() || n.routes.retry != nil {
		t.Errorf("a way that is taken: source %s, tried again: %t", got, n.routes.retry != nil)
	}
	for range 2 {
		if route("none"); n.routes.retry == nil || said.Len() > 0 {
			t.Fatalf("a way that is refused: tried again: %t, said %q", n.routes.retry != nil, &said)
		}
		for n.routes.retry.Take() < backoff.Max {
		}
		for range 3 {
			route("none")
		}
		if strings.Count(said.String(), "\n") != 1 || !strings.Contains(said.String(), "127.0.0.9/32 by none") {
			t.Errorf("a way that is refused for long: said %q, want one line that names it", &said)
		}
		said.Reset()
		route("lo")
	}
	n.self = netip.MustParseAddr("127.0.0.2")
	if got := route("lo"); got != n.self || !strings.Contains(said.String(), "another address of lo") {
		t.Errorf("another source: bound to %s, said %q", got, &said)
	}
	n.datapath = ovs.DatapathSystem
	if got := route("none"); got != n.self {
		t.Errorf("kernel datapath: bound to %s, want %s", got, n.self)
	}
}

func TestNewPeers(t *testing.T) {
	a := netip.MustParseAddr
	config := topology.Config{Network: netip.MustParsePrefix("10.0.0.0/8"), HostSubnetLength: 8}
	record := func(ip, subnet string) topology.Node {
		return topology.Node{Host: "n", HostIP: a(ip), Subnet: netip.MustParsePrefix(subnet)}
	}
	n := &node{
		datapath: ovs.DatapathNetdev, self: a("192.0.2.1"), agreement: &agreement{ways: map[netip.Addr]link.Path{a("192.0.2.2"): {}}},
		records: &topology.Snapshot{Config: config, Nodes: map[netip.Addr]topology.Node{
			a("192.0.2.1"): record("192.0.2.1", "10.0.0.0/24"), a("192.0.2.2"): record("192.0.2.2", "10.0.1.0/24"),
		}},
	}
	if n.newPeers() {
		t.Error("the node itself, or a peer without a route, is new")
	}
	n.records.Nodes[a("192.0.2.3")] = record("192.0.2.3", "10.0.2.0/24")
	if !n.newPeers() {
		t.Error("a new peer is not seen")
	}
	n.datapath = ovs.DatapathSystem
	if n.newPeers() {
		t.Error("the kernel datapath needs no ways")
	}
}
