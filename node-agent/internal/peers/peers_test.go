package peers

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

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
	p := New(Config{Datapath: ovs.DatapathNetdev, Self: self, Routes: underlay.NewRoutes(client), Logger: slog.New(slog.NewTextHandler(&said, nil))})
	route := func(device string) (source netip.Addr) {
		p.Forget()
		return p.Route(ctx, device, map[netip.Addr]link.Path{peer: {Link: link.Link{Name: device}}})
	}
	if got := route("lo"); got.IsValid() || p.retry != nil {
		t.Errorf("a way that is taken: source %s, tried again: %t", got, p.retry != nil)
	}
	for range 2 {
		if route("none"); p.retry == nil || said.Len() > 0 {
			t.Fatalf("a way that is refused: tried again: %t, said %q", p.retry != nil, &said)
		}
		for range patientTries {
			if _, again := p.Retry(); !again {
				t.Fatal("what is refused is not tried again")
			}
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
	p.cfg.Self = netip.MustParseAddr("127.0.0.2")
	if got := route("lo"); got != p.cfg.Self || !strings.Contains(said.String(), "another address of lo") {
		t.Errorf("another source: bound to %s, said %q", got, &said)
	}
	p.cfg.Datapath = ovs.DatapathSystem
	if got := route("none"); got != p.cfg.Self {
		t.Errorf("kernel datapath: bound to %s, want %s", got, p.cfg.Self)
	}
}

func TestNewPeers(t *testing.T) {
	a := netip.MustParseAddr
	config := topology.Config{Network: netip.MustParsePrefix("10.0.0.0/8"), HostSubnetLength: 8}
	record := func(ip, subnet string) topology.Node {
		return topology.Node{Host: "n", HostIP: a(ip), Subnet: netip.MustParsePrefix(subnet)}
	}
	p := New(Config{Datapath: ovs.DatapathNetdev, Self: a("192.0.2.1")})
	ways := map[netip.Addr]link.Path{a("192.0.2.2"): {}}
	records := &topology.Snapshot{Config: config, Nodes: map[netip.Addr]topology.Node{
		a("192.0.2.1"): record("192.0.2.1", "10.0.0.0/24"), a("192.0.2.2"): record("192.0.2.2", "10.0.1.0/24"),
	}}
	if p.New(records, ways) {
		t.Error("the node itself, or a peer without a route, is new")
	}
	records.Nodes[a("192.0.2.3")] = record("192.0.2.3", "10.0.2.0/24")
	if !p.New(records, ways) {
		t.Error("a new peer is not seen")
	}
	p.cfg.Datapath = ovs.DatapathSystem
	if p.New(records, ways) {
		t.Error("the kernel datapath needs no ways")
	}
}
