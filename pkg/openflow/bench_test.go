package openflow

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkCommit times bundles against a real ovs-vswitchd; one iteration adds
// or replaces n flows. "p99-ms" is over the iterations.
func BenchmarkCommit(b *testing.B) {
	_, c := startBridge(b)
	for _, n := range []int{1, 12, 10000} {
		mods := addAll(podFlows(n))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ctx := testContext(b)
			var took []time.Duration
			for b.Loop() {
				t := time.Now()
				if err := c.Commit(ctx, mods); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(t))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms")
		})
	}
}

// BenchmarkBarrier is the least that a round trip costs.
func BenchmarkBarrier(b *testing.B) {
	_, c := startBridge(b)
	ctx := testContext(b)
	for b.Loop() {
		if err := c.Barrier(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFlows reads 10,000 flows.
func BenchmarkFlows(b *testing.B) {
	_, c := startBridge(b)
	ctx := testContext(b)
	if err := c.Commit(ctx, addAll(podFlows(10000))); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Flows(ctx, FlowFilter{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewMatch(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		NewMatch(Reg(0, 5), InPort(1), IPv4Dst(pfx("10.0.0.1/32")), TCPDst(80))
	}
}

func BenchmarkEqual(b *testing.B) {
	x, y := podFlows(1)[0], podFlows(1)[0]
	b.ReportAllocs()
	for b.Loop() {
		if !x.Equal(y) {
			b.Fatal("not equal")
		}
	}
}
