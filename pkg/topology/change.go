package topology

import "github.com/k8s-ovs/k8s-ovs/pkg/netid"

// Step is how far a change of a namespace's netID has come. The steps, and why there are
// these, are in docs/tenant-changes.md.
type Step string

const (
	// StepAccept: nodes take what carries the old netID or the new one, and send with the old.
	StepAccept Step = "accept"
	// StepSend: nodes send with the new netID, and still take both.
	StepSend Step = "send"
)

// Change is a change of a namespace's netID that is under way. The zero value is none.
// Those who know nothing of it follow Effective, which changes once.
type Change struct {
	Step Step `json:"Step"`
	// NetID is what nodes take beside Effective: the new netID in [StepAccept], the old one
	// in [StepSend].
	NetID netid.ID `json:"NetID"`
	// Request is what the change carries out, as [Namespace.Request] says it, and By who asked
	// for it; Request is empty for a netID that was written by hand.
	Request string `json:"Request,omitempty"`
	By      string `json:"By,omitempty"`
}

// UnderWay reports whether there is a change.
func (c Change) UnderWay() bool { return c.Step == StepAccept || c.Step == StepSend }

// Goal is the netID that a namespace with that Effective has in the end, and Origin the one that
// it had before the change; both are Effective where there is none.
func (c Change) Goal(effective netid.ID) netid.ID {
	if c.Step == StepAccept {
		return c.NetID
	}
	return effective
}

// Origin is the netID before the change: see [Change.Goal].
func (c Change) Origin(effective netid.ID) netid.ID {
	if c.Step == StepSend {
		return c.NetID
	}
	return effective
}

// Tenancy is what nodes do for a namespace: the netID that what it sends carries, and which
// it takes.
type Tenancy struct {
	NetID netid.ID
	// Other is taken beside NetID where Both is true: the namespace is changing from one of
	// them to the other.
	Other netid.ID
	Both  bool
}

// Tenancy is that of the namespace; ok is false as long as no netID is confirmed.
func (n Namespace) Tenancy() (t Tenancy, ok bool) {
	if n.Effective == nil {
		return Tenancy{}, false
	}
	t.NetID = *n.Effective
	if n.Change.UnderWay() {
		t.Other, t.Both = n.Change.NetID, true
	}
	return t, true
}

// Admits reports whether the namespace takes what carries a netID.
func (t Tenancy) Admits(sender netid.ID) bool {
	return sender.IsGlobal() || t.OpenToAll() || sender == t.NetID || t.Both && sender == t.Other
}

// OpenToAll reports whether it takes what carries any netID.
func (t Tenancy) OpenToAll() bool { return t.NetID.IsGlobal() || t.Both && t.Other.IsGlobal() }

// Tenancy is what nodes do for a namespace; ok is false where it has no confirmed netID. In a
// single-tenant network every namespace is global.
func (s Snapshot) Tenancy(namespace string) (t Tenancy, ok bool) {
	if s.Config.Single() {
		return Tenancy{NetID: netid.Global}, true
	}
	return s.Namespaces[namespace].Tenancy()
}

// Namesake reports whether the Namespace with that UID is not the one that has its name now: it is
// gone, and who came in it has no tenant in the one that took its name. Where one of both UIDs is
// not known, as outside of Kubernetes, they are taken for the same. In a single-tenant network no
// namespace is kept from another.
func (s Snapshot) Namesake(namespace, uid string) bool {
	return !s.Config.Single() && s.Namespaces[namespace].isNamesake(uid)
}

// isNamesake reports whether both UIDs are known and differ.
func (n Namespace) isNamesake(uid string) bool { return uid != "" && n.UID != "" && n.UID != uid }

// Succeeds reports whether the record may be that of the same namespace as the one before: it is
// not where both follow Kubernetes Namespaces that are not the same.
func (n Namespace) Succeeds(before Namespace) bool { return !n.isNamesake(before.UID) }

// Changing reports whether some namespace is changing to id or from it, so that who has it is
// about to be another.
func (s Snapshot) Changing(id netid.ID) bool {
	for _, n := range s.Namespaces {
		if t, ok := n.Tenancy(); ok && t.Both && (t.NetID == id || t.Other == id) {
			return true
		}
	}
	return false
}
