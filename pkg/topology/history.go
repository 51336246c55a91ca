package topology

import (
	"cmp"
	"net/netip"
	"slices"
)

// maxTerms is how many terms a [History] keeps.
const maxTerms = 32

// maxTold is how many of them are only known from nodes.
const maxTold = 8

// History says which controllers wrote the records, one after the other. By it whoever read
// records before knows whether those that etcd has now came after them, or etcd went back
// to older ones: docs/restored-etcd.md. It is the records history/terms and history/now.
type History struct {
	// Terms are those of leaders, oldest first.
	Terms []Term `json:"Terms"`
	// Older is the revision up to which terms count that are not among them any more.
	Older int64 `json:"Older,omitempty"`
	// Now is the newest write of a leader.
	Now Point `json:"Now,omitzero"`
}

// Term is the time of one leader.
type Term struct {
	// ID is drawn at random.
	ID string `json:"ID"`
	// Until is the revision of the last write of it that is in these records; 0 for the
	// present one.
	Until int64 `json:"Until,omitempty"`
	// Taken is the revision up to which what etcd lost of it was put back, as far as it
	// could be.
	Taken int64 `json:"Taken,omitempty"`
}

// Point is a write of a leader. The zero value is none.
type Point struct {
	// Term is the leader's, Revision that of the write.
	Term     string `json:"Term"`
	Revision int64  `json:"Revision"`
}

// Holds reports whether records of this history came after those at p, or have what was lost
// of them put back. It is so for no point.
func (h History) Holds(p Point) bool {
	switch {
	case p == Point{} || p.Revision <= h.Older:
		return true
	case p.Term == h.Now.Term && p.Revision <= h.Now.Revision:
		return true
	}
	i := h.term(p.Term)
	return i >= 0 && p.Revision <= max(h.Terms[i].Until, h.Terms[i].Taken)
}

// Fork is the revision after which two histories have nothing in common any more; 0 where they
// never had.
func (h History) Fork(other History) (fork int64) {
	for _, t := range other.Terms {
		if h.term(t.ID) >= 0 {
			fork = max(fork, min(h.until(t.ID), other.until(t.ID)))
		}
	}
	return fork
}

// until is the revision of the last write in a term that there is.
func (h History) until(id string) int64 {
	if id == h.Now.Term {
		return h.Now.Revision
	}
	return h.Terms[h.term(id)].Until
}

func (h History) term(id string) int {
	return slices.IndexFunc(h.Terms, func(t Term) bool { return t.ID == id })
}

// Begin is the history with another term, whose first write has no revision yet.
func (h History) Begin(id string) History {
	terms := slices.Clone(h.Terms)
	if i := h.term(h.Now.Term); i >= 0 {
		terms[i].Until = h.Now.Revision
	}
	return History{Terms: append(terms, Term{ID: id}), Older: h.Older, Now: Point{Term: id}}.cut()
}

// Take is the history in which what was lost up to those points was put back. Of the present term,
// whose leader is there to say this, nothing is lost: whoever claims it would hide what a later
// restoration loses.
func (h History) Take(points []Point) History {
	h.Terms = slices.Clone(h.Terms)
	for _, p := range points {
		if p.Term == h.Now.Term {
			continue
		}
		i := h.term(p.Term)
		if i < 0 {
			// Before the present one, which is the last.
			i = max(len(h.Terms)-1, 0)
			h.Terms = slices.Insert(h.Terms, i, Term{ID: p.Term})
		}
		h.Terms[i].Taken = max(h.Terms[i].Taken, p.Revision)
	}
	return h.cut()
}

// cut forgets the oldest terms. Those that only nodes know of must not crowd out the others: a node
// may make them up. Whoever holds one that is forgotten asks again.
func (h History) cut() History {
	var told []string
	for _, t := range h.Terms {
		if t.Until == 0 && t.Taken != 0 {
			told = append(told, t.ID)
		}
	}
	if over := len(told) - maxTold; over > 0 {
		h.Terms = slices.DeleteFunc(h.Terms, func(t Term) bool { return slices.Contains(told[:over], t.ID) })
	}
	for len(h.Terms) > maxTerms {
		h.Older = max(h.Older, h.Terms[0].Until)
		h.Terms = h.Terms[1:]
	}
	return h
}

// MaxHeld is how many namespaces and how many nodes a [Held] has at most.
const MaxHeld = 500

// Held is what a node knows of records that etcd has lost.
type Held struct {
	// At is the newest write of a leader that the node has taken in.
	At Point `json:"At"`
	// History is that of the records that the node holds.
	History History `json:"History,omitzero"`
	// Nodes and Namespaces are the records as the node holds them, of those that etcd does
	// not have so.
	Nodes      []Node      `json:"Nodes,omitempty"`
	Namespaces []Namespace `json:"Namespaces,omitempty"`
	// More is that there are more of them.
	More bool `json:"More,omitempty"`
}

// HeldBeside is what a node that holds held has to say where etcd has now. Of namespaces it says
// first those for which first is true.
func HeldBeside(held, now Snapshot, first func(namespace string) bool) Held {
	h := Held{At: held.History.Now, History: held.History}
	for ip, n := range held.Nodes {
		if n.Ready() && !n.SameClaim(now.Nodes[ip]) {
			h.Nodes = append(h.Nodes, n)
		}
	}
	slices.SortFunc(h.Nodes, func(a, b Node) int { return a.HostIP.Compare(b.HostIP) })
	for name, n := range held.Namespaces {
		if n.Effective != nil && !n.SameTenancy(now.Namespaces[name]) {
			h.Namespaces = append(h.Namespaces, n)
		}
	}
	rank := func(n Namespace) int {
		if first(n.NetName) {
			return 0
		}
		return 1
	}
	slices.SortFunc(h.Namespaces, func(a, b Namespace) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.NetName, b.NetName))
	})
	if h.More = len(h.Nodes) > MaxHeld || len(h.Namespaces) > MaxHeld; h.More {
		h.Nodes, h.Namespaces = h.Nodes[:min(len(h.Nodes), MaxHeld)], h.Namespaces[:min(len(h.Namespaces), MaxHeld)]
	}
	return h
}

// Lost are the nodes that hold records which etcd has lost, by address.
func Lost(h History, statuses map[netip.Addr]NodeStatus) map[netip.Addr]Held {
	lost := map[netip.Addr]Held{}
	for ip, s := range statuses {
		if s.Held != nil && !h.Holds(s.Held.At) {
			lost[ip] = *s.Held
		}
	}
	return lost
}
