package underlay

import (
	"context"
	"fmt"
	"net/netip"
)

// strangersMAC is that of the packets that are asked about: nobody has it, so that no bridge has learned it.
const strangersMAC = "02:6b:38:73:00:02"

// tunnelSource is the UDP port that those are sent from: any that tunnels may choose.
const tunnelSource = 50000

// closed is why u's bridge does not hand on what the node sends by its uplink, or what comes in there for the node, as
// the switch itself says: its flows, its ports' VLANs and mirrors decide that together. nil where it does.
func (s *Setup) closed(ctx context.Context, u Underlay, peer netip.AddrPort) (closed, err error) {
	ports, err := s.ovs.Ports(u.Link)
	if err != nil || len(ports) > 2 {
		return nil, err // of several ways outside a spanning tree, or its owner, may have closed this one
	}
	local, err := s.ns.Existing(u.Link)
	if err != nil {
		return nil, err
	}
	uplink, ok := s.ovs.Port(u.Uplink)
	if !ok || uplink.Ofport == 0 {
		return nil, fmt.Errorf("its uplink %s has no number yet", u.Uplink)
	}
	flow := fmt.Sprintf("in_port=LOCAL,dl_src=%s,dl_dst=%s,%s", local.MAC, strangersMAC, packet(u.VTEP, peer.Addr(), peer.Port()))
	leaves, err := s.ovs.Trace(ctx, u.Link, flow)
	if err != nil {
		return nil, err
	}
	if !leaves.Reach(u.Uplink) {
		return keptFrom(u, "what the node sends does not get out by its uplink "+u.Uplink, flow), nil
	}
	flow = fmt.Sprintf("in_port=%d,dl_src=%s,dl_dst=%s,%s", uplink.Ofport, strangersMAC, local.MAC, packet(peer.Addr(), u.VTEP, peer.Port()))
	if in, err := s.comesIn(ctx, u, flow); in || err != nil {
		return nil, err
	}
	// Where somebody has the node in a VLAN of the network's, its packets come in with the same tag.
	vlan := leaves.VLAN()
	in := false
	if vlan != 0 {
		in, err = s.comesIn(ctx, u, fmt.Sprintf("%s,dl_vlan=%d", flow, vlan))
	}
	switch {
	case err != nil:
		return nil, err
	case !in:
		return keptFrom(u, "what comes in by its uplink "+u.Uplink+" for the node does not get to it", flow), nil
	}
	if heard, err := s.ovs.Learned(ctx, u.Link, uplink.Ofport, vlan); heard || err != nil {
		return nil, err
	}
	return fmt.Errorf("underlay: bridge %s sends what the node does by its uplink %s in VLAN %d, and nobody is heard there in that VLAN: have the network carry it, or take the tag away (ovs-vsctl clear port %s tag)", u.Link, u.Uplink, vlan, u.Link), nil
}

// comesIn reports whether a packet of the flow gets to the node.
func (s *Setup) comesIn(ctx context.Context, u Underlay, flow string) (bool, error) {
	comes, err := s.ovs.Trace(ctx, u.Link, flow)
	return comes.Detunnelled() || comes.Reach(u.Link), err
}

// packet is a tunnel's of one node to the other, in the language of flows; where none is known, the question by which
// nodes find each other.
func packet(from, to netip.Addr, port uint16) string {
	if !from.IsValid() || !to.IsValid() {
		return "arp,arp_op=1"
	}
	return fmt.Sprintf("udp,nw_src=%s,nw_dst=%s,nw_ttl=64,udp_src=%d,udp_dst=%d", from, to, tunnelSource, port)
}

// keptFrom says what u's bridge keeps back, and what tells why.
func keptFrom(u Underlay, what, flow string) error {
	return fmt.Errorf("underlay: bridge %s: %s: VLANs of the two ports (ovs-vsctl list port %s %s), a mirror into one of them (ovs-vsctl list mirror), a controller (ovs-vsctl get-controller %s) or flows of somebody's keep it back; ovs-appctl ofproto/trace %s %s says where",
		u.Link, what, u.Link, u.Uplink, u.Link, u.Link, flow)
}
