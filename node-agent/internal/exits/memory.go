package exits

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/statefile"
)

// Seen is what a node remembers of its way to the outside, so that what is wrong can be
// told from what is meant, and what is away from what was never there.
type Seen struct {
	// Led is that the node had a way to the outside.
	Led bool
	// Routers are next hops of it that have answered, the newest last.
	Routers []netip.Addr
}

func (s Seen) knows(router netip.Addr) bool { return slices.Contains(s.Routers, router) }

// mostRouters bounds what is remembered of them.
const mostRouters = 8

// with is s with another router.
func (s Seen) with(router netip.Addr) Seen {
	routers := append(append([]netip.Addr{}, s.Routers...), router)
	s.Routers = routers[max(0, len(routers)-mostRouters):]
	return s
}

// File keeps it across restarts of the agent and of the machine. Whoever deletes it has the
// node forget.
type File struct{ path string }

// NewFile names the file in the agent's state directory.
func NewFile(stateDir string) File { return File{filepath.Join(stateDir, "exits.json")} }

// Load reads the file; one that is not there says nothing.
func (f File) Load() (s Seen, err error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return Seen{}, nil
	}
	if err != nil {
		return Seen{}, fmt.Errorf("read what the node remembers of its way to the outside: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return Seen{}, fmt.Errorf("what the node remembers of its way to the outside, in %s, is damaged (it is made anew): %w", f.path, err)
	}
	return s, nil
}

// Save replaces the file, on disk.
func (f File) Save(s Seen) error {
	data, err := json.Marshal(s)
	if err == nil {
		err = statefile.Write(f.path, data)
	}
	if err != nil {
		return fmt.Errorf("write what the node remembers of its way to the outside: %w", err)
	}
	return nil
}

// recall reads file, since people delete it to have the node forget. Where it cannot be read,
// what the agent knows counts, and is written anew.
func (c *Check) recall() {
	if c.unsaved {
		c.remember()
		return
	}
	seen, err := c.file.Load()
	if err == nil {
		c.seen = seen
		return
	}
	c.once("the node does not know what its way to the outside was", err)
	if c.seen.Led {
		c.remember()
	}
}

// remember writes what was seen. Where that fails it counts as long as the agent runs.
func (c *Check) remember() {
	err := c.file.Save(c.seen)
	if c.unsaved = err != nil; c.unsaved {
		c.once("after a restart the agent will not know what the way to the outside was", err)
	}
}
