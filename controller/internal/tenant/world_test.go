package tenant

import (
	"crypto/rand"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// world is the records as etcd would hold them, and one leader.
type world struct {
	t       *testing.T
	cfg     Config
	planner *Planner
	rev     int64
	records map[string]Record
	freed   []netid.ID
	log     []Write
	now     time.Time
	nodes   Nodes // none: changes take one step
}

func newWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	return &world{t: t, cfg: cfg, planner: New(cfg), records: map[string]Record{}, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// put writes a record as a person with etcdctl would.
func (w *world) put(key, data string) {
	w.t.Helper()
	w.rev++
	old, exists := w.records[key]
	r := Record{Key: key, Mod: w.rev, Create: w.rev}
	if exists {
		r.Create = old.Create
	}
	n, err := topology.ParseNamespace(key, []byte(data))
	if err != nil {
		r.Unreadable = err.Error()
		r.Decoded = json.Unmarshal([]byte(data), &n) == nil
	}
	r.Namespace = n
	w.records[key] = r
}

// ask writes a request as netns does: on top of the record.
func (w *world) ask(key string, action topology.Action, target string) {
	w.t.Helper()
	r := w.records[key]
	w.rev++
	r.Mod = w.rev
	r.Namespace.Action, r.Namespace.Namespace, r.Namespace.Status = action, target, nil
	w.records[key] = r
}

func (w *world) create(keys ...string) {
	for _, k := range keys {
		w.put(k, `{"NetName":"`+k+`"}`)
	}
}

func (w *world) remove(key string) {
	w.rev++
	delete(w.records, key)
}

// plan asks the leader what to do, and does nothing.
func (w *world) plan() Plan {
	w.t.Helper()
	p, err := w.planner.Plan(slices.Collect(maps.Values(w.records)), w.nodes, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	w.freed = p.Freed
	return p
}

// all are the writes of a plan, in order.
func all(p Plan) []Write { return slices.Concat(p.Writes, p.First) }

// write carries a write out as etcd would: only on the revision that was read.
func (w *world) write(x Write) bool {
	w.planner.Trying(x)
	r, ok := w.records[x.Key]
	if !ok || r.Mod != x.Mod {
		w.planner.Failed(x)
		return false
	}
	w.rev++
	r.Namespace, r.Mod = x.Namespace, w.rev
	w.records[x.Key] = r
	w.planner.Wrote(x)
	w.log = append(w.log, x)
	return true
}

// settle plans and writes until there is nothing to do: that is after one plan.
func (w *world) settle() []Write {
	w.t.Helper()
	writes := all(w.plan())
	for _, x := range writes {
		if !w.write(x) {
			w.t.Fatalf("write of %s failed", x.Key)
		}
	}
	if again := all(w.plan()); len(again) > 0 {
		w.t.Fatalf("a second plan on top of the first has writes: %+v", again)
	}
	w.planner.Imported()
	return writes
}

// elect makes another leader, which remembers nothing but what is persisted.
func (w *world) elect(importing bool) {
	cfg := w.cfg
	cfg.Freed, cfg.Import = slices.Clone(w.freed), importing
	w.planner = New(cfg)
}

// id is the confirmed netID of a namespace, which NetID must agree with; -1: none.
func (w *world) id(key string) int64 {
	w.t.Helper()
	n := w.records[key].Namespace
	if n.Effective == nil {
		return -1
	}
	if n.NetID == nil || *n.NetID != int64(*n.Effective) {
		w.t.Errorf("%s: NetID %v and Effective %d differ", key, n.NetID, *n.Effective)
	}
	if n.Action != topology.None || n.Namespace != "" {
		w.t.Errorf("%s: its request %s %s still stands", key, n.Action, n.Namespace)
	}
	return int64(*n.Effective)
}

// own checks that key has a netID of its own, and returns it.
func (w *world) own(key string) int64 {
	w.t.Helper()
	id := w.id(key)
	if id < 10 || id > 1<<24-1 {
		w.t.Errorf("%s has netID %d, want one of a tenant", key, id)
	}
	for other := range w.records {
		if other != key && w.id(other) == id {
			w.t.Errorf("%s shares netID %d with %s, want one of its own", key, id, other)
		}
	}
	return id
}

func (w *world) status(key string) string { return message(w.records[key].Namespace.Status) }

// says checks the reason in a record; "" for none.
func (w *world) says(key, want string) {
	w.t.Helper()
	if got := w.status(key); want == "" && got != "" || !strings.Contains(got, want) {
		w.t.Errorf("%s: Status %q, want %q", key, got, want)
	}
}

func (w *world) want(key string, id int64) {
	w.t.Helper()
	if got := w.id(key); got != id {
		w.t.Errorf("%s has netID %d, want %d (Status %q)", key, got, id, w.status(key))
	}
}
