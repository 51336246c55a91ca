package policies

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/services"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// world is what a table stands in: a switch, pods' own flows, etcd and attachments, in memory.
type world struct {
	t     *testing.T
	table *Table
	flows *flowstore.Store
	views chan store.PolicyView
	// stopped are the goroutines of the table.
	stopped sync.WaitGroup
	stop    context.CancelFunc

	mu       sync.Mutex
	attached []attach.Attachment
	// pods are what the flows of pods say, by port; events what was written, in order.
	pods   map[uint32]pipeline.PodPolicy
	events []string
	// added and gone are the rules' flows that were written and removed.
	added, gone int
	// largest is how many changes the largest bundle had.
	largest   int
	flushed   []string
	wanted    wanted
	published topology.NodePods
	kept      Copy
	// slow is how long the switch takes for rules, broken why it takes none.
	slow   time.Duration
	broken error
	// before is that it has a flow of an agent before.
	before bool
	// past is the way past the switch.
	past past
}

// newWorld starts a table that knows a copy; nothing is attached.
func newWorld(t *testing.T, c Copy) *world {
	w := &world{t: t, views: make(chan store.PolicyView, 1), pods: map[uint32]pipeline.PodPolicy{}}
	w.flows = flowstore.New(flowstore.Config{Areas: []flowstore.Area{Area()}, Observer: w})
	w.flows.Connect(w)
	w.table = New(Config{
		Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Store: w.flows, Pods: w, Attached: w, Outside: &w.past, NodeServes: true,
		Publish: func(n topology.NodePods) { w.locked(func() { w.published = n }) },
		Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler),
	})
	w.table.Remember(c)
	return w
}

// run runs the table; etcd has told nothing yet, the records are in the flows.
func (w *world) run() {
	w.table.SetRecords(twoNodes())
	w.begin()
}

// begin runs the table, which knows of no records.
func (w *world) begin() {
	ctx, stop := context.WithCancel(w.t.Context())
	w.stop = stop
	w.stopped.Go(func() { w.table.Follow(w) })
	w.stopped.Go(func() { _ = w.table.Run(ctx, func(c Copy) { w.locked(func() { w.kept = c }) }) })
	synctest.Wait()
}

func (w *world) end() {
	w.stop()
	close(w.views)
	w.stopped.Wait()
}

// inTime runs a story of a world with a clock of its own.
func inTime(t *testing.T, c Copy, story func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, c)
		w.run()
		defer w.end()
		story(w)
	})
}

func twoNodes() topology.Snapshot {
	s := topology.Snapshot{Config: topology.DefaultConfig(), Nodes: map[netip.Addr]topology.Node{}}
	for i, subnet := range []string{"172.11.0.0/22", "172.11.4.0/22"} {
		ip := netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)})
		s.Nodes[ip] = topology.Node{Host: fmt.Sprintf("n%d", i+1), HostIP: ip, Subnet: netip.MustParsePrefix(subnet)}
	}
	return s
}

func (w *world) locked(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

// The switch. It refuses nothing, and is written by the store.

func (w *world) Commit(ctx context.Context, mods []of.Mod) error {
	w.mu.Lock()
	slow, broken := w.slow, w.broken
	w.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return ctx.Err()
	}
	if broken != nil {
		return broken
	}
	added := 0
	for _, m := range mods {
		if strings.HasPrefix(m.String(), "add") {
			added++
		}
	}
	w.locked(func() {
		w.largest = max(w.largest, len(mods))
		w.added, w.gone = w.added+added, w.gone+len(mods)-added
		if added > 0 {
			w.events = append(w.events, "rules come")
		}
		if len(mods) > added {
			w.events = append(w.events, "rules go")
		}
	})
	return nil
}

func (w *world) Post(context.Context, []of.Mod) error { return nil }

func (w *world) Flows(context.Context, of.FlowFilter) ([]of.FlowStats, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.before {
		return nil, nil
	}
	cookie, _ := pipeline.Policies()
	return []of.FlowStats{{Flow: of.Flow{Table: pipeline.TableIngressAdmin, Cookie: cookie}}}, nil
}
func (w *world) Groups(context.Context) ([]of.GroupEntry, error)           { return nil, nil }
func (w *world) Meters(context.Context) ([]of.Meter, error)                { return nil, nil }
func (w *world) MeterCounters(context.Context) ([]of.MeterCounters, error) { return nil, nil }
func (w *world) AddMeter(context.Context, of.Meter) error                  { return nil }
func (w *world) ModifyMeter(context.Context, of.Meter) error               { return nil }
func (w *world) DeleteMeter(context.Context, uint32) error                 { return nil }
func (w *world) Watch(context.Context, []uint8, func()) error              { return nil }
func (w *world) Committed(string, int, float64)                            {}
func (w *world) Repaired(flowstore.Kind, int)                              {}
func (w *world) FlushConnections(_ context.Context, f of.CTFilter) error {
	w.locked(func() { w.flushed = append(w.flushed, f.String()) })
	return nil
}

