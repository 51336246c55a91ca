package act

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// do runs Do and gives back what it said on the way, too.
func do(t *testing.T, s *script, r plan.Request, o Options) (result view.Result, said []string, err error) {
	t.Helper()
	o.Progress = func(text string) { said = append(said, text) }
	done := make(chan struct{})
	go func() {
		defer close(done)
		result, err = Do(t.Context(), s, r, o)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("Do does not return")
	}
	return result, said, err
}

func TestDone(t *testing.T) {
	asked := records(requested, pending(space("a", 100), topology.Join, "b"), space("b", 200), space("c", 200))
	carriedOut := records(60, space("a", 200), space("b", 200), space("c", 200))
	id := netid.ID(200)
	tests := []struct {
		name     string
		records  []store.Records
		statuses []map[netip.Addr]topology.NodeStatus
		message  string
		progress view.Progress
	}{
		{
			name:     "step by step",
			records:  []store.Records{records(10, space("a", 100), space("b", 200)), asked, carriedOut},
			statuses: []map[netip.Addr]topology.NodeStatus{reports(50, 50), reports(60, 50), reports(60, 61)},
			message:  "a joined b: netID 200, applied on 2/2 nodes",
			progress: view.Progress{Live: 2, Applied: 2, Lagging: []string{}, NotLive: []string{}},
		},
		{
			name:     "seen at once",
			records:  []store.Records{carriedOut},
			statuses: []map[netip.Addr]topology.NodeStatus{reports(70, 70)},
			message:  "a joined b: netID 200, applied on 2/2 nodes",
			progress: view.Progress{Live: 2, Applied: 2, Lagging: []string{}, NotLive: []string{}},
		},
		{
			name:     "a node is down",
			records:  []store.Records{asked, carriedOut},
			statuses: []map[netip.Addr]topology.NodeStatus{reports(60, 0)},
			message:  "a joined b: netID 200, applied on 1/1 nodes; not live and not counted: n2",
			progress: view.Progress{Live: 1, Applied: 1, Lagging: []string{}, NotLive: []string{"n2"}},
		},
		{
			name:     "a node goes down while it lags",
			records:  []store.Records{asked, carriedOut},
			statuses: []map[netip.Addr]topology.NodeStatus{reports(60, 50), reports(60, 0)},
			message:  "a joined b: netID 200, applied on 1/1 nodes; not live and not counted: n2",
			progress: view.Progress{Live: 1, Applied: 1, Lagging: []string{}, NotLive: []string{"n2"}},
		},
		{
			name:     "no node is live",
			records:  []store.Records{carriedOut},
			statuses: []map[netip.Addr]topology.NodeStatus{nil},
			message:  "a joined b: netID 200, applied on no node: none is live; not live and not counted: n1, n2",
			progress: view.Progress{Lagging: []string{}, NotLive: []string{"n1", "n2"}},
		},
		{
			name: "the target moves on in the same moment",
			records: []store.Records{asked, func() store.Records {
				r := records(60, space("a", 200), space("b", 999), space("c", 200))
				return r
			}()},
			statuses: []map[netip.Addr]topology.NodeStatus{reports(60, 60)},
			message:  "a joined b: netID 200, applied on 2/2 nodes",
			progress: view.Progress{Live: 2, Applied: 2, Lagging: []string{}, NotLive: []string{}},
		},
		{
			name:     "what is asked for next does not matter",
			records:  []store.Records{carriedOut, records(70, pending(space("a", 200), topology.Isolate, ""), space("b", 200), space("c", 200))},
			statuses: []map[netip.Addr]topology.NodeStatus{reports(60, 60)},
			message:  "a joined b: netID 200, applied on 2/2 nodes",
			progress: view.Progress{Live: 2, Applied: 2, Lagging: []string{}, NotLive: []string{}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript()
			for _, r := range tt.records {
				s.records <- r
			}
			for _, r := range tt.statuses {
				s.statuses <- r
			}
			got, _, err := do(t, s, joinAB(), Options{Timeout: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]plan.Request{joinAB()}, s.requests); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
			others := got.NetworkWith
			if len(others) == 0 || others[len(others)-1] != "c" {
				t.Errorf("network with %q, want c among them", others)
			}
			want := view.Result{
				Action: topology.Join, Namespace: "a", Target: "b", Result: view.Done, Message: tt.message, Notes: []string{},
				Gains: []string{"b", "c"}, Loses: []string{}, NetID: &id, NetworkWith: others, Revision: 60, Nodes: &tt.progress,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

// TestProgress: each step is told once, and the wait is not over before the
// last live node has the change.
func TestProgress(t *testing.T) {
	s := newScript()
	var said []string
	id := netid.ID(200)
	carriedOut := records(60, space("a", 200), space("b", 200))
	// Each step is shown only when the one before was told.
	steps := map[string]func(){
		"waiting for the controller": func() {
			s.records <- records(requested, pending(space("a", 100), topology.Join, "b"), space("b", 200))
			s.statuses <- reports(50, 50)
			s.records <- carriedOut
		},
		"applied on 0/2 nodes": func() { s.statuses <- reports(50, 50); s.statuses <- reports(60, 59) },
		"applied on 1/2 nodes": func() { s.statuses <- reports(60, 60) },
	}
	got, err := Do(t.Context(), s, joinAB(), Options{Timeout: time.Minute, Progress: func(text string) {
		said = append(said, text)
		if step := steps[text]; step != nil {
			step()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"waiting for the controller", "applied on 0/2 nodes", "applied on 1/2 nodes"}, said); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	if got.Result != view.Done || *got.NetID != id {
		t.Errorf("result is %+v", got)
	}
}

func TestOtherActions(t *testing.T) {
	tests := []struct {
		request plan.Request
		after   topology.Namespace
		message string
	}{
		{plan.Request{Action: topology.Isolate, Namespace: "b"}, space("b", 4242), "b is isolated: netID 4242, applied on 2/2 nodes"},
		{plan.Request{Action: topology.MakeGlobal, Namespace: "b"}, space("b", 0), "b is global: netID 0, applied on 2/2 nodes"},
	}
	for _, tt := range tests {
		s := newScript()
		s.records <- records(60, space("a", 100), tt.after, space("c", 200))
		s.statuses <- reports(60, 60)
		got, _, err := do(t, s, tt.request, Options{Timeout: time.Minute})
		if err != nil {
			t.Errorf("%s: %v", tt.request, err)
		}
		if got.Message != tt.message {
			t.Errorf("%s: %q, want %q", tt.request, got.Message, tt.message)
		}
	}
}

// TestOvertaken: what was carried out is done, also where others have changed so much since that the records do not show it any more.
func TestOvertaken(t *testing.T) {
	done := func(n topology.Namespace, outcome topology.Outcome, request string) topology.Namespace {
		n.Status = &topology.Status{Outcome: outcome, Message: "x", Request: request, By: "alice@desk"}
		return n
	}
	isolate := plan.Request{Action: topology.Isolate, Namespace: "b"}
	tests := []struct {
		name    string
		request plan.Request
		records store.Records
		message string // empty where it was not carried out
	}{
		{"joined since", isolate, records(60, space("a", 100), done(space("b", 4242), topology.Done, "isolate"), space("c", 4242)), "b is isolated: netID 4242, applied on 2/2 nodes"},
		{"alone already, joined since", isolate, records(60, space("a", 100), done(space("b", 200), topology.Unchanged, "isolate"), space("c", 200)), "b is isolated: netID 200, applied on 2/2 nodes"},
		{"the target has left twice", joinAB(), records(60, done(space("a", 300), topology.Done, "join b"), space("b", 400)), "a joined b: netID 300, applied on 2/2 nodes"},
		{"refused", joinAB(), records(60, done(space("a", 100), topology.Refused, "join b"), space("b", 200)), ""},
		{"another request was carried out since", joinAB(), records(60, done(space("a", 300), topology.Done, "join c"), space("b", 200), space("c", 300)), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript()
			s.records <- tt.records
			s.statuses <- reports(60, 60)
			got, _, err := do(t, s, tt.request, Options{Timeout: time.Minute})
			if done := err == nil; done != (tt.message != "") || done && got.Message != tt.message {
				t.Errorf("%q, error %v, want %q", got.Message, err, tt.message)
			}
		})
	}
}

func TestNotCarriedOut(t *testing.T) {
	recreated := records(60, space("a", 100), space("b", 200))
	recreated.Revs.Namespaces["a"] = store.Rev{Mod: 60, Create: 60}
	tests := []struct {
		name    string
		records store.Records
		result  string
		message string
	}{
		{"refused", records(60, refused(space("a", 100), "there is no namespace b"), space("c", 200)), view.Refused, "join a b was not carried out: there is no namespace b"},
		{"taken back", records(60, space("a", 100), space("b", 200)), view.Refused, "taken back, or changed again, by somebody else"},
		{"taken back by one who says so", records(60, said(space("a", 100), topology.Withdrawn, "bob@desk"), space("b", 200)), view.Refused, "taken back, or changed again, by bob@desk"},
		{"changed again", records(60, said(space("a", 300), topology.Done, "bob@desk"), space("b", 200)), view.Refused, "taken back, or changed again, by bob@desk"},
		{"deleted", records(60, space("b", 200)), view.Refused, "the record of namespace a was deleted"},
		{"deleted and made anew", recreated, view.Refused, "the record of namespace a was deleted"},
		{"overtaken", records(60, pending(space("a", 100), topology.Isolate, ""), space("b", 200)), view.Unknown, "another request, isolate a,"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript()
			s.records <- tt.records
			got, _, err := do(t, s, joinAB(), Options{Timeout: time.Minute})
			if err == nil || errors.Is(err, ErrTimeout) {
				t.Fatalf("error %v, result %+v", err, got)
			}
			if got.Result != tt.result || !strings.Contains(got.Message, tt.message) || err.Error() != got.Message {
				t.Errorf("result %s, message %q, error %q, want %s and %q", got.Result, got.Message, err, tt.result, tt.message)
			}
			if len(s.withdrawn) > 0 {
				t.Error("a request that is gone was withdrawn")
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	const short = 30 * time.Millisecond
	asked := records(requested, pending(space("a", 100), topology.Join, "b"), space("b", 200))
	carriedOut := records(60, space("a", 200), space("b", 200))
	slow := reports(60, 50)
	n2 := slow[addr(2)]
	n2.Message = "ovs-vswitchd does not answer"
	slow[addr(2)] = n2
	step := pending(space("a", 100), topology.Join, "b")
	step.Change = topology.Change{Step: topology.StepAccept, NetID: 200, Request: "join b"}
	underWay := records(60, step, space("b", 200))
	tests := []struct {
		name      string
		prepare   func(*script)
		result    string
		message   []string
		withdrawn bool
	}{
		{
			name: "no controller",
			prepare: func(s *script) {
				s.records <- asked
				s.after = func(s *script) { s.snapshot = records(70, space("a", 100), space("b", 200)) }
			},
			result: view.Withdrawn, message: []string{"no controller has taken the request in 30ms", "none is leading; is k8s-ovs-controller running?", "withdrawn"}, withdrawn: true,
		},
		{
			name: "no controller, and the record says who withdrew it",
			prepare: func(s *script) {
				s.records <- asked
				s.after = func(s *script) {
					s.snapshot = records(70, said(space("a", 100), topology.Withdrawn, "alice@desk"), space("b", 200))
				}
			},
			result: view.Withdrawn, message: []string{"no controller", "withdrawn"}, withdrawn: true,
		},
		{
			name: "a controller that hangs",
			prepare: func(s *script) {
				s.leader = "c1"
				s.records <- asked
				s.after = func(s *script) { s.snapshot = records(70, space("a", 100), space("b", 200)) }
			},
			result: view.Withdrawn, message: []string{"controller c1 leads but did not act", "withdrawn"}, withdrawn: true,
		},
		{
			name: "no controller, and the request is somebody else's too",
			prepare: func(s *script) {
				s.records <- asked
				s.after = func(s *script) { s.snapshot = asked }
			},
			result: view.Unknown, message: []string{"no controller", "join a b stands"}, withdrawn: true,
		},
		{
			name: "taken at the last moment",
			prepare: func(s *script) {
				s.records <- asked
				s.statuses <- reports(50, 50)
				s.after = func(s *script) { s.snapshot = carriedOut }
			},
			result: view.Lagging, message: []string{"after 30ms applied on 0/2 nodes, missing on n1, n2", "The request stands"}, withdrawn: true,
		},
		{
			name: "refused at the last moment",
			prepare: func(s *script) {
				s.records <- asked
				s.after = func(s *script) { s.snapshot = records(60, refused(space("a", 100), "no")) }
			},
			result: view.Refused, message: []string{"was not carried out: no"}, withdrawn: true,
		},
		{
			name: "etcd is gone",
			prepare: func(s *script) {
				s.withdrawErr = errors.New("etcd is unavailable (endpoints tried: http://192.0.2.1:2379)")
			},
			result: view.Unknown, message: []string{"unknown", "may stand", "http://192.0.2.1:2379"}, withdrawn: true,
		},
		{
			name:    "a node lags and says why",
			prepare: func(s *script) { s.records <- carriedOut; s.statuses <- slow },
			result:  view.Lagging, message: []string{"applied on 1/2 nodes, missing on n2", "The request stands", "n2 says: ovs-vswitchd does not answer"},
		},
		{
			name: "a node holds up a step",
			prepare: func(s *script) {
				s.records <- underWay
				s.statuses <- slow
				s.after = func(s *script) { s.snapshot = underWay }
			},
			result: view.Lagging, message: []string{"is carrying out join a b", "1/2 nodes, missing on n2", "The request stands"}, withdrawn: true,
		},
		{
			name:    "nodes are not heard of",
			prepare: func(s *script) { s.records <- carriedOut },
			result:  view.Lagging, message: []string{"the controller carried out join a b", "could not be read", "stands"},
		},
		{
			name: "the watches end early",
			prepare: func(s *script) {
				close(s.records)
				close(s.statuses)
			},
			result: view.Withdrawn, message: []string{"no controller"}, withdrawn: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // a busy machine needs longer than that for nothing
				s := newScript()
				tt.prepare(s)
				got, _, err := do(t, s, joinAB(), Options{Timeout: short})
				if err == nil {
					t.Fatalf("no error; result is %+v", got)
				}
				if (tt.result != view.Refused) != errors.Is(err, ErrTimeout) {
					t.Errorf("error %v: is it a timeout?", err)
				}
				if got.Result != tt.result || got.Message != err.Error() {
					t.Errorf("result %s, message %q, error %q; want %s", got.Result, got.Message, err, tt.result)
				}
				for _, w := range tt.message {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("error %q does not say %q", err, w)
					}
				}
				if (len(s.withdrawn) > 0) != tt.withdrawn {
					t.Errorf("withdrawn %v, want %t", s.withdrawn, tt.withdrawn)
				}
				for _, rev := range s.withdrawn {
					if rev != requested {
						t.Errorf("withdrew revision %d, want the request's, %d", rev, requested)
					}
				}
			})
		})
	}
}

// Who holds up a step is told, where that takes long.
func TestStepsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		step := pending(space("a", 100), topology.Join, "b")
		step.Change = topology.Change{Step: topology.StepAccept, NetID: 200, Request: "join b"}
		s := newScript()
		s.records <- records(60, step, space("b", 200))
		s.statuses <- reports(60, 50)
		_, said, err := do(t, s, joinAB(), Options{Timeout: 2 * stepsTold})
		if err == nil {
			t.Error("it is done")
		}
		if diff := cmp.Diff([]string{"waiting for the controller", "nodes are taking it up: 1/2 nodes, missing on n2"}, said); diff != "" {
			t.Errorf("said (-want +got):\n%s", diff)
		}
	})
}

func TestInterrupt(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(*script)
		after   string
		result  string
		want    string
	}{
		{"before the controller", func(*script) {}, "waiting for the controller", view.Unknown, "the request join a b stands, and a controller carries it out"},
		{"before the nodes", func(s *script) {
			s.records <- records(60, space("a", 200), space("b", 200))
			s.statuses <- reports(60, 50)
		}, "applied on 1/2 nodes", view.Lagging, "the controller has carried it out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript()
			tt.prepare(s)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			got, err := Do(ctx, s, joinAB(), Options{Timeout: time.Minute, Progress: func(text string) {
				if text == tt.after {
					cancel()
				}
			}})
			if err == nil || errors.Is(err, ErrTimeout) {
				t.Fatalf("error %v", err)
			}
			if got.Result != tt.result || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "interrupted") {
				t.Errorf("result %s, error %q", got.Result, err)
			}
			if len(s.withdrawn) > 0 {
				t.Error("an interrupted wait withdrew the request")
			}
		})
	}
}

