package services

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestLeftOut: what a service names that leads somewhere by the node's doing is not in
// the switch, is told once, and counts by reason. Addresses of pods, nodes and others stay.
func TestLeftOut(t *testing.T) {
	b := newBridge(t)
	table := b.table()
	table.cfg.TunnelPorts = func() []uint16 { return []uint16{4789, 4790} }
	var told []string
	table.cfg.LeftOut = func(s service.Service, left []service.LeftOut) { told = append(told, fmt.Sprint(s.Key, left)) }
	if err := b.connect(table); err != nil {
		t.Fatal(err)
	}
	key := service.Key{Namespace: "a", Name: "web"}
	vip := netip.MustParseAddr("10.96.0.10")
	port := func(p service.Protocol, endpoints ...string) service.Port {
		out := service.Port{VIP: vip, Protocol: p, Port: 80}
		for _, e := range endpoints {
			at := netip.MustParseAddrPort(e)
			out.Endpoints = append(out.Endpoints, service.Endpoint{Address: at.Addr(), Port: at.Port()})
		}
		return out
	}
	tunnelOf := func(a netip.Addr) string { return a.String() + ":4789" }
	all := service.Service{
		Key: key, LeftOut: []service.LeftOut{{Protocol: service.TCP, Endpoint: service.Endpoint{Address: netip.MustParseAddr("127.0.0.1"), Port: 80}, Reason: service.Loopback}},
		Ports: []service.Port{
			port(service.TCP, "10.96.0.11:80", "172.11.0.1:80", "172.11.0.2:80", "172.11.4.1:80", tunnelOf(peer), "203.0.113.1:80"),
			port(service.UDP, tunnelOf(peer), self.String()+":4790", "203.0.113.1:4789", peer.String()+":53", "172.11.0.2:4789"),
		},
	}
	stays := service.Service{Key: key, Ports: []service.Port{
		port(service.TCP, "172.11.0.2:80", tunnelOf(peer), "203.0.113.1:80"),
		port(service.UDP, peer.String()+":53", "172.11.0.2:4789"),
	}}
	update := func(s service.Service) {
		t.Helper()
		if err := table.Update(context.Background(), full(map[service.Key]service.Service{key: s})); err != nil {
			t.Fatal(err)
		}
	}
	update(stays)
	want := b.contents(t)
	update(all)
	if diff := cmp.Diff(want, b.contents(t)); diff != "" {
		t.Errorf("flows (-without +with what is to be left out)\n%s", diff)
	}
	counts := map[service.Reason]int{service.Loopback: 1, service.InServiceNetwork: 1, service.IsGateway: 2, service.IsTunnel: 3}
	if diff := cmp.Diff(counts, table.LeftOut()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !all.Equal(table.wanted[key]) {
		t.Error("what was told changed")
	}
	// Neither a new connection nor another change of the service tells it anew.
	b.store.Disconnect()
	if err := b.connect(table); err != nil {
		t.Fatal(err)
	}
	all.Affinity = 10
	update(all)
	if len(told) != 1 || !strings.Contains(told[0], "a/web") || !strings.Contains(told[0], "TCP 127.0.0.1:80 (loopback)") {
		t.Errorf("told %q", told)
	}
	if err := table.Update(context.Background(), full(nil)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[service.Reason]int{}, table.LeftOut(), cmpopts.EquateEmpty()); diff != "" || len(told) != 2 {
		t.Errorf("the service is gone: told %q (-want +got)\n%s", told, diff)
	}
}

// TestGatewaysOfBothFamilies: no node's own address is an endpoint, whichever node's it is and of whichever family.
func TestGatewaysOfBothFamilies(t *testing.T) {
	me := topology.Node{Subnet: netip.MustParsePrefix("172.11.0.0/22"), Subnets: []netip.Prefix{netip.MustParsePrefix("172.11.0.0/22"), netip.MustParsePrefix("fd00:1:2:3::/64")}}
	other := topology.Node{Subnet: netip.MustParsePrefix("172.11.8.0/22"), Subnets: []netip.Prefix{netip.MustParsePrefix("172.11.8.0/22"), netip.MustParsePrefix("fd00:1:2:4::/64")}}
	table := &Table{}
	for i, cluster := range []string{"172.11.0.0/16", "fd00:1:2::/48"} {
		table.view.Nets = append(table.view.Nets, pipeline.Net{Cluster: netip.MustParsePrefix(cluster), Subnet: me.PodSubnets()[i], Gateway: me.Gateways()[i]})
	}
	for _, n := range []topology.Node{me, other} {
		for _, a := range n.Gateways() {
			if got := table.refuses(service.TCP, service.Endpoint{Address: a, Port: 80}); got != service.IsGateway {
				t.Errorf("%s is left out for %q, want %q", a, got, service.IsGateway)
			}
			if got := table.refuses(service.TCP, service.Endpoint{Address: a.Next(), Port: 80}); got != "" {
				t.Errorf("%s is left out for %q", a.Next(), got)
			}
		}
	}
	if got := table.refuses(service.TCP, service.Endpoint{Address: netip.MustParseAddr("203.0.113.1"), Port: 80}); got != "" {
		t.Errorf("an address outside is left out for %q", got)
	}
}
