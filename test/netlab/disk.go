package netlab

import (
	"context"
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
	if err = errors.Join(err, fill(filepath.Join(dir, "ballast"))); err != nil {
		return nil, errors.Join(fmt.Errorf("node %s: %w", node, err), free())
	}
	return free, nil
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

// Database is the file of Open vSwitch's database.
func (o OVS) Database() string { return filepath.Join(o.dir(), "conf.db") }

// WithoutServer stops ovsdb-server, has do change the file of its database, and starts it
// again: ovs-vswitchd stays.
func (o OVS) WithoutServer(ctx context.Context, do func(path string) error) error {
	if err := o.KillOVSDB(); err != nil {
		return err
	}
	if err := do(o.Database()); err != nil {
		return fmt.Errorf("node %s: %w", o.node, err)
	}
	return o.StartOVSDB(ctx)
}

// WipeDatabase is for [OVS.WithoutServer]: an empty database in place of that which was.
func (o OVS) WipeDatabase(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return createDatabase(context.Background(), path)
}

// FillDisk puts Open vSwitch's database on a disk of its own without room. The first of what
// is returned makes room, the second puts the database back where it was.
func (o OVS) FillDisk(ctx context.Context) (free func() error, end func() error, err error) {
	dir := filepath.Join(o.dir(), "disk")
	ballast := filepath.Join(dir, "ballast")
	free = func() error { return os.Remove(ballast) }
	end = func() error {
		return o.WithoutServer(ctx, func(path string) error {
			data, err := os.ReadFile(path)
			if err == nil {
				err = errors.Join(os.Remove(path), os.WriteFile(path, data, 0o644))
			}
			return errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
		})
	}
	err = o.WithoutServer(ctx, func(path string) error {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("full", dir, "tmpfs", 0, "size=1m,mode=755"); err != nil {
			return fmt.Errorf("mount on %s: %w", dir, err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, "conf.db")
		return errors.Join(os.WriteFile(to, data, 0o644), os.Remove(path), os.Symlink(to, path))
	})
	if err != nil {
		return nil, nil, err
	}
	return free, end, fill(ballast)
}

// fill makes a file that takes all room that there is.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
