package openflow

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// maxFieldBytes is the width of the widest field: an IPv6 address or ct_label.
const maxFieldBytes = 16

// Field is one field of a packet with the value it is to have: all of it, or
// the bits under a mask. It is what [NewMatch] and [SetField] are given. The
// zero Field is none.
type Field struct {
	id FieldID
	// Network order, left-aligned, as on the wire; value has no bit outside mask.
	value, mask [maxFieldBytes]byte
}

// ID names the field.
func (f Field) ID() FieldID { return f.id }

// Value is the field's value in network order.
func (f Field) Value() []byte { return append([]byte(nil), f.value[:f.bytes()]...) }

// Mask is the field's mask in network order; a 1 bit counts.
func (f Field) Mask() []byte { return append([]byte(nil), f.mask[:f.bytes()]...) }

// Uint64 is the value of a field of at most 64 bits.
func (f Field) Uint64() uint64 { return beUint(f.value[:f.bytes()]) }

// Exact reports whether all bits count.
func (f Field) Exact() bool { return f.mask == fullMasks[f.id] }

func (f Field) bytes() int { return fieldInfos[f.id].bytes }

func (f Field) empty() bool { return f.mask == [maxFieldBytes]byte{} }

// beUint is the number in b, which has at most 8 bytes.
func beUint(b []byte) uint64 {
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// newField takes value and mask as bytes on the wire, nil mask for all bits.
// Bits that the field does not have, and value bits outside the mask, go.
func newField(id FieldID, value, mask []byte) Field {
	f := Field{id: id, mask: fullMasks[id]}
	copy(f.value[:], value)
	if mask != nil {
		var m [maxFieldBytes]byte
		copy(m[:], mask)
		for i := range f.mask {
			f.mask[i] &= m[i]
		}
	}
	for i := range f.value {
		f.value[i] &= f.mask[i]
	}
	return f
}

func uintField(id FieldID, value uint64) Field {
	return uintFieldMasked(id, value, ^uint64(0))
}

func uintFieldMasked(id FieldID, value, mask uint64) Field {
	var v, m [8]byte
	binary.BigEndian.PutUint64(v[:], value)
	binary.BigEndian.PutUint64(m[:], mask)
	n := fieldInfos[id].bytes
	return newField(id, v[8-n:], m[8-n:])
}

func macField(id FieldID, mac net.HardwareAddr) Field {
	if len(mac) != 6 {
		panic(fmt.Sprintf("openflow: %s: %q is not a 48-bit Ethernet address", id, mac))
	}
	return newField(id, mac, nil)
}

func macFieldMasked(id FieldID, mac, mask net.HardwareAddr) Field {
	if len(mac) != 6 || len(mask) != 6 {
		panic(fmt.Sprintf("openflow: %s: %q/%q is not a 48-bit Ethernet address and its mask", id, mac, mask))
	}
	return newField(id, mac, mask)
}

func prefixField(id FieldID, p netip.Prefix) Field {
	bits := fieldInfos[id].bits
	if !p.IsValid() || p.Addr().BitLen() != bits {
		panic(fmt.Sprintf("openflow: %s: %v is not a prefix of %d-bit addresses", id, p, bits))
	}
	mask := net.CIDRMask(p.Bits(), bits)
	return newField(id, p.Addr().AsSlice(), mask)
}

func addrField(id FieldID, a netip.Addr) Field {
	if !a.IsValid() {
		panic(fmt.Sprintf("openflow: %s: the address is not set", id))
	}
	return prefixField(id, netip.PrefixFrom(a, a.BitLen()))
}

func addrFieldMasked(id FieldID, a, mask netip.Addr) Field {
	if bits := fieldInfos[id].bits; a.BitLen() != bits || mask.BitLen() != bits {
		panic(fmt.Sprintf("openflow: %s: %v/%v is not a %d-bit address and its mask", id, a, mask, bits))
	}
	return newField(id, a.AsSlice(), mask.AsSlice())
}
