package attach

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// holders are who has an address, by the pool.
func holders(a *Attacher) (ids []string) {
	for _, l := range a.pool.Leases() {
		ids = append(ids, l.ContainerID)
	}
	return ids
}

func listed(a *Attacher) (ids []string) {
	for _, at := range a.List() {
		ids = append(ids, at.ContainerID)
	}
	return ids
}

// TestKilledAfterDel: an agent that is killed after any step of what follows DEL is
// followed by one that goes on, whatever went meanwhile. Nobody else loses anything.
func TestKilledAfterDel(t *testing.T) {
	ctx := context.Background()
	for name, meanwhile := range map[string]func(w *world){
		"nothing else":             func(*world) {},
		"the sandbox goes":         func(w *world) { delete(w.links, HostIf(request(1).Attachment())) },
		"the port is deleted":      func(w *world) { delete(w.ports, HostIf(request(1).Attachment())) },
		"the database is lost":     func(w *world) { clear(w.ports); clear(w.open) },
		"the machine has no ports": func(w *world) { clear(w.links); clear(w.ports); clear(w.open) },
	} {
		t.Run(name, func(t *testing.T) {
			for failAt := 1; ; failAt++ {
				w, dir := newWorld(), t.TempDir()
				w.asked["p1"] = both(10_000_000)
				a := start(t, w, dir)
				for i := range 2 {
					if _, err := a.Add(ctx, request(i+1)); err != nil {
						t.Fatal(err)
					}
				}
				if err := a.Del(ctx, request(1)); err != nil {
					t.Fatal(err)
				}
				w.failAt = w.step + failAt
				done := a.finish(ctx) == nil
				w.failAt = 0
				meanwhile(w)
				b := start(t, w, dir)
				stays := []string{"c2"}
				if len(w.links) == 0 {
					stays = nil
				}
				if diff := cmp.Diff(stays, listed(b)); diff != "" {
					t.Errorf("step %d: attached (-want +got):\n%s", failAt, diff)
				}
				finished(t, b)
				if _, err := b.Repair(ctx, true); err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(stays, holders(b)); diff != "" {
					t.Errorf("step %d: leases (-want +got):\n%s", failAt, diff)
				}
				if err := b.Del(ctx, request(2)); err != nil {
					t.Error(err)
				}
				finished(t, b)
				w.empty(t)
				if done {
					if failAt < 6 {
						t.Fatalf("there are only %d steps after DEL", failAt-1)
					}
					return
				}
			}
		})
	}
}

// TestAfterDel: whatever is asked right after DEL is answered as if nothing were left.
func TestAfterDel(t *testing.T) {
	ctx := context.Background()
	for name, then := range map[string]func(t *testing.T, w *world, a *Attacher){
		"CHECK": func(t *testing.T, w *world, a *Attacher) {
			if err := a.Check(ctx, request(1)); cniapi.AsError(err).Code != cniapi.CodeUnknownContainer {
				t.Errorf("%v", err)
			}
			finished(t, a)
		},
		"DEL": func(t *testing.T, w *world, a *Attacher) {
			if err := a.Del(ctx, request(1)); err != nil {
				t.Error(err)
			}
		},
		"GC": func(t *testing.T, w *world, a *Attacher) {
			if err := a.GC(ctx, cniapi.Request{NetworkName: "net", ValidAttachments: []cniapi.Attachment{request(1).Attachment()}}); err != nil {
				t.Error(err)
			}
		},
		"ADD of the same": func(t *testing.T, w *world, a *Attacher) {
			got, err := a.Add(ctx, request(1))
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Check(ctx, request(1)); err != nil || got.IPs[0].Address.Addr() != netip.MustParseAddr("172.11.0.3") {
				t.Errorf("%s, %v", got.IPs[0].Address, err)
			}
			if err := errors.Join(a.Del(ctx, request(1)), a.Del(ctx, request(1))); err != nil {
				t.Error(err)
			}
		},
		"what repairs": func(t *testing.T, w *world, a *Attacher) {
			if _, err := a.Repair(ctx, true); err != nil {
				t.Error(err)
			}
			if err := errors.Join(a.SetLimits(ctx, "a", "p1", both(1_000_000)), a.SetMTU(ctx, MTU{1400, 1400})); err != nil {
				t.Error(err)
			}
			if len(w.flows) > 0 {
				t.Errorf("flows %v are back", w.flows)
			}
			finished(t, a)
		},
		"an agent that ends": func(t *testing.T, w *world, a *Attacher) { a.Finish(ctx) },
		"Run": func(t *testing.T, w *world, a *Attacher) {
			running, stop := context.WithCancel(ctx)
			done := make(chan error)
			go func() { done <- a.Run(running) }()
			for deadline := time.Now().Add(10 * time.Second); a.leaving.count() > 0 && time.Now().Before(deadline); {
				<-time.After(time.Millisecond)
			}
			stop()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.asked["p1"] = both(10_000_000)
			a := start(t, w, t.TempDir())
			if _, err := a.Add(ctx, request(1)); err != nil {
				t.Fatal(err)
			}
			if err := a.Del(ctx, request(1)); err != nil {
				t.Fatal(err)
			}
			if len(w.flows)+len(a.List()) != 0 || len(w.links) != 1 || len(a.pool.Leases()) != 1 {
				t.Errorf("after DEL: flows %v, listed %v, devices %v, leases %v; want the last two still there", w.flows, a.List(), w.links, a.pool.Leases())
			}
			then(t, w, a)
			if len(w.links) > 0 {
				t.Errorf("devices %v are left", w.links)
			}
			finished(t, a) // DEL and GC do not wait for ports to be closed
			w.empty(t)
			if n := len(a.pool.Leases()) + a.leaving.count() + len(a.List()); n != 0 || len(w.broken) > 0 {
				t.Errorf("%d leases, leaving and attached are left; %v", n, w.broken)
			}
		})
	}
}