// SetPolicies implements PodFlows.
func (w *world) SetPolicies(_ context.Context, pods map[uint32]pipeline.PodPolicy) error {
	w.locked(func() {
		news := false
		for port, p := range pods {
			if have, ok := w.pods[port]; ok && have != p {
				w.pods[port], news = p, true
			}
		}
		if news {
			w.events = append(w.events, "pods")
		}
	})
	return nil
}

// List implements Attached.
func (w *world) List() []attach.Attachment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.attached)
}

// Want and Updates implement Follower.
func (w *world) Want(namespaces, sets []string) {
	w.locked(func() { w.wanted = wanted{namespaces, sets} })
}
func (w *world) Updates() <-chan store.PolicyView { return w.views }

// see has etcd tell v, and waits until the table has done what there is to do at once.
func (w *world) see(v store.PolicyView) {
	w.views <- v
	synctest.Wait()
}

// attachment is that of the pod called name.
func attachment(a netip.Addr, name string) attach.Attachment {
	return attach.Attachment{
		Attachment: cniapi.Attachment{ContainerID: "c-" + name, IfName: "eth0"}, Namespace: "shop", Pod: name,
		Addresses: []netip.Addr{a}, Port: uint32(a.As4()[3]),
	}
}

// add attaches a pod, as an ADD does, and returns how long policies took of it.
func (w *world) add(a netip.Addr, name string, labels map[string]string) time.Duration {
	if labels != nil {
		w.table.Seen(kube.Pod{PodKey: kube.PodKey{Namespace: "shop", Name: name}, UID: "u-" + name, Labels: labels})
	}
	at := attachment(a, name)
	began := time.Now()
	w.table.Enter(w.t.Context(), at, "u-"+name)
	w.locked(func() { w.pods[at.Port] = pipeline.PodPolicy{} })
	if err := w.table.Arm(w.t.Context(), at); err != nil {
		w.t.Error(err)
	}
	first := w.table.Selection(at)
	w.locked(func() {
		w.pods[at.Port] = first
		if first.Cluster {
			w.events = append(w.events, "flows")
		}
		w.attached = append(w.attached, at)
	})
	w.table.Await(w.t.Context(), at)
	return time.Since(began)
}

func (w *world) del(a netip.Addr, name string) {
	at := attachment(a, name)
	w.locked(func() {
		delete(w.pods, at.Port)
		w.attached = slices.DeleteFunc(w.attached, func(other attach.Attachment) bool { return other.Pod == name })
	})
	w.table.Leave(at)
	synctest.Wait()
}

// state is a part of the world, as it is now.
func state[V any](w *world, part *V) V {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *part
}

// selects is what the flows of a pod say.
func (w *world) selects(a netip.Addr) pipeline.PodPolicy {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pods[uint32(a.As4()[3])]
}

// happened are the events since it was asked last.
func (w *world) happened(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff(want, w.events); diff != "" {
		w.t.Errorf("written (-want +got):\n%s", diff)
	}
	w.events = nil
}

// shopWith has clients be one pod, in a namespace with those policies.
func shopWith(revision int64, members ...string) store.PolicyView {
	return withMembers(viewAt(revision, allowing("a", "web")), revision, true, members...)
}

const client = "172.11.4.9"

// The bridge has the flows of all producers, which can be told apart.
func TestAreas(t *testing.T) {
	flowstore.New(flowstore.Config{Areas: []flowstore.Area{nodeflows.Area(), services.Area(), Area()}})
}

