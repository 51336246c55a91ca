// Package rows keeps what tests of single faults measure: how many packets a fault cost, and for how
// long. Tests of several packages add rows to one file, and the chaos program makes a table of them.
package rows

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Variable is the environment variable that names the file. A line of it is a row:
// "fault | lost | longest gap | bar".
const Variable = "CHAOS_ROWS"

// columns is how many parts a row has.
const columns = 4

// writing is one row at a time; other processes append whole lines as well.
var writing sync.Mutex

// Add says that a fault cost so many packets, and that the longest time in which somebody lost all that was
// sent to him was gap. bar is what is asked for, such as "0 lost". Without the environment
// variable nothing is kept.
func Add(fault string, lost int, gap time.Duration, bar string) error {
	path := os.Getenv(Variable)
	if path == "" {
		return nil
	}
	if strings.ContainsAny(fault+bar, "|\n") {
		return fmt.Errorf("row of %q, bar %q: a line has one row, and | is between its parts", fault, bar)
	}
	writing.Lock()
	defer writing.Unlock()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("row of %q: %w", fault, err)
	}
	_, err = fmt.Fprintf(f, "%s | %d | %s | %s\n", fault, lost, Round(gap), bar)
	return cmp.Or(err, f.Close())
}

// Round is a time to three digits, for people.
func Round(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}

// Table is the rows of such a file as a table in Markdown, in the order in which they were added.
func Table(file string) (string, error) {
	var b strings.Builder
	b.WriteString("| fault | lost | longest gap | bar |\n|---|---:|---:|---|\n")
	n := 0
	for line := range strings.Lines(file) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		parts := strings.Split(line, "|")
		if len(parts) != columns {
			return "", fmt.Errorf("row %q has %d parts, and not %d: fault | lost | longest gap | bar", line, len(parts), columns)
		}
		for i := range parts {
			parts[i] = strings.TrimSpace(parts[i])
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(parts, " | "))
		n++
	}
	if n == 0 {
		return "", fmt.Errorf("no test has added a row to the file that %s names", Variable)
	}
	return b.String(), nil
}
