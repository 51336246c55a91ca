package openflow

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// The text here is that of ovs-ofctl dump-flows --no-names (Open vSwitch,
// lib/match.c and lib/meta-flow.c), and add-flow reads it back.

var ctStateNames = [...]string{"new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"}

var tcpFlagNames = [...]string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"}

// setNames are the names in set_field where they differ from those in a match.
var setNames = map[FieldID]string{
	FieldEthSrc: "eth_src", FieldEthDst: "eth_dst", FieldEthType: "eth_type",
	FieldVLANVID: "vlan_vid", FieldVLANPCP: "vlan_pcp", FieldIPv4Src: "ip_src", FieldIPv4Dst: "ip_dst",
	FieldTCPSrc: "tcp_src", FieldTCPDst: "tcp_dst", FieldUDPSrc: "udp_src", FieldUDPDst: "udp_dst",
	FieldSCTPSrc: "sctp_src", FieldSCTPDst: "sctp_dst", FieldIPDSCP: "ip_dscp",
	FieldInPort: "in_port_oxm", FieldIPFrag: "ip_frag",
	FieldICMPv6Type: "icmpv6_type", FieldICMPv6Code: "icmpv6_code",
}

func setName(id FieldID) string {
	if n, ok := setNames[id]; ok {
		return n
	}
	return fieldInfos[id].name
}

// String is the field as in a match: "reg0=0x5/0xff".
func (f Field) String() string {
	switch f.id {
	case 0:
		return "<none>"
	case FieldVLANVID:
		return f.vlanText()
	case FieldIPDSCP:
		return fmt.Sprintf("nw_tos=%d", f.Uint64()<<2) // the whole byte
	}
	return fieldInfos[f.id].name + "=" + f.valueText()
}

// vlanText writes a VLAN match: by its number when that is what it is about,
// else by the tag's bits.
func (f Field) vlanText() string {
	v := f.Uint64()
	m := beUint(f.mask[:2])
	switch {
	case f.Exact() && v&vlanPresent != 0:
		return fmt.Sprintf("dl_vlan=%d", v&^vlanPresent)
	default:
		return fmt.Sprintf("vlan_tci=0x%04x/0x%04x", v, m)
	}
}

// valueText is the value, with its mask where it has one.
func (f Field) valueText() string {
	switch fieldInfos[f.id].form {
	case formMAC:
		return f.maskedText(func(b []byte) string { return net.HardwareAddr(b).String() })
	case formIPv4, formIPv6:
		return f.addrText()
	case formPort:
		return portText(uint32(f.Uint64()))
	case formFrag:
		return f.fragText()
	case formCTState:
		return f.flagsText(ctStateNames[:])
	case formTCPFlags:
		return f.flagsText(tcpFlagNames[:])
	case formEthType:
		return fmt.Sprintf("0x%04x", f.Uint64())
	case formDec:
		return strconv.FormatUint(f.Uint64(), 10)
	case formTPPort, formVLAN:
		if f.Exact() {
			return strconv.FormatUint(f.Uint64(), 10)
		}
		return f.maskedText(func(b []byte) string { return fmt.Sprintf("%#x", beUint(b)) })
	}
	if f.id == FieldIPv6Label {
		return f.maskedText(func(b []byte) string { return fmt.Sprintf("0x%05x", beUint(b)) })
	}
	return f.maskedText(hexText)
}

func (f Field) maskedText(format func([]byte) string) string {
	n := f.bytes()
	s := format(f.value[:n])
	if !f.Exact() {
		s += "/" + format(f.mask[:n])
	}
	return s
}

// hexText is the number as C's %#x writes it: 0 has no 0x.
func hexText(b []byte) string {
	s := strings.TrimLeft(hex.EncodeToString(b), "0")
	if s == "" {
		return "0"
	}
	return "0x" + s
}

func (f Field) addrText() string {
	n := f.bytes()
	a, _ := netip.AddrFromSlice(f.value[:n])
	ones, bits := net.IPMask(f.mask[:n]).Size()
	switch {
	case f.Exact():
		return a.String()
	case bits == 0: // not a prefix
		m, _ := netip.AddrFromSlice(f.mask[:n])
		return a.String() + "/" + m.String()
	}
	return fmt.Sprintf("%s/%d", a, ones)
}

func (f Field) fragText() string {
	for _, k := range fragBits {
		if uint64(f.value[0]) == k.value && uint64(f.mask[0]) == k.mask {
			return k.name
		}
	}
	return fmt.Sprintf("%#x/%#x", f.value[0], f.mask[0])
}

