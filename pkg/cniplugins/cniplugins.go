// Package cniplugins puts the CNI plugins of the image where the container runtime of the node finds them, and sees whether they are there. It
// never touches a plugin of another name.
package cniplugins

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Ours is the plugin that asks the agent.
const Ours = "k8s-ovs"

// Plugins are what a node needs: our own, loopback for every sandbox, and portmap for host ports.
var Plugins = []string{"loopback", "portmap", Ours}

// Install copies the [Plugins] and says which it had to replace. All are written beside their place before the first takes it, so an
// error while reading or writing leaves what was there. A plugin that runs meanwhile runs on: its file is replaced, not written to.
func Install(from, to string) (replaced map[string]bool, err error) {
	return install(from, to, Plugins)
}

func install(from, to string, names []string) (replaced map[string]bool, err error) {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return nil, fmt.Errorf("directory of plugins: %w", err)
	}
	replaced = map[string]bool{}
	defer func() {
		if err != nil {
			for name := range replaced {
				_ = os.Remove(temporary(to, name)) // one that took its place is gone from here
			}
		}
	}()
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return replaced, fmt.Errorf("plugin %s: %w", name, err)
		}
		if upToDate(filepath.Join(to, name), data) {
			continue
		}
		replaced[name] = true
		if err := write(temporary(to, name), data); err != nil {
			return replaced, fmt.Errorf("install plugin %s: %w", name, err)
		}
	}
	for _, name := range names {
		if !replaced[name] {
			continue
		}
		if err := os.Rename(temporary(to, name), filepath.Join(to, name)); err != nil {
			return replaced, fmt.Errorf("install plugin %s: %w", name, err)
		}
	}
	return replaced, syncDir(to)
}

// temporary is always the same, so that what a crash leaves is replaced the next time.
func temporary(dir, name string) string { return filepath.Join(dir, "."+name+".new") }

func upToDate(path string, data []byte) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != 0o755 || info.Size() != int64(len(data)) {
		return false
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, data)
}

func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	// The mode of a file that was left behind, and whatever the umask.
	return errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
}

// syncDir makes the new names outlive a crash of the machine.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("directory of plugins: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("directory of plugins %s: %w", path, err)
	}
	return nil
}