// TestLastAddresses: where no other address is left, a pod that comes gets that of one that
// is leaving, when its port is closed and not before.
func TestLastAddresses(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	for i := range 5 {
		if _, err := a.Add(ctx, request(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	w.noSwitch = true
	for range 2 { // ovs-vswitchd keeps no pod from going
		if err := a.Del(ctx, request(2)); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.links) != 4 {
		t.Errorf("devices %v, want 4", w.links)
	}
	if _, err := a.Add(ctx, request(7)); cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), "no address left") {
		t.Errorf("while ovs-vswitchd may have the port: %v", err)
	}
	if _, err := a.Add(ctx, request(2)); cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), "ovs-vswitchd is away") {
		t.Errorf("the same, meanwhile: %v", err)
	}
	w.noSwitch = false
	got, err := a.Add(ctx, request(7))
	if err != nil || got.IPs[0].Address.Addr() != netip.MustParseAddr("172.11.0.3") || len(w.broken) > 0 {
		t.Errorf("%+v, %v, %v", got, err, w.broken)
	}
}

// Where it cannot be written down that a pod is leaving, all of it goes at once.
func TestDelUnwritten(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), filepath.Join(t.TempDir(), "state")
	a := start(t, w, dir)
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := a.Del(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	w.empty(t)
	if n := len(a.pool.Leases()) + a.leaving.count(); n != 0 {
		t.Errorf("%d left", n)
	}
}

// One that cannot be removed keeps no other from going, and only its own DEL fails.
func TestOneStays(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	for i := range 3 {
		if _, err := a.Add(ctx, request(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	stuck := HostIf(request(2).Attachment())
	w.stays = map[string]error{stuck: errors.New("of another type: left alone")}
	for i := range 3 {
		if err := a.Del(ctx, request(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.finish(ctx); err == nil || !strings.Contains(err.Error(), "c2/eth0") || strings.Contains(err.Error(), "c1/eth0") {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([]string{"c2"}, holders(a)); diff != "" {
		t.Error(diff)
	}
	if err := a.Del(ctx, request(2)); err == nil || a.Del(ctx, request(1)) != nil {
		t.Errorf("second DELs: %v of the one that stays", err)
	}
	w.stays = nil
	finished(t, a)
	w.empty(t)
}

// TestAnything: pods come and go, steps fail, agents are killed, in any order. What was
// answered holds, no two have one address, and in the end nothing is left.
func TestAnything(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		w, dir := newWorld(), t.TempDir()
		a := start(t, w, dir)
		attached := map[int]bool{} // ADD was answered, and DEL was not asked for
		for range 60 {
			n := 1 + r.IntN(4)
			if r.IntN(3) == 0 {
				w.failAt = w.step + 1 + r.IntN(8)
			}
			switch r.IntN(8) {
			case 0, 1, 2:
				if _, err := a.Add(ctx, request(n)); err == nil {
					attached[n] = true
				} else if attached[n] {
					t.Errorf("seed %d: ADD of pod %d, which is there: %v", seed, n, err)
				}
			case 3, 4, 5:
				delete(attached, n)
				_ = a.Del(ctx, request(n))
			case 6:
				_ = a.finish(ctx)
			case 7:
				w.failAt = 0
				a = start(t, w, dir)
			}
			w.failAt = 0
			for n := range attached {
				if err := a.Check(ctx, request(n)); err != nil {
					t.Fatalf("seed %d: pod %d: %v", seed, n, err)
				}
			}
		}
		for n := range 5 {
			if err := a.Del(ctx, request(n)); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		}
		finished(t, a)
		w.empty(t)
		if len(a.pool.Leases()) > 0 || len(w.broken) > 0 || t.Failed() {
			t.Fatalf("seed %d: leases %v, %v", seed, a.pool.Leases(), w.broken)
		}
	}
}

// Many that go while others come, beside Run.
func TestComeAndGoAtOnce(t *testing.T) {
	w := newWorld()
	a := start(t, w, t.TempDir())
	ctx, stop := context.WithCancel(context.Background())
	var running, wg sync.WaitGroup
	running.Go(func() { _ = a.Run(ctx) })
	for n := range 4 {
		wg.Go(func() {
			for round := range 20 {
				if _, err := a.Add(ctx, request(n)); err != nil {
					t.Error(err)
				}
				if err := a.Del(ctx, request(n)); err != nil {
					t.Error(err)
				}
				if round%5 == n {
					if err := a.GC(ctx, cniapi.Request{NetworkName: "another", ValidAttachments: []cniapi.Attachment{}}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	stop()
	running.Wait()
	a.Finish(context.Background())
	w.empty(t)
	if n := len(a.pool.Leases()) + len(a.turns.Newest()); n != 0 || len(w.broken) > 0 {
		t.Errorf("%d leases and turns left; %v", n, w.broken)
	}
}
