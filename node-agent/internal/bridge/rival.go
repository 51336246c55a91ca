package bridge

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// flowBased is the value of a tunnel's option that flows decide (ovs-vswitchd.conf.db(5)).
const flowBased = "flow"

// findRival names a port, on any bridge, that gets packets of one of spec's tunnels in its place; nil where none does.
// Open vSwitch gives a packet to the tunnel that says most about it: its number first, then the sender, then the address
// that it came to (tnl_find, ofproto/tunnel.c). Ours say nothing of the first two.
func findRival(sw Switch, spec Spec) (rival, err error) {
	for _, t := range spec.Tunnels {
		others, err := sw.PortsOfType(string(t.Type))
		if err != nil {
			return nil, err
		}
		for _, p := range others {
			if own := p.Bridge == spec.Name && p.Name == t.Name; own || p.Ofport == 0 {
				continue // Open vSwitch refused it, or has not taken it up
			}
			// Each datapath has its own tunnels.
			if b, ok := sw.Bridge(p.Bridge); ok && cmp.Or(b.DatapathType, ovs.DatapathSystem) == spec.Datapath && takes(p, spec, t) {
				return fmt.Errorf("tunnel %s of bridge %s: Open vSwitch gives packets of other nodes to the port %s of bridge %s, which has the same UDP port %s: give that another (ovs-vsctl set interface %s options:dst_port=PORT), or delete it (ovs-vsctl del-port %s %s)",
					t.Name, spec.Name, p.Name, p.Bridge, t.Port, p.Name, p.Bridge, p.Name), nil
			}
		}
	}
	return nil, nil
}

// takes reports whether packets that other nodes send to tunnel t are p's.
func takes(p ovs.Port, spec Spec, t desired.Tunnel) bool {
	if UDPPort(p) != t.Port {
		return false
	}
	local, localErr := netip.ParseAddr(p.Options["local_ip"])
	if localErr == nil && local != spec.VTEP {
		return false
	}
	key, ok := p.Options["in_key"]
	if !ok {
		key = p.Options["key"]
	}
	if key == "" {
		key = "0"
	}
	if key != flowBased {
		vni, err := strconv.ParseUint(key, 0, 32)
		if err != nil || spec.Carries != nil && !spec.Carries(uint32(vni)) {
			return false
		}
	}
	remote, err := netip.ParseAddr(p.Options["remote_ip"])
	switch {
	case err == nil:
		return spec.Peer == nil || spec.Peer(remote)
	case p.Options["remote_ip"] != flowBased:
		return false // it is no tunnel
	}
	return key != flowBased || localErr == nil && !spec.TunnelSource.IsValid()
}
