package attach

import (
	"context"
	"testing"
)

// TestMendedWithoutMTU: a pod whose MTU cannot be set, as it has renamed its end, has the node's end put right as others'.
func TestMendedWithoutMTU(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	a := start(t, w, dir)
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	name := HostIf(request(1).Attachment())
	w.stuck[name] = errInjected
	for _, when := range []string{"after the node's MTU changed", "after the agent started anew"} {
		if err := a.SetMTU(ctx, MTU{1400, 1400}); err == nil {
			t.Fatal("its MTU can be set: this test shows nothing")
		}
		w.renamed[name] = w.links[name]
		delete(w.links, name)
		if mended, err := a.Repair(ctx, true); err != nil || mended != 1 || w.links[name].HostIf != name {
			t.Errorf("%s: mended %d, %v; want that the node's end has its name again", when, mended, err)
		}
		a = start(t, w, dir)
	}
}