// flagsText writes bits by name: "+trk-new", or "est|trk" when all bits count.
func (f Field) flagsText(names []string) string {
	n := f.bytes()
	v, m := f.Uint64(), beUint(f.mask[:n])
	all := m == 1<<len(names)-1
	var s strings.Builder
	for bit := range n * 8 {
		if m>>bit&1 == 0 {
			continue
		}
		set := v>>bit&1 != 0
		if all && !set {
			continue
		}
		switch {
		case all && s.Len() > 0:
			s.WriteByte('|')
		case all:
		case set:
			s.WriteByte('+')
		default:
			s.WriteByte('-')
		}
		if bit < len(names) {
			s.WriteString(names[bit])
		} else {
			fmt.Fprintf(&s, "[%#x]", uint64(1)<<bit)
		}
	}
	if s.Len() == 0 {
		return "0"
	}
	return s.String()
}

var portNames = map[uint32]string{
	PortInPort: "IN_PORT", PortTable: "TABLE", PortNormal: "NORMAL", PortFlood: "FLOOD",
	PortAll: "ALL", PortController: "CONTROLLER", PortLocal: "LOCAL", PortAny: "ANY",
}

func portText(port uint32) string {
	if n, ok := portNames[port]; ok {
		return n
	}
	return strconv.FormatUint(uint64(port), 10)
}

// textOrder is the order of the fields in a match's text, after the protocol.
var textOrder = []FieldID{
	FieldReg0, FieldReg1, FieldReg2, FieldReg3, FieldReg4, FieldReg5, FieldReg6, FieldReg7,
	FieldReg8, FieldReg9, FieldReg10, FieldReg11, FieldReg12, FieldReg13, FieldReg14, FieldReg15,
	FieldTunnelID, FieldTunnelSrc, FieldTunnelDst, FieldTunnelIPv6Src, FieldTunnelIPv6Dst, FieldMetadata, FieldInPort, FieldVLANVID, FieldVLANPCP,
	FieldEthSrc, FieldEthDst, FieldEthType, FieldIPv6Src, FieldIPv6Dst, FieldIPv6Label,
	FieldARPSPA, FieldARPTPA, FieldIPv4Src, FieldIPv4Dst, FieldARPOp, FieldIPProto, FieldARPSHA, FieldARPTHA,
	FieldIPDSCP, FieldIPECN, FieldIPTTL, FieldIPFrag, FieldICMPType, FieldICMPCode,
	FieldICMPv6Type, FieldICMPv6Code, FieldNDTarget, FieldNDSLL, FieldNDTLL, FieldNDReserved, FieldNDOptionsType,
	FieldTCPSrc, FieldUDPSrc, FieldSCTPSrc, FieldTCPDst, FieldUDPDst, FieldSCTPDst, FieldTCPFlags,
}

// textFirst is the order of the fields before the protocol.
var textFirst = []FieldID{
	FieldPktMark, FieldDPHash, FieldConjID, FieldCTState, FieldCTZone, FieldCTMark, FieldCTLabel,
	FieldCTNWSrc, FieldCTIPv6Src, FieldCTNWDst, FieldCTIPv6Dst, FieldCTNWProto, FieldCTTPSrc, FieldCTTPDst,
}

// String is the match as ovs-ofctl writes it, "tcp,in_port=3,nw_dst=10.0.0.1";
// empty for one that matches everything.
func (m Match) String() string {
	fields, raw := m.split()
	var by [fieldEnd]*Field
	for i := range fields {
		by[fields[i].id] = &fields[i]
	}
	var parts []string
	add := func(ids []FieldID) {
		for _, id := range ids {
			if by[id] != nil {
				parts = append(parts, by[id].String())
			}
		}
	}
	add(textFirst)
	parts = append(parts, protocolText(&by)...)
	add(textOrder)
	if raw != "" {
		parts = append(parts, "oxm(0x"+hex.EncodeToString([]byte(raw))+")")
	}
	return strings.Join(parts, ",")
}

// protocolText takes Ethernet type and IP protocol out of the fields where they
// have a short name, such as "tcp".
func protocolText(by *[fieldEnd]*Field) []string {
	if by[FieldEthType] == nil {
		return nil
	}
	etherType := uint16(by[FieldEthType].Uint64())
	suffix := ""
	switch etherType {
	case EtherTypeARP:
		by[FieldEthType] = nil
		return []string{"arp"}
	case EtherTypeIPv4:
	case EtherTypeIPv6:
		suffix = "6"
	default:
		return nil
	}
	by[FieldEthType] = nil
	name := "ip" + strings.Replace(suffix, "6", "v6", 1)
	if p := by[FieldIPProto]; p != nil {
		if short := protocolName(etherType, uint8(p.Uint64())); short != "" {
			by[FieldIPProto] = nil
			name = short + suffix
		}
	}
	return []string{name}
}

func protocolName(etherType uint16, proto uint8) string {
	switch {
	case proto == ProtoTCP:
		return "tcp"
	case proto == ProtoUDP:
		return "udp"
	case proto == ProtoSCTP:
		return "sctp"
	case proto == ProtoICMP && etherType == EtherTypeIPv4, proto == ProtoICMPv6 && etherType == EtherTypeIPv6:
		return "icmp"
	}
	return ""
}
