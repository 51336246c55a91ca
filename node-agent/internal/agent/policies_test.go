package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/policies"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// toldTable notes what it is told.
type toldTable struct {
	told   []string
	fail   error
	denies bool
}

func (t *toldTable) Denies() bool { return t.denies }

func (t *toldTable) Lost() topology.Point { return topology.Point{} }

func (t *toldTable) SetLacks(lacks []string) { _ = t.note(fmt.Sprintf("lacks %v", lacks)) }

func (t *toldTable) note(what string) error {
	t.told = append(t.told, what)
	return t.fail
}

func (t *toldTable) Remember(c policies.Copy)        { _ = t.note("remember " + c.Pods[0].Name) }
func (t *toldTable) UseCopy(c policies.Copy)         { _ = t.note("use " + c.Pods[0].Name) }
func (t *toldTable) Expect(s topology.Snapshot)      { _ = t.note("expect records of " + s.Config.Name) }
func (t *toldTable) SetRecords(s topology.Snapshot)  { _ = t.note("records of " + s.Config.Name) }
func (t *toldTable) Known() error                    { return t.note("known") }
func (t *toldTable) Connected(context.Context) error { return t.note("connected") }
func (t *toldTable) Forgotten()                      { _ = t.note("forgotten") }
func (t *toldTable) Resync(context.Context) error    { return t.note("resync") }

// toldRecord is the record of the node's pods.
type toldRecord struct{ told []string }

func (r *toldRecord) Set(n topology.NodePods) { r.told = append(r.told, n.Pods[0].Name) }
func (r *toldRecord) Close()                  { r.told = append(r.told, "closed") }

func podsOf(name string) topology.NodePods {
	return topology.NodePods{Pods: []topology.NodePod{{Namespace: "shop", Name: name, Address: netip.MustParseAddr("172.11.0.5")}}}
}

// What policies hear in the life of an agent: the copy first, each new switch once, and of a
// switch that took its connections along.
func TestPolicySide(t *testing.T) {
	for name, loses := range map[string]bool{"userspace": true, "kernel": false} {
		t.Run(name, func(t *testing.T) {
			file := records.At[policies.Copy](t.TempDir(), "policies.json", "the policies", nil)
			if err := file.Save(policies.Copy{Pods: []policies.CopiedPod{{Name: "web"}}}); err != nil {
				t.Fatal(err)
			}
			table, record := &toldTable{}, &toldRecord{}
			s := topology.Snapshot{Config: topology.DefaultConfig()}
			n := &policySide{picture: &picture{records: &s}, table: table, file: file, loses: loses, lacks: func() []string { return []string{"a"} }, log: quiet()}
			n.pods = &podsRecord{open: func(network string) podsPublisher {
				record.told = append(record.told, "open "+network)
				return record
			}}
			heard := func(when string, want ...string) {
				t.Helper()
				if diff := cmp.Diff(want, table.told); diff != "" {
					t.Errorf("%s (-want +got):\n%s", when, diff)
				}
				table.told = nil
			}
			n.load()
			n.useCopy()
			n.disconnect() // before there was a switch
			heard("at the start", "remember web", "use web")
			table.fail = errors.New("not yet")
			if err := n.known(t.Context(), &pass{}); err == nil {
				t.Error("what is not known counts as known")
			}
			if err := n.expect(t.Context(), &pass{}); err != nil {
				t.Error(err)
			}
			step := func(full bool) {
				t.Helper()
				if err := n.follow(t.Context(), &pass{full: full}); err != nil {
					t.Error(err)
				}
			}
			step(false)
			table.fail = nil
			step(false)
			step(false)
			step(true)
			heard("with a switch", "known", "expect records of "+s.Config.Name, "lacks [a]", "connected", "lacks [a]", "connected", "resync")
			n.disconnect()
			n.disconnect()
			step(false)
			want := []string{"lacks [a]", "connected"}
			if loses {
				want = append([]string{"forgotten"}, want...)
			}
			heard("with another switch", want...)

			n.pods.set(podsOf("early"))
			n.applied(s, false)
			n.applied(s, true)
			n.pods.set(podsOf("late"))
			n.applied(s, true)
			n.close()
			n.pods.set(podsOf("after"))
			n.applied(s, true)
			if want := []string{"open " + s.Config.Name, "early", "late", "closed"}; !slices.Equal(record.told, want) {
				t.Errorf("the record of the node's pods was %q, want %q", record.told, want)
			}
		})
	}
}

// Where ClusterNetworkPolicies are about pods, a new switch has the rules before these pods' flows.
func TestPoliciesAhead(t *testing.T) {
	s := topology.Snapshot{Config: topology.DefaultConfig()}
	for name, test := range map[string]struct {
		records *topology.Snapshot
		denies  bool
		fail    error
		want    []string
		after   []string
		err     bool
	}{
		"nothing denied":           {&s, false, nil, nil, []string{"lacks []", "connected"}, false},
		"denied":                   {&s, true, nil, []string{"records of " + s.Config.Name, "lacks []", "connected"}, nil, false},
		"no records":               {nil, true, nil, nil, []string{"lacks []", "connected"}, false},
		"rules of before, late":    {&s, true, flowstore.ErrNotReady, []string{"records of " + s.Config.Name, "lacks []", "connected"}, []string{"lacks []", "connected"}, false},
		"rules that are not taken": {&s, true, errors.New("table full"), []string{"records of " + s.Config.Name, "lacks []", "connected"}, []string{"lacks []", "connected"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			table := &toldTable{denies: test.denies, fail: test.fail}
			n := &policySide{picture: &picture{records: test.records}, table: table, lacks: func() []string { return nil }, log: quiet()}
			if err := n.ahead(t.Context()); (err != nil) != test.err {
				t.Error(err)
			}
			if diff := cmp.Diff(test.want, table.told); diff != "" {
				t.Errorf("ahead (-want +got):\n%s", diff)
			}
			table.told = nil
			_ = n.follow(t.Context(), &pass{})
			if diff := cmp.Diff(test.after, table.told); diff != "" {
				t.Errorf("afterwards (-want +got):\n%s", diff)
			}
		})
	}
}

// Records are taken while policies come into the switch, or are read back.
func TestPoliciesBeside(t *testing.T) {
	table := &toldTable{}
	n := &policySide{table: table, lacks: func() []string { return nil }, log: quiet()}
	waited := [][]string{}
	p := &pass{full: true, waiting: func(f func()) {
		table.told = nil
		f()
		waited = append(waited, table.told)
	}}
	for range 2 {
		if err := n.follow(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([][]string{{"connected"}, {"resync"}}, waited); diff != "" {
		t.Errorf("beside (-want +got):\n%s", diff)
	}
}

// Outside of Kubernetes there are no policies, and nothing of them.
func TestNoPolicies(t *testing.T) {
	n := &policySide{}
	n.load()
	n.useCopy()
	n.applied(topology.Snapshot{}, true)
	n.disconnect()
	n.close()
	if err := errors.Join(n.ahead(t.Context()), n.expect(t.Context(), &pass{}), n.known(t.Context(), &pass{}), n.follow(t.Context(), &pass{full: true})); err != nil {
		t.Error(err)
	}
}
