package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
)

// worseBy is how much worse a row may be than before, beyond noise.
const worseBy = 0.03

// errWorse is that a run is worse than the one before.
var errWorse = errors.New("worse than before")

// compareRuns writes a table of what differs between two results.json. It returns an error
// that is errWorse where a row is worse beyond noise, or gone.
func compareRuns(before, after string, w io.Writer) error {
	old, err := readRows(before)
	if err != nil {
		return err
	}
	now, err := readRows(after)
	if err != nil {
		return err
	}
	text, worse := runsTable(old, now)
	if _, err := io.WriteString(w, text); err != nil {
		return err
	}
	if len(worse) > 0 {
		return fmt.Errorf("%s against %s: %w: %s; measure both again, in turn, before you believe it", after, before, errWorse, strings.Join(worse, ", "))
	}
	return nil
}

func readRows(path string) ([]Row, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rows []Row
	if err := json.Unmarshal(data, &rows); err != nil {
		return nil, fmt.Errorf("results in %s: %w", path, err)
	}
	for _, r := range rows {
		if r.By == "" || r.Better == "" {
			return nil, fmt.Errorf("row %s in %s does not say how it is compared: an earlier version of this program wrote it; measure that side again with this one's test/bench", r.Name, path)
		}
	}
	return rows, nil
}

// runsTable is the table, and the names of the rows that are worse.
func runsTable(before, after []Row) (text string, worse []string) {
	var b strings.Builder
	b.WriteString("| row | by | before | after | change, % | noise, % | |\n|---|---|---:|---:|---:|---:|---|\n")
	unknown := 0
	for _, old := range before {
		i := slices.IndexFunc(after, func(r Row) bool { return r.Name == old.Name })
		if i < 0 {
			fmt.Fprintf(&b, "| %s | %s | %s | – | – | – | **gone** |\n", old.Name, old.By, old.value(old.By).text())
			worse = append(worse, old.Name)
			continue
		}
		c := differ(old, after[i])
		switch c.verdict {
		case gotWorse:
			worse = append(worse, old.Name)
		case perhapsWorse:
			unknown++
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", old.Name, c.by, old.value(c.by).text(), after[i].value(c.by).text(), percent(c.change), percent(c.noise), c.verdict)
	}
	for _, r := range after {
		if !slices.ContainsFunc(before, func(old Row) bool { return old.Name == r.Name }) {
			fmt.Fprintf(&b, "| %s | %s | – | %s | – | – | new |\n", r.Name, r.By, r.value(r.By).text())
		}
	}
	fmt.Fprintf(&b, "\n%d of %d rows are worse by more than %g %% beyond noise or gone; %d more may be, but were measured once.\n", len(worse), len(before), 100*worseBy, unknown)
	b.WriteString("Noise: each side's number is made of its measurements as drawn again 1,000 times; 99 % of those numbers lie between two bounds. A row is worse\nwhen the difference is still more than 3 % with both sides' distances to their bounds, added as squares, taken off.\n")
	b.WriteString(sameProgram(before, after))
	return b.String(), worse
}

// value is a column's number.
func (r Row) value(by column) number {
	if by == byRatio {
		return r.Ratio
	}
	return r.Ours
}

// verdict says what became of a row.
type verdict string

const (
	gotWorse     verdict = "**worse**"
	gotBetter    verdict = "better"
	perhapsWorse verdict = "worse?"
	noVerdict    verdict = ""
	incomparable verdict = "not comparable"
)

// difference is that of a row of two runs. Change and noise are parts of the number before;
// of a ratio that is best at 1, parts of 1.
type difference struct {
	by            column
	change, noise float64
	verdict       verdict
}

// bounded is a number with its bounds, of which less is better.
type bounded struct{ value, low, high float64 }

// towards is the row's number turned so that less of it is better.
func (r Row) towards() bounded {
	v, low, high := float64(r.value(r.By)), float64(r.Low), float64(r.High)
	switch r.Better {
	case wayMore:
		return bounded{-v, -high, -low}
	case wayOne:
		far := max(math.Abs(low-1), math.Abs(high-1))
		near := min(math.Abs(low-1), math.Abs(high-1))
		if low <= 1 && high >= 1 {
			near = 0
		}
		return bounded{math.Abs(v - 1), near, far}
	}
	return bounded{v, low, high}
}

// differ compares a row of two runs. The bounds of the difference are made of those of both
// (Zou and Donner, Statistics in Medicine 27, 2008: MOVER).
func differ(before, after Row) difference {
	d := difference{by: before.By, change: math.NaN(), noise: math.NaN(), verdict: incomparable}
	if after.By != before.By || after.Better != before.Better { // its bar is another
		return d
	}
	b, a := before.towards(), after.towards()
	diff := a.value - b.value
	if math.IsNaN(diff) || math.IsInf(diff, 0) {
		return d
	}
	unit := math.Abs(b.value)
	if before.Better == wayOne {
		unit = 1
	}
	d.change = (float64(after.value(d.by) - before.value(d.by))) / unit
	off := math.Hypot(a.value-a.low, b.high-b.value)
	gain := math.Hypot(a.high-a.value, b.value-b.low)
	d.verdict = noVerdict
	switch {
	case math.IsNaN(off):
		if diff > worseBy*unit {
			d.verdict = perhapsWorse
		}
		return d
	case diff-off > worseBy*unit:
		d.verdict = gotWorse
	case diff+gain < -worseBy*unit:
		d.verdict = gotBetter
	}
	d.noise = off / unit
	if diff < 0 {
		d.noise = gain / unit
	}
	return d
}

func percent(part float64) string {
	if math.IsNaN(part) || math.IsInf(part, 0) {
		return "–"
	}
	return fmt.Sprintf("%.1f", 100*part)
}

// sameProgram says how the reference differs, which is the same program in both runs: what
// differs there is the machine's, and in what is compared by "ours" it is contained.
func sameProgram(before, after []Row) string {
	var quotients []float64
	for _, old := range before {
		for _, r := range after {
			if q := float64(r.Reference / old.Reference); r.Name == old.Name && q > 0 && !math.IsInf(q, 0) {
				quotients = append(quotients, q-1)
			}
		}
	}
	if len(quotients) == 0 {
		return ""
	}
	return fmt.Sprintf("The reference, the same program in both runs, differs by %s %% in the middle of %d rows, from %s to %s %%: that is the machine's.\n",
		percent(median(quotients)), len(quotients), percent(slices.Min(quotients)), percent(slices.Max(quotients)))
}
