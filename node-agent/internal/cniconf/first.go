package cniconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// extensions are the files that runtimes look at (libcni), in the order of their names.
var extensions = []string{".conf", ".conflist", ".json"}

// PreferredError: the runtime takes another file than ours, as its name comes first.
type PreferredError struct {
	// Path is the other file, Ours the name of ours.
	Path, Ours string
	// Network is what the other calls itself, and the plugin that it begins with.
	Network, Plugin string
}

func (e *PreferredError) Error() string {
	also := ""
	if multus(e.Plugin) {
		also = fmt.Sprintf(", have its clusterNetwork, or the first of its delegates, be %s", e.Ours)
	}
	return fmt.Sprintf("the container runtime takes the CNI configuration %s (network %q, plugin %q), whose name comes before %s: new pods go past k8s-ovs, "+
		"its tenants and its policies; remove that file%s, or have ours come first with --cni-conf-file", e.Path, e.Network, e.Plugin, e.Ours, also)
}

// First is nil where the runtime takes our file, or will once it is there, or one before it that leads to k8s-ovs as well, as Multus' does; else a
// [PreferredError], or a [ForeignError] where ours is somebody else's. Unusable are files before ours that are no CNI configuration, and why; they count for nothing.
func (f *File) First() (unusable map[string]error, err error) {
	entries, err := os.ReadDir(f.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("CNI configurations: %w", err)
	}
	unusable = map[string]error{}
	for _, e := range entries { // sorted by name
		if e.Name() >= f.cfg.Name {
			break
		}
		if e.IsDir() || !slices.Contains(extensions, filepath.Ext(e.Name())) {
			continue
		}
		file := filepath.Join(f.cfg.Dir, e.Name())
		other, err := readOther(file)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it is gone again, or a link to nothing
		case err != nil:
			unusable[file] = err
		case other.leadsTo(f.cfg.Name):
			return unusable, nil
		default:
			return unusable, &PreferredError{Path: file, Ours: f.cfg.Name, Network: other.Name, Plugin: other.first().Type}
		}
	}
	_, err = f.read()
	return unusable, err
}

// configuration is one of any origin: a list of plugins, or a plugin. What plugins other than Multus mean by the raw fields is theirs.
type configuration struct {
	Name    string          `json:"name"`
	Type    string          `json:"type"`
	Plugins json.RawMessage `json:"plugins"`
	// Delegates and ClusterNetwork are what Multus attaches pods to: the first of the delegates, if no cluster network is named.
	Delegates      json.RawMessage `json:"delegates"`
	ClusterNetwork json.RawMessage `json:"clusterNetwork"`
}

// readOther reads a configuration that runtimes take; else the error says why they do not.
func readOther(file string) (configuration, error) {
	var c configuration
	info, err := os.Stat(file)
	if err != nil {
		return c, err
	}
	if !info.Mode().IsRegular() {
		return c, errors.New("it is not a file")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, err
	}
	if filepath.Ext(file) != ".conflist" {
		if c.Type == "" {
			return c, errors.New("it has no type")
		}
		return c, nil
	}
	if c.Name == "" {
		return c, errors.New("it has no name")
	}
	c.Type = "" // a list has none
	if c.Plugins == nil {
		return c, nil // they may stand in a folder of its name
	}
	var plugins []configuration
	if err := json.Unmarshal(c.Plugins, &plugins); err != nil {
		return c, fmt.Errorf("plugins: %w", err)
	}
	return c, nil
}

// first is the plugin that makes a pod's interface.
func (c configuration) first() configuration {
	var plugins []configuration
	if c.Type != "" || json.Unmarshal(c.Plugins, &plugins) != nil || len(plugins) == 0 {
		return c
	}
	return plugins[0]
}

// leadsTo reports whether pods get their interface from k8s-ovs, whose own file is called ours.
func (c configuration) leadsTo(ours string) bool {
	first := c.first()
	if !multus(first.Type) {
		return first.Type == Network
	}
	var named string
	if json.Unmarshal(first.ClusterNetwork, &named) == nil && named != "" {
		// The name of a network, or the path of a file as Multus' own container has it.
		named = path.Base(named)
		return named == Network || named == ours
	}
	var delegates []configuration
	return json.Unmarshal(first.Delegates, &delegates) == nil && len(delegates) > 0 && delegates[0].first().Type == Network
}

// multus reports whether a plugin is Multus, which attaches pods to the networks that its configuration names.
func multus(plugin string) bool { return plugin == "multus" || strings.HasPrefix(plugin, "multus-") }
