package alloc

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Prefixes gives out prefixes of one length out of a network of either family, in the
// order of the ancestors: in turn, but where the length does not fall on an
// octet and the number of the prefix reaches into the next one, that octet runs
// first: 10.1.0.0/26, 10.1.1.0/26, ... before 10.1.0.64/26. So prefixes begin,
// and gateways end, in a round number as long as there are such. Freed prefixes
// come back when no fresh one is left, oldest first.
type Prefixes struct {
	network netip.Prefix
	bits    int
	next    uint32 // number of the next that was never looked at
	count   uint32 // of all
	used    map[netip.Prefix]struct{}
	freed   fifo[netip.Prefix]
}

// NewPrefixes is an allocator of prefixes of length bits out of network. It is
// an error if network has none of them, or more than 2^31.
func NewPrefixes(network netip.Prefix, bits int) (*Prefixes, error) {
	if !network.IsValid() || network != network.Masked() {
		return nil, fmt.Errorf("%s is not a network", network)
	}
	// 2^32 would be one more than the count can hold.
	if bits < network.Bits() || bits > network.Addr().BitLen() || bits-network.Bits() > 31 {
		return nil, fmt.Errorf("network %s cannot be cut into /%d prefixes", network, bits)
	}
	return &Prefixes{network: network, bits: bits, count: 1 << (bits - network.Bits()), used: map[netip.Prefix]struct{}{}}, nil
}

// Use marks p as in use. It reports whether p was free and is one of those that
// the allocator gives out.
func (a *Prefixes) Use(p netip.Prefix) bool {
	if !p.IsValid() || p.Bits() != a.bits || p != p.Masked() || !a.network.Contains(p.Addr()) {
		return false
	}
	if _, ok := a.used[p]; ok {
		return false
	}
	a.freed.remove(p)
	a.used[p] = struct{}{}
	return true
}

// Release frees p. It does nothing when p is not in use.
func (a *Prefixes) Release(p netip.Prefix) {
	if _, ok := a.used[p]; ok {
		delete(a.used, p)
		a.freed.push(p)
	}
}

// Allocate marks a free prefix as in use and returns it, or ErrExhausted.
func (a *Prefixes) Allocate() (netip.Prefix, error) {
	for a.next < a.count {
		p := a.at(a.next)
		a.next++
		if _, used := a.used[p]; !used && !a.freed.has(p) {
			a.used[p] = struct{}{}
			return p, nil
		}
	}
	if p, ok := a.freed.pop(); ok {
		a.used[p] = struct{}{}
		return p, nil
	}
	return netip.Prefix{}, fmt.Errorf("/%d prefixes of %s: %w", a.bits, a.network, ErrExhausted)
}

// at is the prefix number n in the order of allocation.
func (a *Prefixes) at(n uint32) netip.Prefix {
	base := a.network.Addr()
	host, number := base.BitLen()-a.bits, a.bits-a.network.Bits()
	index := n
	if part := host % 8; part != 0 && part+number > 8 {
		// The low bits of the number fill the rest of an octet that it shares
		// with the host bits: rotate so that they change last.
		low := 8 - part
		index = n<<low&(1<<number-1) | n>>(number-low)
	}
	b := base.As16()
	high, low := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	if host < 64 {
		low |= uint64(index) << host
		high |= uint64(index) >> (64 - host)
	} else {
		high |= uint64(index) << (host - 64)
	}
	binary.BigEndian.PutUint64(b[:8], high)
	binary.BigEndian.PutUint64(b[8:], low)
	addr := netip.AddrFrom16(b)
	if base.Is4() {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, a.bits)
}

// Free counts the prefixes that are not in use.
func (a *Prefixes) Free() int { return int(a.count) - len(a.used) }

// InUse counts the prefixes in use.
func (a *Prefixes) InUse() int { return len(a.used) }
