package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Root is where labs keep their files: one folder a lab.
const Root = "/run/netlab"

// state is what a lab knows of itself between two runs of the tool.
type state struct {
	// ID marks the lab's processes; random, so that two labs that have had
	// the same name are told apart.
	ID      string      `json:"id"`
	Options Options     `json:"options"`
	Etcd    EtcdStatus  `json:"etcd"`
	Nodes   []nodeState `json:"nodes"`
	Pods    []Pod       `json:"pods"`
	// Processes by name.
	Processes map[string]Process `json:"processes"`
	// Namespaces that the lab has made and must remove.
	Namespaces []string `json:"namespaces"`
	// Kubeconfig is what agents are started with; empty for standalone ones.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// PluginDir has the plugin k8s-ovs; empty for the folder of all programs.
	PluginDir string `json:"pluginDir,omitempty"`
}

// nodeState is a node and what it needs to be started again.
type nodeState struct {
	Node
	Index     int      `json:"index"`
	Datapath  string   `json:"datapath"`
	AgentArgs []string `json:"agentArgs,omitempty"`
	// SystemRoutes is that its ovs-vswitchd reads the kernel's.
	SystemRoutes bool `json:"systemRoutes,omitempty"`
}

// Node is one node of the lab.
type Node struct {
	Name string `json:"name"`
	// Netns is the name of its network namespace, as `ip netns` shows it.
	Netns string `json:"netns"`
	// VTEP is its address in the underlay.
	VTEP netip.Addr `json:"vtep"`
	// OVSRunDir is where its Open vSwitch daemons have their sockets (OVS_RUNDIR).
	OVSRunDir string `json:"ovsRunDir"`
}

// EtcdStatus is how to reach the lab's records from the namespace that the
// tool was started in.
type EtcdStatus struct {
	Endpoints []string `json:"endpoints"`
	Prefix    string   `json:"prefix"`
}

// PodStatus is one pod of the lab, as `netlab status` prints it.
type PodStatus struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	Node      string     `json:"node"`
	IP        netip.Addr `json:"ip"`
	// Netns is the name of its network namespace, as `ip netns` shows it.
	Netns string `json:"netns"`
}

// Status is what `netlab status -o json` prints.
type Status struct {
	Name  string      `json:"name"`
	Etcd  EtcdStatus  `json:"etcd"`
	Nodes []Node      `json:"nodes"`
	Pods  []PodStatus `json:"pods"`
}

func dirOf(name string) string { return filepath.Join(Root, name) }

func (l *Lab) stateFile() string { return filepath.Join(l.dir, "state.json") }

// readState reads a lab's state file.
func readState(dir string) (state, error) {
	var s state
	data, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", filepath.Join(dir, "state.json"), err)
	}
	return s, nil
}

// update changes the lab's state: reads it, lets fn change it, writes it. Other
// processes that use the same lab wait meanwhile, so fn must be quick.
func (l *Lab) update(fn func(s *state) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	unlock, err := lockFile(filepath.Join(l.dir, "lock"))
	if err != nil {
		return fmt.Errorf("lab %s: %w", l.name, err)
	}
	defer unlock()
	s, err := readState(l.dir)
	if err != nil {
		return fmt.Errorf("lab %s: %w", l.name, err)
	}
	if err := fn(&s); err != nil {
		return err
	}
	return writeState(l.dir, s)
}

func writeState(dir string, s state) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".state-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, "state.json"))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write the state of the lab: %w", err)
	}
	return nil
}

// read returns the lab's state as it is now.
func (l *Lab) read() (state, error) {
	s, err := readState(l.dir)
	if errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("lab %s is not up (there is no %s)", l.name, l.stateFile())
	}
	return s, err
}

// lockFile takes an exclusive lock on path and returns what releases it. The
// lock is on the file that has that name when it is held: another program may
// have removed the one that was opened, together with its lock.
func lockFile(path string) (func(), error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		for {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		held, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if named, err := os.Stat(path); err == nil && os.SameFile(held, named) {
			return func() { _ = f.Close() }, nil // closing unlocks
		}
		_ = f.Close()
	}
}

func (s *state) node(name string) (*nodeState, error) {
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return &s.Nodes[i], nil
		}
	}
	var have []string
	for _, n := range s.Nodes {
		have = append(have, n.Name)
	}
	return nil, fmt.Errorf("no node %q in lab %s; it has %v", name, s.Options.Name, have)
}

func (s *state) pod(namespace, name string) (*Pod, error) {
	for i := range s.Pods {
		if s.Pods[i].Namespace == namespace && s.Pods[i].Name == name {
			return &s.Pods[i], nil
		}
	}
	return nil, fmt.Errorf("no pod %s/%s in lab %s (see `netlab status`)", namespace, name, s.Options.Name)
}

func (s *state) dropNamespace(name string) {
	s.Namespaces = slices.DeleteFunc(s.Namespaces, func(n string) bool { return n == name })
}
