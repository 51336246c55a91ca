package alloc

import (
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

func newIDs(t *testing.T, min, max netid.ID) *IDs {
	t.Helper()
	a, err := NewIDs(min, max, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestIDsRange(t *testing.T) {
	for _, r := range [][2]netid.ID{{9, 100}, {0, 100}, {10, 1 << 24}, {20, 19}} {
		if _, err := NewIDs(r[0], r[1], rand.Reader); err == nil {
			t.Errorf("range %d to %d is accepted", r[0], r[1])
		}
	}
}

// OpenShift SDN's allocator tests expect this of 201 to 300.
func TestIDsExhaustAndReuse(t *testing.T) {
	a := newIDs(t, 201, 300)
	got := map[netid.ID]bool{}
	for range 100 {
		id, err := a.Allocate()
		if err != nil {
			t.Fatal(err)
		}
		if id < 201 || id > 300 || got[id] {
			t.Fatalf("got %d, out of range or for the second time", id)
		}
		got[id] = true
	}
	if _, err := a.Allocate(); !errors.Is(err, ErrExhausted) {
		t.Fatalf("the 101st: %v, want ErrExhausted", err)
	}
	a.Release(7) // out of range: nothing
	if _, err := a.Allocate(); !errors.Is(err, ErrExhausted) {
		t.Fatalf("after releasing what is out of range: %v, want ErrExhausted", err)
	}
	a.Release(250)
	a.Release(250)
	a.Release(222)
	if diff := cmp.Diff([]netid.ID{250, 222}, a.Freed()); diff != "" {
		t.Errorf("freed (-want +got):\n%s", diff)
	}
	for _, want := range []netid.ID{250, 222} {
		if id, err := a.Allocate(); err != nil || id != want {
			t.Errorf("got %d, %v; want %d, the oldest freed", id, err, want)
		}
	}
	if a.InUse() != 100 {
		t.Errorf("%d in use, want 100", a.InUse())
	}
}

// Freed numbers come back only when no other is left.
func TestIDsFreedLast(t *testing.T) {
	a := newIDs(t, 10, 1009)
	freed := map[netid.ID]bool{}
	for range 300 {
		id, err := a.Allocate()
		if err != nil {
			t.Fatal(err)
		}
		if freed[id] {
			t.Fatalf("%d came back while others were never used", id)
		}
		freed[id] = true
		a.Release(id)
	}
}

// The first k8s-ovs drew from an unseeded source: all its clusters had the same
// netIDs, in the same order.
func TestIDsUnpredictable(t *testing.T) {
	draw := func() (out []netid.ID) {
		a := newIDs(t, netid.Min, netid.Max)
		for range 4 {
			id, err := a.Allocate()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, id)
		}
		return out
	}
	// Alike by chance: once in 2^96.
	if a, b := draw(), draw(); slices.Equal(a, b) {
		t.Errorf("two allocators gave the same: %v", a)
	}
}

// Each number is as likely as any other: a chi-squared test over 16 of them.
// 37.7 is exceeded by chance once in 1,000; three runs of this once in 10^9.
func TestIDsUniform(t *testing.T) {
	for range 3 {
		const n, draws = 16, 16000
		var count [n]float64
		for range draws {
			v, err := uniform(rand.Reader, n)
			if err != nil {
				t.Fatal(err)
			}
			count[v]++
		}
		chi := 0.0
		for _, c := range count {
			chi += (c - draws/n) * (c - draws/n) / (draws / n)
		}
		if chi < 37.7 {
			return
		}
	}
	t.Error("draws are far from uniform three times in a row")
}

type noRandom struct{}

func (noRandom) Read([]byte) (int, error) { return 0, errors.New("no entropy") }

func TestIDsNoRandomness(t *testing.T) {
	a, err := NewIDs(10, 20, noRandom{})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := a.Allocate(); err == nil {
		t.Errorf("got %d without randomness", id)
	}
	if a.InUse() != 0 {
		t.Error("a failed allocation uses a number")
	}
}

// TestIDsModel runs random operations beside a plain model.
func TestIDsModel(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := mrand.New(mrand.NewPCG(seed, 1))
			a := newIDs(t, 10, 41)
			used, freed := map[netid.ID]bool{}, []netid.ID{}
			for step := range 600 {
				id := netid.ID(8 + r.IntN(36))
				inRange := id >= 10 && id <= 41
				switch r.IntN(4) {
				case 0:
					want := inRange && !used[id]
					if got := a.Use(id); got != want {
						t.Fatalf("step %d: Use(%d) = %v, want %v", step, id, got, want)
					}
					if want {
						used[id] = true
						freed = slices.DeleteFunc(freed, func(f netid.ID) bool { return f == id })
					}
				case 1:
					a.Release(id)
					if used[id] {
						delete(used, id)
						freed = append(freed, id)
					}
				default:
					got, err := a.Allocate()
					switch {
					case len(used) == 32:
						if !errors.Is(err, ErrExhausted) {
							t.Fatalf("step %d: %d, %v with all in use", step, got, err)
						}
						continue
					case err != nil:
						t.Fatalf("step %d: %v", step, err)
					case used[got]:
						t.Fatalf("step %d: %d is in use", step, got)
					case len(used)+len(freed) < 32 && slices.Contains(freed, got):
						t.Fatalf("step %d: freed %d although others were never used", step, got)
					case len(used)+len(freed) == 32 && got != freed[0]:
						t.Fatalf("step %d: %d, want the oldest freed %d", step, got, freed[0])
					}
					used[got] = true
					freed = slices.DeleteFunc(freed, func(f netid.ID) bool { return f == got })
				}
				if diff := cmp.Diff(freed, a.Freed()); diff != "" || a.InUse() != len(used) {
					t.Fatalf("step %d: %d in use, want %d; freed (-want +got):\n%s", step, a.InUse(), len(used), diff)
				}
			}
		})
	}
}

