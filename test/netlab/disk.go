package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// FillDisk puts a node's state directory on a disk without room, as of now: what the
// agent kept is still there to read. What is returned ends that.
func (l *Lab) FillDisk(node string) (free func() error, err error) {
	dir := l.stateDir(node)
	kept := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if kept[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			return nil, fmt.Errorf("node %s: %w", node, err)
		}
	}
	if err := unix.Mount("full", dir, "tmpfs", 0, "size=1m,mode=700"); err != nil {
		return nil, fmt.Errorf("node %s: mount on %s: %w", node, dir, err)
	}
	free = func() error {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("node %s: unmount %s: %w", node, dir, err)
		}
		return nil
	}
	for name, data := range kept {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	rest, openErr := os.Create(filepath.Join(dir, "ballast"))
	if err = errors.Join(err, openErr); err != nil {
		return nil, errors.Join(err, free())
	}
	defer rest.Close()
	for block := make([]byte, 4096); ; {
		if _, err := rest.Write(block); errors.Is(err, unix.ENOSPC) {
			return free, nil
		} else if err != nil {
			return nil, errors.Join(fmt.Errorf("node %s: %w", node, err), free())
		}
	}
}

// LoseState empties a node's state directory, as a new disk does.
func (l *Lab) LoseState(node string) error {
	dir := l.stateDir(node)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	return os.MkdirAll(dir, 0o700)
}

// Leases are the IDs of the containers that have an address of the node, in order of
// address, as an agent that starts now would read them.
func (l *Lab) Leases(node string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(l.stateDir(node), "addresses.json"))
	if err != nil {
		return nil, err
	}
	var file struct {
		Leases []struct {
			ContainerID string `json:"containerID"`
		} `json:"leases"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("leases of node %s: %w", node, err)
	}
	var ids []string
	for _, lease := range file.Leases {
		ids = append(ids, lease.ContainerID)
	}
	return ids, nil
}
