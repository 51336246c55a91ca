// Package attacks keeps the results of tests that attack: who tried what, how often, and
// how much of it was delivered. Tests of several packages, on several kernels, add rows
// to one file; the command report makes a table of it.
package attacks

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
)

// Attacker is who attacks: what somebody has in hand.
type Attacker string

// The attackers that tests play.
const (
	Pod      Attacker = "hostile pod"       // sends any frame
	Tenant   Attacker = "hostile tenant"    // makes pods, services, endpoints and policies of its namespaces
	Node     Attacker = "stolen node"       // has all that a node has
	Underlay Attacker = "underlay host"     // is in the nodes' network and is no node
	Operator Attacker = "operator's laptop" // has the CLI, or a copy of its keys
)

// Row is what came of one attack.
type Row struct {
	By   Attacker `json:"by"`
	Name string   `json:"name"`
	// Datapath is "netdev" or "system".
	Datapath string `json:"datapath"`
	// Tried are packets, requests or whatever is counted; of them Delivered came through.
	Tried     int `json:"tried"`
	Delivered int `json:"delivered"`
	// NotHeld says why the attack is known to succeed; empty for one that must not.
	NotHeld string `json:"notHeld,omitempty"`
}

// Check says what is wrong with a result: an attack that tried nothing shows nothing, one
// that must be held off was not, or one that is said to succeed does not.
func (r Row) Check() error {
	switch {
	case r.Tried <= 0 || r.Delivered < 0 || r.Delivered > r.Tried:
		return fmt.Errorf("attack %q by a %s: %d of %d delivered shows nothing", r.Name, r.By, r.Delivered, r.Tried)
	case r.NotHeld == "" && r.Delivered > 0:
		return fmt.Errorf("attack %q by a %s: %d of %d delivered", r.Name, r.By, r.Delivered, r.Tried)
	case r.NotHeld != "" && r.Delivered == 0:
		return fmt.Errorf("attack %q by a %s is said to succeed (%s), and 0 of %d were delivered: say that it is held off", r.Name, r.By, r.NotHeld, r.Tried)
	}
	return nil
}

// writing is one row at a time; other processes append whole lines as well.
var writing sync.Mutex

// Record adds the row to the file that the environment variable ATTACKS names, where it
// does, and returns what [Row.Check] says.
func Record(r Row) error {
	if path := os.Getenv("ATTACKS"); path != "" {
		if err := add(path, r); err != nil {
			return fmt.Errorf("result of attack %q: %w", r.Name, err)
		}
	}
	return r.Check()
}

func add(path string, r Row) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	writing.Lock()
	defer writing.Unlock()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return cmp.Or(err, f.Close())
}

// Read reads the rows that Record wrote.
func Read(from io.Reader) ([]Row, error) {
	var rows []Row
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		var r Row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("result no. %d: %w", len(rows)+1, err)
		}
		rows = append(rows, r)
	}
	return rows, lines.Err()
}

// Merge adds up the rows of the same attack on the same datapath, and sorts them.
func Merge(rows []Row) []Row {
	type key struct {
		by                      Attacker
		name, datapath, notHeld string
	}
	sums := map[key]Row{}
	for _, r := range rows {
		k := key{r.By, r.Name, r.Datapath, r.NotHeld}
		r.Tried += sums[k].Tried
		r.Delivered += sums[k].Delivered
		sums[k] = r
	}
	merged := make([]Row, 0, len(sums))
	for _, r := range sums {
		merged = append(merged, r)
	}
	slices.SortFunc(merged, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.By, b.By), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Datapath, b.Datapath), cmp.Compare(a.NotHeld, b.NotHeld))
	})
	return merged
}

// Markdown writes the rows, merged, as a table, of the given version of the code.
func Markdown(to io.Writer, version string, rows []Row) error {
	rows = Merge(rows)
	held, known, broken := 0, 0, 0
	for _, r := range rows {
		switch {
		case r.Check() != nil:
			broken++
		case r.NotHeld != "":
			known++
		default:
			held++
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Attacks\n\nWhat the tests tried at commit %s (`make attacks`), and how much of it was delivered. One row is one attack on one datapath: `netdev` is\n", version)
	fmt.Fprintf(&b, "Open vSwitch's userspace datapath, `system` the kernel's. %d held off, %d known to succeed, %d failures.\n\n", held, known, broken)
	b.WriteString("| attacker | attack | datapath | tried | delivered | |\n|---|---|---|---:|---:|---|\n")
	for _, r := range rows {
		say := "held off"
		switch {
		case r.Check() != nil:
			say = "**FAILED**"
		case r.NotHeld != "":
			say = "not held off: " + r.NotHeld
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %d | %s |\n", r.By, cell(r.Name), r.Datapath, r.Tried, r.Delivered, cell(say))
	}
	_, err := io.WriteString(to, b.String())
	return err
}

// cell is text that does not end a table's cell.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
