// Package crashes is the record of how often and why a daemon of Open vSwitch has ended
// without being asked to: its supervisor writes it, the agent reads it. It is a file beside
// the daemon's sockets, so it lasts as long as the machine runs.
//
// It imports nothing but the standard library and atomicfile, because the supervisor runs
// all the time and is to stay small.
package crashes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
)

// Record is what became of one daemon since the machine started.
type Record struct {
	// Daemon is its name, such as "ovs-vswitchd".
	Daemon string `json:"daemon"`
	// Ends counts how often it ended, by cause.
	Ends map[string]int `json:"ends,omitempty"`
	// Last is the latest end; nil before the first.
	Last *End `json:"last,omitempty"`
}

// End is how a daemon ended.
type End struct {
	Time time.Time `json:"time"`
	// Cause is the signal ("SIGSEGV"), the status ("exit status 1") or "not started".
	Cause string `json:"cause"`
	// Lived is for how long it had run, in nanoseconds.
	Lived time.Duration `json:"lived"`
	// Line is the last that it printed; empty where it printed nothing.
	Line string `json:"line,omitempty"`
	// GivenUp is that its supervisor has ended, too: the daemon cannot stay up.
	GivenUp bool `json:"givenUp,omitempty"`
}

// Add counts one more end.
func (r *Record) Add(e End) {
	if r.Ends == nil {
		r.Ends = map[string]int{}
	}
	r.Ends[e.Cause]++
	r.Last = &e
}

// Count is how often the daemon ended.
func (r Record) Count() int {
	n := 0
	for _, times := range r.Ends {
		n += times
	}
	return n
}

// String says it to people; a record without any end is empty.
func (r Record) String() string {
	if r.Last == nil {
		return ""
	}
	times := "once"
	if n := r.Count(); n > 1 {
		times = fmt.Sprintf("%d times", n)
	}
	text := fmt.Sprintf("%s ended (%s) after %s; that was %s since the machine started", r.Daemon, r.Last.Cause, rounded(r.Last.Lived), times)
	if r.Last.GivenUp {
		text += "; it cannot stay up, so its container ends, and kubelet starts that again after longer and longer pauses"
	}
	if r.Last.Line != "" {
		text += "; the last that it printed: " + r.Last.Line
	}
	return text
}

// rounded leaves out what nobody reads of a duration.
func rounded(d time.Duration) time.Duration {
	if d < time.Minute {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

const (
	before = "k8s-ovs-"
	after  = ".ends.json"
)

// File is where the record of a daemon is in the folder of Open vSwitch's sockets.
func File(dir, daemon string) string { return filepath.Join(dir, before+daemon+after) }

// Load reads the record of a daemon. It is empty where there is none yet.
func Load(dir, daemon string) (Record, error) {
	r := Record{Daemon: daemon}
	data, err := os.ReadFile(File(dir, daemon))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return Record{Daemon: daemon}, fmt.Errorf("the record of how %s ended: %w", daemon, err)
	}
	r.Daemon = daemon
	return r, nil
}

// Write replaces the record of a daemon.
func (r Record) Write(dir string) error {
	data, err := json.Marshal(r)
	if err == nil {
		err = atomicfile.Replace(File(dir, r.Daemon), data, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write down how %s ended: %w", r.Daemon, err)
	}
	return nil
}

// All are the records in a folder, in the order of their daemons' names. What cannot be
// read is left out and named in the error.
func All(dir string) ([]Record, error) {
	files, err := filepath.Glob(File(dir, "*"))
	if err != nil {
		return nil, err
	}
	var errs []error
	found := map[string]Record{}
	for _, path := range files {
		daemon := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), before), after)
		r, err := Load(dir, daemon)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found[daemon] = r
	}
	var all []Record
	for _, daemon := range slices.Sorted(maps.Keys(found)) {
		all = append(all, found[daemon])
	}
	return all, errors.Join(errs...)
}
