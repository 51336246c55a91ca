// Package plan decides what a request of an operator means for the records
// as they stand: whether it changes anything, and who could reach whom after it.
//
// It is pure: it looks at a snapshot and never reads or writes a record.
package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/options/near"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Request is what an operator asks for.
type Request struct {
	Action    topology.Action
	Namespace string
	// Target is the namespace to join; empty for other actions.
	Target string
}

// String is the request as it is typed: "join a b".
func (r Request) String() string {
	return strings.TrimRight(string(r.Action)+" "+r.Namespace+" "+r.Target, " ")
}

// InRecord is the request as the record of its namespace has it: "join b".
func (r Request) InRecord() string {
	return topology.Namespace{Action: r.Action, Namespace: r.Target}.Request()
}

// Of is the request that stands in a record; its Action is None where none does.
func Of(n topology.Namespace) Request {
	r := Request{Action: n.Action, Namespace: n.NetName}
	if n.Action == topology.Join {
		r.Target = n.Namespace
	}
	return r
}

// Plan is what a request would do.
type Plan struct {
	Request Request
	// Nothing says why there is nothing to do; empty where there is.
	Nothing string
	// Notes say what may surprise, a sentence each.
	Notes []string
	// Pending reports that this very request stands in the record already.
	Pending bool
	// TargetID is the netID of the namespace to join.
	TargetID netid.ID
	// Change is who could newly, or no longer, be reached.
	Change Change
}

// OpensAll reports that the namespace would become global: every namespace would reach it.
func (p Plan) OpensAll() bool {
	return p.Nothing == "" && (p.Request.Action == topology.MakeGlobal || p.Request.Action == topology.Join && p.TargetID.IsGlobal())
}

// fresh stands for the netID that isolating will draw: nobody has it, so it is
// none that can be given.
const fresh = netid.Max + 1

// Make plans r. An error says why r is impossible and what to do instead.
func Make(s topology.Snapshot, r Request) (Plan, error) {
	if s.Config.Single() {
		return Plan{}, fmt.Errorf("the network %q has a single tenant (PluginName %s): every namespace reaches all, so there is nothing to %s; nothing was changed",
			s.Config.Name, s.Config.PluginName, r.Action)
	}
	n, err := Find(s, r.Namespace)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Request: r, Pending: n.Action != topology.None && Of(n) == r}
	switch {
	case p.Pending:
		p.Notes = append(p.Notes, "this request stands in the record already")
	case n.Action != topology.None:
		return Plan{}, fmt.Errorf("namespace %s has another request pending: %s; ask again when the controller has carried it out (`netns show %s` tells)",
			r.Namespace, Of(n), r.Namespace)
	}
	var wanted netid.ID
	switch r.Action {
	case topology.Join:
		wanted, err = p.join(s, n)
	case topology.Isolate:
		wanted = p.isolate(s, n)
	case topology.MakeGlobal:
		wanted = p.global(s, n)
	default:
		err = fmt.Errorf("action %q is none of join, isolate, global", string(r.Action))
	}
	if err != nil {
		return Plan{}, err
	}
	if p.Nothing == "" {
		before := IDs(s)
		after := maps.Clone(before)
		after[r.Namespace] = wanted
		p.Change = Diff(r.Namespace, before, after)
	}
	return p, nil
}

// Overrule refuses a change of a namespace that an annotation rules, unless it is
// forced. The error says how to change the annotation instead.
func (p *Plan) Overrule(s topology.Snapshot, force bool) error {
	n := s.Namespaces[p.Request.Namespace]
	if n.Declared == "" || p.Nothing != "" {
		return nil
	}
	if force {
		p.Notes = append(p.Notes, fmt.Sprintf("this stands over the annotation %s=%s of %s until the annotation changes", topology.NetworkAnnotation, n.Declared, n.NetName))
		return nil
	}
	if n.Forced {
		return nil
	}
	instead := fmt.Sprintf("kubectl annotate namespace %s --overwrite %s=NETWORK", n.NetName, topology.NetworkAnnotation)
	switch p.Request.Action {
	case topology.MakeGlobal:
		instead = fmt.Sprintf("kubectl annotate namespace %s --overwrite %s=global", n.NetName, topology.NetworkAnnotation)
	case topology.Isolate:
		instead = fmt.Sprintf("kubectl annotate namespace %s %s-", n.NetName, topology.NetworkAnnotation)
	}
	return fmt.Errorf("the annotation %s=%s of namespace %s says which network it is on; nothing was changed: change the annotation (`%s`), or use --force to stand over it until it changes",
		topology.NetworkAnnotation, n.Declared, n.NetName, instead)
}

