package desired

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Nodes reach each other by one tunnel; what is asked of several counts all of them.
func TestTunnels(t *testing.T) {
	one := NodeTunnels(ip("198.18.0.1"), tunnel.Encap{Type: tunnel.VXLAN, Port: 8472})
	if len(one) != 1 || one.Named(NodeTunnel).Port != 8472 || one.Overhead() != 50 || one[0].Type.KeyBits() != 24 {
		t.Errorf("%+v", one)
	}
	six := NodeTunnels(netip.MustParseAddr("2001:db8::1"), tunnel.Encap{Type: tunnel.VXLAN, Port: 4789})[0]
	six.Name = "vxlan6"
	twin := six
	twin.Name, twin.Family = "vxlan1", tunnel.IPv4
	several := append(one, six, twin)
	if got := several.UDPPorts(); !slices.Equal(got, []tunnel.Port{4789, 8472}) || several.Overhead() != 70 || several.Named("vxlan6") != six {
		t.Errorf("%+v: UDP ports %d, overhead %d", several, got, several.Overhead())
	}
	var none Tunnels
	if none.Overhead() != 0 || len(none.UDPPorts()) != 0 || none.Named(NodeTunnel) != (Tunnel{}) {
		t.Errorf("of none: overhead %d, ports %d", none.Overhead(), none.UDPPorts())
	}
}

func TestTunnelPort(t *testing.T) {
	for name, tc := range map[string]struct {
		p    TunnelPort
		want tunnel.Port
		say  string // in why; empty for a node that is ready
	}{
		"nothing is said":                              {TunnelPort{}, 4789, ""},
		"nothing is said, and pods are there":          {TunnelPort{Has: 4789, Pods: 3}, 4789, ""},
		"the record":                                   {TunnelPort{Record: 8472}, 8472, ""},
		"the flag, as in the release before":           {TunnelPort{Flag: 8472, Has: 8472, Pods: 3}, 8472, ""},
		"the flag of a new node":                       {TunnelPort{Flag: 8472}, 8472, ""},
		"another flag than before, as ever":            {TunnelPort{Flag: 8472, Has: 4789, Pods: 3}, 8472, ""},
		"both":                                         {TunnelPort{Record: 8472, Flag: 8472, Has: 8472, Pods: 3}, 8472, ""},
		"the record says what nodes have":              {TunnelPort{Record: 8472, Has: 8472, Pods: 3}, 8472, ""},
		"the record says the default":                  {TunnelPort{Record: 4789, Has: 4789, Pods: 3}, 4789, ""},
		"the record changes on a node without pods":    {TunnelPort{Record: 8472, Has: 4789}, 8472, ""},
		"the record changes on a node with pods":       {TunnelPort{Record: 8472, Has: 4789, Pods: 3}, 4789, "put 4789 back, or drain"},
		"the record changes, and the agent is told":    {TunnelPort{Record: 8472, Flag: 8472, Has: 4789, Pods: 3}, 8472, ""},
		"the record loses its port":                    {TunnelPort{Has: 8472, Pods: 3}, 8472, "names no VXLANPort"},
		"the flag goes before the record says it":      {TunnelPort{Has: 8472, Pods: 3}, 8472, "write VXLANPort 8472 into it"},
		"they contradict each other on a new node":     {TunnelPort{Record: 8472, Flag: 4789}, 8472, "start the agent without it"},
		"they contradict, and the node has the record": {TunnelPort{Record: 8472, Flag: 4789, Has: 8472, Pods: 3}, 8472, "--vxlan-port 4789"},
		"they contradict, and the node has the flag":   {TunnelPort{Record: 8472, Flag: 4789, Has: 4789, Pods: 3}, 4789, "VXLANPort 8472"},
		"they contradict, and the node has neither":    {TunnelPort{Record: 8472, Flag: 4789, Has: 5000, Pods: 3}, 5000, "VXLANPort 8472"},
		"the record has the port of the probes":        {TunnelPort{Record: 4790, Probes: 4790}, 0, "--mtu-probe-port"},
		"a node that this type is made for":            {TunnelPort{Has: 4789, HasType: tunnel.VXLAN, Pods: 3}, 4789, ""},
		"a type of another release, and pods":          {TunnelPort{Record: 4789, Has: 4789, HasType: "geneve", Pods: 3}, 0, "run the release that made them, or drain"},
		"such a type, and the port is said twice":      {TunnelPort{Record: 8472, Flag: 8472, Has: 4789, HasType: "geneve", Pods: 3}, 0, "geneve"},
		"no probes": {TunnelPort{Record: 4790}, 4790, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, why := tc.p.Decide()
			if got.Port != tc.want || got.Port != 0 && got.Type != cmp.Or(tc.p.HasType, tunnel.VXLAN) {
				t.Errorf("%s, want port %d", got, tc.want)
			}
			if (why == nil) != (tc.say == "") || why != nil && !strings.Contains(why.Error(), tc.say) {
				t.Errorf("not ready because %v, want %q", why, tc.say)
			}
		})
	}
}

// TestTunnelTypeChanges: a release that makes tunnels of another type than the one before leaves a node with pods
// what it has, whatever is said about the port, says so, and gives the others its own.
func TestTunnelTypeChanges(t *testing.T) {
	const newer = tunnel.Type("geneve")
	for name, tc := range map[string]struct {
		p    TunnelPort
		want tunnel.Encap
		say  string
	}{
		"a new node":                        {TunnelPort{Record: 6081}, tunnel.Encap{Type: newer, Port: 6081}, ""},
		"no pods":                           {TunnelPort{Record: 6081, Has: 4789, HasType: tunnel.VXLAN}, tunnel.Encap{Type: newer, Port: 6081}, ""},
		"pods":                              {TunnelPort{Record: 4789, Has: 4789, HasType: tunnel.VXLAN, Pods: 2}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}, "of the type vxlan, and 2 pods use them"},
		"pods, and the record has a port":   {TunnelPort{Record: 6081, Has: 4789, HasType: tunnel.VXLAN, Pods: 2}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}, "put 4789 back, or drain"},
		"pods, and the port is said twice":  {TunnelPort{Record: 6081, Flag: 6081, Has: 4789, HasType: tunnel.VXLAN, Pods: 2}, tunnel.Encap{Type: tunnel.VXLAN, Port: 6081}, "drain the node"},
		"pods, and the probes' port wanted": {TunnelPort{Record: 4790, Flag: 4790, Probes: 4790, Has: 4789, HasType: tunnel.VXLAN, Pods: 2}, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}, "--mtu-probe-port"},
	} {
		got, why := tc.p.decide(newer)
		if got != tc.want || (why == nil) != (tc.say == "") || why != nil && !strings.Contains(why.Error(), tc.say) {
			t.Errorf("%s: %s, not ready because %v; want %s, %q", name, got, why, tc.want, tc.say)
		}
	}
}