// A pod that no policy selects costs ADD nothing; one that is selected has its rules when ADD
// answers.
func TestADD(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(viewAt(1))
		if took := w.add(db1, "db-1", app("db")); took != 0 || w.selects(db1).Selected() {
			t.Errorf("without policies: %s, %+v", took, w.selects(db1))
		}
		w.see(shopWith(2, client))
		w.happened()
		w.locked(func() { w.slow = 30 * time.Millisecond })
		if took := w.add(netip.MustParseAddr("172.11.0.7"), "db-2", app("db")); took != 0 {
			t.Errorf("a pod that no policy selects waits for %s", took)
		}
		took := w.add(web1, "web-1", app("web"))
		if took != 30*time.Millisecond || w.selects(web1) != inward {
			t.Errorf("a selected one: %s, %+v", took, w.selects(web1))
		}
		w.happened("rules come")
	})
}

// A switch that is slow holds ADD up for 200 ms and no longer: the pod is closed until then.
func TestADDWaitsNotLong(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(1, client))
		w.add(db1, "db-1", app("db"))
		w.locked(func() { w.slow = time.Second })
		if took := w.add(web1, "web-1", app("web")); took != rulesAtMost || w.selects(web1) != inward {
			t.Errorf("%s, %+v", took, w.selects(web1))
		}
		w.happened()
		time.Sleep(2 * time.Second)
		w.happened("rules come")
	})
}

// A pod whose labels nobody knows is isolated by every policy, until they come, and allowed only
// what those allow that are about all pods.
func TestADDWithoutLabels(t *testing.T) {
	all := allowing("all", "")
	all.Subject = ""
	for name, test := range map[string]struct {
		policies []policy.Policy
		rules    []string
		labelled []string
		selected bool
	}{
		"of another's policy": {[]policy.Policy{allowing("a", "web")}, nil, []string{"pods"}, false},
		"of all pods' policy": {[]policy.Policy{allowing("a", "web"), all}, []string{"rules come"}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, Copy{}, func(w *world) {
				w.see(withMembers(viewAt(1, test.policies...), 1, true, client))
				w.add(db1, "db-1", nil)
				if w.selects(db1) != inward {
					t.Errorf("without labels it is %+v", w.selects(db1))
				}
				w.happened(test.rules...)
				w.show(map[string]map[string]string{"db-1": app("db")})
				if w.selects(db1).Selected() != test.selected {
					t.Errorf("with labels it is %+v", w.selects(db1))
				}
				w.happened(test.labelled...)
			})
		})
	}
}

// show has the API server show pods with labels.
func (w *world) show(labels map[string]map[string]string) {
	pods := map[kube.PodKey]kube.Pod{}
	for name, l := range labels {
		key := kube.PodKey{Namespace: "shop", Name: name}
		pods[key] = kube.Pod{PodKey: key, UID: "u-" + name, Labels: l}
	}
	w.table.Shown(pods)
	synctest.Wait()
}

// The first pod of a namespace waits until its policies were read; where that fails it is
// isolated, and the watch opens it.
func TestFirstPodOfNamespace(t *testing.T) {
	whole := shopWith(1, client)
	unread := whole
	unread.Policies = nil
	unread.Sets = nil
	inTime(t, Copy{}, func(w *world) {
		w.see(unread)
		go func() {
			time.Sleep(100 * time.Millisecond)
			w.views <- whole
		}()
		if took := w.add(web1, "web-1", app("web")); took != 100*time.Millisecond {
			t.Errorf("it waits for %s", took)
		}
		w.happened("rules come")
	})
	inTime(t, Copy{}, func(w *world) {
		w.see(unread)
		if took := w.add(web1, "web-1", app("web")); took != firstRead+rulesAtMost || w.selects(web1) != inward {
			t.Errorf("without etcd: %s, %+v", took, w.selects(web1))
		}
		w.see(whole)
		if w.happened("rules come"); w.selects(web1) != inward {
			t.Errorf("then %+v", w.selects(web1))
		}
	})
}