// TestNothingIsWritten: neither a dry run, nor what there is nothing to do for,
// nor what is impossible reaches the records.
func TestNothingIsWritten(t *testing.T) {
	tests := []struct {
		name    string
		request plan.Request
		o       Options
		result  string
		err     string
	}{
		{"dry run", joinAB(), Options{DryRun: true}, view.WouldChange, ""},
		{"nothing to do", plan.Request{Action: topology.Join, Namespace: "b", Target: "c"}, Options{}, view.NothingToDo, ""},
		{"nothing to do, dry", plan.Request{Action: topology.Isolate, Namespace: "a"}, Options{DryRun: true}, view.NothingToDo, ""},
		{"itself", plan.Request{Action: topology.Join, Namespace: "b", Target: "b"}, Options{}, "", "cannot join itself"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript()
			s.statuses <- reports(10, 10)
			got, _, err := do(t, s, tt.request, tt.o)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if got.Result != tt.result || got.DryRun != tt.o.DryRun {
				t.Errorf("result %+v, want %q", got, tt.result)
			}
			if len(s.requests) > 0 {
				t.Errorf("requests were written: %v", s.requests)
			}
		})
	}
}

// TestNothingToDo: what the records say already may be news to nodes, as where somebody else has asked for it just
// now: live ones are waited for, others named.
func TestNothingToDo(t *testing.T) {
	const says = "in the same network already (netID 200); nothing to do"
	for _, tt := range []struct {
		name     string
		statuses []map[netip.Addr]topology.NodeStatus
		result   string
		message  string
	}{
		{"all have it", []map[netip.Addr]topology.NodeStatus{reports(10, 11)}, view.NothingToDo, says},
		{"a node has not yet", []map[netip.Addr]topology.NodeStatus{reports(10, 9), reports(10, 10)}, view.NothingToDo, says},
		{"a node is not live", []map[netip.Addr]topology.NodeStatus{reports(10, 0)}, view.NothingToDo, says + ", applied on 1/1 nodes; not live and not counted: n2"},
		{"a node lags", []map[netip.Addr]topology.NodeStatus{reports(10, 9)}, view.Lagging, says + "; but after 30ms that is applied on 1/2 nodes, missing on n2: nodes that lag follow as soon as they can"},
		{"nodes are not heard of", nil, view.Lagging, says + "; but what nodes have applied could not be read in 30ms"},
	} {
		s := newScript()
		s.snapshot = records(10, space("b", 200), space("c", 200))
		for _, all := range tt.statuses {
			s.statuses <- all
		}
		got, said, err := do(t, s, plan.Request{Action: topology.Join, Namespace: "b", Target: "c"}, Options{Timeout: 30 * time.Millisecond})
		if errors.Is(err, ErrTimeout) != (tt.result == view.Lagging) || got.Result != tt.result || !strings.HasSuffix(got.Message, tt.message) || len(s.requests) > 0 {
			t.Errorf("%s: result %s, message %q, error %v, requests %v; want %s, %q", tt.name, got.Result, got.Message, err, s.requests, tt.result, tt.message)
		}
		if slices.Contains(said, "waiting for the controller") {
			t.Errorf("%s: said %q", tt.name, said)
		}
	}
}

