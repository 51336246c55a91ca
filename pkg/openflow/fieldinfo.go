package openflow

import "strconv"

// OXM classes (OpenFlow 1.4, section 7.2.3.3; Nicira's from Open vSwitch
// include/openvswitch/meta-flow.h).
const (
	classNXM0         = 0x0000     // NXM_OF_*
	classNXM1         = 0x0001     // NXM_NX_*
	classEricsson     = 0x1000     // ERICOXM_OF_*
	classOpenFlow     = 0x8000     // OXM_OF_*
	classExperimenter = 0xffff     // followed by an experimenter id of 4 bytes
	experimenterONF   = 0x4f4e4600 // of ONFOXM_ET_*
)

// oxm is the header of an OXM without its mask bit and length: class, field
// and, for class 0xffff, the experimenter.
type oxm struct {
	class        uint16
	field        uint8
	experimenter uint32
}

func of(n uint8) oxm    { return oxm{class: classOpenFlow, field: n} }
func nxmOF(n uint8) oxm { return oxm{class: classNXM0, field: n} }
func nxmNX(n uint8) oxm { return oxm{class: classNXM1, field: n} }
func ericsson(n uint8) oxm {
	return oxm{class: classEricsson, field: n}
}
func onfExp(n uint8) oxm {
	return oxm{class: classExperimenter, field: n, experimenter: experimenterONF}
}

// textForm says how a field's value is written by ovs-ofctl.
type textForm uint8

const (
	formHex textForm = iota
	formDec
	formMAC
	formIPv4
	formIPv6
	formPort
	formFrag
	formCTState
	formTCPFlags
	formVLAN
	formEthType // four hexadecimal digits at least
	formTPPort  // decimal when exact, hexadecimal when masked
)

// fieldInfo is what is to be known about a field.
type fieldInfo struct {
	name  string // in a match
	nxm   string // in a range
	bits  int
	bytes int // on the wire
	wire  oxm // as Open vSwitch writes it in OpenFlow 1.4
	also  []oxm
	form  textForm
	// noMask is set for fields that the switch takes only whole or not at all.
	noMask bool
	// What must be matched with it. ethTypes and ndTypes: one of these, the first by default.
	ethTypes []uint16
	ipProto  uint8   // 0: any
	ndTypes  []uint8 // ICMPv6 types, with code 0
	// tracked is a ct_state that only valid connections have.
	tracked bool
	// ctProto is ct_nw_proto, which has no default. The switch would take the field without
	// it, and forget the field.
	ctProto bool
}

// Ethernet types and IP protocols (IANA registries).
const (
	EtherTypeIPv4 uint16 = 0x0800
	EtherTypeARP  uint16 = 0x0806
	EtherTypeIPv6 uint16 = 0x86dd

	ProtoICMP   uint8 = 1
	ProtoTCP    uint8 = 6
	ProtoUDP    uint8 = 17
	ProtoICMPv6 uint8 = 58
	ProtoSCTP   uint8 = 132

	// Types of ICMPv6 (RFC 4861).
	neighborSolicitation  uint8 = 135
	neighborAdvertisement uint8 = 136
)

var (
	onlyIPv4 = []uint16{EtherTypeIPv4}
	onlyIPv6 = []uint16{EtherTypeIPv6}
	anyIP    = []uint16{EtherTypeIPv4, EtherTypeIPv6}
	onlyARP  = []uint16{EtherTypeARP}

	anyND     = []uint8{neighborSolicitation, neighborAdvertisement}
	onlySolic = []uint8{neighborSolicitation}
	onlyAdver = []uint8{neighborAdvertisement}
)

// fieldInfos is indexed by FieldID, and fullMasks has the masks under which
// every bit of a field counts.
var (
	fieldInfos = completeFieldInfos()
	fullMasks  = buildFullMasks()
)

// fieldByOXM finds a field by any header that stands for it.
var fieldByOXM = buildFieldByOXM()

