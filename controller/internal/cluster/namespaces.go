package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// member is a namespace that exists, and its record.
type member struct {
	kube.Namespace
	record   topology.Namespace
	revision int64 // of the record; 0: there is none
	// network is the annotation's value if it can be followed; empty for none.
	network string
	// invalid: the annotation cannot be followed, so nothing is changed.
	invalid bool
}

// declared reports that the annotation rules the namespace: it is there, and no
// forced change stands over it.
func (m *member) declared() bool {
	return m.network != "" && !(m.record.Forced && m.record.Declared == m.network)
}

// applied reports that its annotation was applied once, and nothing is pending.
func (m *member) applied() bool {
	return m.declared() && m.revision != 0 && m.record.Declared == m.network && m.record.Action == topology.None
}

// has reports whether the record's confirmed netID is id.
func (m *member) has(id netid.ID) bool { return m.record.Effective != nil && *m.record.Effective == id }

// networks is who is on which network while a plan is made.
type networks struct {
	members map[string]*member
	holders map[netid.ID][]string // names of records
}

// namespaces plans the records below netnamespaces/ and what is written back.
func (d *round) namespaces() {
	stale := d.staleNamespaces()
	n := networks{members: map[string]*member{}, holders: map[netid.ID][]string{}}
	for name, rec := range d.records.Namespaces {
		if rec.Effective != nil && !stale[name] {
			n.holders[*rec.Effective] = append(n.holders[*rec.Effective], name)
		}
	}
	groups := map[string][]*member{}
	var order []string // of groups, by their oldest member
	for _, ns := range byAge(d.cluster.Namespaces, namespaceAge) {
		m := d.member(ns, stale[ns.Name])
		if m == nil {
			continue
		}
		n.members[ns.Name] = m
		d.annotateNetID(m)
		switch {
		case !m.declared():
			d.undeclared(n, m)
		case m.network == GlobalNetwork:
			d.declare(m, m.has(netid.Global), topology.MakeGlobal, "")
		default:
			if groups[m.network] == nil {
				order = append(order, m.network)
			}
			groups[m.network] = append(groups[m.network], m)
		}
	}
	for _, name := range order {
		d.group(n, groups[name])
	}
}

// staleNamespaces plans the end of records whose Namespace is gone, and returns
// the names of those that go to make room for a namesake.
func (d *round) staleNamespaces() map[string]bool {
	stale := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(d.records.Namespaces)) {
		rec := d.records.Namespaces[name]
		now, exists := d.cluster.Namespaces[name]
		switch {
		case rec.UID == "", exists && now.UID == rec.UID:
			continue
		case exists:
			stale[name] = true
		case !d.empty[rec.UID]:
			d.plan.Asks = append(d.plan.Asks, Ask{Namespace: name, UID: rec.UID})
			continue
		}
		d.plan.Writes = append(d.plan.Writes, Write{
			Key: name, Namespace: &rec, Delete: true, Revision: d.records.Revs.Namespaces[name].Mod, Why: "its Namespace is gone",
		})
	}
	return stale
}

// member reads a namespace; nil when it is not to be touched.
func (d *round) member(ns kube.Namespace, stale bool) *member {
	m := &member{Namespace: ns, record: topology.Namespace{NetName: ns.Name}}
	object := NamespaceRef(ns.Name, ns.UID)
	if reason, bad := d.records.Invalid["netnamespaces/"+ns.Name]; bad {
		d.refuse(object, NetworkRefused, "its record in etcd cannot be used; mend or delete it: "+reason)
		return nil
	}
	if rec, ok := d.records.Namespaces[ns.Name]; ok && !stale {
		m.record, m.revision = rec, d.records.Revs.Namespaces[ns.Name].Mod
	}
	if m.revision == 0 && ns.Terminating {
		return nil
	}
	if ns.Network == nil {
		return m
	}
	if err := topology.ValidateNamespaceName(*ns.Network); err != nil {
		m.invalid = true
		d.plan.Refused++
		d.refuse(object, NetworkRefused, fmt.Sprintf("annotation %s: %q is not the name of a network, which is a DNS subdomain (lower-case letters, digits, inner dashes and dots) of at most 63 characters: nothing was changed", topology.NetworkAnnotation, *ns.Network))
		return m
	}
	m.network = *ns.Network
	return m
}

func (d *round) annotateNetID(m *member) {
	if m.revision == 0 || m.Terminating {
		return
	}
	id, ok := d.records.NetID(m.Name)
	if text := strconv.FormatUint(uint64(id), 10); ok && text != m.NetID {
		d.plan.Annotations = append(d.plan.Annotations, Annotation{Namespace: m.Name, UID: m.UID, Value: text})
	}
}

