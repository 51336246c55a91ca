package cniconf

import (
	"errors"
	"log/slog"
	"sync"
)

// Kept is the CNI configuration that is kept in place while the agent runs. It is
// put there when pods can be attached for the first time, stays through restarts
// of the agent, and goes when the node leaves the network. Nil keeps none.
type Kept struct {
	file *File
	log  *slog.Logger

	// unusable are the files before ours that were told of. It belongs to the goroutine that calls First.
	unusable map[string]string

	mu  sync.Mutex
	err error
}

// Keep removes a configuration of an earlier boot: nothing has a
// network until the agent is ready. template is where the contents are from. Without a directory
// there is nothing to keep.
func Keep(cfg Config, template string, log *slog.Logger) (*Kept, error) {
	if cfg.Dir == "" {
		return nil, nil
	}
	c := &Kept{log: log, err: errors.New("not looked at yet: it is put in place when pods can be attached and have their services"), file: New(cfg)}
	for _, unfit := range Unfit(cfg.Contents) {
		log.Warn("the CNI configuration has a plugin that does not go with k8s-ovs", "template", template, "plugin", unfit)
	}
	removed, err := c.file.Forget()
	if err != nil {
		return nil, err
	}
	if removed {
		log.Info("removed the CNI configuration from before the node booted, until pods can be attached", "path", c.file.Path())
	}
	return c, nil
}

// Ensure puts the configuration in place.
func (c *Kept) Ensure() {
	if c == nil {
		return
	}
	changed, err := c.file.Ensure()
	c.mu.Lock()
	before := c.err
	c.err = err
	c.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		c.log.Error("the container runtime does not learn that pods can be attached", "error", err)
	}
	if !changed {
		return
	}
	c.log.Info("CNI configuration is in place", "path", c.file.Path())
}

// First is nil where the runtime takes our configuration, or will once it is in place; else it names the file that it takes instead.
func (c *Kept) First() error {
	if c == nil {
		return nil
	}
	unusable, err := c.file.First()
	told := map[string]string{}
	for path, why := range unusable {
		told[path] = why.Error()
		if c.unusable[path] != told[path] {
			c.log.Warn("a file whose name comes before our CNI configuration is none: some container runtimes skip it, others (containerd) take none at all; remove it", "path", path, "error", why)
		}
	}
	c.unusable = told
	return err
}

// InPlace is nil where the runtime has the configuration.
func (c *Kept) InPlace() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Remove takes the configuration away: the node leaves the network.
func (c *Kept) Remove() {
	if c == nil {
		return
	}
	removed, err := c.file.Remove()
	if err != nil {
		c.log.Error("the node leaves the network, but its CNI configuration stays", "error", err)
	} else if removed {
		c.log.Info("the node leaves the network: removed its CNI configuration", "path", c.file.Path())
	}
}