// Labels that change select anew: rules that come, isolation, rules that go. A pod that is
// selected no longer has its connections forgotten.
func TestLabelsChange(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(1, client))
		w.add(web1, "web-1", app("web"))
		w.add(db1, "db-1", app("db"))
		w.show(map[string]map[string]string{"web-1": app("web"), "db-1": app("db")})
		w.happened("rules come")
		w.show(map[string]map[string]string{"web-1": app("web"), "db-1": app("web")})
		w.happened("rules come", "pods")
		running := inward
		running.Midstream = true
		if w.selects(db1) != running || w.selects(web1) != inward {
			t.Errorf("flows have %+v and %+v", w.selects(db1), w.selects(web1))
		}
		time.Sleep(midstream)
		synctest.Wait()
		if w.happened("pods"); w.selects(db1) != inward {
			t.Errorf("after 120 s it is %+v", w.selects(db1))
		}
		w.show(map[string]map[string]string{"web-1": app("web"), "db-1": app("db")})
		w.happened("pods", "rules go")
		if got := state(w, &w.flushed); len(got) > 0 {
			t.Errorf("%q is forgotten while the datapath may still track it", got)
		}
		time.Sleep(staleAtMost)
		synctest.Wait()
		if got := state(w, &w.flushed); len(got) != 2*forgetPasses || !strings.Contains(got[0]+got[1], db1.String()) {
			t.Errorf("%q is forgotten", got)
		}
		time.Sleep(10 * staleAtMost)
		synctest.Wait()
		if got := state(w, &w.flushed); len(got) != 4*forgetPasses {
			t.Errorf("%q is forgotten in the end", got)
		}
	})
}

// What a pod's new labels make it isolated by waits for the sets of it, but not for long: what was
// allowed before and is after goes on.
func TestLabelsWaitForSets(t *testing.T) {
	for name, comes := range map[string]bool{"they come": true, "they are late": false} {
		t.Run(name, func(t *testing.T) {
			inTime(t, Copy{}, func(w *world) {
				w.see(viewAt(1, allowing("a", "web")))
				w.add(db1, "db-1", app("db"))
				w.show(map[string]map[string]string{"db-1": app("db")})
				w.happened()
				w.show(map[string]map[string]string{"db-1": app("web")})
				time.Sleep(policiesLate / 2)
				synctest.Wait()
				if w.happened(); w.selects(db1).Selected() {
					t.Error("it is isolated before its rules can be known")
				}
				if !slices.Contains(state(w, &w.wanted).sets, clients.Hash()) {
					t.Errorf("wanted are the sets %q", state(w, &w.wanted).sets)
				}
				if comes {
					w.see(shopWith(1, client))
					w.happened("rules come", "pods")
				} else {
					time.Sleep(policiesLate / 2)
					synctest.Wait()
				}
				if !w.selects(db1).Selected() {
					t.Error("it is not isolated")
				}
			})
		})
	}
}

// A policy that comes isolates behind its rules; one that goes frees before its rules go.
func TestPolicyComesAndGoes(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(viewAt(1))
		w.add(web1, "web-1", app("web"))
		untold := func() {
			t.Helper()
			synctest.Wait()
			if got := state(w, &w.published); !got.HostIP.IsValid() || len(got.Pods) > 0 {
				t.Errorf("without policies, published is %+v", got)
			}
		}
		untold()
		w.see(shopWith(2, client))
		w.happened("rules come", "pods")
		if got := state(w, &w.published); !slices.Equal(got.Pods[0].Ingress, []string{"a"}) {
			t.Errorf("published is %+v", got)
		}
		w.see(shopWith(3, client, "172.11.4.10"))
		w.happened("rules come")
		w.see(shopWith(4, "172.11.4.10"))
		w.happened("rules go")
		w.see(viewAt(5))
		w.happened("pods", "rules go")
		if got := state(w, &w.published); len(got.Pods) != 1 {
			t.Errorf("right after the last policy, published is %+v", got)
		}
		if w.selects(web1).Selected() || state(w, &w.added) != state(w, &w.gone) || w.flows.Size(AreaName) != 0 {
			t.Errorf("left are %+v, %d flows", w.selects(web1), w.flows.Size(AreaName))
		}
		time.Sleep(tellFor)
		w.add(db1, "db-1", app("db"))
		untold()
	})
}