// undeclared plans a namespace that no annotation rules: the CLI's, save that an
// annotation that was taken away isolates it.
func (d *round) undeclared(n networks, m *member) {
	want := m.record
	want.UID = m.UID
	if m.record.Declared != "" && m.network == "" && !m.invalid {
		if m.record.Action != topology.None {
			return // it comes again when that is carried out
		}
		want.Declared, want.Forced = "", false
		if !n.alone(m) {
			want.Action, want.By, want.Status = topology.Isolate, "", nil
		}
	}
	d.write(m, want, "")
}

// alone reports that no other namespace has the netID of m, which is not global.
func (n networks) alone(m *member) bool {
	id := m.record.Effective
	return id != nil && !id.IsGlobal() && len(n.holders[*id]) == 1
}

// group plans the namespaces whose annotation has one name, the oldest first:
// they are put on the network that most of them are on by that name already, or
// else on that of the oldest, cleared of others.
func (d *round) group(n networks, members []*member) {
	if id, first := n.common(members); first != nil {
		for _, m := range members {
			d.declare(m, m.has(id), topology.Join, first.Name)
		}
		return
	}
	first := members[0]
	if first.record.Action != topology.None {
		return // someone's request: what comes of it decides
	}
	clear := n.only(first, members)
	d.declare(first, clear, topology.Isolate, "")
	for _, m := range members[1:] {
		d.declare(m, clear && m.has(*first.record.Effective), topology.Join, first.Name)
	}
}

// common is the netID that most of the members have by their annotation, and the
// oldest of them; nil when none has.
func (n networks) common(members []*member) (id netid.ID, first *member) {
	votes, firsts := map[netid.ID]int{}, map[netid.ID]*member{}
	for _, m := range members {
		e := m.record.Effective
		if !m.applied() || e == nil || e.IsGlobal() || n.others(*e, m.network) {
			continue
		}
		votes[*e]++
		if firsts[*e] == nil {
			firsts[*e] = m
		}
		if first == nil || votes[*e] > votes[id] {
			id, first = *e, firsts[*e]
		}
	}
	return id, first
}

// others reports that a namespace whose annotation has another name is on id.
func (n networks) others(id netid.ID, network string) bool {
	return slices.ContainsFunc(n.holders[id], func(name string) bool {
		m := n.members[name]
		return m != nil && m.applied() && m.network != network
	})
}

// only reports that m has a netID that none but the members have.
func (n networks) only(m *member, members []*member) bool {
	id := m.record.Effective
	if id == nil || id.IsGlobal() {
		return false
	}
	return !slices.ContainsFunc(n.holders[*id], func(name string) bool {
		return !slices.ContainsFunc(members, func(m *member) bool { return m.Name == name })
	})
}

// declare plans a namespace that its annotation rules. right says that its
// network is what the annotation says; else action makes it so.
func (d *round) declare(m *member, right bool, action topology.Action, target string) {
	want := m.record
	want.UID, want.Declared, want.Forced = m.UID, m.network, false
	again := m.record.Declared == m.network && d.resting(m.record.Status)
	if !right && want.Action == topology.None && !again {
		want.Action, want.Namespace, want.By, want.Status = action, target, "", nil
	}
	d.write(m, want, fmt.Sprintf("annotation %s: %s", topology.NetworkAnnotation, m.network))
}

func (d *round) write(m *member, want topology.Namespace, why string) {
	was := m.record
	if m.revision != 0 && was.UID == want.UID && was.Declared == want.Declared && was.Forced == want.Forced && was.Action == want.Action {
		return
	}
	if why == "" {
		why = "its Namespace"
	}
	w := Write{Key: m.Name, Namespace: &want, Revision: m.revision, Why: why}
	if m.revision == 0 && want.Action == topology.None {
		d.plan.New = append(d.plan.New, w)
		return
	}
	d.plan.Writes = append(d.plan.Writes, w)
}

// byAge lists objects, the oldest first.
func byAge[T any](objects map[string]T, age func(T) (time.Time, string)) []T {
	return slices.SortedFunc(maps.Values(objects), func(a, b T) int {
		at, an := age(a)
		bt, bn := age(b)
		return cmp.Or(at.Compare(bt), cmp.Compare(an, bn))
	})
}

func namespaceAge(n kube.Namespace) (time.Time, string) { return n.Created, n.Name }

func nodeAge(n kube.Node) (time.Time, string) { return n.Created, n.Name }
