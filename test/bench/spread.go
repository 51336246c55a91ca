package main

import (
	"math"
	"math/rand/v2"
)

const (
	// draws is how often a row's measurements are drawn again.
	draws = 1000
	// tail is the part of the draws that is left out at each end: a run has about 200 rows, so one
	// of them lies outside by chance.
	tail = 0.005
)

// statistic makes one number of many measurements.
type statistic func(xs []float64) float64

// rank is the statistic that is a quantile.
func rank(q float64) statistic { return func(xs []float64) float64 { return quantile(xs, q) } }

// longest of what was measured.
var longest = rank(1)

// measured is a row without a reference whose number is a statistic of xs.
func measured(name, title, unit string, of statistic, xs []float64, b *bar) Row {
	r := alone(name, title, unit, of(xs), len(xs), b)
	return r.from(xs, nil, func(ours, _ []float64) float64 { return of(ours) })
}

// paired is a row of both sides' measurements, which were made in turn.
func paired(name, title, unit string, of statistic, xs [sides][]float64, b *bar) Row {
	r := compared(name, title, unit, of(xs[ours]), of(xs[reference]), len(xs[ours]), b)
	return r.from(xs[ours], xs[reference], func(ours, reference []float64) float64 {
		if r.By == byOurs {
			return of(ours)
		}
		return of(ours) / of(reference)
	})
}

// from notes how far the number that runs are compared by may be off: value, which makes it of
// the measurements, is made of as many that are drawn from these, again and again (a percentile
// bootstrap). What was measured in turn is drawn together. One measurement says nothing of that.
func (r Row) from(ours, reference []float64, value func(ours, reference []float64) float64) Row {
	if len(ours) < 2 {
		return r
	}
	rng := rand.New(rand.NewPCG(1, 2)) // the same numbers give the same bounds
	o, f := make([]float64, len(ours)), make([]float64, len(reference))
	var values []float64
	for range draws {
		for i := range o {
			k := rng.IntN(len(ours))
			o[i] = ours[k]
			if len(f) == len(o) {
				f[i] = reference[k]
			}
		}
		for i := range f {
			if len(f) != len(o) {
				f[i] = reference[rng.IntN(len(reference))]
			}
		}
		if v := value(o, f); !math.IsNaN(v) && !math.IsInf(v, 0) {
			values = append(values, v)
		}
	}
	r.Low, r.High = number(quantile(values, tail)), number(quantile(values, 1-tail))
	return r
}
