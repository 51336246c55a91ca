package cniplugins

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// Kept are the plugins that are kept in place while a program runs. Its methods belong to one goroutine. Nil keeps none.
type Kept struct {
	from, to string
	log      *slog.Logger
	// compared is our plugin in its place when it was found to be that of the image; nil before.
	compared os.FileInfo
}

// Keep names the plugins in the directory from, to be kept in the directory to; it does not touch them. Without a directory there is nothing
// to keep.
func Keep(from, to string, log *slog.Logger) *Kept {
	if to == "" {
		return nil
	}
	return &Kept{from: from, to: to, log: log}
}

// Dir is where the plugins are kept.
func (k *Kept) Dir() string { return k.to }

// Ensure puts back what is missing: our own plugin also where it is another than that of the image; the others may be of any version, as
// the node's packages have them. It reads a plugin only where its file is not the one that it compared last.
func (k *Kept) Ensure() error {
	var names []string
	for _, name := range Plugins {
		if !k.fine(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	replaced, err := install(k.from, k.to, names)
	if err != nil {
		return fmt.Errorf("the container runtime lacks CNI plugins in %s, without which pods neither start nor go, and they cannot be put there: %w", k.to, err)
	}
	for name := range replaced {
		k.log.Warn("a CNI plugin was missing or another: it is put back", "path", filepath.Join(k.to, name))
	}
	k.compared, err = os.Lstat(filepath.Join(k.to, Ours))
	return err
}

// fine reports whether there is nothing to do about a plugin.
func (k *Kept) fine(name string) bool {
	path := filepath.Join(k.to, name)
	if name != Ours {
		info, err := os.Stat(path)
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o100 != 0
	}
	info, err := os.Lstat(path)
	c := k.compared
	return err == nil && c != nil && os.SameFile(info, c) && info.Size() == c.Size() && info.Mode() == c.Mode() && info.ModTime().Equal(c.ModTime())
}
