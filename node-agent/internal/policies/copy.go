package policies

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	// labelsAtMost is how long a starting agent waits for the API server to show the node's
	// pods, before it goes on with the labels of the copy on disk.
	labelsAtMost = 3 * time.Second
	// keepEvery is how often at most a copy is made.
	keepEvery = time.Second
)

var (
	errNotTold  = errors.New("the records of policies are not known yet")
	errNotShown = errors.New("the API server has not shown this node's pods, whose labels policies select them by, yet")
)

// lateError says that sets are not whole.
func lateError(sets int) error {
	return fmt.Errorf("%d sets of pods that policies name are not whole yet: what they allow is closed until then (does a k8s-ovs-controller lead?)", sets)
}

// Copy is what a start without etcd, or without the API server, needs: it stands on disk.
type Copy struct {
	topology.PolicyRecords
	// Pods are those of the node, in order of their addresses.
	Pods []CopiedPod `json:"Pods"`
	// At is the newest write of a leader that is in it.
	At topology.Point `json:"At,omitzero"`
}

// CopiedPod is a pod in a [Copy].
type CopiedPod struct {
	Namespace string     `json:"Namespace"`
	Name      string     `json:"Name"`
	UID       string     `json:"UID,omitempty"`
	Address   netip.Addr `json:"Address"`
	// Labels count where Labelled says so.
	Labels   map[string]string `json:"Labels,omitempty"`
	Labelled bool              `json:"Labelled,omitempty"`
	// Selected is that policies selected it: the switch knows its connections.
	Selected bool `json:"Selected,omitempty"`
}

// kept is what was handed on last.
type kept struct {
	// published is what the node told of its pods, tellUntil until when it does without
	// policies.
	published topology.NodePods
	tellUntil time.Time
	// keepDue is when the next copy is to be made; zero where nothing changed. keptAt is when
	// the last was, keptAsked what it has.
	keepDue, keptAt time.Time
	keptAsked       uint64
}

// copyDue is what a start would need, where something changed since it was asked for; not
// more often than every [keepEvery].
func (t *Table) copyDue() (c Copy, due bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.cfg.Now(); t.told && t.keptAsked != t.asked {
		if at := t.keptAt.Add(keepEvery); now.Before(at) {
			t.keepDue = at
			return Copy{}, false
		}
		t.keptAt, t.keptAsked, t.keepDue = now, t.asked, time.Time{}
		return t.copy(), true
	}
	return Copy{}, false
}

// copy is what a start would need.
func (p *picture) copy() Copy {
	c := Copy{PolicyRecords: topology.PolicyRecords{
		Isolation: map[string]topology.Isolation{}, Policies: map[string]map[string]topology.PolicyRecord{}, Sets: map[string]topology.SetMembers{},
		Cluster: p.view.Cluster.Policies,
	}, Pods: []CopiedPod{}, At: p.view.History.Now}
	for n, i := range p.view.Isolation {
		c.Isolation[n] = i.Value
	}
	for n, s := range p.view.Policies {
		c.Policies[n] = s.Policies
	}
	for hash, s := range p.view.Sets {
		c.Sets[hash] = s.Value
	}
	for _, one := range p.pods {
		c.Pods = append(c.Pods, CopiedPod{one.Namespace, one.Name, one.UID, one.Address, one.labels, one.labelled, one.given.Selected()})
	}
	slices.SortFunc(c.Pods, func(a, b CopiedPod) int { return a.Address.Compare(b.Address) })
	return c
}

// Remember takes the pods of a copy: what is attached goes on with their labels.
func (t *Table) Remember(c Copy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.copied, t.start = map[netip.Addr]CopiedPod{}, c
	t.ahead = wanted{slices.Sorted(maps.Keys(c.Policies)), slices.Sorted(maps.Keys(c.Sets))}
	for _, p := range c.Pods {
		t.copied[p.Address] = p
	}
	t.want()
}

// view is the records of a copy.
func (c Copy) view() store.PolicyView {
	v := store.PolicyView{
		History: topology.History{Now: c.At}, Isolation: map[string]store.Versioned[topology.Isolation]{}, Policies: map[string]store.NamespacePolicies{},
		Sets: map[string]store.Versioned[topology.SetMembers]{}, Cluster: store.ClusterPolicies{Policies: c.Cluster, Revision: 1},
	}
	for n, i := range c.Isolation {
		v.Isolation[n] = store.Versioned[topology.Isolation]{Value: i, Revision: 1}
	}
	for n, p := range c.Policies {
		v.Policies[n] = store.NamespacePolicies{Policies: p, Revision: 1}
	}
	for hash, s := range c.Sets {
		v.Sets[hash] = store.Versioned[topology.SetMembers]{Value: s, Revision: 1}
	}
	return v
}

// UseCopy goes on with the records of a copy, where etcd has given none.
func (t *Table) UseCopy(c Copy) {
	t.mu.Lock()
	told := t.told
	t.mu.Unlock()
	if !told {
		t.See(c.view())
	}
}
