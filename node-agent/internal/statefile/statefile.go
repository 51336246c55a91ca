// Package statefile writes the files of the agent's state directory, which somebody may delete
// while the agent runs: one that is gone is made anew, and one that was deleted under the agent's
// mount is an error that ends the agent, see package detached.
package statefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
)

// mode is that of all files: some have a private key in them.
const mode = 0o600

// Write is [atomicfile.Write].
func Write(path string, data []byte) error { return in(path, data, atomicfile.Write) }

// Replace is [atomicfile.Replace].
func Replace(path string, data []byte) error { return in(path, data, atomicfile.Replace) }

func in(path string, data []byte, write func(string, []byte, fs.FileMode) error) error {
	err := write(path, data, mode)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	if err = os.MkdirAll(dir, 0o700); err == nil {
		err = write(path, data, mode)
	}
	return detached.Explain(dir, err)
}

// Look returns an error where the directory was deleted under its mount, and makes it where it is
// missing.
func Look(dir string) error {
	// There is nothing to be read in one that was deleted, not even that it is empty.
	_, err := os.ReadDir(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if made := os.MkdirAll(dir, 0o700); made != nil {
		return made
	}
	if _, err = os.ReadDir(dir); err == nil {
		return nil
	}
	return detached.Explain(dir, err)
}

// Missing reports whether nothing is at path.
func Missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}
