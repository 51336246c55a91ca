package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

const addressBits, portBits = 32, 16

// run is numbers of addresses or ports, first to last.
type run struct{ first, last uint64 }

// runOf is the addresses of an IPv4 prefix.
func runOf(p netip.Prefix) run {
	first := numberOf(p.Masked().Addr())
	return run{first, first + 1<<(addressBits-p.Bits()) - 1}
}

// each calls visit for each of the fewest aligned parts of a run of numbers that have so many bits: the
// part's first number, and how many of its leading bits all of the part have in common.
func (r run) each(bits int, visit func(first uint64, common int)) {
	for first := r.first; first <= r.last; {
		common := bits
		for size := uint64(1); common > 0 && first&size == 0 && first+2*size-1 <= r.last; size *= 2 {
			common--
		}
		visit(first, common)
		first += 1 << (bits - common)
	}
}

// union are the addresses of IPv4 prefixes, as runs that are in order and apart.
func union(prefixes []netip.Prefix) (out []run) {
	all := make([]run, 0, len(prefixes))
	for _, p := range prefixes {
		if p.IsValid() && p.Addr().Is4() {
			all = append(all, runOf(p))
		}
	}
	slices.SortFunc(all, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	for _, r := range all {
		if n := len(out); n > 0 && r.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// without are the numbers of a run that are in none of others, which are in order and apart.
func (r run) without(others []run) (out []run) {
	next := r.first
	for _, o := range others {
		if o.last < next {
			continue
		}
		if o.first > r.last {
			break
		}
		if o.first > next {
			out = append(out, run{next, o.first - 1})
		}
		next = o.last + 1
	}
	if next <= r.last {
		out = append(out, run{next, r.last})
	}
	return out
}

// within reports whether runs, which are in order and apart, have an address.
func within(runs []run, a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	n := numberOf(a)
	i, found := slices.BinarySearchFunc(runs, n, func(r run, n uint64) int { return cmp.Compare(r.first, n) })
	return found || i > 0 && n <= runs[i-1].last
}

// block are the addresses of a block without those excepted, in order and apart. A node sends to pods
// from an address of the cluster network, which therefore counts as the node's own: it is in a block
// that has either, unless the node's own is excepted. The overlay is IPv4; IPv6 is nobody's.
func (c *Compiler) block(p Peer) []netip.Prefix {
	name := p.String()
	if known, ok := c.blocks[name]; ok {
		return known
	}
	runs, out := c.cut(p)
	for _, r := range runs {
		r.each(addressBits, func(first uint64, common int) { out = append(out, netip.PrefixFrom(addressOf(first), common)) })
	}
	slices.SortFunc(out, comparePrefixes)
	c.blocks[name] = out
	return out
}

// cut are the runs of addresses of a block, and more of nodes that are in none of them.
func (c *Compiler) cut(p Peer) (runs []run, more []netip.Prefix) {
	if !p.Block.IsValid() || !p.Block.Addr().Is4() {
		return nil, nil
	}
	except := union(p.Except)
	runs = runOf(p.Block).without(except)
	var gone []netip.Prefix
	for _, n := range c.in.Nodes {
		has := within(runs, n.HostIP)
		if !has && !within(except, n.HostIP) {
			continue // as most nodes are of most blocks
		}
		for _, a := range inNetwork(n) {
			switch {
			case !has:
				gone = append(gone, host(a))
			case !within(runs, a):
				more = append(more, host(a))
			}
		}
	}
	if len(gone) > 0 {
		runs = runOf(p.Block).without(union(slices.Concat(p.Except, gone)))
	}
	return runs, more
}

// anyHas reports whether one of prefixes that are in order and apart has an address.
func anyHas(prefixes []netip.Prefix, a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(prefixes, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return found || i > 0 && prefixes[i-1].Contains(a)
}
