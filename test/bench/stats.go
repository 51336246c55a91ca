package main

import (
	"math"
	"slices"
	"time"
)

// quantile is the nearest-rank quantile q, 0 to 1, of xs: the smallest value
// that at least the part q of all values does not exceed. NaN for none.
func quantile(xs []float64, q float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(xs))
	rank := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(rank, 0), len(sorted)-1)]
}

// median of xs: the middle value, or the mean of the two in the middle. NaN for none.
func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(xs))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// average is the arithmetic mean of xs. NaN for none.
func average(xs []float64) float64 {
	sum := 0.0
	for _, x := range xs {
		sum += x
	}
	return sum / float64(len(xs))
}

// milliseconds of each duration.
func milliseconds(ds []time.Duration) []float64 {
	out := make([]float64, len(ds))
	for i, d := range ds {
		out[i] = d.Seconds() * 1000
	}
	return out
}

// bothMilliseconds is milliseconds of both sides.
func bothMilliseconds(ds [sides][]time.Duration) (out [sides][]float64) {
	for side := range ds {
		out[side] = milliseconds(ds[side])
	}
	return out
}

// ratios of the pairs that were measured one right after the other. What
// disturbs the machine for longer than a pair takes cancels out in each.
func ratios(ours, reference []float64) []float64 {
	out := make([]float64, 0, len(ours))
	for i := range min(len(ours), len(reference)) {
		if reference[i] != 0 {
			out = append(out, ours[i]/reference[i])
		}
	}
	return out
}