// TestAnnotationRules: only --force changes what an annotation says.
func TestAnnotationRules(t *testing.T) {
	annotated := func() *script {
		s := newScript()
		n := s.snapshot.Namespaces["a"]
		n.Declared = "blue"
		s.snapshot.Namespaces["a"] = n
		return s
	}
	for r, say := range map[plan.Request]string{
		joinAB(): "k8s-ovs.io/network=NETWORK",
		{Action: topology.MakeGlobal, Namespace: "a"}: "k8s-ovs.io/network=global",
	} {
		s := annotated()
		_, _, err := do(t, s, r, Options{NoWait: true})
		if err == nil || !strings.Contains(err.Error(), say) || !strings.Contains(err.Error(), "--force") || len(s.requests) > 0 {
			t.Errorf("%s: error %v, want one with the way out; requests %v", r, err, s.requests)
		}
	}
	s := annotated()
	got, _, err := do(t, s, joinAB(), Options{NoWait: true, Force: true})
	if err != nil || s.forced != 1 || len(got.Notes) != 1 || !strings.Contains(got.Notes[0], "until the annotation changes") {
		t.Errorf("%+v, %v after %d forced requests", got, err, s.forced)
	}
	// Others may come to it.
	s = annotated()
	if _, _, err := do(t, s, plan.Request{Action: topology.Join, Namespace: "b", Target: "a"}, Options{NoWait: true}); err != nil {
		t.Error(err)
	}
}

