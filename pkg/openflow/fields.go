package openflow

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// The constructors below are for values that have been validated before: one
// that is given an address of the wrong family or length panics.

// InPort is the port by which the packet came in.
func InPort(port uint32) Field { return uintField(FieldInPort, uint64(port)) }

// EthSrc is the Ethernet source address.
func EthSrc(mac net.HardwareAddr) Field { return macField(FieldEthSrc, mac) }

// EthDst is the Ethernet destination address.
func EthDst(mac net.HardwareAddr) Field { return macField(FieldEthDst, mac) }

// EthSrcMasked is the bits under mask of the Ethernet source address.
func EthSrcMasked(mac, mask net.HardwareAddr) Field { return macFieldMasked(FieldEthSrc, mac, mask) }

// EthDstMasked is the bits under mask of the Ethernet destination address.
func EthDstMasked(mac, mask net.HardwareAddr) Field { return macFieldMasked(FieldEthDst, mac, mask) }

// EthType is the Ethernet type, such as [EtherTypeIPv4].
func EthType(t uint16) Field { return uintField(FieldEthType, uint64(t)) }

// IP is Ethernet type 0x0800, IPv4.
func IP() Field { return EthType(EtherTypeIPv4) }

// IPv6 is Ethernet type 0x86dd.
func IPv6() Field { return EthType(EtherTypeIPv6) }

// ARP is Ethernet type 0x0806.
func ARP() Field { return EthType(EtherTypeARP) }

// VLAN is the VLAN identifier (12 bits) of a tagged packet.
func VLAN(vid uint16) Field { return uintField(FieldVLANVID, vlanPresent|uint64(vid)) }

// Untagged matches packets without a VLAN tag.
func Untagged() Field { return uintField(FieldVLANVID, 0) }

// vlanPresent is OFPVID_PRESENT (OpenFlow 1.4, section 7.2.3.7).
const vlanPresent = 0x1000

// ARPOp is the ARP operation: 1 request, 2 reply (RFC 826).
func ARPOp(op uint16) Field { return uintField(FieldARPOp, uint64(op)) }

// ARPSPA is the ARP source protocol address.
func ARPSPA(p netip.Prefix) Field { return prefixField(FieldARPSPA, p) }

// ARPTPA is the ARP target protocol address.
func ARPTPA(p netip.Prefix) Field { return prefixField(FieldARPTPA, p) }

// ARPSHA is the ARP source hardware address.
func ARPSHA(mac net.HardwareAddr) Field { return macField(FieldARPSHA, mac) }

// ARPTHA is the ARP target hardware address.
func ARPTHA(mac net.HardwareAddr) Field { return macField(FieldARPTHA, mac) }

// IPv4Src is the IPv4 source address.
func IPv4Src(p netip.Prefix) Field { return prefixField(FieldIPv4Src, p) }

// IPv4Dst is the IPv4 destination address.
func IPv4Dst(p netip.Prefix) Field { return prefixField(FieldIPv4Dst, p) }

// IPv6Src is the IPv6 source address.
func IPv6Src(p netip.Prefix) Field { return prefixField(FieldIPv6Src, p) }

// IPv6Dst is the IPv6 destination address.
func IPv6Dst(p netip.Prefix) Field { return prefixField(FieldIPv6Dst, p) }

// IPProto is the IP protocol, such as [ProtoTCP].
func IPProto(p uint8) Field { return uintField(FieldIPProto, uint64(p)) }

// IPTTL is the IP time to live or hop limit.
func IPTTL(ttl uint8) Field { return uintField(FieldIPTTL, uint64(ttl)) }

// IPDSCP is the differentiated services code point, 6 bits (RFC 2474).
func IPDSCP(dscp uint8) Field { return uintField(FieldIPDSCP, uint64(dscp)) }

// IPECN is the explicit congestion notification, 2 bits (RFC 3168).
func IPECN(ecn uint8) Field { return uintField(FieldIPECN, uint64(ecn)) }

// Frag is a kind of IP fragment, for [IPFrag].
type Frag uint8

