// Package records keeps a node's view of the records: what etcd said last, on
// disk too, so that a node that starts while etcd is away has its network.
//
// It never talks to etcd; it is handed snapshots.
package records

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Carry returns next with the confirmed netIDs of prev kept for namespaces
// whose record lost its confirmation: someone wrote it by hand, and the
// controller has not looked at it yet. A namespace without a record keeps nothing.
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
		if rec.Effective == nil && known && old.Effective != nil {
			rec.Effective = old.Effective
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

// File is the copy of the newest snapshot on disk.
type File struct{ path string }

// NewFile names the copy in the agent's state directory.
func NewFile(stateDir string) File { return File{filepath.Join(stateDir, "records.json")} }

// Load reads the copy; ok is false where there is none.
func (f File) Load() (s topology.Snapshot, ok bool, err error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return s, false, fmt.Errorf("read the copy of the records: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return topology.Snapshot{}, false, fmt.Errorf("the copy of the records in %s is damaged (it is made anew from etcd): %w", f.path, err)
	}
	if err := s.Config.Validate(); err != nil {
		return topology.Snapshot{}, false, fmt.Errorf("the copy of the records in %s: %w", f.path, err)
	}
	return s, true, nil
}

// Save replaces the copy. A crash, also of the machine, leaves the old or the new one, whole: it waits
// for the disk, and a [Writer] keeps that out of others' way.
func (f File) Save(s topology.Snapshot) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the copy of the records: %w", err)
	}
	if err := atomicfile.Write(f.path, data, 0o600); err != nil {
		return fmt.Errorf("write the copy of the records: %w", err)
	}
	return nil
}
