// Package netid has the type of a tenant's number and its ranges.
//
// It is pure: no I/O, no dependencies.
package netid

import (
	"fmt"
	"strconv"
)

// ID is a tenant's network number. It is also the VXLAN network identifier
// (VNI) of the tenant's packets on the wire, a 24-bit number (RFC 7348, section 5).
type ID uint32

const (
	// Global is the netID of namespaces that reach all and are reached by all.
	Global ID = 0
	// MinReserved to MaxReserved are never given out.
	MinReserved ID = 1
	MaxReserved ID = 9
	// Min and Max bound what is given to tenants: 10 to 2^24-1.
	Min ID = 10
	Max ID = 1<<24 - 1
)

// Validate says whether a namespace may have id: Global, or Min to Max.
func (id ID) Validate() error {
	switch {
	case id == Global:
		return nil
	case id < Min:
		return fmt.Errorf("netID %d is reserved (%d to %d are); use 0 for global or %d to %d", id, MinReserved, MaxReserved, Min, Max)
	case id > Max:
		return fmt.Errorf("netID %d is too large: a VXLAN network identifier has 24 bits; use 0 for global or %d to %d", id, Min, Max)
	}
	return nil
}

// IsGlobal reports whether id is the global network.
func (id ID) IsGlobal() bool { return id == Global }

// VNI is the number on the wire.
func (id ID) VNI() uint32 { return uint32(id) }

// String is the number in decimal.
func (id ID) String() string { return strconv.FormatUint(uint64(id), 10) }

// Allowed is the rule of the whole project: a packet from sender is delivered
// to receiver only where both share a netID or one of them is global.
func Allowed(sender, receiver ID) bool {
	return sender == receiver || sender.IsGlobal() || receiver.IsGlobal()
}
