package desired

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Nodes reach each other by one tunnel; what is asked of several counts all of them.
func TestTunnels(t *testing.T) {
	one := NodeTunnels(ip("198.18.0.1"), 8472)
	if len(one) != 1 || one.Named(NodeTunnel).Port != 8472 || one.Overhead() != 50 || one[0].Type.KeyBits() != 24 {
		t.Errorf("%+v", one)
	}
	six := NodeTunnels(netip.MustParseAddr("2001:db8::1"), 4789)[0]
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
		"no probes":                                    {TunnelPort{Record: 4790}, 4790, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, why := tc.p.Decide()
			if got != tc.want {
				t.Errorf("port %d, want %d", got, tc.want)
			}
			if (why == nil) != (tc.say == "") || why != nil && !strings.Contains(why.Error(), tc.say) {
				t.Errorf("not ready because %v, want %q", why, tc.say)
			}
		})
	}
}
