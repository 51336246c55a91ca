package openflow

import (
	"fmt"
	"math"
)

// FieldID names a match field that this package understands. The numbers are
// this package's own: on the wire a field has an OXM header (OpenFlow 1.4,
// section 7.2.3.2), which [FieldID.String] does not show.
type FieldID uint8

// The fields. Their order is the order in which a match is written to the
// wire: prerequisites come first, as the switch demands, and otherwise as Open
// vSwitch writes them, so that what is read back rarely needs to be reordered.
const (
	FieldDPHash FieldID = iota + 1
	FieldConjID
	FieldInPort
	FieldEthSrc
	FieldEthDst
	FieldEthType
	FieldVLANVID
	FieldVLANPCP
	FieldIPv4Src
	FieldIPv4Dst
	FieldIPv6Src
	FieldIPv6Dst
	FieldIPFrag
	FieldIPDSCP
	FieldIPECN
	FieldIPTTL
	FieldIPv6Label
	FieldIPProto
	FieldTCPSrc
	FieldTCPDst
	FieldTCPFlags
	FieldUDPSrc
	FieldUDPDst
	FieldSCTPSrc
	FieldSCTPDst
	FieldICMPType
	FieldICMPCode
	FieldICMPv6Type
	FieldICMPv6Code
	FieldNDReserved
	FieldNDTarget
	FieldNDOptionsType
	FieldNDSLL
	FieldNDTLL
	FieldARPOp
	FieldARPSPA
	FieldARPTPA
	FieldARPSHA
	FieldARPTHA
	FieldTunnelID
	FieldTunnelSrc
	FieldTunnelDst
	FieldTunnelIPv6Src
	FieldTunnelIPv6Dst
	FieldReg0
	FieldReg1
	FieldReg2
	FieldReg3
	FieldReg4
	FieldReg5
	FieldReg6
	FieldReg7
	FieldReg8
	FieldReg9
	FieldReg10
	FieldReg11
	FieldReg12
	FieldReg13
	FieldReg14
	FieldReg15
	FieldPktMark
	FieldCTState
	FieldCTZone
	FieldCTMark
	FieldCTLabel
	FieldCTNWSrc
	FieldCTIPv6Src
	FieldCTNWDst
	FieldCTIPv6Dst
	FieldCTNWProto
	FieldCTTPSrc
	FieldCTTPDst
	FieldMetadata

	fieldEnd
)

// Registers is the number of 32-bit registers of Open vSwitch, reg0 to reg15.
const Registers = 16

// FieldReg is register n, 0 to 15. It panics on any other n.
func FieldReg(n int) FieldID {
	if n < 0 || n >= Registers {
		panic(fmt.Sprintf("openflow: there is no register %d; Open vSwitch has reg0 to reg15", n))
	}
	return FieldReg0 + FieldID(n)
}

// Bits is the width of the field in bits, 0 for a field that does not exist.
func (id FieldID) Bits() int {
	if id == 0 || id >= fieldEnd {
		return 0
	}
	return fieldInfos[id].bits
}

// String is the field's name as ovs-ofctl writes it in a match, such as "nw_src".
func (id FieldID) String() string {
	if id == 0 || id >= fieldEnd {
		return fmt.Sprintf("field(%d)", uint8(id))
	}
	return fieldInfos[id].name
}

// FieldRange is a run of bits of a field, what ovs-ofctl writes as
// "reg0[0..15]". Bit 0 is the least significant. The zero value is no range.
type FieldRange struct {
	id     FieldID
	offset uint16
	n      uint16
}

// Whole is all bits of a field.
func Whole(id FieldID) FieldRange { return Range(id, 0, id.Bits()) }

// Bits is bits low to high, both included: Bits(FieldReg0, 0, 15) is its lower half.
func Bits(id FieldID, low, high int) FieldRange { return Range(id, low, high-low+1) }

// Range is n bits of a field from bit offset on. It panics when the field does
// not have them: a range is part of a pipeline's text, not of its data.
func Range(id FieldID, offset, n int) FieldRange {
	if offset < 0 || n < 1 || offset > math.MaxUint16 || offset+n > id.Bits() {
		panic(fmt.Sprintf("openflow: %s has %d bits; there are no %d from bit %d on", id, id.Bits(), n, offset))
	}
	return FieldRange{id: id, offset: uint16(offset), n: uint16(n)}
}

// Field is the field that the range is a part of.
func (r FieldRange) Field() FieldID { return r.id }

// Len is the range's number of bits.
func (r FieldRange) Len() int { return int(r.n) }

// String is the range as ovs-ofctl writes it in an action, such as
// "NXM_NX_REG0[0..15]".
func (r FieldRange) String() string {
	if r.n == 0 {
		return "<none>"
	}
	name := fieldInfos[r.id].nxm
	switch int(r.n) {
	case r.id.Bits():
		return name + "[]"
	case 1:
		return fmt.Sprintf("%s[%d]", name, r.offset)
	}
	return fmt.Sprintf("%s[%d..%d]", name, r.offset, r.offset+r.n-1)
}
