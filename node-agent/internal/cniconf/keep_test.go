package cniconf

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

func keep(t *testing.T, cfg Config) *Kept {
	t.Helper()
	c, err := Keep(cfg, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The file's life: from the first time that pods can be attached until the node leaves.
func TestConfigurationLife(t *testing.T) {
	cfg := node(t)
	path := filepath.Join(cfg.Dir, cfg.Name)
	there := func(when string, want bool) {
		t.Helper()
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", when, err, want)
		}
	}
	c := keep(t, cfg)
	there("at the start", false)
	if c.InPlace() == nil {
		t.Error("in place before it was written")
	}
	c.Ensure()
	there("ready", true)
	if err := c.InPlace(); err != nil {
		t.Error(err)
	}
	_ = keep(t, cfg)
	there("at the next start", true)
	cfg.BootID = "boot-2"
	c = keep(t, cfg)
	there("at the start after a boot", false)
	c.Ensure()
	c.Remove()
	there("after the node left", false)
}

func TestConfigurationNone(t *testing.T) {
	cfg := node(t)
	cfg.Dir = ""
	c := keep(t, cfg)
	c.Ensure()
	c.Remove()
	if err := c.InPlace(); err != nil {
		t.Error(err)
	}
}

// A file of somebody else stays, and the agent says that it is not ready.
func TestConfigurationForeign(t *testing.T) {
	cfg := node(t)
	if err := os.Mkdir(cfg.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, cfg.Name), []byte(foreign), 0o644); err != nil {
		t.Fatal(err)
	}
	c := keep(t, cfg)
	c.Ensure()
	var foreign *ForeignError
	if err := c.InPlace(); !errors.As(err, &foreign) {
		t.Errorf("in place: %v", err)
	}
}
