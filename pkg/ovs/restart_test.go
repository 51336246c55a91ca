package ovs

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestDatabaseRestart(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	o.KillOVSDB()
	until(t, c, "the loss is noticed", func() bool { return !c.Connected() })
	if _, err := c.Ports("br0"); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Ports while disconnected: %v", err)
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "x"}); !errors.Is(err, ErrDisconnected) {
		t.Errorf("AddPort while disconnected: %v", err)
	}
	// A waiter lives through it.
	type answer struct {
		n   uint32
		err error
	}
	waited := make(chan answer, 1)
	go func() {
		n, err := c.WaitOfport(ctx, "late")
		waited <- answer{n, err}
	}()
	o.StartOVSDB()
	began := time.Now()
	if err := c.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("reconnected %v after the server answered", time.Since(began))
	if d := time.Since(began); d > time.Second {
		t.Errorf("reconnecting took %v", d)
	}
	if _, ok := c.Bridge("br0"); !ok {
		t.Error("br0 is not there after reconnecting: the database was not read again")
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "late", Type: "internal"}); err != nil {
		t.Fatal(err)
	}
	if a := <-waited; a.err != nil || a.n == 0 {
		t.Errorf("the waiter got %d, %v", a.n, a.err)
	}
}

func TestVswitchdRestart(t *testing.T) {
	c, o, _ := start(t)
	ctx := within(t)
	bridge(t, c, "br0")
	if err := c.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	o.KillVswitchd()
	if !c.Connected() {
		t.Error("the database is there, but the client says disconnected")
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := c.Sync(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Sync without ovs-vswitchd: %v", err)
	}
	if i := c.Info(); i.CurCfg >= i.NextCfg {
		t.Errorf("cur_cfg %d is not behind next_cfg %d", i.CurCfg, i.NextCfg)
	}
	if err := c.AddPort(ctx, "br0", PortSpec{Name: "p", Type: "internal"}); err != nil {
		t.Fatal(err)
	}
	o.StartVswitchd()
	if n, err := c.WaitOfport(ctx, "p"); err != nil || n == 0 {
		t.Errorf("ofport %d, %v after the restart", n, err)
	}
	until(t, c, "cur_cfg has caught up", func() bool { i := c.Info(); return i.CurCfg >= i.NextCfg })
	if i := c.Info(); len(i.DatapathTypes) == 0 || len(i.IfaceTypes) == 0 {
		t.Errorf("info %+v has no types", i)
	}
}

func TestCloseWhileConnectingAgain(t *testing.T) {
	c, o, _ := start(t)
	o.KillOVSDB()
	until(t, c, "the loss is noticed", func() bool { return !c.Connected() })
	done := make(chan struct{})
	go func() { c.Close(); close(done) }()
	select {
	case <-done:
	case <-within(t).Done():
		t.Fatal("Close does not return while the server is away")
	}
	if err := c.WaitConnected(within(t)); !errors.Is(err, ErrDisconnected) {
		t.Errorf("WaitConnected after Close: %v", err)
	}
}