// With nearly all in use a free one is still found, and found fast.
func TestIDsNearlyFull(t *testing.T) {
	a := newIDs(t, 10, 200_009)
	for id := netid.ID(10); id <= 200_009; id++ {
		if id != 77_777 {
			a.Use(id)
		}
	}
	if id, err := a.Allocate(); err != nil || id != 77_777 {
		t.Errorf("got %d, %v; want the only free one, 77777", id, err)
	}
}

func prefixes(t *testing.T, network string, bits int) *Prefixes {
	t.Helper()
	a, err := NewPrefixes(netip.MustParsePrefix(network), bits)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The order of the ancestors: openshift/origin, pkg/sdn, TestAllocateSubnet*.
func TestPrefixesOrder(t *testing.T) {
	for name, test := range map[string]struct {
		network string
		bits    int
		count   int
		at      map[int]string // the n-th to be given out
	}{
		"8 host bits": {"10.1.0.0/16", 24, 256, map[int]string{0: "10.1.0.0/24", 1: "10.1.1.0/24", 255: "10.1.255.0/24"}},
		"6 host bits: the third octet runs first": {"10.1.0.0/16", 26, 1024, map[int]string{
			0: "10.1.0.0/26", 1: "10.1.1.0/26", 255: "10.1.255.0/26", 256: "10.1.0.64/26", 511: "10.1.255.64/26", 512: "10.1.0.128/26", 1023: "10.1.255.192/26"}},
		"12 host bits":              {"10.1.0.0/16", 20, 16, map[int]string{0: "10.1.0.0/20", 1: "10.1.16.0/20", 15: "10.1.240.0/20"}},
		"ours":                      {"172.11.0.0/16", 22, 64, map[int]string{0: "172.11.0.0/22", 1: "172.11.4.0/22", 63: "172.11.252.0/22"}},
		"14 host bits":              {"10.1.0.0/16", 18, 4, map[int]string{0: "10.1.0.0/18", 3: "10.1.192.0/18"}},
		"12 in a /8":                {"10.0.0.0/8", 20, 4096, map[int]string{0: "10.0.0.0/20", 1: "10.1.0.0/20", 255: "10.255.0.0/20", 256: "10.0.16.0/20"}},
		"small":                     {"192.168.1.0/24", 28, 16, map[int]string{0: "192.168.1.0/28", 1: "192.168.1.16/28"}},
		"only one":                  {"192.168.1.0/24", 24, 1, map[int]string{0: "192.168.1.0/24"}},
		"odd network":               {"10.1.2.0/23", 26, 8, map[int]string{0: "10.1.2.0/26", 1: "10.1.3.0/26", 2: "10.1.2.64/26", 7: "10.1.3.192/26"}},
		"very many":                 {"10.0.0.0/8", 30, 1 << 22, map[int]string{0: "10.0.0.0/30", 1: "10.0.1.0/30"}},
		"/64s of a /56":             {"fd00:1:2:300::/56", 64, 256, map[int]string{0: "fd00:1:2:300::/64", 1: "fd00:1:2:301::/64", 255: "fd00:1:2:3ff::/64"}},
		"/64s of a /48":             {"fd00:1:2::/48", 64, 1 << 16, map[int]string{0: "fd00:1:2::/64", 258: "fd00:1:2:102::/64", 1<<16 - 1: "fd00:1:2:ffff::/64"}},
		"across the middle of IPv6": {"fd00:1:2:3000::/52", 72, 1 << 20, map[int]string{1: "fd00:1:2:3000:100::/72", 256: "fd00:1:2:3001::/72", 1<<20 - 1: "fd00:1:2:3fff:ff00::/72"}},
		"low bits of IPv6":          {"fd00::/112", 120, 256, map[int]string{0: "fd00::/120", 3: "fd00::300/120"}},
		"half of space":             {"128.0.0.0/1", 32, 1 << 31, map[int]string{0: "128.0.0.0/32", 1: "128.0.0.1/32"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := prefixes(t, test.network, test.bits)
			if a.Free() != test.count {
				t.Errorf("%d free, want %d", a.Free(), test.count)
			}
			if test.count > 5000 {
				for n, want := range test.at {
					if got := a.at(uint32(n)); got.String() != want {
						t.Errorf("number %d is %s, want %s", n, got, want)
					}
				}
				return
			}
			seen := map[netip.Prefix]bool{}
			for n := range test.count {
				got, err := a.Allocate()
				if err != nil {
					t.Fatal(err)
				}
				if want, ok := test.at[n]; ok && got.String() != want {
					t.Errorf("number %d is %s, want %s", n, got, want)
				}
				if seen[got] || got != got.Masked() || !netip.MustParsePrefix(test.network).Contains(got.Addr()) {
					t.Fatalf("number %d, %s, is a second one or not of the network", n, got)
				}
				seen[got] = true
			}
			if _, err := a.Allocate(); !errors.Is(err, ErrExhausted) {
				t.Errorf("one more: %v, want ErrExhausted", err)
			}
		})
	}
}

func TestPrefixesRefuses(t *testing.T) {
	for _, test := range []struct {
		network string
		bits    int
	}{{"10.1.0.0/16", 15}, {"10.1.0.0/16", 33}, {"10.1.0.1/16", 24}, {"fd00::/48", 129}, {"fd00::/32", 64}, {"fd00::1/48", 64}, {"0.0.0.0/0", 32}} {
		if _, err := NewPrefixes(netip.MustParsePrefix(test.network), test.bits); err == nil {
			t.Errorf("%s cut into /%d is accepted", test.network, test.bits)
		}
	}
}

func TestPrefixesUseAndRelease(t *testing.T) {
	a := prefixes(t, "10.1.0.0/24", 26)
	p := netip.MustParsePrefix
	for prefix, want := range map[string]bool{"10.1.0.64/26": true, "10.1.0.65/26": false, "10.1.1.0/26": false, "10.1.0.0/25": false} {
		if got := a.Use(p(prefix)); got != want {
			t.Errorf("Use(%s) = %v", prefix, got)
		}
	}
	if a.Use(netip.Prefix{}) {
		t.Error("Use of no prefix")
	}
	var got []string
	take := func() {
		s, err := a.Allocate()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, s.String())
	}
	take() // .0; .64 is marked
	a.Release(p("10.1.0.64/26"))
	a.Release(p("10.1.0.64/26"))
	a.Release(p("10.1.0.0/26"))
	a.Release(p("10.1.9.0/26"))
	take() // .128: fresh before freed
	take() // .192
	take() // .64, freed first
	take() // .0
	if diff := cmp.Diff([]string{"10.1.0.0/26", "10.1.0.128/26", "10.1.0.192/26", "10.1.0.64/26", "10.1.0.0/26"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if a.Free() != 0 || a.InUse() != 4 || len(a.Freed()) != 0 {
		t.Errorf("free %d, in use %d, freed %v", a.Free(), a.InUse(), a.Freed())
	}
}

// 1,000 times one in and one out: nothing leaks (ancestors leaked, and ran dry).
func TestPrefixesChurn(t *testing.T) {
	a := prefixes(t, "10.1.0.0/24", 26)
	var held []netip.Prefix
	for n := range 1000 {
		s, err := a.Allocate()
		if err != nil {
			t.Fatalf("round %d: %v", n, err)
		}
		if slices.Contains(held, s) {
			t.Fatalf("round %d: %s is in use", n, s)
		}
		if held = append(held, s); len(held) == 4 {
			a.Release(held[0])
			held = held[1:]
		}
	}
	if n := len(a.freed.queue); n > 64 {
		t.Errorf("the queue has %d entries for at most 4 prefixes", n)
	}
}

// Whatever network of either family is cut, all its prefixes come, each once, and then no more;
// and those that are marked as used before never come.
func TestPrefixesProperties(t *testing.T) {
	rnd := mrand.New(mrand.NewPCG(3, 4))
	for range 400 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		base := netip.AddrFrom16(b)
		if rnd.IntN(2) == 0 {
			base = netip.AddrFrom4([4]byte(b[:4]))
		}
		number := rnd.IntN(9)
		bits := number + rnd.IntN(base.BitLen()-number+1)
		network := netip.PrefixFrom(base, bits-number).Masked()
		a, err := NewPrefixes(network, bits)
		if err != nil {
			t.Fatal(err)
		}
		used := a.at(uint32(rnd.IntN(1 << number)))
		if !a.Use(used) {
			t.Fatalf("%s is not of %s cut into /%d", used, network, bits)
		}
		seen := map[netip.Prefix]bool{used: true}
		for {
			p, err := a.Allocate()
			if errors.Is(err, ErrExhausted) {
				break
			}
			if seen[p] || p != p.Masked() || p.Bits() != bits || !network.Contains(p.Addr()) || p.Addr().Is4() != base.Is4() {
				t.Fatalf("%s cut into /%d: %s is a second one or not of it", network, bits, p)
			}
			seen[p] = true
		}
		if len(seen) != 1<<number || a.Free() != 0 {
			t.Fatalf("%s cut into /%d: %d, and %d free, want %d", network, bits, len(seen), a.Free(), 1<<number)
		}
	}
}

// Stale entries do not pile up when elements leave out of turn.
func TestFIFOBounded(t *testing.T) {
	var f fifo[int]
	for n := range 10_000 {
		f.push(n % 7)
		f.remove(n % 7)
	}
	if len(f.queue) > 64 || f.len() != 0 {
		t.Errorf("%d entries for %d elements", len(f.queue), f.len())
	}
}

func (f *fifo[T]) list() []T {
	out := make([]T, 0, len(f.turn))
	for _, e := range f.queue {
		if f.turn[e.value] == e.turn {
			out = append(out, e.value)
		}
	}
	return out
}

// InUse counts the netIDs in use.
func (a *IDs) InUse() int { return len(a.used) }

// Freed lists the freed netIDs, oldest first.
func (a *IDs) Freed() []netid.ID { return a.freed.list() }

// Freed lists the freed prefixes, oldest first.
func (a *Prefixes) Freed() []netip.Prefix { return a.freed.list() }
