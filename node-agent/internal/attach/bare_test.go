package attach

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// A pod must be able to go whatever is missing of its node.
func TestDelWithoutNode(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	w.asked["p2"] = both(10_000_000)
	a := start(t, w, dir)
	for i := range 4 {
		if _, err := a.Add(ctx, request(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	// An agent that knows neither its subnet nor its records.
	bare := New(NewBare(w, w, theNode.Bridge, dir, slog.New(slog.DiscardHandler)), w, w, w)
	if _, err := bare.Add(ctx, request(9)); cniapi.AsError(err).Code != cniapi.CodeTryAgain {
		t.Errorf("ADD without a node: %v", err)
	}
	for range 2 {
		if err := bare.Del(ctx, request(1)); err != nil {
			t.Fatal(err)
		}
		if err := bare.Del(ctx, request(99)); err != nil {
			t.Errorf("one that never was: %v", err)
		}
	}
	if err := bare.GC(ctx, cniapi.Request{NetworkName: "net"}); cniapi.AsError(err).Code != cniapi.CodeInvalidConfig || len(w.links) != 3 || len(w.ports) != 3 {
		t.Fatalf("GC without a list: %v; left: links %v, ports %v; want all of them", err, w.links, w.ports)
	}
	gc := cniapi.Request{NetworkName: "net", ValidAttachments: []cniapi.Attachment{request(2).Attachment(), request(4).Attachment()}}
	if err := bare.GC(ctx, gc); err != nil {
		t.Fatal(err)
	}
	if len(w.links) != 2 || len(w.ports) != 2 {
		t.Errorf("left: links %v, ports %v; want those of pods 2 and 4", w.links, w.ports)
	}
	// While the database is away the device goes at once, and the row later.
	w.noDatabase = true
	if err := bare.Del(ctx, request(2)); err != nil {
		t.Errorf("without a database: %v", err)
	}
	if len(w.links) != 1 {
		t.Errorf("left: links %v", w.links)
	}
	w.noDatabase = false
	// The next start finds who went, and frees their addresses.
	again := start(t, w, dir)
	finished(t, again)
	if got := again.List(); len(got) != 1 || got[0].Attachment != request(4).Attachment() || len(w.ports) != 1 {
		t.Errorf("after a start: %v, ports %v", got, w.ports)
	}
	if got := again.pool.Leases(); len(got) != 1 {
		t.Errorf("leases after a start: %v", got)
	}
}

// The same of an agent that is set up: the row that stays is collected.
func TestDelWithoutDatabase(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	w.noDatabase = true
	if err := a.Del(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // nobody else has the address as long as the port has it
		if err := a.Del(ctx, request(1)); err != nil {
			t.Errorf("once more: %v", err)
		}
		if r, err := a.down(ctx), a.close(ctx, everything); r.all() != nil || !errors.Is(err, ovs.ErrDisconnected) {
			t.Errorf("taken down: %+v; closed: %v", r, err)
		}
		if len(w.links)+len(w.flows) != 0 || len(a.pool.Leases()) != 1 {
			t.Errorf("left: links %v, flows %v, leases %v", w.links, w.flows, a.pool.Leases())
		}
	}
	w.noDatabase = false
	if _, err := a.Repair(ctx, true); err != nil {
		t.Fatal(err)
	}
	finished(t, a)
	w.empty(t)
	if n := len(a.pool.Leases()); n != 0 {
		t.Errorf("%d leases left", n)
	}
}

// What an Attacher reads back when it starts is not about to go.
func TestStartWaitsForDel(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	if _, err := start(t, w, dir).Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	bare := NewBare(w, w, theNode.Bridge, dir, slog.New(slog.DiscardHandler))
	later := New(bare, w, w, w)
	started := make(chan error, 1)
	begun := make(chan struct{})
	w.deleting = func() {
		w.deleting = nil
		go func() {
			close(begun)
			_, err := later.Start(ctx, theNode, dir, "boot")
			started <- err
		}()
		<-begun
		if bare.starting.TryLock() {
			t.Error("a start may read back what DEL is taking down")
			bare.starting.Unlock()
		}
	}
	if err := later.Del(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if got := later.List(); len(got) != 0 {
		t.Errorf("the pod is back: %v", got)
	}
}