// A policy that takes another's place is waited for with its sets, and so is what a policy
// becomes: what both allow goes on. Not for long.
func TestReplacedWithItsSets(t *testing.T) {
	others := policy.Set{Namespace: "shop", Pods: "app=other"}
	to := func(name string) policy.Policy {
		p := allowing(name, "web")
		p.Ingress.Rules = []policy.Rule{{Peers: []policy.Peer{{Set: &others}}, AnyPort: true}}
		return p
	}
	for name, replaced := range map[string]policy.Policy{"another": to("b"), "the same": to("a")} {
		t.Run(name, func(t *testing.T) {
			inTime(t, Copy{}, func(w *world) {
				w.see(shopWith(1, client))
				w.add(web1, "web-1", app("web"))
				w.happened("rules come")
				v := withMembers(viewAt(2, replaced), 1, true, client)
				w.see(v)
				time.Sleep(policiesLate / 2)
				synctest.Wait()
				w.happened()
				whole := withMembers(viewAt(2, replaced), 1, true, client)
				whole.Sets[others.Hash()] = store.Versioned[topology.SetMembers]{
					Value: topology.SetMembers{Of: topology.AddressSet{PodSet: others.Record(), Whole: true}, Chunks: policy.Chunks([]policy.Member{{Address: netip.MustParseAddr(client)}})}, Revision: 3,
				}
				w.see(whole)
				if added, gone := state(w, &w.added), state(w, &w.gone); gone == 0 || added == 0 {
					t.Errorf("%d flows came and %d went", added, gone)
				}
			})
			inTime(t, Copy{}, func(w *world) {
				w.see(shopWith(1, client))
				w.add(web1, "web-1", app("web"))
				w.happened("rules come")
				w.see(withMembers(viewAt(2, replaced), 1, true, client))
				time.Sleep(policiesLate)
				synctest.Wait()
				w.happened("rules go")
			})
		})
	}
}

// While the switch is away what is wanted stays wanted.
func TestSwitchAway(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(1, client))
		w.flows.Disconnect()
		w.add(web1, "web-1", app("web"))
		if err := w.table.Ready(); !errors.Is(err, flowstore.ErrDisconnected) {
			t.Errorf("ready: %v", err)
		}
		w.happened()
		w.flows.Connect(w)
		if err := w.table.Connected(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		w.happened("rules come")
		if err := w.table.Ready(); err != nil {
			t.Errorf("ready: %v", err)
		}
	})
}

// A switch that refuses rules is tried again, and readiness says so meanwhile.
func TestSwitchRefuses(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(1, client))
		w.add(db1, "db-1", app("db"))
		w.locked(func() { w.broken = errors.New("table is full") })
		w.add(web1, "web-1", app("web"))
		if err := w.table.Ready(); err == nil || !strings.Contains(err.Error(), "table is full") {
			t.Errorf("ready: %v", err)
		}
		w.locked(func() { w.broken = nil })
		time.Sleep(2 * lastPause)
		w.happened("rules come")
	})
}

// An agent that starts writes nothing before all that rules follow from was read, or for 10 s.
// What pods' flows say is known before.
func TestStart(t *testing.T) {
	before := Copy{Pods: []CopiedPod{{Namespace: "shop", Name: "web-1", UID: "u-web-1", Address: web1, Labels: app("web"), Labelled: true, Selected: true}}}
	for name, test := range map[string]struct {
		late  time.Duration
		wants []string
	}{
		"whole after a while": {3 * time.Second, nil},
		"whole too late":      {time.Minute, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, before, func(w *world) {
				if err := w.table.Known(); err == nil {
					t.Error("what selects pods counts as known before etcd told")
				}
				half := shopWith(1, client)
				half = withMembers(half, 1, false)
				w.see(half)
				if err := w.table.Known(); err == nil {
					t.Error("what selects pods counts as known before the API server showed them")
				}
				w.show(map[string]map[string]string{"web-1": app("web")})
				if err := w.table.Known(); err != nil {
					t.Error(err)
				}
				at := attachment(web1, "web-1")
				w.table.Load([]attach.Attachment{at})
				w.locked(func() { w.attached = []attach.Attachment{at} })
				if got := w.table.Selection(at); got != inward {
					t.Errorf("the pod's flows are to have %+v", got)
				}
				w.locked(func() { w.pods[at.Port] = inward })
				time.Sleep(min(test.late, wholeAtMost) - time.Second)
				synctest.Wait()
				w.happened()
				if err := w.table.Ready(); err == nil {
					t.Error("it is ready without a set")
				}
				if test.late > wholeAtMost {
					w.see(withMembers(half, 2, false, client))
					time.Sleep(2 * time.Second)
					synctest.Wait()
					w.happened("rules come")
					return
				}
				w.see(withMembers(half, 2, true, client))
				w.happened("rules come")
			})
		})
	}
}

