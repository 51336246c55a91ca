package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// added is an Attacher with pods 1 to n.
func added(t *testing.T, w *world, n int) *Attacher {
	t.Helper()
	a := start(t, w, t.TempDir())
	for i := range n {
		if _, err := a.Add(t.Context(), request(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// Where the flows cannot be taken away, DEL is answered when the devices are gone, and not
// before.
func TestDelWithoutSwitch(t *testing.T) {
	ctx := context.Background()
	for _, why := range []error{flowstore.ErrDisconnected, flowstore.ErrNotReady} {
		w := newWorld()
		a := added(t, w, 2)
		w.unreached, w.noSwitch, w.closing = why, true, func() { t.Error("DEL waits for the switch") }
		stuck := HostIf(request(2).Attachment())
		w.stays = map[string]error{stuck: errors.New("of another type: left alone")}
		if err := a.Del(ctx, request(1)); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := a.Del(ctx, request(2)); err == nil || !strings.Contains(err.Error(), "left alone") {
				t.Errorf("%v: DEL of one whose device stays: %v", why, err)
			}
		}
		w.stays = nil
		if err := a.Del(ctx, request(2)); err != nil || len(w.links)+len(a.List()) > 0 {
			t.Errorf("%v: %v; devices %v", why, err, w.links)
		}
		if diff := cmp.Diff([]string{"c1", "c2"}, holders(a)); diff != "" {
			t.Errorf("addresses that wait for the switch:\n%s", diff)
		}
	}
}

// Nobody but who needs an address waits until ports are closed: not a second DEL, not GC,
// and not what follows another DEL.
func TestClosingKeepsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := added(t, w, 4)
		closed := make(chan struct{})
		w.closing = func() { <-closed }
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		began := time.Now()
		for n := 1; n <= 2; n++ {
			if err := a.Del(ctx, request(n)); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * calm)
			synctest.Wait()
			if len(w.links) != 4-n {
				t.Errorf("devices %v after DEL of %d", w.links, n)
			}
		}
		if err := errors.Join(a.Del(ctx, request(2)), a.Del(ctx, request(3)), a.Del(ctx, request(3))); err != nil {
			t.Error(err)
		}
		if err := a.GC(ctx, cniapi.Request{NetworkName: "net", ValidAttachments: []cniapi.Attachment{}}); err != nil || len(w.links) > 0 {
			t.Errorf("%v, %v", err, w.links)
		}
		if took := time.Since(began); took != 4*calm {
			t.Errorf("all of it took %s", took)
		}
		close(closed)
		time.Sleep(leavingAtMost)
		synctest.Wait()
		if n := len(a.pool.Leases()) + a.leaving.count(); n > 0 {
			t.Errorf("%d leases and leaving are left", n)
		}
		stop()
		<-ended
		w.empty(t)
	})
}

// Ports are closed one at a time while no pod comes: a pod that comes waits for one of
// them, and the others wait for it, but not long.
func TestClosedInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 15 * time.Millisecond
		w := newWorld()
		a := added(t, w, 5)
		began := time.Now()
		var open []int
		var at []time.Duration
		var end func()
		w.closing = func() {
			time.Sleep(each)
			open, at = append(open, len(w.open)), append(at, time.Since(began))
			if len(at) == 2 {
				end = a.leaving.begin()
			}
		}
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		for n := range 5 {
			if err := a.Del(ctx, request(n+1)); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(calm + 2*each + leavingAtMost + each + time.Millisecond)
		synctest.Wait()
		end()
		time.Sleep(leavingAtMost / 2)
		synctest.Wait()
		if diff := cmp.Diff([]int{1, 1, 1, 1, 1}, open); diff != "" {
			t.Errorf("ports that the switch closes at a time:\n%s", diff)
		}
		third := calm + 2*each + leavingAtMost + each
		want := []time.Duration{calm + each, calm + 2*each, third, third + time.Millisecond + each, third + time.Millisecond + 2*each}
		if diff := cmp.Diff(want, at); diff != "" {
			t.Errorf("when:\n%s", diff)
		}
		stop()
		<-ended
		w.empty(t)
	})
}

// Where pods come and go all the time, devices are removed between one and the next.
func TestLateBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 30 * time.Millisecond
		w := newWorld()
		a := added(t, w, 1)
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		if err := a.Del(ctx, request(1)); err != nil {
			t.Error(err)
		}
		there := func() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.links) }
		for began := time.Now(); there() > 0; {
			end := a.leaving.begin()
			time.Sleep(each)
			if synctest.Wait(); there() == 0 || time.Since(began) > 2*leavingAtMost {
				t.Errorf("after %s: %d devices while something is attached", time.Since(began), there())
				break
			}
			end()
			if synctest.Wait(); there() == 0 && time.Since(began) < leavingAtMost {
				t.Errorf("devices go after %s, want %s or more", time.Since(began), leavingAtMost)
			}
		}
		stop()
		<-ended
	})
}

// Those who wait for the ports to be closed wait for one run, and not for each other's.
func TestOneRunForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := added(t, w, 4)
		runs := 0
		w.closing = func() { runs++; time.Sleep(time.Second) }
		began := time.Now()
		errs := make(chan error, 4)
		for n := range 4 {
			if err := a.Del(t.Context(), request(n+1)); err != nil {
				t.Error(err)
			}
			go func() {
				_, err := a.Add(t.Context(), request(n+1))
				errs <- err
			}()
			synctest.Wait()
		}
		for range 4 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took != 2*time.Second || runs != 2 {
			t.Errorf("%s and %d runs, want 2s and 2", took, runs)
		}
	})
}

