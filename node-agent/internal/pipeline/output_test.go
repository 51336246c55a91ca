package pipeline

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/toobig"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// TestReadTooLarge: only a request to a service was sent to another address than
// it has now.
func TestReadTooLarge(t *testing.T) {
	base := []of.Field{of.InPort(12), regPathMTU.is(1350), regTooLarge.is(1)}
	with := func(more ...of.Field) of.Match { return of.NewMatch(append(more, base...)...) }
	state := func(s uint32) of.Field { return of.CTState(s, s) }
	tuple := []of.Field{of.IP(), of.CTNWDst(host(addr("10.96.0.10"))), of.CTNWProto(6), of.CTTPDst(80)}
	translated := netip.MustParseAddrPort("10.96.0.10:80")
	for name, tc := range map[string]struct {
		match  of.Match
		sentTo netip.AddrPort
	}{
		"not tracked":           {with(), netip.AddrPort{}},
		"not translated":        {with(append(tuple, state(of.CTTracked|of.CTNew))...), netip.AddrPort{}},
		"a first request":       {with(append(tuple, state(of.CTTracked|of.CTNew|of.CTDNAT))...), translated},
		"a later request":       {with(append(tuple, state(of.CTTracked|of.CTEstablished|of.CTDNAT))...), translated},
		"an answer":             {with(append(tuple, state(of.CTTracked|of.CTEstablished|of.CTReply|of.CTDNAT))...), netip.AddrPort{}},
		"judged by policies":    {with(of.Metadata(10<<40|96<<32|10<<16|80, ^uint64(0)), state(of.CTTracked|of.CTEstablished)), translated},
		"judged, to no service": {with(state(of.CTTracked|of.CTEstablished), of.Metadata(0, ^uint64(0))), netip.AddrPort{}},
		"without its tuple":     {with(of.IP(), state(of.CTTracked|of.CTDNAT)), netip.AddrPort{}},
	} {
		got, port, ok := ReadTooLarge(of.PacketIn{Table: TableOutput, Match: tc.match, Data: []byte{1}})
		want := toobig.Packet{Frame: []byte{1}, MTU: 1350, SentTo: tc.sentTo}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); !ok || port != 12 || d != "" {
			t.Errorf("%s: port %d, %t (-want +got):\n%s", name, port, ok, d)
		}
	}
	for name, in := range map[string]of.PacketIn{
		"of another table": {Table: TableRoute, Match: with()},
		"without an MTU":   {Table: TableOutput, Match: of.NewMatch(of.InPort(12))},
		"without a port":   {Table: TableOutput, Match: of.NewMatch(regPathMTU.is(1350))},
	} {
		if p, _, ok := ReadTooLarge(in); ok {
			t.Errorf("%s: read as %+v", name, p)
		}
	}
}
