package ipam

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// order decides which address of a subnet of either family goes next. It is pure.
//
// Pod addresses are numbered from 0, the one after the gateway; of a large IPv6 subnet only
// those whose bits between its prefix and the low 32 are 0. They stand in a
// ring that begins at start; the first scanned of them have been passed. What is
// not held is either in the rest of the ring, never given out, or in freed.
type order struct {
	subnet netip.Prefix
	n      uint32
	start  uint32
	// scanned of n.
	scanned uint32
	held    map[uint32]struct{}
	// freed is a queue; waiting has the same numbers.
	freed   []uint32
	waiting map[uint32]struct{}
}

// reserved at the bottom of a subnet are its network and gateway addresses, at
// the top its broadcast address, which IPv6 does not have: it is left out all the same.
const reservedLow, reservedHigh = 2, 1

// newOrder begins at the first address. The subnet has two host bits or more.
func newOrder(subnet netip.Prefix) *order {
	size := uint64(1) << min(subnet.Addr().BitLen()-subnet.Bits(), 32)
	return &order{
		subnet:  subnet,
		n:       uint32(size - reservedLow - reservedHigh),
		held:    make(map[uint32]struct{}),
		waiting: make(map[uint32]struct{}),
	}
}

func (o *order) size() int { return int(o.n) }

// free is how many addresses are not held.
func (o *order) free() int { return int(o.n) - len(o.held) }

// take gives out the next address; undo takes that back. It is false when all
// are held, or freed and not reusable yet.
func (o *order) take(reusable func(netip.Addr) bool) (addr netip.Addr, undo func(), ok bool) {
	scanned := o.scanned
	for o.scanned < o.n {
		i := o.at(o.start, o.scanned)
		o.scanned++
		if _, held := o.held[i]; held {
			continue
		}
		if _, waits := o.waiting[i]; waits {
			continue
		}
		o.held[i] = struct{}{}
		return o.addr(i), func() { o.scanned = scanned; delete(o.held, i) }, true
	}
	for _, i := range o.freed {
		if addr := o.addr(i); reusable(addr) {
			return addr, o.claimNumber(i), true
		}
	}
	return netip.Addr{}, nil, false
}

// claim gives out one address that check has passed and that is not held.
func (o *order) claim(addr netip.Addr) {
	i, _ := o.number(addr)
	o.claimNumber(i)
}

func (o *order) claimNumber(i uint32) (undo func()) {
	o.held[i] = struct{}{}
	if _, waits := o.waiting[i]; !waits {
		return func() { delete(o.held, i) }
	}
	at := slices.Index(o.freed, i)
	o.freed = slices.Delete(o.freed, at, at+1)
	delete(o.waiting, i)
	return func() {
		delete(o.held, i)
		o.freed = slices.Insert(o.freed, at, i)
		o.waiting[i] = struct{}{}
	}
}

// giveBack puts a held address at the end of the queue.
func (o *order) giveBack(addr netip.Addr) {
	i, _ := o.number(addr)
	delete(o.held, i)
	o.enqueue(i)
}

func (o *order) enqueue(i uint32) {
	o.freed = append(o.freed, i)
	o.waiting[i] = struct{}{}
}

// check says whether addr is one for pods.
func (o *order) check(addr netip.Addr) error {
	switch {
	case !addr.IsValid() || !o.subnet.Contains(addr):
		return fmt.Errorf("address %s is not in node subnet %s", addr, o.subnet)
	case addr == o.subnet.Addr().Next():
		return fmt.Errorf("address %s is the gateway of node subnet %s", addr, o.subnet)
	}
	if _, ok := o.number(addr); !ok {
		return fmt.Errorf("address %s is the network or broadcast address of node subnet %s, or beyond its first 2^32", addr, o.subnet)
	}
	return nil
}

// startAfter begins the ring after the highest held address: the best guess at
// what was given out last when nothing else is known.
func (o *order) startAfter() {
	highest := -1
	for i := range o.held {
		highest = max(highest, int(i))
	}
	o.start, o.scanned = uint32(highest+1)%o.n, 0
}

// position is where the ring begins and how far it has been passed.
func (o *order) position() (start netip.Addr, scanned uint32) { return o.addr(o.start), o.scanned }

// queue is what was freed, the one freed longest ago first.
func (o *order) queue() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, i := range o.freed {
			if !yield(o.addr(i)) {
				return
			}
		}
	}
}

// resume goes on where an order of the same subnet was, held being complete.
// What makes no sense in it is passed over: no address is lost by it, nor twice
// in the queue.
func (o *order) resume(start netip.Addr, scanned uint32, freed []netip.Addr) {
	o.start, _ = o.number(start)
	o.scanned = min(scanned, o.n)
	for _, addr := range freed {
		i, ok := o.number(addr)
		_, held := o.held[i]
		_, waits := o.waiting[i]
		if ok && !held && !waits {
			o.enqueue(i)
		}
	}
	for k := range o.scanned {
		i := o.at(o.start, k)
		_, held := o.held[i]
		_, waits := o.waiting[i]
		if !held && !waits {
			o.enqueue(i)
		}
	}
}

// startAt begins the ring where an order of the same subnet had got to.
func (o *order) startAt(start netip.Addr, scanned uint32) {
	first, _ := o.number(start)
	o.start, o.scanned = o.at(first, scanned), 0
}

// at is the number k places after i in the ring.
func (o *order) at(i, k uint32) uint32 {
	// In 64 bits: each may be near n, and n near 2^32.
	return uint32((uint64(i) + uint64(k)) % uint64(o.n))
}

func (o *order) addr(i uint32) netip.Addr {
	return topology.WithLow32(o.subnet.Addr(), o.base()+i)
}

// number is false for addresses that are not for pods.
func (o *order) number(addr netip.Addr) (uint32, bool) {
	i := topology.Low32(addr) - o.base()
	if i >= o.n || o.addr(i) != addr {
		return 0, false
	}
	return i, true
}

func (o *order) base() uint32 { return topology.Low32(o.subnet.Addr()) + reservedLow }