// What cannot be removed keeps nobody who comes after it, and is tried again.
func TestStuckKeepsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := added(t, w, 5)
		stuck := HostIf(request(1).Attachment())
		w.stays = map[string]error{stuck: errors.New("left alone")}
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		if err := a.Del(ctx, request(1)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute) // pauses are long by now
		for n := 2; n <= 5; n++ {
			if err := a.Del(ctx, request(n)); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * calm)
			synctest.Wait()
			if len(w.links) != 6-n {
				t.Errorf("devices %v after DEL of %d", w.links, n)
			}
		}
		w.mu.Lock()
		w.stays = nil
		w.mu.Unlock()
		time.Sleep(2 * mostPause)
		synctest.Wait()
		w.empty(t)
		stop()
		<-ended
	})
}

// While pods come and go all the time, one that left waits no longer than it should: also
// when what left before was finished by somebody else meanwhile.
func TestLateAlways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := added(t, w, 2)
		end := a.leaving.begin()
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		var took []time.Duration
		for n := 1; n <= 2; n++ {
			if err := a.Del(ctx, request(n)); err != nil {
				t.Error(err)
			}
			if n == 1 {
				time.Sleep(leavingAtMost / 2)
				if err := a.finish(ctx); err != nil {
					t.Error(err)
				}
				a.leaving.begin()() // which Run looks at
				time.Sleep(2 * leavingAtMost)
				continue
			}
			for began := time.Now(); ; time.Sleep(time.Millisecond) {
				if w.mu.Lock(); len(w.links) == 0 || time.Since(began) > time.Minute {
					took = append(took, time.Since(began).Round(10*time.Millisecond))
					w.mu.Unlock()
					break
				}
				w.mu.Unlock()
			}
		}
		if diff := cmp.Diff([]time.Duration{2 * leavingAtMost}, took); diff != "" {
			t.Error(diff)
		}
		end()
		stop()
		<-ended
	})
}

// A runtime that puts another container into the same sandbox finds the name free.
func TestAddIntoSandboxOfLeaving(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	sandbox, link := filepath.Join(dir, "sandbox"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(sandbox, nil, 0o600), os.Symlink(sandbox, link)); err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	a := added(t, w, 0)
	first, second, elsewhere := request(1), request(1), request(3)
	first.Netns = sandbox
	second.Netns, second.ContainerID = link, "c2"
	if _, err := a.Add(ctx, first); err != nil {
		t.Fatal(err)
	}
	if err := a.Del(ctx, first); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Add(ctx, elsewhere); err != nil || len(w.links) != 2 {
		t.Errorf("into another sandbox: %v, devices %v", err, w.links)
	}
	w.stays = map[string]error{HostIf(first.Attachment()): errors.New("busy")}
	if _, err := a.Add(ctx, second); cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), "c1/eth0 is still being detached") {
		t.Errorf("while it stays: %v", err)
	}
	w.stays, w.noSwitch = nil, true
	w.making = func() {
		if len(w.links) != 1 {
			t.Errorf("made beside %v", w.links)
		}
	}
	if _, err := a.Add(ctx, second); err != nil {
		t.Error(err)
	}
}

// One whose connections cannot be forgotten keeps its own address only.
func TestOneIsRemembered(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := added(t, w, 3)
	w.remembered = netip.MustParseAddr("172.11.0.3")
	for n := range 3 {
		if err := a.Del(ctx, request(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.finish(ctx); err == nil || !strings.Contains(err.Error(), "c2/eth0: the connections of 172.11.0.3 stay") || strings.Contains(err.Error(), "c1") {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([]string{"c2"}, holders(a)); diff != "" || len(w.broken) > 0 {
		t.Errorf("who has an address:\n%s%v", diff, w.broken)
	}
	w.remembered = netip.Addr{}
	finished(t, a)
	w.empty(t)
}

// GC of a network takes all down, and fails for what is left of its own only.
func TestGCOfOneNetwork(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := added(t, w, 2)
	stays := map[string]error{}
	for n := range 2 {
		stays[HostIf(request(n+1).Attachment())] = fmt.Errorf("busy")
		if err := a.Del(ctx, request(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	w.stays = stays
	if err := a.GC(ctx, cniapi.Request{NetworkName: "another", ValidAttachments: []cniapi.Attachment{}}); err != nil {
		t.Errorf("of another network: %v", err)
	}
	if err := a.GC(ctx, cniapi.Request{NetworkName: "net", ValidAttachments: []cniapi.Attachment{}}); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("of theirs: %v", err)
	}
}

// A node that starts anew with another subnet waits for what is being removed, whose pool
// would write its file over the new one's.
func TestStartWaitsForRemoval(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	w := newWorld()
	a := start(t, w, dir)
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	if err := a.Del(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	other := theNode
	other.Subnets, other.Gateways = []netip.Prefix{netip.MustParsePrefix("172.11.0.8/29")}, []netip.Addr{netip.MustParseAddr("172.11.0.9")}
	started := make(chan error, 1)
	w.closing = func() {
		go func() {
			_, err := a.Start(ctx, other, dir, "boot")
			started <- err
		}()
		select {
		case err := <-started:
			t.Errorf("started while ports are being closed: %v", err)
			started <- err
		case <-time.After(100 * time.Millisecond): // it takes 1 ms where it does not wait
		}
	}
	if err := errors.Join(a.finish(ctx), <-started); err != nil || a.leaving.count() > 0 {
		t.Errorf("%v, %d are leaving", err, a.leaving.count())
	}
}