func TestNoWait(t *testing.T) {
	s := newScript()
	got, said, err := do(t, s, joinAB(), Options{NoWait: true})
	if err != nil {
		t.Fatal(err)
	}
	if got.Result != view.Requested || len(s.requests) != 1 || len(said) > 0 {
		t.Errorf("result %+v after %d requests and %q", got, len(s.requests), said)
	}
}

func TestStoreErrors(t *testing.T) {
	away := errors.New("away")
	s := newScript()
	s.snapshotErr = away
	if got, _, err := do(t, s, joinAB(), Options{}); !errors.Is(err, away) || got.Result != "" {
		t.Errorf("%v, %+v", err, got)
	}
	s = newScript()
	s.requestErr = away
	if got, _, err := do(t, s, joinAB(), Options{}); !errors.Is(err, away) || got.Result != "" {
		t.Errorf("%v, %+v", err, got)
	}
}

// TestReadAgain: etcd does not answer for a moment, as when a member of it is cut off, before anything is asked for.
func TestReadAgain(t *testing.T) {
	s := newScript()
	s.unread = 2
	s.records <- records(requested, space("a", 200), space("b", 200), space("c", 200))
	s.statuses <- reports(requested, requested)
	if got, _, err := do(t, s, joinAB(), Options{}); err != nil || got.Result != view.Done || len(s.requests) != 1 {
		t.Errorf("result %+v after %d requests: %v", got, len(s.requests), err)
	}
}

