package subnet

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// world is the records as etcd would hold them, and one leader.
type world struct {
	t       *testing.T
	cfg     topology.Config
	planner *Planner
	rev     int64
	records map[string]Record
	freed   []netip.Prefix
	free    int
	now     time.Time
}

func newWorld(t *testing.T) *world {
	return &world{t: t, cfg: topology.DefaultConfig(), planner: New(nil), records: map[string]Record{}, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// small makes a pod network of four subnets: 172.11.0.0/26, .64, .128, .192.
func (w *world) small() *world {
	w.cfg.Network, w.cfg.HostSubnetLength = netip.MustParsePrefix("172.11.0.0/24"), 6
	return w
}

func (w *world) put(key, data string) {
	w.t.Helper()
	w.rev++
	r := Record{Key: key, Mod: w.rev, Create: w.rev}
	if old, ok := w.records[key]; ok {
		r.Create = old.Create
	}
	n, err := topology.ParseNode(key, []byte(data))
	if err != nil {
		r.Unreadable = err.Error()
		r.Decoded = json.Unmarshal([]byte(data), &n) == nil
	}
	r.Node = n
	w.records[key] = r
}

// node writes a record with a subnet; "" asks for one.
func (w *world) node(key, subnet string) {
	w.put(key, fmt.Sprintf(`{"Host":"h-%s","HostIP":"%s","Subnet":"%s","Assign":%v}`, key, key, subnet, subnet == ""))
}

func (w *world) remove(key string) { w.rev++; delete(w.records, key) }

func (w *world) plan() []Write {
	w.t.Helper()
	p, err := w.planner.Plan(w.cfg, slices.Collect(maps.Values(w.records)), w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	w.freed, w.free = p.Freed, p.Free
	return p.Writes
}

func (w *world) write(x Write) {
	r, ok := w.records[x.Key]
	w.planner.Trying(x)
	if !ok || r.Mod != x.Mod {
		w.planner.Failed(x)
		return
	}
	w.rev++
	r.Node, r.Mod = x.Node, w.rev
	w.records[x.Key] = r
	w.planner.Wrote(x)
}

func (w *world) settle() []Write {
	w.t.Helper()
	writes := w.plan()
	for _, x := range writes {
		w.write(x)
	}
	if again := w.plan(); len(again) > 0 {
		w.t.Fatalf("a second plan on top of the first has writes: %+v", again)
	}
	return writes
}

func (w *world) elect() { w.planner = New(slices.Clone(w.freed)) }

func (w *world) want(key, subnet string, assign bool, say string) {
	w.t.Helper()
	n := w.records[key].Node
	got, status := "", ""
	if n.Subnet.IsValid() {
		got = n.Subnet.String()
	}
	if n.Status != nil {
		status = n.Status.Message
	}
	// What the message says in prose, the outcome says in a word.
	outcomes := map[string]topology.Outcome{"": "", "refused": topology.Refused, "waiting": topology.Waiting, "does not fit the network configuration": topology.Misfit}
	if prefix, _, _ := strings.Cut(status, ": "); n.Status != nil && n.Status.Outcome != outcomes[prefix] {
		w.t.Errorf("%s: outcome %q of %q", key, n.Status.Outcome, status)
	}
	if got != subnet || n.Assign != assign || say == "" && status != "" || !strings.Contains(status, say) {
		w.t.Errorf("%s: subnet %q, assign %v, status %q; want %q, %v, %q", key, got, n.Assign, status, subnet, assign, say)
	}
}

func TestAssign(t *testing.T) {
	w := newWorld(t)
	w.node("198.18.0.2", "")
	w.node("198.18.0.1", "")
	w.settle()
	// In the order of asking, not of address.
	w.want("198.18.0.2", "172.11.0.0/22", false, "")
	w.want("198.18.0.1", "172.11.4.0/22", false, "")
	if w.free != 62 {
		t.Errorf("%d free, want 62", w.free)
	}
	// Failure 33: nothing moves when all is looked at again, in any order.
	for range 20 {
		w.elect()
		w.settle()
	}
	w.want("198.18.0.2", "172.11.0.0/22", false, "")
	w.want("198.18.0.1", "172.11.4.0/22", false, "")
	// A record that asks for nothing gets nothing.
	w.put("198.18.0.3", `{"Host":"x","HostIP":"198.18.0.3"}`)
	if writes := w.settle(); len(writes) > 0 {
		t.Errorf("writes %+v", writes)
	}
}

func TestRefused(t *testing.T) {
	for name, test := range map[string]struct{ key, data, say string }{
		// The first k8s-ovs took the subnet of the node in the value away.
		"key and HostIP differ":  {"198.18.0.9", `{"Host":"x","HostIP":"198.18.0.1","Subnet":"","Assign":true}`, "must be the address in the key"},
		"in the pod network":     {"172.11.5.5", `{"Host":"x","HostIP":"172.11.5.5","Assign":true}`, "inside the pod network"},
		"in the service network": {"10.96.0.5", `{"Host":"x","HostIP":"10.96.0.5","Assign":true}`, "inside the service network"},
		"IPv6":                   {"2001:db8::1", `{"Host":"x","HostIP":"2001:db8::1","Assign":true}`, "not an IPv4 unicast"},
		"overlap":                {"198.18.0.9", `{"Host":"x","HostIP":"198.18.0.9","Subnet":"172.11.0.0/22"}`, "overlaps 172.11.0.0/22 of node record 198.18.0.1"},
		"too large":              {"198.18.0.9", `{"Host":"x","HostIP":"198.18.0.9","Subnet":"172.11.0.0/20"}`, "is not a /22"},
		"outside":                {"198.18.0.9", `{"Host":"x","HostIP":"198.18.0.9","Subnet":"172.12.0.0/22"}`, "is not a /22"},
		"not aligned":            {"198.18.0.9", `{"Host":"x","HostIP":"198.18.0.9","Subnet":"172.11.9.0/22"}`, "is not a /22"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.node("198.18.0.1", "")
			w.settle()
			w.put(test.key, test.data)
			writes := w.settle()
			if len(writes) != 1 || writes[0].Outcome != Refused {
				t.Fatalf("writes %+v", writes)
			}
			w.want(test.key, "", false, test.say)
			w.want("198.18.0.1", "172.11.0.0/22", false, "")
			// Nothing fires later, under another leader either.
			w.elect()
			w.settle()
			w.want(test.key, "", false, test.say)
			w.want("198.18.0.1", "172.11.0.0/22", false, "")
		})
	}
}

func TestBrokenRecordIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.put("198.18.0.9", `{"Host":`)
	if writes := w.settle(); len(writes) > 0 {
		t.Errorf("writes %+v", writes)
	}
}

func TestHandWritten(t *testing.T) {
	w := newWorld(t).small()
	w.node("198.18.0.1", "")
	w.settle()
	// A subnet by hand, beside one that asks at the same time and came first.
	w.node("198.18.0.2", "")
	w.node("198.18.0.3", "172.11.0.64/26")
	w.settle()
	w.want("198.18.0.3", "172.11.0.64/26", false, "")
	w.want("198.18.0.2", "172.11.0.128/26", false, "")
	// Changed by hand to a free one: so be it. To a taken or bad one: undone.
	w.node("198.18.0.3", "172.11.0.192/26")
	w.settle()
	w.want("198.18.0.3", "172.11.0.192/26", false, "")
	w.node("198.18.0.3", "172.11.0.0/26")
	w.settle()
	w.want("198.18.0.3", "172.11.0.192/26", false, "overlaps")
	w.node("198.18.0.3", "172.11.0.0/24")
	w.settle()
	w.want("198.18.0.3", "172.11.0.192/26", false, "is not a /26")
	w.want("198.18.0.1", "172.11.0.0/26", false, "")
	// Blanked and asked for again: the node keeps what its pods have.
	w.node("198.18.0.3", "")
	w.settle()
	w.want("198.18.0.3", "172.11.0.192/26", false, "")
	// Asking with a subnet: the request is done already.
	w.put("198.18.0.3", `{"Host":"x","HostIP":"198.18.0.3","Subnet":"172.11.0.192/26","Assign":true}`)
	w.settle()
	w.want("198.18.0.3", "172.11.0.192/26", false, "")
}

// Failure 30: nodes swap addresses. Each record has its own subnet throughout.
func TestSwap(t *testing.T) {
	w := newWorld(t)
	w.node("198.18.0.1", "")
	w.node("198.18.0.2", "")
	w.settle()
	w.put("198.18.0.1", `{"Host":"h-198.18.0.2","HostIP":"198.18.0.1","Subnet":"172.11.4.0/22"}`)
	w.put("198.18.0.2", `{"Host":"h-198.18.0.1","HostIP":"198.18.0.2","Subnet":"172.11.0.0/22"}`)
	w.settle()
	a, b := w.records["198.18.0.1"].Node.Subnet, w.records["198.18.0.2"].Node.Subnet
	if a == b || !a.IsValid() || !b.IsValid() {
		t.Errorf("subnets %s and %s", a, b)
	}
}

// Failure 32: duplicates that are there when a leader comes are resolved, for
// the record that has it longest.
func TestDuplicatesAtElection(t *testing.T) {
	w := newWorld(t)
	w.node("198.18.0.5", "172.11.0.0/22")
	w.node("198.18.0.1", "172.11.0.0/22")
	w.settle()
	w.want("198.18.0.5", "172.11.0.0/22", false, "")
	w.want("198.18.0.1", "", false, "overlaps")
}

// A configuration that does not fit the nodes takes no node's subnet away.
func TestMisfitIsKept(t *testing.T) {
	w := newWorld(t)
	w.node("198.18.0.1", "")
	w.settle()
	w.cfg.Network = netip.MustParsePrefix("172.12.0.0/16")
	w.settle()
	w.want("198.18.0.1", "172.11.0.0/22", false, "does not fit the network configuration")
	w.elect()
	w.settle()
	w.want("198.18.0.1", "172.11.0.0/22", false, "does not fit the network configuration")
	w.node("198.18.0.2", "")
	w.settle()
	w.want("198.18.0.2", "172.12.0.0/22", false, "")
}

// Failure 32: an exhausted range says so, and serves who waits when one is free.
func TestExhausted(t *testing.T) {
	w := newWorld(t).small()
	for n := 1; n <= 5; n++ {
		w.node(fmt.Sprintf("198.18.0.%d", n), "")
	}
	w.settle()
	w.want("198.18.0.4", "172.11.0.192/26", false, "")
	w.want("198.18.0.5", "", true, "waiting: no node subnet is free")
	w.remove("198.18.0.2")
	w.settle()
	w.want("198.18.0.5", "172.11.0.64/26", false, "")
}

// What was freed is given out last, across leaders.
func TestFreedLast(t *testing.T) {
	w := newWorld(t).small()
	w.node("198.18.0.1", "")
	w.settle()
	w.remove("198.18.0.1")
	w.settle()
	if diff := cmp.Diff([]string{"172.11.0.0/26"}, texts(w.freed)); diff != "" {
		t.Fatalf("freed (-want +got):\n%s", diff)
	}
	w.elect()
	var got []string
	for n := 2; n <= 5; n++ {
		key := fmt.Sprintf("198.18.0.%d", n)
		w.node(key, "")
		w.settle()
		got = append(got, w.records[key].Node.Subnet.String())
	}
	if diff := cmp.Diff([]string{"172.11.0.64/26", "172.11.0.128/26", "172.11.0.192/26", "172.11.0.0/26"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A record that is made anew gives the node the subnet that its pods are in, if
// nobody has it.
func TestSubnetInUse(t *testing.T) {
	w := newWorld(t).small()
	using := func(key, subnet string) {
		w.node(key, "")
		r := w.records[key]
		r.Using = netip.MustParsePrefix(subnet)
		w.records[key] = r
	}
	w.node("198.18.0.1", "")
	w.settle()
	w.remove("198.18.0.1")
	w.settle()
	using("198.18.0.1", "172.11.0.0/26")
	using("198.18.0.2", "172.11.0.0/26") // taken
	using("198.18.0.3", "172.11.0.0/24") // no node subnet
	w.settle()
	w.want("198.18.0.1", "172.11.0.0/26", false, "")
	w.want("198.18.0.2", "172.11.0.64/26", false, "")
	w.want("198.18.0.3", "172.11.0.128/26", false, "")
}

// What a node uses is given to no other, though no record says so: etcd may have lost it.
func TestReserve(t *testing.T) {
	w := newWorld(t).small()
	w.planner.Reserve([]netip.Prefix{netip.MustParsePrefix("172.11.0.0/26"), netip.MustParsePrefix("192.0.2.0/24")})
	w.node("198.18.0.9", "")
	w.settle()
	w.want("198.18.0.9", "172.11.0.64/26", false, "")
	w.node("198.18.0.1", "")
	r := w.records["198.18.0.1"]
	r.Using = netip.MustParsePrefix("172.11.0.0/26")
	w.records["198.18.0.1"] = r
	w.settle()
	w.want("198.18.0.1", "172.11.0.0/26", false, "")
}

func texts(ps []netip.Prefix) (out []string) {
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

// A write whose fate is not known: applied or not, the node gets one subnet.
func TestUnknownFate(t *testing.T) {
	for _, applied := range []bool{true, false} {
		w := newWorld(t)
		w.node("198.18.0.1", "")
		x := w.plan()[0]
		w.planner.Trying(x)
		if applied {
			r := w.records[x.Key]
			w.rev++
			r.Node, r.Mod = x.Node, w.rev
			w.records[x.Key] = r
		}
		w.settle()
		w.want("198.18.0.1", "172.11.0.0/22", false, "")
	}
}

// Failure 32: 1,000 nodes come and go, in a network of four subnets, under
// changing leaders: never two with one subnet, never one leaked.
func TestChurn(t *testing.T) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 4))
		w := newWorld(t).small()
		for step := range 1000 {
			key := fmt.Sprintf("198.18.0.%d", 1+r.IntN(6))
			if _, ok := w.records[key]; ok {
				w.remove(key)
			} else {
				w.node(key, "")
			}
			if r.IntN(8) == 0 {
				w.elect()
			}
			w.settle()
			has := map[netip.Prefix]string{}
			waiting := 0
			for k, rec := range w.records {
				s := rec.Node.Subnet
				if !s.IsValid() {
					waiting++
					continue
				}
				if other, dup := has[s]; dup {
					t.Fatalf("seed %d, step %d: %s and %s both have %s", seed, step, k, other, s)
				}
				has[s] = k
			}
			if want := max(0, len(w.records)-4); waiting != want || w.free != 4-len(has) {
				t.Fatalf("seed %d, step %d: %d nodes, %d wait, want %d; %d free", seed, step, len(w.records), waiting, want, w.free)
			}
		}
	}
}

// Many nodes cost little: every snapshot is planned whole.
func BenchmarkPlan(b *testing.B) {
	w := newWorld(nil)
	w.cfg.Network = netip.MustParsePrefix("172.0.0.0/10")
	w.cfg.ServiceNetwork = netip.MustParsePrefix("10.96.0.0/12")
	var records []Record
	for n := range 2000 {
		ip := netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)})
		s := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(n >> 6), byte(n << 2), 0}), 22)
		records = append(records, Record{Key: ip.String(), Mod: int64(n + 1), Create: int64(n + 1), Node: topology.Node{Host: ip.String(), HostIP: ip, Subnet: s}})
	}
	for b.Loop() {
		p, err := w.planner.Plan(w.cfg, records, w.now)
		if err != nil || len(p.Writes) > 0 {
			b.Fatal(err, len(p.Writes), p.Writes[0])
		}
	}
}
