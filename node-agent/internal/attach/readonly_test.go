package attach

import (
	"context"
	"errors"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/test/mounts"
)

// TestReadOnlyDisk: pods that are there are kept up while leases cannot be written down, by an agent that starts meanwhile
// as well, and go; only none can come.
func TestReadOnlyDisk(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	a := start(t, w, dir)
	for n := range 2 {
		if _, err := a.Add(ctx, request(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	writable := mounts.ReadOnly(t, dir)
	name := HostIf(request(1).Attachment())
	for _, when := range []string{"the agent that runs", "one that starts"} {
		delete(w.ports, name)
		if mended, err := a.Repair(ctx, true); err != nil || mended == 0 || w.ports[name].Name == "" {
			t.Errorf("%s: mended %d, %v; the port: %+v", when, mended, err, w.ports[name])
		}
		var storage *ipam.StorageError
		if err := a.Writable(); !errors.As(err, &storage) {
			t.Errorf("%s: %v, want a StorageError", when, err)
		}
		if _, err := a.Add(ctx, request(3)); cniapi.AsError(err).Code != cniapi.CodeTryAgain {
			t.Errorf("%s: a pod that comes: %v, want that it is asked again", when, err)
		}
		a = start(t, w, dir)
		if got := len(a.List()); got != 2 {
			t.Errorf("one that starts knows %d pods, want 2", got)
		}
	}
	if err := a.Del(ctx, request(2)); err != nil {
		t.Errorf("a pod that goes: %v", err)
	}
	writable()
	if err := a.Writable(); err != nil {
		t.Error(err)
	}
	if _, err := a.Add(ctx, request(3)); err != nil {
		t.Error(err)
	}
	finished(t, a)
	if got := len(start(t, w, dir).List()); got != 2 {
		t.Errorf("%d pods, want 2: what happened meanwhile is not written down", got)
	}
}
