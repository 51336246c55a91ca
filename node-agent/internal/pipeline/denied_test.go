package pipeline

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// TestGoldenDenied holds what a node has besides where the agent is told of what policies deny:
// flows that count it under its reason, and their meters.
func TestGoldenDenied(t *testing.T) {
	m := withPolicies(with(OVS))
	without := map[string]bool{}
	for _, f := range m.Flows() {
		without[f.String()] = true
	}
	plain := len(m.Meters())
	m.TellsDenied = true
	var b strings.Builder
	told := 0
	for _, f := range m.Flows() {
		if without[f.String()] {
			continue
		}
		told++
		if reason := DecodeCookie(f.Cookie).Reason; reason != map[uint8]Reason{TableDeniedEgress: PolicyEgress, TableDeniedIngress: PolicyIngress}[f.Table] {
			t.Errorf("counts for %s: %s", reason, f)
		}
		b.WriteString(f.String() + "\n")
	}
	meters := m.Meters()
	for _, meter := range meters {
		if !OfDenied(meter.ID) {
			continue
		}
		if meter.ID >= 200000 || OfConnections(meter.ID) || OfTenant(meter.ID) || CountsTooLarge(meter.ID) {
			t.Errorf("a number that others have, or the kernel has not: %s", meter)
		}
		b.WriteString(meter.String() + "\n")
	}
	if told != 2*deniedShares || len(meters) != plain+deniedShares || len(m.Flows()) != len(without)+told {
		t.Errorf("%d flows and %d meters more", told, len(meters)-plain)
	}
	if OfDenied(ConnectionsOf(65279)) || !OfConnections(ConnectionsOf(65279)) {
		t.Error("the meter of the last port's connections is another's")
	}
	goldenFlows(t, "testdata/denied.golden", b.String())
}

// TestReadDenied: whose packet it was, and whom it addressed.
func TestReadDenied(t *testing.T) {
	tuple := []of.Field{of.IP(), valid, of.CTNWSrc(host(addr("172.11.0.2"))), of.CTNWDst(host(addr("172.11.4.9"))), of.CTNWProto(6), of.CTTPDst(8080)}
	with := func(more ...of.Field) of.Match { return of.NewMatch(append(more, tuple...)...) }
	want := Denied{Source: addr("172.11.0.2"), Destination: addr("172.11.4.9"), Protocol: 6, Port: 8080}
	service := want
	service.Egress, service.SentTo = true, netip.MustParseAddrPort("10.96.0.10:80")
	for _, tc := range []struct {
		in        of.PacketIn
		want      Denied
		pod, peer string
	}{
		{of.PacketIn{Table: TableDeniedIngress, Match: with()}, want, "172.11.4.9", "172.11.0.2"},
		{of.PacketIn{Table: TableDeniedEgress, Match: with(of.Metadata(10<<40|96<<32|10<<16|80, ^uint64(0)))}, service, "172.11.0.2", "172.11.4.9"},
	} {
		got, ok := ReadDenied(tc.in)
		if d := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); !ok || d != "" {
			t.Errorf("%t (-want +got):\n%s", ok, d)
		}
		if pod, peer := got.Pod(); pod != addr(tc.pod) || peer != addr(tc.peer) {
			t.Errorf("it is %s's, with %s", pod, peer)
		}
	}
	if d, ok := ReadDenied(of.PacketIn{Table: TableOutput, Match: with()}); ok {
		t.Errorf("too large, and read as %+v", d)
	}
}

// TestTraceDenied: the agent is told of a packet that is denied, by the meter of its pod's share,
// and the packet goes nowhere.
func TestTraceDenied(t *testing.T) {
	m := policyModel(OVS)
	a, b := m.Pods[0], m.Pods[1]
	m.Pods[0].Policy = PodPolicy{Ingress: true, Egress: true}
	m.TellsDenied = true
	br := newBridge(t, m)
	share := func(p Pod) uint32 { return firstDeniedMeter + object(p.Addresses[0])%deniedShares }
	for _, tc := range []struct {
		name     string
		from, to Pod
		reason   Reason
	}{{"to another", a, b, PolicyEgress}, {"from another", b, a, PolicyIngress}} {
		packet := fromPod(tc.from, tc.to.Addresses[0].String(), "") + fmt.Sprintf(",ct_state=new|trk,ct_nw_src=%s,ct_nw_dst=%s,ct_nw_proto=17,ct_tp_src=1,ct_tp_dst=2", tc.from.Addresses[0], tc.to.Addresses[0])
		text := br.AppCtl("ofproto/trace", "br0", packet)
		if dropReason(text) != tc.reason || strings.Contains(text, "output") {
			t.Errorf("%s: for %q\n%s", tc.name, dropReason(text), text)
		}
		if want := fmt.Sprintf("meter:%d", share(a)); !strings.Contains(text, want) || !strings.Contains(text, "controller(reason=1") {
			t.Errorf("%s: not told by %s\n%s", tc.name, want, text)
		}
	}
}
