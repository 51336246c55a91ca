// Package detached tells a folder that is missing from one that was deleted while a container has it mounted: what is made in that one
// nobody else sees, and nothing can be made in it. It leaves nothing in a folder that others see.
package detached

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Err is wrapped by what [Explain] returns about a folder that only a new start of the container brings back: container runtimes make and
// mount it anew then.
var Err = errors.New("the agent starts anew to have it mounted again")

// Explain returns err, which came from making something in the folder, or says that the folder was deleted under its mount.
func Explain(dir string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The folder may have been gone only for a moment.
	probe, again := os.CreateTemp(dir, ".k8s-ovs-probe-*")
	if again == nil {
		return errors.Join(err, probe.Close(), os.Remove(probe.Name()))
	}
	if _, there := os.Stat(dir); there != nil || !errors.Is(again, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%s was deleted on the node while it is mounted here: %w", dir, Err)
}
