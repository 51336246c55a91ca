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
	if err := round(ctx); err != nil {
		t.Fatal(err)
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
}