// Kinds of fragments, with the names of ovs-ofctl(8).
const (
	FragNo       Frag = iota // not a fragment
	FragAny                  // a fragment ("yes")
	FragFirst                // a fragment with offset 0
	FragLater                // a fragment with another offset
	FragNotLater             // no fragment or a first one: it has the layer 4 header
)

// fragBits are value and mask by kind: bit 0 is set for any fragment, bit 1 for
// a later one (Open vSwitch, NXM_NX_IP_FRAG in meta-flow.h).
var fragBits = [...]struct {
	value, mask uint64
	name        string
}{
	FragNo:       {0, 3, "no"},
	FragAny:      {1, 1, "yes"},
	FragFirst:    {1, 3, "first"},
	FragLater:    {3, 3, "later"},
	FragNotLater: {0, 2, "not_later"},
}

// IPFrag is whether the packet is an IP fragment, and which.
func IPFrag(k Frag) Field {
	return uintFieldMasked(FieldIPFrag, fragBits[k].value, fragBits[k].mask)
}

// ICMPType is the ICMP (IPv4) type.
func ICMPType(t uint8) Field { return uintField(FieldICMPType, uint64(t)) }

// ICMPCode is the ICMP (IPv4) code.
func ICMPCode(c uint8) Field { return uintField(FieldICMPCode, uint64(c)) }

// ICMPv6Type is the ICMPv6 type.
func ICMPv6Type(t uint8) Field { return uintField(FieldICMPv6Type, uint64(t)) }

// ICMPv6Code is the ICMPv6 code.
func ICMPv6Code(c uint8) Field { return uintField(FieldICMPv6Code, uint64(c)) }

// TCPSrc is the TCP source port.
func TCPSrc(port uint16) Field { return uintField(FieldTCPSrc, uint64(port)) }

// TCPDst is the TCP destination port.
func TCPDst(port uint16) Field { return uintField(FieldTCPDst, uint64(port)) }

// TCPSrcMasked is the bits under mask of the TCP source port.
func TCPSrcMasked(port, mask uint16) Field {
	return uintFieldMasked(FieldTCPSrc, uint64(port), uint64(mask))
}

// TCPDstMasked is the bits under mask of the TCP destination port.
func TCPDstMasked(port, mask uint16) Field {
	return uintFieldMasked(FieldTCPDst, uint64(port), uint64(mask))
}

// TCPFlags is the bits under mask of the TCP flags, 12 bits (RFC 9293): 0x02 is SYN, 0x10 ACK.
func TCPFlags(v, mask uint16) Field {
	return uintFieldMasked(FieldTCPFlags, uint64(v), uint64(mask))
}

// UDPSrc is the UDP source port.
func UDPSrc(port uint16) Field { return uintField(FieldUDPSrc, uint64(port)) }

// UDPDst is the UDP destination port.
func UDPDst(port uint16) Field { return uintField(FieldUDPDst, uint64(port)) }

// UDPSrcMasked is the bits under mask of the UDP source port.
func UDPSrcMasked(port, mask uint16) Field {
	return uintFieldMasked(FieldUDPSrc, uint64(port), uint64(mask))
}

// UDPDstMasked is the bits under mask of the UDP destination port.
func UDPDstMasked(port, mask uint16) Field {
	return uintFieldMasked(FieldUDPDst, uint64(port), uint64(mask))
}

// SCTPSrc is the SCTP source port.
func SCTPSrc(port uint16) Field { return uintField(FieldSCTPSrc, uint64(port)) }

// SCTPDst is the SCTP destination port.
func SCTPDst(port uint16) Field { return uintField(FieldSCTPDst, uint64(port)) }

// TunnelID is the tunnel key: for VXLAN the 24-bit VNI.
func TunnelID(id uint64) Field { return uintField(FieldTunnelID, id) }

// TunnelIDMasked is the bits under mask of the tunnel key.
func TunnelIDMasked(id, mask uint64) Field { return uintFieldMasked(FieldTunnelID, id, mask) }

// TunnelSrc is the outer IPv4 source address.
func TunnelSrc(a netip.Addr) Field { return addrField(FieldTunnelSrc, a) }

