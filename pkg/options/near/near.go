// Package near finds the names that somebody may have meant.
//
// It is pure.
package near

import (
	"slices"
	"strings"
)

// Most is how many names [Names] gives at most: more are no help.
const Most = 3

// Names gives those of all that are near to name, the nearest first and at
// most [Most]: names that a few typing errors turn into it (one in three
// characters, at least one), or that begin with it.
func Names(name string, all []string) []string {
	type candidate struct {
		name     string
		distance int
	}
	limit := max(1, len(name)/3)
	var found []candidate
	for _, other := range all {
		d := distance(name, other)
		switch {
		case d <= limit:
		case name != "" && strings.HasPrefix(other, name):
			// What was cut short comes after what was mistyped.
			d += limit
		default:
			continue
		}
		found = append(found, candidate{other, d})
	}
	slices.SortFunc(found, func(a, b candidate) int {
		if a.distance != b.distance {
			return a.distance - b.distance
		}
		return strings.Compare(a.name, b.name)
	})
	var names []string
	for _, c := range found[:min(Most, len(found))] {
		names = append(names, c.name)
	}
	return names
}

// Phrase is a question to add to an error: `; did you mean "a" or "b"?`. It is
// empty where nothing is near.
func Phrase(name string, all []string) string {
	names := Names(name, all)
	if len(names) == 0 {
		return ""
	}
	for i, n := range names {
		names[i] = `"` + n + `"`
	}
	last := len(names) - 1
	if last == 0 {
		return "; did you mean " + names[0] + "?"
	}
	return "; did you mean " + strings.Join(names[:last], ", ") + " or " + names[last] + "?"
}

// distance is the number of characters to insert, drop, replace or swap with
// their neighbour to get from a to b (optimal string alignment).
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	// Three rows of the table: the one before last is for swaps.
	before, last, row := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(x); i++ {
		row[0] = i
		for j := 1; j <= len(y); j++ {
			replace := last[j-1]
			if x[i-1] != y[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(y)]
}
