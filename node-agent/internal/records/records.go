// Package records keeps a node's view of the records: what etcd said last, on
// disk too, so that a node that starts while etcd is away has its network.
//
// It never talks to etcd; it is handed snapshots.
package records

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/statefile"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Carry returns next with the confirmed netIDs of prev kept for namespaces
// whose record lost its confirmation: someone wrote it by hand, and the
// controller has not looked at it yet. A namespace without a record keeps nothing, and
// neither does one whose record is of another Namespace with the same name: that its
// predecessor's was deleted in between may not have been told.
func Carry(prev, next topology.Snapshot) topology.Snapshot {
	if prev.Config.Name != next.Config.Name {
		return next
	}
	var changed map[string]topology.Namespace
	keep := func(name string, old topology.Namespace) {
		if changed == nil {
			changed = make(map[string]topology.Namespace, len(next.Namespaces))
			for n, r := range next.Namespaces {
				changed[n] = r
			}
		}
		changed[name] = old
	}
	for name, rec := range next.Namespaces {
		old, known := prev.Namespaces[name]
		if rec.Effective == nil && known && old.Effective != nil && rec.Succeeds(old) {
			rec.Effective, rec.Change, rec.UID = old.Effective, old.Change, cmp.Or(rec.UID, old.UID)
			keep(name, rec)
		}
	}
	// A record that no longer parses is no deletion.
	for name := range next.Invalid {
		if old, known := prev.Namespaces[name]; known {
			if _, parsed := next.Namespaces[name]; !parsed {
				keep(name, old)
			}
		}
	}
	if changed != nil {
		next.Namespaces = changed
	}
	return next
}

// File is a copy on disk of the newest of what it is about.
type File[T any] struct {
	path string
	// what it is a copy of, for messages; valid is nil for a value that can be used.
	what  string
	valid func(T) error
}

// NewFile names the copy of the records in the agent's state directory.
func NewFile(stateDir string) File[topology.Snapshot] {
	return At(stateDir, "records.json", "the records", func(s topology.Snapshot) error { return s.Config.Validate() })
}

// At names a copy of something else beside it. valid may be nil.
func At[T any](stateDir, name, what string, valid func(T) error) File[T] {
	return File[T]{filepath.Join(stateDir, name), what, valid}
}

// Load reads the copy; ok is false where there is none.
func (f File[T]) Load() (v T, ok bool, err error) {
	var none T
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, false, nil
	}
	if err != nil {
		return none, false, fmt.Errorf("read the copy of %s: %w", f.what, err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return none, false, fmt.Errorf("the copy of %s in %s is damaged (it is made anew from etcd): %w", f.what, f.path, err)
	}
	if f.valid == nil {
		return v, true, nil
	}
	if err := f.valid(v); err != nil {
		return none, false, fmt.Errorf("the copy of %s in %s: %w", f.what, f.path, err)
	}
	return v, true, nil
}

// Save replaces the copy. A crash, also of the machine, leaves the old or the new one, whole: it waits
// for the disk, and a [Writer] keeps that out of others' way.
func (f File[T]) Save(v T) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the copy of %s: %w", f.what, err)
	}
	if err := statefile.Write(f.path, data); err != nil {
		return fmt.Errorf("write the copy of %s: %w", f.what, err)
	}
	return nil
}
