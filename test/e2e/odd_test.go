package e2e

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// odd is a lab for single odd packets: what reaches blue's pods was not to.
type odd struct {
	*lab
	ears *ears
}

func upOdd(t *testing.T) *odd {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b", "blue/b"}})
	return &odd{l, l.listen()}
}

// inner is what blue's pod on n2 would send to the one on n1.
func (o *odd) inner(mark string) []byte {
	o.t.Helper()
	return wire.Ethernet(o.mac("blue/a"), o.mac("blue/b"), wire.TypeIPv4,
		wire.IPv4(o.get("blue/b").IP, o.get("blue/a").IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
}

// encapsulations of a frame that somebody may try with a node, as protocol and payload.
func (o *odd) encapsulations(mark func(kind string) []byte) map[string]func() (uint8, []byte) {
	vni := o.netID("blue")
	vxlan := func(change func(header []byte)) func(string) (uint8, []byte) {
		return func(kind string) (uint8, []byte) {
			b := wire.VXLAN(vni, mark(kind))
			change(b)
			return wire.ProtoUDP, wire.UDP(50000, wire.VXLANPort, b)
		}
	}
	all := map[string]func(kind string) (uint8, []byte){
		"VXLAN":                        vxlan(func([]byte) {}),
		"VXLAN without the VNI's flag": vxlan(func(h []byte) { h[0] = 0 }),
		"VXLAN with a group policy":    vxlan(func(h []byte) { h[0] |= 0x80; h[3] = 1 }),
		"VXLAN with reserved bits":     vxlan(func(h []byte) { h[1], h[7] = 0xff, 0xff }),
		"VXLAN for another protocol":   vxlan(func(h []byte) { h[0] |= 4; h[3] = 3 }), // as VXLAN-GPE
		"Geneve": func(kind string) (uint8, []byte) {
			return wire.ProtoUDP, wire.UDP(50000, 6081, wire.Geneve(vni, mark(kind)))
		},
		"VXLAN to Linux' old port": func(kind string) (uint8, []byte) {
			return wire.ProtoUDP, wire.UDP(50000, 8472, wire.VXLAN(vni, mark(kind)))
		},
		"GRE":  func(kind string) (uint8, []byte) { return wire.ProtoGRE, wire.GRE(vni, mark(kind)) },
		"IPIP": func(kind string) (uint8, []byte) { return wire.ProtoIPIP, mark(kind)[14:] },
	}
	out := map[string]func() (uint8, []byte){}
	for kind, build := range all {
		out[kind] = func() (uint8, []byte) { return build(kind) }
	}
	return out
}