// Without etcd the copy counts: what it has for pods that are there, and for one that comes.
func TestStartFromCopy(t *testing.T) {
	var c Copy
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(7, client))
		w.add(web1, "web-1", app("web"))
		time.Sleep(2 * keepEvery)
		synctest.Wait()
		c = state(w, &w.kept)
	})
	if len(c.Pods) != 1 || !c.Pods[0].Selected || !maps.Equal(c.Pods[0].Labels, app("web")) {
		t.Fatalf("the copy has %+v", c.Pods)
	}
	inTime(t, c, func(w *world) {
		at := attachment(web1, "web-1")
		w.table.Load([]attach.Attachment{at}) // an agent loads before its records are in the flows, which they are here
		w.table.UseCopy(c)
		synctest.Wait()
		lost := inward // the switch has none of the rules, and so none of the connections
		lost.Midstream = true
		if got := w.table.Selection(at); got != lost {
			t.Errorf("it is %+v, want %+v", got, lost)
		}
		time.Sleep(labelsAtMost)
		if err := w.table.Known(); err != nil {
			t.Error(err)
		}
		w.add(db1, "web-2", app("web"))
		w.happened("rules come", "rules come")
		if w.selects(db1) != inward {
			t.Errorf("a pod that comes is %+v", w.selects(db1))
		}
		// What etcd has replaces it; a copy that comes late does not.
		w.see(viewAt(8))
		w.table.UseCopy(c)
		synctest.Wait()
		if w.selects(db1).Selected() {
			t.Error("the copy counts though etcd has told")
		}
	})
}

// A switch that lost its connections leaves those that are open to who speaks next, for a while.
func TestForgotten(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(1, client))
		w.add(web1, "web-1", app("web"))
		w.happened("rules come")
		w.table.Forgotten()
		synctest.Wait()
		open := inward
		open.Midstream = true
		if w.happened("pods"); w.selects(web1) != open {
			t.Errorf("it is %+v", w.selects(web1))
		}
		time.Sleep(midstream)
		synctest.Wait()
		if w.happened("pods"); w.selects(web1) != inward {
			t.Errorf("after 120 s it is %+v", w.selects(web1))
		}
	})
}

// What the node tells of its pods has them from ADD on, and frees addresses in its time.
func TestPublished(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		w.see(shopWith(1, client))
		w.add(web1, "web-1", app("web"))
		want := topology.NodePods{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Pods: []topology.NodePod{
			{Namespace: "shop", Name: "web-1", UID: "u-web-1", Address: web1, Ingress: []string{"a"}},
		}}
		address := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
		if diff := cmp.Diff(want, state(w, &w.published), address); diff != "" {
			t.Errorf("published (-want +got):\n%s", diff)
		}
		w.table.Published(state(w, &w.published), 5)
		w.del(web1, "web-1")
		if got := state(w, &w.published); len(got.Pods) != 0 || w.table.Reusable(web1) {
			t.Errorf("published is %+v", got)
		}
		w.table.Published(state(w, &w.published), 6)
		time.Sleep(reuseAfter)
		if w.table.Reusable(web1) {
			t.Error("the address is free before that was acknowledged")
		}
		acknowledged := shopWith(2, client)
		acknowledged.Acknowledged = 6
		w.see(acknowledged)
		if !w.table.Reusable(web1) {
			t.Error("the address is not free")
		}
		w.add(web1, "web-9", app("web"))
		w.del(web1, "web-9")
		if w.table.Reusable(web1) {
			t.Error("the address is free again at once")
		}
		w.see(viewAt(3))
		if !w.table.Reusable(web1) {
			t.Error("without policies an address waits")
		}
	})
}

// A pod that was attached before the agent started is told from a namesake by its UID, without a
// copy too, and by a copy that is of another one: the labels are not its own.
func TestStartBesideNamesake(t *testing.T) {
	namesake := Copy{Pods: []CopiedPod{{Namespace: "shop", Name: "web-1", UID: "u-new", Address: web1, Labels: app("web"), Labelled: true}}}
	for name, c := range map[string]Copy{"no copy": {}, "a copy of the namesake": namesake} {
		t.Run(name, func(t *testing.T) {
			inTime(t, c, func(w *world) {
				at := attachment(web1, "web-1")
				at.UIDs.Pod = "u-old"
				w.table.Load([]attach.Attachment{at})
				w.table.Shown(map[kube.PodKey]kube.Pod{{Namespace: "shop", Name: "web-1"}: {PodKey: kube.PodKey{Namespace: "shop", Name: "web-1"}, UID: "u-new", Labels: app("web")}})
				w.table.mu.Lock()
				defer w.table.mu.Unlock()
				if one := w.table.pods[web1]; one.UID != "u-old" || one.labelled {
					t.Errorf("it is %q, with labels %v", one.UID, one.labels)
				}
			})
		})
	}
}
