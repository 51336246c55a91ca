package ovs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The wait ends by itself, and an ovs-vswitchd that is not there is named.
func TestAskRevalidated(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	round := func(ctx context.Context) error {
		wait, err := c.AskRevalidated(ctx)
		if err != nil {
			return err
		}
		return wait()
	}
	// again is the first round after something, once ovs-vswitchd tells of rounds: for a moment it
	// has no datapath, or more than one.
	again := func(something func()) error {
		t.Helper()
		something()
		for _, err := c.control(ctx, "revalidator/wait"); err != nil; _, err = c.control(ctx, "revalidator/wait") {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		return round(ctx)
	}
	if err := again(func() {}); err != nil {
		t.Fatal(err)
	}
	kept := c.kept.Load()
	if err := round(ctx); err != nil || kept == nil || c.kept.Load() != kept {
		t.Errorf("the second question has a connection of its own: %v", err)
	}
	// A control socket that a dead daemon left is passed over.
	if err := os.WriteFile(filepath.Join(o.RunDir, "ovs-vswitchd.1.ctl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := round(ctx); err != nil {
		t.Fatal(err)
	}
	// A refusal is an error with Open vSwitch's own text.
	if out, err := c.control(ctx, "no/such-command"); err == nil {
		t.Errorf("answered %q", out)
	}
	resume := o.PauseVswitchd()
	hung, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := round(hung); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hung: %v", err)
	}
	resume()
	o.KillVswitchd()
	if err := round(ctx); err == nil {
		t.Error("dead, and no error")
	}
	// A connection that has ended meanwhile is made anew.
	if err := again(func() { o.StartVswitchd() }); err != nil || c.kept.Load() == nil {
		t.Fatalf("started again: %v", err)
	}
	if err := again(func() { o.KillVswitchd(); o.StartVswitchd() }); err != nil {
		t.Errorf("started again, with a connection to the one before: %v", err)
	}
}