// fieldTable has the fields by FieldID, the registers aside. The numbers are those
// of OpenFlow 1.4, table 11, and of Open vSwitch's meta-flow.h.
var fieldTable = [fieldEnd]fieldInfo{
	FieldDPHash:        {name: "dp_hash", nxm: "NXM_NX_DP_HASH", bits: 32, wire: nxmNX(35)},
	FieldInPort:        {name: "in_port", nxm: "OXM_OF_IN_PORT", bits: 32, wire: of(0), form: formPort, noMask: true},
	FieldEthSrc:        {name: "dl_src", nxm: "NXM_OF_ETH_SRC", bits: 48, wire: of(4), also: []oxm{nxmOF(2)}, form: formMAC},
	FieldEthDst:        {name: "dl_dst", nxm: "NXM_OF_ETH_DST", bits: 48, wire: of(3), also: []oxm{nxmOF(1)}, form: formMAC},
	FieldEthType:       {name: "dl_type", nxm: "NXM_OF_ETH_TYPE", bits: 16, wire: of(5), also: []oxm{nxmOF(3)}, form: formEthType, noMask: true},
	FieldVLANVID:       {name: "dl_vlan", nxm: "OXM_OF_VLAN_VID", bits: 13, bytes: 2, wire: of(6), form: formVLAN},
	FieldVLANPCP:       {name: "dl_vlan_pcp", nxm: "OXM_OF_VLAN_PCP", bits: 3, bytes: 1, wire: of(7), form: formDec, noMask: true},
	FieldARPOp:         {name: "arp_op", nxm: "NXM_OF_ARP_OP", bits: 16, wire: of(21), also: []oxm{nxmOF(15)}, form: formDec, noMask: true, ethTypes: onlyARP},
	FieldARPSPA:        {name: "arp_spa", nxm: "NXM_OF_ARP_SPA", bits: 32, wire: of(22), also: []oxm{nxmOF(16)}, form: formIPv4, ethTypes: onlyARP},
	FieldARPTPA:        {name: "arp_tpa", nxm: "NXM_OF_ARP_TPA", bits: 32, wire: of(23), also: []oxm{nxmOF(17)}, form: formIPv4, ethTypes: onlyARP},
	FieldARPSHA:        {name: "arp_sha", nxm: "NXM_NX_ARP_SHA", bits: 48, wire: of(24), also: []oxm{nxmNX(17)}, form: formMAC, ethTypes: onlyARP},
	FieldARPTHA:        {name: "arp_tha", nxm: "NXM_NX_ARP_THA", bits: 48, wire: of(25), also: []oxm{nxmNX(18)}, form: formMAC, ethTypes: onlyARP},
	FieldIPv4Src:       {name: "nw_src", nxm: "NXM_OF_IP_SRC", bits: 32, wire: of(11), also: []oxm{nxmOF(7)}, form: formIPv4, ethTypes: onlyIPv4},
	FieldIPv4Dst:       {name: "nw_dst", nxm: "NXM_OF_IP_DST", bits: 32, wire: of(12), also: []oxm{nxmOF(8)}, form: formIPv4, ethTypes: onlyIPv4},
	FieldIPv6Src:       {name: "ipv6_src", nxm: "NXM_NX_IPV6_SRC", bits: 128, wire: of(26), also: []oxm{nxmNX(19)}, form: formIPv6, ethTypes: onlyIPv6},
	FieldIPv6Dst:       {name: "ipv6_dst", nxm: "NXM_NX_IPV6_DST", bits: 128, wire: of(27), also: []oxm{nxmNX(20)}, form: formIPv6, ethTypes: onlyIPv6},
	FieldIPv6Label:     {name: "ipv6_label", nxm: "NXM_NX_IPV6_LABEL", bits: 20, bytes: 4, wire: of(28), also: []oxm{nxmNX(27)}, ethTypes: onlyIPv6},
	FieldIPFrag:        {name: "nw_frag", nxm: "NXM_NX_IP_FRAG", bits: 2, bytes: 1, wire: nxmNX(26), form: formFrag, ethTypes: anyIP},
	FieldIPDSCP:        {name: "ip_dscp", nxm: "OXM_OF_IP_DSCP", bits: 6, bytes: 1, wire: of(8), form: formDec, noMask: true, ethTypes: anyIP},
	FieldIPECN:         {name: "nw_ecn", nxm: "NXM_NX_IP_ECN", bits: 2, bytes: 1, wire: of(9), also: []oxm{nxmNX(28)}, form: formDec, noMask: true, ethTypes: anyIP},
	FieldIPTTL:         {name: "nw_ttl", nxm: "NXM_NX_IP_TTL", bits: 8, wire: nxmNX(29), form: formDec, noMask: true, ethTypes: anyIP},
	FieldIPProto:       {name: "nw_proto", nxm: "NXM_OF_IP_PROTO", bits: 8, wire: of(10), also: []oxm{nxmOF(6)}, form: formDec, noMask: true, ethTypes: anyIP},
	FieldTCPSrc:        {name: "tp_src", nxm: "NXM_OF_TCP_SRC", bits: 16, wire: of(13), also: []oxm{nxmOF(9)}, form: formTPPort, ethTypes: anyIP, ipProto: ProtoTCP},
	FieldTCPDst:        {name: "tp_dst", nxm: "NXM_OF_TCP_DST", bits: 16, wire: of(14), also: []oxm{nxmOF(10)}, form: formTPPort, ethTypes: anyIP, ipProto: ProtoTCP},
	FieldTCPFlags:      {name: "tcp_flags", nxm: "NXM_NX_TCP_FLAGS", bits: 12, bytes: 2, wire: onfExp(42), also: []oxm{nxmNX(34), of(42)}, form: formTCPFlags, ethTypes: anyIP, ipProto: ProtoTCP},
	FieldUDPSrc:        {name: "tp_src", nxm: "NXM_OF_UDP_SRC", bits: 16, wire: of(15), also: []oxm{nxmOF(11)}, form: formTPPort, ethTypes: anyIP, ipProto: ProtoUDP},
	FieldUDPDst:        {name: "tp_dst", nxm: "NXM_OF_UDP_DST", bits: 16, wire: of(16), also: []oxm{nxmOF(12)}, form: formTPPort, ethTypes: anyIP, ipProto: ProtoUDP},
	FieldSCTPSrc:       {name: "tp_src", nxm: "OXM_OF_SCTP_SRC", bits: 16, wire: of(17), form: formTPPort, ethTypes: anyIP, ipProto: ProtoSCTP},
	FieldSCTPDst:       {name: "tp_dst", nxm: "OXM_OF_SCTP_DST", bits: 16, wire: of(18), form: formTPPort, ethTypes: anyIP, ipProto: ProtoSCTP},
	FieldICMPType:      {name: "icmp_type", nxm: "NXM_OF_ICMP_TYPE", bits: 8, wire: of(19), also: []oxm{nxmOF(13)}, form: formDec, noMask: true, ethTypes: onlyIPv4, ipProto: ProtoICMP},
	FieldICMPCode:      {name: "icmp_code", nxm: "NXM_OF_ICMP_CODE", bits: 8, wire: of(20), also: []oxm{nxmOF(14)}, form: formDec, noMask: true, ethTypes: onlyIPv4, ipProto: ProtoICMP},
	FieldICMPv6Type:    {name: "icmp_type", nxm: "NXM_NX_ICMPV6_TYPE", bits: 8, wire: of(29), also: []oxm{nxmNX(21)}, form: formDec, noMask: true, ethTypes: onlyIPv6, ipProto: ProtoICMPv6},
	FieldICMPv6Code:    {name: "icmp_code", nxm: "NXM_NX_ICMPV6_CODE", bits: 8, wire: of(30), also: []oxm{nxmNX(22)}, form: formDec, noMask: true, ethTypes: onlyIPv6, ipProto: ProtoICMPv6},
	FieldNDReserved:    {name: "nd_reserved", nxm: "ERICOXM_OF_ICMPV6_ND_RESERVED", bits: 32, wire: ericsson(1), form: formDec, noMask: true, ethTypes: onlyIPv6, ipProto: ProtoICMPv6, ndTypes: anyND},
	FieldNDTarget:      {name: "nd_target", nxm: "NXM_NX_ND_TARGET", bits: 128, wire: of(31), also: []oxm{nxmNX(23)}, form: formIPv6, ethTypes: onlyIPv6, ipProto: ProtoICMPv6, ndTypes: anyND},
	FieldNDOptionsType: {name: "nd_options_type", nxm: "ERICOXM_OF_ICMPV6_ND_OPTIONS_TYPE", bits: 8, wire: ericsson(2), form: formDec, noMask: true, ethTypes: onlyIPv6, ipProto: ProtoICMPv6, ndTypes: anyND},
	FieldNDSLL:         {name: "nd_sll", nxm: "NXM_NX_ND_SLL", bits: 48, wire: of(32), also: []oxm{nxmNX(24)}, form: formMAC, ethTypes: onlyIPv6, ipProto: ProtoICMPv6, ndTypes: onlySolic},
	FieldNDTLL:         {name: "nd_tll", nxm: "NXM_NX_ND_TLL", bits: 48, wire: of(33), also: []oxm{nxmNX(25)}, form: formMAC, ethTypes: onlyIPv6, ipProto: ProtoICMPv6, ndTypes: onlyAdver},
	FieldTunnelID:      {name: "tun_id", nxm: "NXM_NX_TUN_ID", bits: 64, wire: of(38), also: []oxm{nxmNX(16)}},
	FieldTunnelSrc:     {name: "tun_src", nxm: "NXM_NX_TUN_IPV4_SRC", bits: 32, wire: nxmNX(31), form: formIPv4},
	FieldTunnelDst:     {name: "tun_dst", nxm: "NXM_NX_TUN_IPV4_DST", bits: 32, wire: nxmNX(32), form: formIPv4},
	FieldTunnelIPv6Src: {name: "tun_ipv6_src", nxm: "NXM_NX_TUN_IPV6_SRC", bits: 128, wire: nxmNX(109), form: formIPv6},
	FieldTunnelIPv6Dst: {name: "tun_ipv6_dst", nxm: "NXM_NX_TUN_IPV6_DST", bits: 128, wire: nxmNX(110), form: formIPv6},
	FieldPktMark:       {name: "pkt_mark", nxm: "NXM_NX_PKT_MARK", bits: 32, wire: nxmNX(33)},
	FieldCTState:       {name: "ct_state", nxm: "NXM_NX_CT_STATE", bits: 32, wire: nxmNX(105), form: formCTState},
	FieldCTZone:        {name: "ct_zone", nxm: "NXM_NX_CT_ZONE", bits: 16, wire: nxmNX(106), form: formDec, noMask: true},
	FieldCTMark:        {name: "ct_mark", nxm: "NXM_NX_CT_MARK", bits: 32, wire: nxmNX(107)},
	FieldCTLabel:       {name: "ct_label", nxm: "NXM_NX_CT_LABEL", bits: 128, wire: nxmNX(108)},
	FieldCTNWProto:     {name: "ct_nw_proto", nxm: "NXM_NX_CT_NW_PROTO", bits: 8, wire: nxmNX(119), form: formDec, noMask: true, tracked: true},
	FieldCTNWSrc:       {name: "ct_nw_src", nxm: "NXM_NX_CT_NW_SRC", bits: 32, wire: nxmNX(120), form: formIPv4, ethTypes: onlyIPv4, tracked: true},
	FieldCTNWDst:       {name: "ct_nw_dst", nxm: "NXM_NX_CT_NW_DST", bits: 32, wire: nxmNX(121), form: formIPv4, ethTypes: onlyIPv4, tracked: true},
	FieldCTIPv6Src:     {name: "ct_ipv6_src", nxm: "NXM_NX_CT_IPV6_SRC", bits: 128, wire: nxmNX(122), form: formIPv6, ethTypes: onlyIPv6, tracked: true},
	FieldCTIPv6Dst:     {name: "ct_ipv6_dst", nxm: "NXM_NX_CT_IPV6_DST", bits: 128, wire: nxmNX(123), form: formIPv6, ethTypes: onlyIPv6, tracked: true},
	FieldCTTPSrc:       {name: "ct_tp_src", nxm: "NXM_NX_CT_TP_SRC", bits: 16, wire: nxmNX(124), form: formTPPort, ethTypes: anyIP, tracked: true, ctProto: true},
	FieldCTTPDst:       {name: "ct_tp_dst", nxm: "NXM_NX_CT_TP_DST", bits: 16, wire: nxmNX(125), form: formTPPort, ethTypes: anyIP, tracked: true, ctProto: true},
	FieldMetadata:      {name: "metadata", nxm: "OXM_OF_METADATA", bits: 64, wire: of(2)},
	FieldConjID:        {name: "conj_id", nxm: "NXM_NX_CONJ_ID", bits: 32, wire: nxmNX(37), form: formDec, noMask: true},
}

// completeFieldInfos adds the registers and the widths that are whole bytes.
func completeFieldInfos() [fieldEnd]fieldInfo {
	t := fieldTable
	for n := range uint8(Registers) {
		d := strconv.Itoa(int(n))
		t[FieldReg(int(n))] = fieldInfo{name: "reg" + d, nxm: "NXM_NX_REG" + d, bits: 32, wire: nxmNX(n)}
	}
	for i := range t {
		if t[i].bytes == 0 {
			t[i].bytes = t[i].bits / 8
		}
	}
	return t
}

func buildFullMasks() (masks [fieldEnd][maxFieldBytes]byte) {
	for id := range masks {
		info := &fieldInfos[id]
		for bit := range info.bits {
			masks[id][info.bytes-1-bit/8] |= 1 << (bit % 8)
		}
	}
	return masks
}

func buildFieldByOXM() map[oxm]FieldID {
	m := make(map[oxm]FieldID)
	for id := FieldDPHash; id < fieldEnd; id++ {
		m[fieldInfos[id].wire] = id
		for _, o := range fieldInfos[id].also {
			m[o] = id
		}
	}
	return m
}
