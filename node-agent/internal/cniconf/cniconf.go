// Package cniconf owns the CNI configuration of the node: the file that tells the container runtime, and through it the kubelet, that
// pods can have a network here. It must never touch a file that is not its own, and never decides when the node is ready.
package cniconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/statefile"
	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
)

// bootFile, in the state directory, has the boot id of the node when the configuration was last put there.
const bootFile = "cni-conf-boot-id"

// Config says where the configuration stands and what it says.
type Config struct {
	// Dir is the runtime's directory of configurations; Name the file's name in it, which runtimes order by.
	Dir, Name string
	// Contents of the file; see [Default] and [Read].
	Contents []byte
	// StateDir outlives the agent; BootID tells this boot of the node from earlier ones.
	StateDir, BootID string
}

// File is the configuration on this node. Its methods belong to one goroutine.
type File struct {
	cfg  Config
	path string
	boot string
}

// New names the file; it does not touch it.
func New(cfg Config) *File {
	return &File{cfg: cfg, path: filepath.Join(cfg.Dir, cfg.Name), boot: filepath.Join(cfg.StateDir, bootFile)}
}

// Path of the file.
func (f *File) Path() string { return f.path }

// Forget removes what was left from before the node booted, when pods had a network that is gone. A file whose boot is not known counts
// as old; one of this boot stays: the agent only restarts. It reports whether there was one.
func (f *File) Forget() (bool, error) {
	boot, err := os.ReadFile(f.boot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("CNI configuration %s: which boot it is of: %w", f.path, err)
	}
	if string(boot) == f.cfg.BootID {
		return false, nil
	}
	return f.Remove()
}

// Ensure makes the file what it should be, and reports whether it had to. A crash leaves the old file or the new one, whole. It fails
// where a file of that name is not ours.
func (f *File) Ensure() (changed bool, err error) {
	have, err := f.read()
	if err != nil {
		return false, err
	}
	same := bytes.Equal(have, f.cfg.Contents)
	if same && !statefile.Missing(f.boot) {
		return false, nil
	}
	// The boot first: a file whose boot is not noted would go at the next start.
	if err := statefile.Write(f.boot, []byte(f.cfg.BootID)); err != nil {
		return false, fmt.Errorf("note the boot of CNI configuration %s: %w", f.path, err)
	}
	if same {
		return false, nil
	}
	if err := os.MkdirAll(f.cfg.Dir, 0o755); err != nil {
		return false, fmt.Errorf("CNI configuration %s: %w", f.path, err)
	}
	if err := atomicfile.Write(f.path, f.cfg.Contents, 0o644); err != nil {
		return false, fmt.Errorf("write CNI configuration %s: %w", f.path, detached.Explain(f.cfg.Dir, err))
	}
	return true, nil
}

// Remove takes the file away, and reports whether there was one. One that is not ours stays, without an error.
func (f *File) Remove() (bool, error) {
	have, err := f.read()
	var foreign *ForeignError
	if errors.As(err, &foreign) || err == nil && have == nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := os.Remove(f.path); err != nil {
		return false, fmt.Errorf("remove CNI configuration: %w", err)
	}
	return true, nil
}

// ForeignError: a file of our name was written by somebody else.
type ForeignError struct {
	Path string
	// Network is what it calls itself, empty where it does not say.
	Network string
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("CNI configuration %s is not ours (its network is %q, not %q): remove it, or choose another name with --cni-conf-file", e.Path, e.Network, Network)
}

// read returns our file, nil where there is none. One that is no configuration at all, as a full disk or somebody's
// slip leaves it, is ours to replace: no runtime takes it.
func (f *File) read() ([]byte, error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	if name, ok := network(data); ok && name != Network {
		return nil, &ForeignError{Path: f.path, Network: name}
	}
	return data, nil
}
