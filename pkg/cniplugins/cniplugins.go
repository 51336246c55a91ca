// Package install puts the CNI plugins of the image where the container runtime of the node finds them. It is what the plugin does when
// it is called by a person or an init container instead of a runtime.
package install

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Plugins are what a node needs: our own, loopback for every sandbox, and portmap for host ports.
var Plugins = []string{"loopback", "portmap", "k8s-ovs"}

// Command is the argument that asks for the installation.
const Command = "install"

// Main runs `k8s-ovs install` with the arguments after that word, and returns the exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("k8s-ovs "+Command, flag.ContinueOnError)
	fs.SetOutput(stderr)
	from := fs.String("from", "", "`directory` with the plugins")
	to := fs.String("to", "", "`directory` of the container runtime's plugins, such as /opt/cni/bin")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *from == "" || *to == "" || fs.NArg() > 0 {
		fmt.Fprintf(stderr, "k8s-ovs %s: needs --from DIRECTORY and --to DIRECTORY, and nothing else\n", Command)
		return 2
	}
	replaced, err := Install(*from, *to)
	if err != nil {
		fmt.Fprintf(stderr, "k8s-ovs %s: %v\n", Command, err)
		return 1
	}
	for _, name := range Plugins {
		state := "is up to date"
		if replaced[name] {
			state = "installed"
		}
		fmt.Fprintf(stdout, "%s %s\n", filepath.Join(*to, name), state)
	}
	return 0
}

// Install copies the [Plugins] and says which it had to replace. All are written beside their place before the first takes it, so an
// error while reading or writing leaves what was there. A plugin that runs meanwhile runs on: its file is replaced, not written to.
func Install(from, to string) (replaced map[string]bool, err error) {
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
	for _, name := range Plugins {
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
	for _, name := range Plugins {
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
