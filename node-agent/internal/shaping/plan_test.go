package shaping

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
)

func TestShape(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit limits.Limit
		mtu   int
		want  tc.TBF
	}{
		{"none", limits.Limit{}, 1450, unlimited},
		{"a burst alone is no limit", limits.Limit{Burst: 5000}, 1450, unlimited},
		{"the least: the burst is 8 frames", limits.Limit{Rate: limits.MinRate}, 1450, tc.TBF{Rate: 130, Burst: 11_712, Queue: 256 << 10}},
		{"1 Mbit/s", limits.Limit{Rate: 1e6}, 1450, tc.TBF{Rate: 129_787, Burst: 11_712, Queue: 256 << 10}},
		{"1 Gbit/s: 5 ms and 100 ms", limits.Limit{Rate: 1e9}, 1450, tc.TBF{Rate: 129_787_234, Burst: 648_936, Queue: 12_978_723}},
		{"jumbo frames cost less", limits.Limit{Rate: 1e9}, 8950, tc.TBF{Rate: 125_757_576, Burst: 628_787, Queue: 12_575_757}},
		{"the most: what 32 bits hold", limits.Limit{Rate: limits.MaxRate}, 1450, tc.TBF{Rate: 129_787_234_042_553, Burst: maxBurst, Queue: maxQueue}},
		{"a burst that was asked for", limits.Limit{Rate: 1e6, Burst: 100_000}, 1450, tc.TBF{Rate: 129_787, Burst: 100_000, Queue: 256 << 10}},
		{"at least two frames", limits.Limit{Rate: 1e6, Burst: 1}, 1450, tc.TBF{Rate: 129_787, Burst: 2928, Queue: 256 << 10}},
		{"at most four minutes", limits.Limit{Rate: 1000, Burst: 1 << 40}, 1450, tc.TBF{Rate: 130, Burst: 31_148, Queue: 256 << 10}},
		{"no MTU: that of IPv4", limits.Limit{Rate: 1e6}, 0, tc.TBF{Rate: 366_071, Burst: 1830, Queue: 256 << 10}},
	} {
		if diff := cmp.Diff(c.want, shape(c.limit, c.mtu)); diff != "" {
			t.Errorf("%s: shape(%+v, %d) differs (-want +got):\n%s", c.name, c.limit, c.mtu, diff)
		}
	}
}

// An application gets the limit, whatever the MTU: UDP up to 1 % more, TCP with its
// timestamps up to 1 % less, with bare headers exactly.
func TestShapeGoodput(t *testing.T) {
	for _, mtu := range []int{1280, 1400, 1410, 1450, 8950} {
		for rate := 1e6; rate <= 1e11; rate *= 10 {
			frames := float64(shape(limits.Limit{Rate: uint64(rate)}, mtu).Rate) * 8 / float64(mtu+ethernet)
			for headers, want := range map[int]float64{28: 1.01, 40: 1, 52: 0.99} {
				got := frames * float64(mtu-headers) / rate
				if math.Abs(got-1) > math.Abs(want-1)+1e-5 {
					t.Errorf("MTU %d, %.0f bit/s, %d bytes of headers: %.5f of the limit; want at most %.2f from it", mtu, rate, headers, got, math.Abs(want-1))
				}
			}
		}
	}
}

func TestMeter(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit limits.Limit
		want  desired.Meter
	}{
		{"none", limits.Limit{}, desired.Meter{}},
		{"the least", limits.Limit{Rate: limits.MinRate}, desired.Meter{Rate: 2, Burst: 1049}},
		{"10 Mbit/s", limits.Limit{Rate: 1e7}, desired.Meter{Rate: 10_591, Burst: 2784}},
		{"with a burst", limits.Limit{Rate: 1e7, Burst: 1e6}, desired.Meter{Rate: 10_591, Burst: 18_596}},
		{"1 Gbit/s", limits.Limit{Rate: 1e9}, desired.Meter{Rate: 1_059_064, Burst: 269_958}},
		{"more than it holds", limits.Limit{Rate: 1e13}, desired.Meter{}},
	} {
		if diff := cmp.Diff(c.want, Meter(c.limit, 1450)); diff != "" {
			t.Errorf("%s: Meter(%+v) differs (-want +got):\n%s", c.name, c.limit, diff)
		}
	}
}