// TunnelDst is the outer IPv4 destination address.
func TunnelDst(a netip.Addr) Field { return addrField(FieldTunnelDst, a) }

// Reg is register n, 0 to 15.
func Reg(n int, v uint32) Field { return uintField(FieldReg(n), uint64(v)) }

// RegMasked is the bits under mask of register n, 0 to 15.
func RegMasked(n int, v, mask uint32) Field {
	return uintFieldMasked(FieldReg(n), uint64(v), uint64(mask))
}

// Metadata is the OpenFlow metadata field.
func Metadata(v, mask uint64) Field { return uintFieldMasked(FieldMetadata, v, mask) }

// PktMark is the bits under mask of the packet mark (skb mark on the kernel datapath).
func PktMark(v, mask uint32) Field { return uintFieldMasked(FieldPktMark, uint64(v), uint64(mask)) }

// Bits of ct_state (Open vSwitch, ovs-fields(7)).
const (
	CTNew         uint32 = 0x01
	CTEstablished uint32 = 0x02
	CTRelated     uint32 = 0x04
	CTReply       uint32 = 0x08
	CTInvalid     uint32 = 0x10
	CTTracked     uint32 = 0x20
	CTSNAT        uint32 = 0x40
	CTDNAT        uint32 = 0x80
)

// CTState is the bits under mask of the connection tracking state. The switch
// refuses bits other than the CT constants.
func CTState(v, mask uint32) Field { return uintFieldMasked(FieldCTState, uint64(v), uint64(mask)) }

// CTZone is the connection tracking zone.
func CTZone(zone uint16) Field { return uintField(FieldCTZone, uint64(zone)) }

// CTMark is the bits under mask of the connection's mark.
func CTMark(v, mask uint32) Field { return uintFieldMasked(FieldCTMark, uint64(v), uint64(mask)) }

// CTLabel is the bits under mask of the connection's label, 128 bits given as
// high and low halves.
func CTLabel(hi, lo, maskHi, maskLo uint64) Field {
	var v, m [16]byte
	binary.BigEndian.PutUint64(v[:8], hi)
	binary.BigEndian.PutUint64(v[8:], lo)
	binary.BigEndian.PutUint64(m[:8], maskHi)
	binary.BigEndian.PutUint64(m[8:], maskLo)
	return newField(FieldCTLabel, v[:], m[:])
}

// CTNWProto is the IP protocol of the connection's original direction.
func CTNWProto(p uint8) Field { return uintField(FieldCTNWProto, uint64(p)) }

// CTNWSrc is the IPv4 source address of the connection's original direction.
func CTNWSrc(p netip.Prefix) Field { return prefixField(FieldCTNWSrc, p) }

// CTNWDst is the IPv4 destination address of the connection's original direction.
func CTNWDst(p netip.Prefix) Field { return prefixField(FieldCTNWDst, p) }

// CTNWSrcMasked is the bits under mask of the IPv4 source address of the connection's
// original direction; they need not be a prefix.
func CTNWSrcMasked(a, mask netip.Addr) Field { return addrFieldMasked(FieldCTNWSrc, a, mask) }

// CTNWDstMasked is the bits under mask of the IPv4 destination address of the connection's
// original direction; they need not be a prefix.
func CTNWDstMasked(a, mask netip.Addr) Field { return addrFieldMasked(FieldCTNWDst, a, mask) }

// CTTPSrc is the source port of the connection's original direction, beside its [CTNWProto].
func CTTPSrc(port uint16) Field { return uintField(FieldCTTPSrc, uint64(port)) }

// CTTPDst is the destination port of the connection's original direction, beside its [CTNWProto].
func CTTPDst(port uint16) Field { return uintField(FieldCTTPDst, uint64(port)) }

// CTTPDstMasked is the bits under mask of that port.
func CTTPDstMasked(port, mask uint16) Field {
	return uintFieldMasked(FieldCTTPDst, uint64(port), uint64(mask))
}

// ConjID is the identifier of a conjunctive match (ovs-fields(7)).
func ConjID(id uint32) Field { return uintField(FieldConjID, uint64(id)) }
