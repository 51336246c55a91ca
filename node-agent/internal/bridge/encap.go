package bridge

import (
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// NodeEncap is how the tunnel of the bridge with those ports encapsulates by which nodes reach each other; the
// zero value where there is none. An agent, perhaps of another release, has marked it with the type and the UDP port
// that it made it with, and has it ask for its number: its name, and what its row says, anybody may change. wanted
// is the UDP port that all nodes should have.
func NodeEncap(ports []ovs.Port, wanted tunnel.Port) tunnel.Encap {
	for _, p := range ports {
		if made := p.ExternalIDs[keyTunnel]; made != "" && p.OfportRequest == desired.NodeOfport {
			return tunnel.Encap{Type: tunnel.Type(made), Port: madePort(p, wanted)}
		}
	}
	// A release before did not mark it, and made VXLAN.
	for _, p := range ports {
		if p.Name == desired.NodeTunnel && UDPPort(p) != 0 {
			return tunnel.Encap{Type: tunnel.VXLAN, Port: UDPPort(p)}
		}
	}
	return tunnel.Encap{}
}

// madePort is the UDP port that the agent before this one decided on for p: that of its mark. A release that did not
// write it may have run since, and have moved the tunnel to where all nodes should be: there it is, then.
func madePort(p ovs.Port, wanted tunnel.Port) tunnel.Port {
	now := UDPPort(p)
	marked, err := tunnel.ParsePort(p.ExternalIDs[keyTunnelPort])
	if err != nil || now == wanted {
		return now
	}
	return marked
}