// Find is the record of a namespace. The error says what is near the name, or
// what is wrong with the record.
func Find(s topology.Snapshot, name string) (topology.Namespace, error) {
	if n, ok := s.Namespaces[name]; ok {
		return n, nil
	}
	if reason, ok := InvalidNamespaces(s)[name]; ok {
		return topology.Namespace{}, fmt.Errorf("the record of namespace %q cannot be used; mend or delete it: %s", name, reason)
	}
	if err := topology.ValidateNamespaceName(name); err != nil {
		return topology.Namespace{}, err
	}
	all := slices.Sorted(maps.Keys(s.Namespaces))
	if phrase := near.Phrase(name, all); phrase != "" {
		return topology.Namespace{}, fmt.Errorf("there is no namespace %q%s", name, phrase)
	}
	if len(all) == 0 {
		return topology.Namespace{}, fmt.Errorf("there is no namespace %q: the network %q has none yet; a namespace gets its record with its first pod", name, s.Config.Name)
	}
	return topology.Namespace{}, fmt.Errorf("there is no namespace %q; `netns list` shows the %d there are", name, len(all))
}

// InvalidNamespaces is the namespaces whose records do not parse, and why.
func InvalidNamespaces(s topology.Snapshot) map[string]string {
	found := map[string]string{}
	for key, reason := range s.Invalid {
		if name, ok := strings.CutPrefix(key, "netnamespaces/"); ok {
			found[name] = reason
		}
	}
	return found
}

// IDs is the confirmed netID of each namespace that has one.
func IDs(s topology.Snapshot) map[string]netid.ID {
	ids := make(map[string]netid.ID, len(s.Namespaces))
	for name := range s.Namespaces {
		if id, ok := s.NetID(name); ok {
			ids[name] = id
		}
	}
	return ids
}

// Sharing is the other namespaces with the netID of name, in order.
func Sharing(ids map[string]netid.ID, name string) []string {
	id, ok := ids[name]
	if !ok {
		return nil
	}
	var others []string
	for other, theirs := range ids {
		if other != name && theirs == id {
			others = append(others, other)
		}
	}
	slices.Sort(others)
	return others
}

// resting reports whether n has the netID id and stays on it, and nobody is coming to it or
// leaving it: only then is something so already for all nodes.
func resting(s topology.Snapshot, n topology.Namespace, id netid.ID) bool {
	return n.Action == topology.None && !n.Change.UnderWay() && !s.Changing(id)
}

func (p *Plan) join(s topology.Snapshot, n topology.Namespace) (netid.ID, error) {
	if p.Request.Target == n.NetName {
		return 0, fmt.Errorf("namespace %s cannot join itself; nothing was changed", n.NetName)
	}
	target, err := Find(s, p.Request.Target)
	if err != nil {
		return 0, err
	}
	if target.Effective == nil {
		return 0, fmt.Errorf("namespace %s has no netID yet, so it cannot be joined: the controller gives it one; try again in a moment", target.NetName)
	}
	p.TargetID = target.Change.Goal(*target.Effective)
	if target.Action != topology.None {
		p.Notes = append(p.Notes, fmt.Sprintf("%s has a request of its own pending: %s", target.NetName, Of(target)))
	}
	if current, ok := s.NetID(n.NetName); ok && current == p.TargetID && resting(s, n, current) {
		if current.IsGlobal() {
			p.Nothing = fmt.Sprintf("%s and %s are both global already", n.NetName, target.NetName)
		} else {
			p.Nothing = fmt.Sprintf("%s and %s are in the same network already (netID %s)", n.NetName, target.NetName, current)
		}
		return current, nil
	}
	if p.TargetID.IsGlobal() {
		p.Notes = append(p.Notes, fmt.Sprintf("%s is global, so joining it makes %s global: it reaches all namespaces and all reach it", target.NetName, n.NetName))
	}
	return p.TargetID, nil
}

func (p *Plan) isolate(s topology.Snapshot, n topology.Namespace) netid.ID {
	ids := IDs(s)
	id, ok := ids[n.NetName]
	if ok && resting(s, n, id) && !id.IsGlobal() && len(Sharing(ids, n.NetName)) == 0 {
		p.Nothing = fmt.Sprintf("%s is alone in its network already (netID %s)", n.NetName, id)
	}
	return fresh
}

func (p *Plan) global(s topology.Snapshot, n topology.Namespace) netid.ID {
	if id, ok := s.NetID(n.NetName); ok && id.IsGlobal() && n.Action == topology.None && !n.Change.UnderWay() {
		p.Nothing = fmt.Sprintf("%s is global already", n.NetName)
	}
	return netid.Global
}

// Fulfilled reports whether r, planned when the target had targetID, is what
// the snapshot shows. For a join the netID that the target has now counts as
// well as the one that it had.
func Fulfilled(s topology.Snapshot, r Request, targetID netid.ID) bool {
	ids := IDs(s)
	id, ok := ids[r.Namespace]
	if !ok {
		return false
	}
	switch r.Action {
	case topology.Join:
		now, known := ids[r.Target]
		return id == targetID || known && id == now
	case topology.Isolate:
		return !id.IsGlobal() && len(Sharing(ids, r.Namespace)) == 0
	case topology.MakeGlobal:
		return id.IsGlobal()
	}
	return false
}
