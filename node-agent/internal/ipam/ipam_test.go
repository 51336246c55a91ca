package ipam

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var (
	small = netip.MustParsePrefix("172.11.4.0/29") // five pods: .2 to .6
	epoch = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

	cmpOpts = cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
)

func quiet() []Option {
	return []Option{WithLog(slog.New(slog.NewTextHandler(io.Discard, nil))), withClock(func() time.Time { return epoch })}
}

func open(t *testing.T, dir string, subnet netip.Prefix, boot string, live ...Lease) *Pool {
	t.Helper()
	return openAll(t, dir, []netip.Prefix{subnet}, boot, live...)
}

func openAll(t *testing.T, dir string, subnets []netip.Prefix, boot string, live ...Lease) *Pool {
	t.Helper()
	p, err := Open(dir, subnets, boot, live, quiet()...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func pod(i int) Lease {
	return Lease{ContainerID: fmt.Sprintf("c%d", i), IfName: "eth0", PodNamespace: "ns", PodName: fmt.Sprintf("p%d", i)}
}

// leased is pod(i) with an address, as the pool returns it.
func leased(i int, addr string) Lease {
	l := pod(i)
	l.Addresses, l.Since = []netip.Addr{netip.MustParseAddr(addr)}, epoch
	l.MAC = cniapi.MAC(topology.MAC(l.Addresses[0]))
	return l
}

func allocate(t *testing.T, p *Pool, i int) string {
	t.Helper()
	l, err := p.Allocate(pod(i))
	if err != nil {
		t.Fatal(err)
	}
	return l.first().String()
}

func TestOrderOfAddresses(t *testing.T) {
	p := open(t, t.TempDir(), small, "b")
	if got := p.Size(); got != 5 {
		t.Fatalf("size %d, want 5: without network, gateway and broadcast", got)
	}
	var got []string
	next := func(i int) { got = append(got, allocate(t, p, i)) }
	next(0)
	next(1)
	p.Release(pod(0).Attachment()) // .2 waits until all others were used
	next(2)
	next(3)
	p.Release(pod(1).Attachment()) // .3 after it
	next(4)
	next(5) // nothing fresh is left: .2, freed first
	next(6) // .3
	want := []string{"172.11.4.2", "172.11.4.3", "172.11.4.4", "172.11.4.5", "172.11.4.6", "172.11.4.2", "172.11.4.3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	_, err := p.Allocate(pod(7))
	var full *FullError
	if !errors.As(err, &full) || full.Leased != 5 || !strings.Contains(err.Error(), "all 5 of node subnet 172.11.4.0/29") {
		t.Errorf("full pool: %v", err)
	}
	if p.Free() != 0 {
		t.Errorf("%d free in a full pool", p.Free())
	}
}

func TestAllocateIsIdempotent(t *testing.T) {
	p := open(t, t.TempDir(), small, "b")
	first := allocate(t, p, 0)
	if again := allocate(t, p, 0); again != first {
		t.Errorf("the second time %s, the first %s", again, first)
	}
	other := pod(0)
	other.IfName = "eth1"
	if addr, err := p.Allocate(other); err != nil || addr.first().String() == first {
		t.Errorf("another interface of the sandbox got %v, %v", addr, err)
	}
	if !p.Release(pod(0).Attachment()) || p.Release(pod(0).Attachment()) {
		t.Error("Release must report a lease the first time only")
	}
	if got, ok := p.Lookup(other.Attachment()); !ok || got.first().String() != "172.11.4.3" {
		t.Errorf("Lookup of the other interface: %v, %v", got, ok)
	}
	if p.Release(cniapi.Attachment{ContainerID: "unknown", IfName: "eth0"}) || p.Free() != 4 {
		t.Errorf("releasing the unknown changed something: %d free", p.Free())
	}
}

// TestAdmit: leases that were made before are taken in where they fit, and Allocate passes
// their addresses over until they are free.
func TestAdmit(t *testing.T) {
	p := open(t, t.TempDir(), small, "b", leased(0, "172.11.4.4"))
	for _, tc := range []struct {
		lease Lease
		want  string
	}{
		{leased(0, "172.11.4.4"), ""},
		{leased(0, "172.11.4.5"), "has address 172.11.4.4 already"},
		{leased(1, "172.11.4.4"), "leased to c0/eth0 (pod ns/p0)"},
		{leased(1, "172.11.4.0"), "network or broadcast"},
		{leased(1, "172.11.4.1"), "gateway"},
		{leased(1, "172.11.4.7"), "network or broadcast"},
		{leased(1, "172.11.4.8"), "not in node subnet"},
		{leased(1, "::ffff:172.11.4.5"), "not in node subnet"},
		{leased(1, "fe80::1"), "not in node subnet"},
		{pod(1), "not in node subnet"},
	} {
		err := p.admit(tc.lease)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.lease.Addresses, err, tc.want)
		}
	}
	// The ring begins after the highest of them.
	var got []string
	for i := 1; i < 4; i++ {
		got = append(got, allocate(t, p, i))
	}
	p.Release(pod(0).Attachment())
	got = append(got, allocate(t, p, 4), allocate(t, p, 5))
	want := []string{"172.11.4.5", "172.11.4.6", "172.11.4.2", "172.11.4.3", "172.11.4.4"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSubnetSizes(t *testing.T) {
	for s, want := range map[string]int{"10.0.0.0/30": 1, "10.0.0.0/24": 253, "10.1.0.0/22": 1021, "10.0.0.0/8": 1<<24 - 3, "fd00::/126": 1, "fd00::/64": 1<<32 - 3} {
		p := open(t, t.TempDir(), netip.MustParsePrefix(s), "b")
		if p.Size() != want || p.Free() != want {
			t.Errorf("%s: size %d, free %d, want %d", s, p.Size(), p.Free(), want)
		}
	}
	for _, bad := range []string{"", "-", "10.0.0.0/31", "10.0.0.1/24", "fd00::/127", "10.0.0.0/24 10.0.1.0/24", "fd00::/64 10.0.0.0/24", "10.0.0.0/24 fd00::/97", "10.0.0.0/24 fd00::/64 fd01::/64"} {
		var subnets []netip.Prefix
		for _, s := range strings.Fields(bad) {
			subnet, _ := netip.ParsePrefix(s) // none of "-"
			subnets = append(subnets, subnet)
		}
		if _, err := Open(t.TempDir(), subnets, "b", nil, quiet()...); err == nil {
			t.Errorf("Open accepted %q", bad)
		}
	}
}

// TestReopen: an agent that restarts goes on where it was, order included.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, small, "b")
	for i := range 4 {
		allocate(t, p, i)
	}
	p.Release(pod(2).Attachment())
	p.Release(pod(0).Attachment())
	want := p.Leases()

	p = open(t, dir, small, "b")
	if diff := cmp.Diff(want, p.Leases(), cmpOpts); diff != "" {
		t.Errorf("leases (-before +after):\n%s", diff)
	}
	got := []string{allocate(t, p, 4), allocate(t, p, 5), allocate(t, p, 6)}
	if diff := cmp.Diff([]string{"172.11.4.6", "172.11.4.4", "172.11.4.2"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// model is what a pool must be: the addresses in use, and when each was freed.
type model struct {
	leases map[cniapi.Attachment]netip.Addr
	freed  map[netip.Addr]int // step; fresh addresses are not in it
}

// TestProperties drives random pools through random steps, restarts included,
// of one family, of the other and of both, and compares them with the rule itself: no
// address twice, none but a pod's, a fresh one while there is one, else the one freed
// longest ago.
func TestProperties(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		bits := 1 + rnd.IntN(6)
		four, six := netip.PrefixFrom(netip.MustParseAddr("10.7.0.0"), 24+bits), netip.PrefixFrom(netip.MustParseAddr("fd00::7:0"), 120+bits)
		subnets := [][]netip.Prefix{{four}, {six}, {four, netip.MustParsePrefix("fd00:1:2:3::/64")}}[seed%3]
		dir := t.TempDir()
		p := openAll(t, dir, subnets, "b")
		m := model{leases: map[cniapi.Attachment]netip.Addr{}, freed: map[netip.Addr]int{}}
		for step := range 250 {
			l := pod(rnd.IntN(2*p.Size() + 1))
			switch op := rnd.IntN(20); {
			case op < 11:
				m.allocate(t, p, l)
			case op < 19:
				addr, has := m.leases[l.Attachment()]
				if p.Release(l.Attachment()) != has {
					t.Fatalf("seed %d step %d: Release(%s) is not %v", seed, step, l.ContainerID, has)
				}
				if has {
					delete(m.leases, l.Attachment())
					m.freed[addr] = step
				}
			default:
				p = openAll(t, dir, subnets, "b")
			}
			if p.Free() != p.Size()-len(m.leases) || len(p.Leases()) != len(m.leases) {
				t.Fatalf("seed %d step %d: %d free and %d leases of %d, model has %d leases", seed, step, p.Free(), len(p.Leases()), p.Size(), len(m.leases))
			}
		}
	}
}

func (m *model) allocate(t *testing.T, p *Pool, l Lease) {
	t.Helper()
	got, err := p.Allocate(l)
	addr := got.first()
	if old, ok := m.leases[l.Attachment()]; ok {
		if err != nil || addr != old {
			t.Fatalf("%s has %s and got %s, %v", l.ContainerID, old, addr, err)
		}
		return
	}
	if len(m.leases) == p.Size() {
		var full *FullError
		if !errors.As(err, &full) {
			t.Fatalf("full pool gave %s, %v", addr, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for other, have := range m.leases {
		if have == addr {
			t.Fatalf("%s given to %s and %s", addr, other, l.Attachment())
		}
	}
	for i, s := range p.subnets {
		if a := got.Addresses[i]; !s.Contains(a) || a == s.Addr() || a == s.Addr().Next() || !s.Contains(a.Next()) || topology.MAC(a).String() != got.MAC.String() {
			t.Fatalf("%s with %s is no pod address of %s", a, got.MAC, s)
		}
	}
	if len(got.Addresses) != len(p.subnets) {
		t.Fatalf("%d addresses of %v", len(got.Addresses), p.subnets)
	}
	at, used := m.freed[addr]
	if used {
		if fresh := p.Size() - len(m.leases) - len(m.freed); fresh > 0 {
			t.Fatalf("%s was used before, and %d fresh ones are left", addr, fresh)
		}
		for other, step := range m.freed {
			if step < at {
				t.Fatalf("%s freed at %d was given before %s freed at %d", addr, at, other, step)
			}
		}
		delete(m.freed, addr)
	}
	m.leases[l.Attachment()] = addr
}

func TestConcurrency(t *testing.T) {
	p := open(t, t.TempDir(), netip.MustParsePrefix("10.0.0.0/23"), "b")
	var mu sync.Mutex
	seen := map[netip.Addr]int{}
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 10 {
				l := pod(g*100 + i)
				got, err := p.Allocate(l)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[got.first()]++
				mu.Unlock()
				if i%2 == 0 {
					p.Release(l.Attachment())
				}
			}
		})
	}
	wg.Wait()
	if len(seen) != 160 || p.Free() != p.Size()-80 {
		t.Errorf("%d different addresses, %d free of %d; want 160 and 80 in use", len(seen), p.Free(), p.Size())
	}
}

func BenchmarkAllocateRelease(b *testing.B) {
	for _, n := range []int{0, 200, 1000} {
		b.Run(fmt.Sprint(n, "pods"), func(b *testing.B) {
			p, err := Open(b.TempDir(), []netip.Prefix{netip.MustParsePrefix("10.0.0.0/21")}, "b", nil, quiet()...)
			if err != nil {
				b.Fatal(err)
			}
			for i := range n {
				l := pod(i)
				l.ContainerID = strings.Repeat("0123456789abcdef", 4) + l.ContainerID
				if _, err := p.Allocate(l); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if _, err := p.Allocate(pod(-1)); err != nil {
					b.Fatal(err)
				}
				p.Release(pod(-1).Attachment())
			}
		})
	}
}

// withClock sets where Since comes from.
func withClock(now func() time.Time) Option { return func(p *Pool) { p.now = now } }
