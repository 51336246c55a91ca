package main

import (
	"encoding/json"
	"fmt"
	"math"
)

// Row is one measured number, as it stands in results.json.
type Row struct {
	// Name is stable: "cni_add_0_pods_median".
	Name string `json:"name"`
	Ours number `json:"ours"`
	// Reference and Ratio (ours / reference; of a limit's rows ours / limit) are null
	// where there is nothing to compare with.
	Reference number `json:"reference"`
	Unit      string `json:"unit"`
	Ratio     number `json:"ratio"`
	// N is how many single measurements of each side the number is from.
	N int `json:"n"`
	// By is the number that two runs are compared by, and Better which way of it is.
	By     column `json:"by"`
	Better way    `json:"better"`
	// Low and High are how far that number may be off, by 99 %, going by how its measurements
	// differ within the run; null where there was one measurement.
	Low  number `json:"low"`
	High number `json:"high"`
	// Note says why a row has no bar that others of its kind have.
	Note string `json:"note,omitempty"`

	// title says in words what was measured; bar is what must hold, if anything.
	title string
	bar   *bar
}

// column is one of the numbers of a row.
type column string

const (
	byOurs  column = "ours"
	byRatio column = "ratio"
)

// way is where a number gets better.
type way string

const (
	wayLess way = "less"
	wayMore way = "more"
	// wayOne is a ratio that is best at 1.
	wayOne way = "one"
)

// moreOf are the units of which more is better.
var moreOf = map[string]bool{"1/s": true, "Mbit/s": true, "pods/s": true, "ADDs/s": true, "DELs/s": true}

// number is null in JSON where it is NaN.
type number float64

// none is a number that there is not.
var none = number(math.NaN())

// MarshalJSON writes six significant digits: more than any measurement here has.
func (n number) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return []byte("null"), nil
	}
	return json.Marshal(json.Number(fmt.Sprintf("%.6g", float64(n))))
}

// UnmarshalJSON reads what MarshalJSON writes.
func (n *number) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*n = none
		return nil
	}
	return json.Unmarshal(data, (*float64)(n))
}

// bar is what a row must reach.
type bar struct {
	// of is the column: "ratio" or "ours".
	of string
	// The value is to be from min to max; one that is infinite asks for nothing.
	min, max float64
}

func ratioAtMost(limit float64) *bar    { return &bar{"ratio", math.Inf(-1), limit} }
func ratioAtLeast(limit float64) *bar   { return &bar{"ratio", limit, math.Inf(1)} }
func ratioWithin(min, max float64) *bar { return &bar{"ratio", min, max} }
func oursAtMost(limit float64) *bar     { return &bar{"ours", math.Inf(-1), limit} }

// String is the bar as the report prints it.
func (b *bar) String() string {
	switch {
	case math.IsInf(b.max, 1):
		return fmt.Sprintf("%s ≥ %g", b.of, b.min)
	case math.IsInf(b.min, -1):
		return fmt.Sprintf("%s ≤ %g", b.of, b.max)
	default:
		return fmt.Sprintf("%g ≤ %s ≤ %g", b.min, b.of, b.max)
	}
}

// met reports whether the row reaches its bar; a row without one does. A
// number that is missing reaches nothing.
func (r Row) met() bool {
	if r.bar == nil {
		return true
	}
	value := r.Ours
	if r.bar.of == "ratio" {
		value = r.Ratio
	}
	return float64(value) >= r.bar.min && float64(value) <= r.bar.max
}

// compared is a row of two numbers, n measurements each.
func compared(name, title, unit string, ours, reference float64, n int, b *bar) Row {
	r := alone(name, title, unit, ours, n, b)
	r.Reference, r.Ratio = number(reference), number(ours/reference)
	if b == nil || b.of == string(byRatio) {
		r.By = byRatio
	}
	if b != nil && !math.IsInf(b.min, 0) && !math.IsInf(b.max, 0) {
		r.Better = wayOne
	}
	return r
}

// alone is a row without a reference.
func alone(name, title, unit string, ours float64, n int, b *bar) Row {
	r := Row{
		Name: name, title: title, Ours: number(ours), Reference: none, Ratio: none, Unit: unit, N: n, bar: b,
		By: byOurs, Better: wayLess, Low: none, High: none,
	}
	if moreOf[unit] {
		r.Better = wayMore
	}
	return r
}
