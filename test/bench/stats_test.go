package main

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i) // not in order
	}
	for _, tc := range []struct {
		name string
		xs   []float64
		q    float64
		want float64
	}{
		{"p99 of a hundred", hundred, 0.99, 99},
		{"p50 of a hundred", hundred, 0.5, 50},
		{"all", hundred, 1, 100},
		{"nothing of", hundred, 0, 1},
		{"p99 of few is the largest", []float64{3, 1, 2}, 0.99, 3},
		{"one", []float64{7}, 0.5, 7},
	} {
		if got := quantile(tc.xs, tc.q); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("quantile sorted its argument")
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		xs   []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{5}, 5}} {
		if got := median(tc.xs); got != tc.want {
			t.Errorf("median(%v) = %v, want %v", tc.xs, got, tc.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing is %v", got)
	}
}

// TestRatios: a disturbance that hits both of a pair leaves its ratio alone.
func TestRatios(t *testing.T) {
	got := ratios([]float64{1, 20, 3}, []float64{2, 40, 6, 9})
	if diff := cmp.Diff([]float64{0.5, 0.5, 0.5}, got); diff != "" {
		t.Error(diff)
	}
	if got := ratios([]float64{1}, []float64{0}); len(got) != 0 {
		t.Errorf("a ratio to nothing: %v", got)
	}
}