// TestAnswerLost: etcd's answer to a request is lost. It is asked again, unless the request is seen to be carried out.
func TestAnswerLost(t *testing.T) {
	carriedOut := records(requested, space("a", 200), space("b", 200), space("c", 200))
	for name, tt := range map[string]struct {
		lost     func(*script)
		requests int
	}{
		"nothing was written": {nil, 3},
		"it was": {func(s *script) {
			s.snapshot = records(requested, pending(space("a", 100), topology.Join, "b"), space("b", 200))
		}, 3},
		"and it is carried out": {func(s *script) { s.snapshot = carriedOut }, 1},
		"etcd stays away":       {func(s *script) { s.snapshotErr = errors.New("away") }, 3},
	} {
		s := newScript()
		s.away, s.lost = 2, tt.lost
		s.records <- carriedOut
		s.statuses <- reports(requested, requested)
		got, _, err := do(t, s, joinAB(), Options{})
		if err != nil || got.Result != view.Done || len(s.requests) != tt.requests {
			t.Errorf("%s: result %+v after %d requests: %v", name, got, len(s.requests), err)
		}
	}
	s := newScript()
	s.away = 1
	ctx, cancel := context.WithCancel(t.Context())
	s.lost = func(*script) { cancel() }
	if got, err := Do(ctx, s, joinAB(), Options{}); err == nil || !strings.Contains(err.Error(), "may have been written: `netns show a` tells") || got.Result != "" {
		t.Errorf("%v, %+v", err, got)
	}
}
