package mtu

import (
	"math"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Values are what a node has set. Sizes are bytes of a pod's IP packet.
type Values struct {
	// Receives is the MTU of pods' devices, Sends that of their routes.
	Receives, Sends int
}

// Nothing is set on a node without pods: it sends nothing, and loses nothing.
var Nothing = Values{Receives: math.MaxInt, Sends: 0}

// View is what a node knows of the cluster.
type View struct {
	// Self is its address.
	Self netip.Addr
	// Records are those of all nodes, perhaps out of date.
	Records topology.MTUs
	// Floor is the least that another node's record may say, bytes: of one that carries or
	// receives less nothing is sent less for.
	Floor int
	// Arrives is the largest packet that can come to this node at all, bytes, by what its devices
	// are; 0 where that is not known. Nothing larger is received, whatever others say that they
	// send.
	Arrives int
	// Confirmed says that Records have all that this node has ever written: none of
	// its writes is under way, or may yet come to pass.
	Confirmed bool
}

// Cluster is T: the least that any node carries, own being what this one does now.
func (v View) Cluster(own int) int {
	t := own
	for ip, r := range v.Records.Nodes {
		if ip != v.Self && v.counts(r) {
			t = min(t, r.Carries)
		}
	}
	return t
}

// counts reports whether others send less for a node with this record.
func (v View) counts(r topology.NodeMTU) bool { return r.Carries >= v.Floor && r.Receives >= v.Floor }

// Ignored are the other nodes whose records do not count, in order.
func (v View) Ignored() []netip.Addr {
	var out []netip.Addr
	for ip, r := range v.Records.Nodes {
		if ip != v.Self && !v.counts(r) {
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// Unheeded reports whether most other nodes send more than can come to this one, as its record, which says that
// it carries own, does not count for them. Their floor follows from what they carry, as [Node.Floor] has it; one
// that lies about that is not most of them. One that is only asked for less (--mtu) takes all that they send.
func (v View) Unheeded(own int) bool {
	others, larger := 0, 0
	for ip, r := range v.Records.Nodes {
		if ip == v.Self {
			continue
		}
		others++
		if own < min(topology.FloorMTU, r.Carries) && v.arriving(r.Sends) < r.Sends {
			larger++
		}
	}
	return 2*larger > others
}

// arriving is how much may come of packets that another node says it sends.
func (v View) arriving(sends int) int {
	if v.Arrives == 0 {
		return sends
	}
	return min(sends, v.Arrives)
}

// Agree is the next step of a node that carries own and has set has: what to set
// now, and then what to write.
//
// A record's Sends is never less than what the node sends, its Receives never more
// than what it takes: what is safe (send less, take more) is set first and written
// then, what is not (send more, take less) is written first, and set only when a view
// with that in it has nothing against it. Of two nodes that write what does not fit
// together, one comes second, and its view has both: so it waits. That holds
// however old views are, as all see etcd's changes in the same order.
func (v View) Agree(own int, has Values) (set, write Values) {
	t := v.Cluster(own)
	want := Values{Receives: t, Sends: t}
	for ip, r := range v.Records.Nodes {
		if ip == v.Self {
			continue
		}
		want.Receives = max(want.Receives, v.arriving(r.Sends))
		if v.counts(r) {
			want.Sends = min(want.Sends, r.Receives)
		}
	}
	// Its pods are each other's peers, too.
	want.Receives = max(want.Receives, want.Sends)

	written, ok := v.Records.Nodes[v.Self]
	ok = ok && v.Confirmed
	set = has
	if want.Receives > has.Receives || ok && written.Receives <= want.Receives && has.Sends <= want.Receives {
		set.Receives = want.Receives
	}
	if want.Sends < has.Sends || ok && written.Sends >= want.Sends && has.Receives >= want.Sends {
		set.Sends = want.Sends
	}
	return set, want
}
