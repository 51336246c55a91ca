package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

func TestAddDel(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	got, err := a.Add(ctx, request(1))
	if err != nil {
		t.Fatal(err)
	}
	if got.IPs[0].Address.String() != "172.11.0.2/32" || got.MAC.String() != "0a:58:ac:0b:00:02" || got.HostMAC.String() != hostMAC.String() || got.MTU != 1450 || len(got.Routes) != 2 {
		t.Errorf("result %+v", got)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	again, err := a.Add(ctx, request(1))
	if err != nil {
		t.Fatalf("again: %v", err)
	}
	if diff := cmp.Diff(fmt.Sprint(got), fmt.Sprint(again)); diff != "" {
		t.Error(diff)
	}
	other := request(1)
	other.PodName = "somebody"
	if _, err := a.Add(ctx, other); err == nil {
		t.Error("another pod with the same container ID is taken")
	}
	if err := a.Check(ctx, request(1)); err != nil {
		t.Errorf("check: %v", err)
	}
	for range 2 { // the second one does at once what the first left for later
		if err := a.Del(ctx, request(1)); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.links) > 0 {
		t.Errorf("devices %v are left", w.links)
	}
	finished(t, a)
	w.empty(t)
	if n := len(a.pool.Leases()); n != 0 {
		t.Errorf("%d leases left", n)
	}
}

// TestAddFailsAnywhere: whichever step fails, nothing stays, neither of a plain
// pod nor of one with limits, nor of one whose limits and MTU change meanwhile.
func TestAddFailsAnywhere(t *testing.T) {
	ctx := context.Background()
	for name, tc := range map[string]struct {
		asked limits.Limits
		// meanwhile happens while the devices are made.
		meanwhile func(a *Attacher)
		steps     int
	}{
		"plain":   {steps: 5},
		"limited": {asked: both(10_000_000), steps: 6},
		"changed": {
			asked: both(10_000_000), steps: 10,
			meanwhile: func(a *Attacher) {
				_ = a.SetLimits(ctx, "a", "p1", both(5_000_000))
				_ = a.SetMTU(ctx, MTU{1400, 1400})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for failAt := 1; ; failAt++ {
				w := newWorld()
				w.asked["p1"] = tc.asked
				a := start(t, w, t.TempDir())
				if tc.meanwhile != nil {
					w.making = func() { tc.meanwhile(a) }
				}
				w.failAt = w.step + failAt
				_, err := a.Add(ctx, request(1))
				if err == nil {
					if failAt <= tc.steps {
						t.Fatalf("ADD has only %d steps", failAt-1)
					}
					return
				}
				if !errors.Is(err, errInjected) {
					t.Fatalf("step %d: %v", failAt, err)
				}
				w.failAt = 0
				w.empty(t)
				if n := len(a.pool.Leases()) + len(a.List()) + len(a.arriving) + len(a.turns.Newest()); n != 0 {
					t.Errorf("step %d: %d leases, attachments, arrivals and turns left", failAt, n)
				}
			}
		})
	}
}

// TestDelFailsAnywhere: whichever step fails, of DEL or of what follows it, the pod is off
// the network when DEL has succeeded, and the next attempt leaves nothing.
func TestDelFailsAnywhere(t *testing.T) {
	ctx := context.Background()
	for failAt := 1; ; failAt++ {
		w := newWorld()
		w.asked["p1"] = both(10_000_000)
		a := start(t, w, t.TempDir())
		if _, err := a.Add(ctx, request(1)); err != nil {
			t.Fatal(err)
		}
		w.failAt = w.step + failAt
		err := a.Del(ctx, request(1))
		if err == nil && len(w.flows) > 0 {
			t.Errorf("step %d: DEL has succeeded, and there are flows %v", failAt, w.flows)
		}
		finishErr := a.finish(ctx)
		w.failAt = 0
		if err := errors.Join(err, finishErr); err == nil {
			if failAt < 6 {
				t.Fatalf("DEL has only %d steps", failAt-1)
			}
			return
		} else if !errors.Is(err, errInjected) {
			t.Errorf("step %d: %v", failAt, err)
		}
		// The runtime tries again.
		if err := a.Del(ctx, request(1)); err != nil {
			t.Fatalf("step %d: second DEL: %v", failAt, err)
		}
		finished(t, a)
		w.empty(t)
		if n := len(a.pool.Leases()) + len(a.List()); n != 0 {
			t.Errorf("step %d: %d leases and attachments left", failAt, n)
		}
	}
}

func TestRefused(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	gone := request(1)
	gone.Netns = "/gone"
	w.unknown["stranger"] = true
	stranger := request(2)
	stranger.PodNamespace = "stranger"
	w.asked["p4"] = both(1)
	if _, err := a.Add(ctx, request(4)); err == nil || !strings.Contains(err.Error(), "1 bit/s") {
		t.Errorf("limits that are none: %v", err)
	}
	for name, tc := range map[string]struct {
		req  cniapi.Request
		code uint
	}{
		"sandbox gone":   {gone, cniapi.CodeInvalidEnv},
		"unknown tenant": {stranger, cniapi.CodeTryAgain},
	} {
		_, err := a.Add(ctx, tc.req)
		if e := cniapi.AsError(err); e == nil || e.Code != tc.code {
			t.Errorf("%s: %v, want code %d", name, err, tc.code)
		}
	}
	a.SetReady(errors.New("no Open vSwitch"))
	if _, err := a.Add(ctx, request(3)); cniapi.AsError(err).Code != cniapi.CodeTryAgain || !strings.Contains(err.Error(), "no Open vSwitch") {
		t.Errorf("not ready: %v", err)
	}
	if err := a.Status(ctx); cniapi.AsError(err).Code != cniapi.CodeNotAvailable {
		t.Errorf("status: %v", err)
	}
	w.empty(t)
}

func TestFull(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	for i := 1; i <= 5; i++ {
		if _, err := a.Add(ctx, request(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Add(ctx, request(6)); err == nil || !strings.Contains(err.Error(), "172.11.0.0/29") {
		t.Errorf("sixth pod in a /29: %v", err)
	}
	if err := a.Del(ctx, request(3)); err != nil {
		t.Fatal(err)
	}
	got, err := a.Add(ctx, request(7))
	if err != nil || got.IPs[0].Address.Addr() != netip.MustParseAddr("172.11.0.4") {
		t.Errorf("after DEL: %+v, %v", got, err)
	}
}

// TestCheck finds what somebody took away.
func TestCheck(t *testing.T) {
	ctx := context.Background()
	for name, damage := range map[string]func(*world, *cniapi.Request){
		"flows":  func(w *world, _ *cniapi.Request) { clear(w.flows) },
		"port":   func(w *world, _ *cniapi.Request) { clear(w.ports) },
		"device": func(w *world, _ *cniapi.Request) { clear(w.links) },
		"limits": func(w *world, _ *cniapi.Request) { clear(w.shapes) },
		"MTU":    func(w *world, _ *cniapi.Request) { w.narrow(1300) },
		"limits of port": func(w *world, _ *cniapi.Request) {
			for _, p := range w.ports {
				delete(p.ExternalIDs, keyLimits)
			}
		},
		"other sandbox": func(_ *world, r *cniapi.Request) { r.Netns = "/run/netns/other" },
		"other address": func(_ *world, r *cniapi.Request) {
			r.PrevResult = &cniapi.PrevResult{IPs: []cniapi.PrevIP{{Address: netip.MustParsePrefix("172.11.0.3/32")}}}
		},
		"MAC in the result": func(_ *world, r *cniapi.Request) {
			r.PrevResult.Interfaces = []cniapi.PrevInterface{{Name: r.IfName, Sandbox: r.Netns, MAC: "02:00:00:00:00:77"}}
		},
		"port number": func(w *world, _ *cniapi.Request) {
			for name, p := range w.ports {
				p.Ofport++
				w.ports[name] = p
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
			req := request(1)
			req.PrevResult = &cniapi.PrevResult{IPs: []cniapi.PrevIP{{Address: netip.MustParsePrefix("172.11.0.2/32")}}}
			if err := a.Check(ctx, req); err != nil {
				t.Fatalf("undamaged: %v", err)
			}
			damage(w, &req)
			if err := a.Check(ctx, req); err == nil {
				t.Error("not noticed")
			}
		})
	}
	a := start(t, newWorld(), t.TempDir())
	if err := a.Check(ctx, request(9)); cniapi.AsError(err).Code != cniapi.CodeUnknownContainer {
		t.Errorf("unknown attachment: %v", err)
	}
}

func TestGC(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	for i := 1; i <= 4; i++ {
		req := request(i)
		if i == 4 {
			req.NetworkName = "another"
		}
		if _, err := a.Add(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	// Not even who passed by Validate takes all pods down.
	if err := a.GC(ctx, cniapi.Request{NetworkName: "net"}); cniapi.AsError(err).Code != cniapi.CodeInvalidConfig || len(a.List()) != 4 {
		t.Fatalf("GC without a list: %v; %d pods are left, want all 4", err, len(a.List()))
	}
	if err := a.GC(ctx, cniapi.Request{NetworkName: "net", ValidAttachments: []cniapi.Attachment{{ContainerID: "c2", IfName: "eth0"}}}); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, at := range a.List() {
		left = append(left, at.ContainerID)
	}
	slices.Sort(left)
	if diff := cmp.Diff([]string{"c2", "c4"}, left); diff != "" {
		t.Error(diff)
	}
	if len(w.flows) != 2 || len(w.links) != 2 {
		t.Errorf("%d flows, %d links; want 2 each", len(w.flows), len(w.links))
	}
	if finished(t, a); len(w.ports) != 2 {
		t.Errorf("%d ports, want 2", len(w.ports))
	}
}

// TestSandboxGone: a pod whose sandbox is gone, and its device with it, is collected where the
// runtime says nothing, but not before it had time to; one that only lost its device gets
// another.
func TestSandboxGone(t *testing.T) {
	ctx := t.Context()
	w := newWorld()
	a := start(t, w, t.TempDir())
	for i := 1; i <= 2; i++ {
		if _, err := a.Add(ctx, request(i)); err != nil {
			t.Fatal(err)
		}
	}
	clear(w.links)
	w.gone = map[string]bool{request(1).Netns: true}
	for look := 1; look <= lostAfter; look++ {
		if n := len(a.List()); n != 2 {
			t.Fatalf("%d pods before look %d, want 2", n, look)
		}
		if _, err := a.Repair(ctx, true); err != nil {
			t.Fatal(err)
		}
	}
	if list := a.List(); len(list) != 1 || list[0].ContainerID != "c2" {
		t.Errorf("after %d looks: %+v; want c2 alone", lostAfter, list)
	}
	if err := a.Check(ctx, request(1)); cniapi.AsError(err).Code != cniapi.CodeUnknownContainer {
		t.Errorf("CHECK: %v", err)
	}
	finished(t, a)
	if len(w.links) != 1 || len(w.ports) != 1 || len(w.flows) != 1 || len(a.pool.Leases()) != 1 {
		t.Errorf("%d links, %d ports, %d flows, %d leases; want one of each", len(w.links), len(w.ports), len(w.flows), len(a.pool.Leases()))
	}
	if err := a.Del(ctx, request(1)); err != nil {
		t.Errorf("DEL after all: %v", err)
	}
}

// TestSandboxComesBack: only looks one after the other count.
func TestSandboxComesBack(t *testing.T) { synctest.Test(t, testSandboxComesBack) }

func testSandboxComesBack(t *testing.T) {
	ctx := t.Context()
	w := newWorld()
	a := start(t, w, t.TempDir())
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		clear(w.links)
		w.gone = map[string]bool{request(1).Netns: true}
		for range lostAfter - 1 {
			time.Sleep(5 * time.Second)
			if _, err := a.Repair(ctx, true); err != nil {
				t.Fatal(err)
			}
		}
		clear(w.gone)
		time.Sleep(5 * time.Second)
		if _, err := a.Repair(ctx, true); err != nil || len(w.links) != 1 {
			t.Fatalf("the pod has %d devices (%v), want one", len(w.links), err)
		}
	}
	if err := a.Check(ctx, request(1)); err != nil {
		t.Error(err)
	}
}

// TestRestart: a new agent finds what the old one attached, whatever was lost
// meanwhile: the pool's file, the database, a pod's sandbox.
func TestRestart(t *testing.T) {
	ctx := context.Background()
	for name, tc := range map[string]struct {
		lose func(w *world, dir *string)
		want []string
	}{
		"nothing lost":     {func(*world, *string) {}, []string{"172.11.0.2", "172.11.0.3"}},
		"pool's file lost": {func(_ *world, dir *string) { *dir += "/other" }, []string{"172.11.0.2", "172.11.0.3"}},
		"database lost":    {func(w *world, _ *string) { clear(w.ports) }, []string{"172.11.0.2", "172.11.0.3"}},
		"one sandbox gone": {func(w *world, _ *string) {
			delete(w.links, HostIf(request(1).Attachment()))
			w.gone = map[string]bool{request(1).Netns: true}
		}, []string{"172.11.0.3"}},
		"one device deleted":         {func(w *world, _ *string) { delete(w.links, HostIf(request(1).Attachment())) }, []string{"172.11.0.2", "172.11.0.3"}},
		"and the pool's file lost":   {func(w *world, dir *string) { delete(w.links, HostIf(request(1).Attachment())); *dir += "/other" }, []string{"172.11.0.3"}},
		"and its port":               {func(w *world, _ *string) { delete(w.links, HostIf(request(1).Attachment())); clear(w.ports) }, []string{"172.11.0.3"}},
		"one device moved elsewhere": {func(w *world, _ *string) { w.move(HostIf(request(1).Attachment())) }, []string{"172.11.0.2", "172.11.0.3"}},
		"rebooted: all gone": {func(w *world, _ *string) {
			clear(w.links)
			w.gone = map[string]bool{request(1).Netns: true, request(2).Netns: true}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			a := start(t, w, dir)
			for i := 1; i <= 2; i++ {
				if _, err := a.Add(ctx, withUID(i)); err != nil {
					t.Fatal(err)
				}
			}
			tc.lose(w, &dir)
			b := start(t, w, dir)
			var got []string
			for _, at := range b.List() {
				got = append(got, at.Addresses[0].String())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			if _, err := b.Repair(ctx, true); err != nil {
				t.Fatal(err)
			}
			if len(w.ports) != len(tc.want) || len(w.links) != len(tc.want) || len(w.flows) != len(tc.want) {
				t.Errorf("%d ports, %d devices, flows %v; want %d of each", len(w.ports), len(w.links), w.flows, len(tc.want))
			}
			var leases []string
			for _, l := range b.pool.Leases() {
				leases = append(leases, l.Addresses[0].String())
			}
			if diff := cmp.Diff(tc.want, leases); diff != "" {
				t.Errorf("leases: %s", diff)
			}
		})
	}
}

// TestForeignSubnet: a record that gives the node another subnet than its pods
// have addresses of cuts none of them off.
func TestForeignSubnet(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	a := start(t, w, dir)
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	moved := theNode
	moved.Subnets, moved.Gateways = []netip.Prefix{netip.MustParsePrefix("172.11.0.8/29")}, []netip.Addr{netip.MustParseAddr("172.11.0.9")}
	b := New(NewBare(w, w, theNode.Bridge, dir, slog.New(slog.DiscardHandler)), w, w, w)
	if _, err := b.Start(ctx, moved, dir, "boot"); err == nil || !strings.Contains(err.Error(), "172.11.0.8/29") {
		t.Errorf("started: %v", err)
	}
	if len(w.ports) != 1 || len(w.links) != 1 {
		t.Errorf("%d ports, %d links left", len(w.ports), len(w.links))
	}
	clear(w.links) // the pod goes
	w.gone = map[string]bool{request(1).Netns: true}
	if _, err := b.Start(ctx, moved, dir, "boot"); err != nil {
		t.Errorf("empty node: %v", err)
	}
}

// TestRenumbered: flows follow the number that Open vSwitch gave.
func TestRenumbered(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	w.renumber = true
	a := start(t, w, t.TempDir())
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	if got := w.flowsOf(netip.MustParseAddr("172.11.0.2")).Port; got != 1012 {
		t.Errorf("flows of port %d, want 1012", got)
	}
	for name, p := range w.ports {
		p.Ofport = 77
		w.ports[name] = p
	}
	if n, err := a.Repair(ctx, false); err != nil || n != 1 {
		t.Errorf("repaired %d, %v", n, err)
	}
	if got := w.flowsOf(netip.MustParseAddr("172.11.0.2")).Port; got != 77 {
		t.Errorf("flows of port %d, want 77", got)
	}
}

// TestNumberTaken: a pod has flows at the number that its port comes to have, where somebody else's port
// had that number.
func TestNumberTaken(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	w.taken = 12
	a := start(t, w, t.TempDir())
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"attached", "put back"} {
		if got := w.flowsOf(netip.MustParseAddr("172.11.0.2")).Port; got != 12 {
			t.Errorf("%s: flows of port %d, want 12", when, got)
		}
		clear(w.ports)
		w.taken = 12
		if n, err := a.Repair(ctx, false); err != nil || n != 1 {
			t.Errorf("repaired %d, %v", n, err)
		}
		if diff, err := a.Repair(ctx, true); err != nil || diff != 0 {
			t.Errorf("repaired again: %d, %v", diff, err)
		}
	}
}

// TestRefill: ports that the database lost are back in it, also while nobody gives them numbers; those of pods whose device is gone are
// not, nor those of pods that went.
func TestRefill(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	for i := range 4 {
		if _, err := a.Add(ctx, request(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Del(ctx, request(4)); err != nil {
		t.Fatal(err)
	}
	want := map[string]ovs.Port{}
	for _, at := range a.List() {
		if at.Attachment != request(3).Attachment() {
			want[at.HostIf()] = w.ports[at.HostIf()]
		} else if err := w.Delete(at.HostIf()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		clear(w.ports)
		if err := a.Refill(ctx); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, w.ports); diff != "" {
			t.Errorf("ports (-were +are):\n%s", diff)
		}
	}
}

// TestRepairOfChangedPorts: a port whose row somebody changed is as it was with the next repair, whatever he changed.
func TestRepairOfChangedPorts(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	w.namespaceUID, w.asked["p1"] = "uid", both(5_000_000)
	a := start(t, w, t.TempDir())
	for i := range 2 {
		req := request(i)
		req.PodUID = "pod-uid"
		if _, err := a.Add(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	was := maps.Clone(w.ports)
	limited, free := HostIf(request(1).Attachment()), HostIf(request(0).Attachment())
	names := func(to map[string]string) func(*ovs.Port) {
		return func(p *ovs.Port) { maps.Copy(p.ExternalIDs, to) }
	}
	changes := map[string]func(*ovs.Port){
		"a rate":        func(p *ovs.Port) { p.Policed = true },
		"an MTU":        func(p *ovs.Port) { p.MTURequest = 600 },
		"a tunnel":      func(p *ovs.Port) { p.Type, p.Options = "vxlan", map[string]string{"remote_ip": "10.9.9.9"} },
		"another type":  func(p *ovs.Port) { p.Type, p.Ofport = "patch", 0 },
		"options":       func(p *ovs.Port) { p.Options = map[string]string{"peer": "x"} },
		"no names":      func(p *ovs.Port) { p.ExternalIDs = nil },
		"no container":  func(p *ovs.Port) { delete(p.ExternalIDs, keyContainer) },
		"two addresses": names(map[string]string{keyAddresses: "172.11.0.2 172.11.0.3"}),
		"other limits":  names(map[string]string{keyLimits: encodeLimits(both(1))}),
	}
	changes["another number asked for"] = func(p *ovs.Port) { p.OfportRequest = 999 }
	for key := range was[limited].ExternalIDs {
		if key != keyNamespaceUID { // of which the lease may know better
			changes[key] = names(map[string]string{key: "other"})
		}
	}
	for what, change := range changes {
		for _, name := range []string{limited, free} {
			p := w.ports[name]
			p.ExternalIDs = maps.Clone(p.ExternalIDs)
			change(&p)
			w.ports[name] = p
			if n, err := a.Repair(ctx, false); err != nil || n == 0 {
				t.Errorf("%s: repaired %d, %v", what, n, err)
			}
			if p = w.ports[name]; what == "another type" { // Open vSwitch numbers it anew
				p.Ofport = was[name].Ofport
				w.ports[name] = p
			}
			if diff := cmp.Diff(was, w.ports); diff != "" {
				t.Errorf("%s: ports (-were +are):\n%s", what, diff)
			}
		}
	}
	if n, err := a.Repair(ctx, false); err != nil || n != 0 {
		t.Errorf("repaired %d again, %v", n, err)
	}
}

// TestRenumberedAgain: where the flows do not follow a new number at once, the next repair
// has them follow, and DEL takes those of the number that they have.
func TestRenumberedAgain(t *testing.T) {
	ctx := context.Background()
	for name, then := range map[string]func(a *Attacher) error{
		"repair": func(a *Attacher) error {
			if n, err := a.Repair(ctx, false); err != nil || n != 1 {
				return fmt.Errorf("repaired %d, %w", n, err)
			}
			return nil
		},
		"DEL": func(a *Attacher) error { return a.Del(ctx, request(1)) },
	} {
		w := newWorld()
		a := start(t, w, t.TempDir())
		if _, err := a.Add(ctx, request(1)); err != nil {
			t.Fatal(err)
		}
		p := w.ports[HostIf(request(1).Attachment())]
		p.Ofport = 77
		w.ports[p.Name] = p
		w.failAt = w.step + 1
		if _, err := a.Repair(ctx, false); !errors.Is(err, errInjected) {
			t.Fatalf("the switch takes nothing: %v", err)
		}
		if err := then(a); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, want := w.flowsOf(netip.MustParseAddr("172.11.0.2")).Port, map[string]uint32{"repair": 77}[name]; got != want {
			t.Errorf("%s: flows of port %d, want %d", name, got, want)
		}
	}
}

// TestNumberOfAnother: a pod whose port has no number yet is not taken for the one that has
// the number that it asks for.
func TestNumberOfAnother(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	a := start(t, w, dir)
	for i := 1; i <= 3; i++ {
		if _, err := a.Add(ctx, request(i)); err != nil {
			t.Fatal(err)
		}
	}
	number := func(n int, ofport uint32) {
		p := w.ports[HostIf(request(n).Attachment())]
		p.Ofport = ofport
		w.ports[p.Name] = p
	}
	number(1, 13) // what the second asks for
	number(2, 0)
	number(3, 0)
	b := start(t, w, dir)
	ports := func() map[string]uint32 {
		got := map[string]uint32{}
		for _, f := range w.flows {
			got[f.Addresses[0].String()] = f.Port
		}
		return got
	}
	if diff := cmp.Diff(map[string]uint32{"172.11.0.2": 13, "172.11.0.4": 14}, ports()); diff != "" {
		t.Errorf("flows after the start (-want +got):\n%s", diff)
	}
	number(2, 12)
	number(3, 14)
	if _, err := b.Repair(ctx, true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]uint32{"172.11.0.2": 13, "172.11.0.3": 12, "172.11.0.4": 14}, ports()); diff != "" {
		t.Errorf("flows when all have numbers (-want +got):\n%s", diff)
	}
}

// TestTwoAddresses: a pod of a node with a subnet of each family has an address of each and one
// MAC, in its lease, its port's row, its flows and what the runtime is told; and after a restart,
// whatever of the file and the database the agent of the release before has written.
func TestTwoAddresses(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	dual := theNode
	dual.Subnets = append(slices.Clip(dual.Subnets), netip.MustParsePrefix("fd00:1:2:3::/64"))
	dual.Gateways = append(slices.Clip(dual.Gateways), netip.MustParseAddr("fd00:1:2:3::ac0b:1"))
	begin := func(dir string) *Attacher {
		a := New(NewBare(w, w, dual.Bridge, dir, slog.New(slog.DiscardHandler)), w, w, w)
		attached, err := a.Start(ctx, dual, dir, "boot")
		if err != nil {
			t.Fatal(err)
		}
		clear(w.flows)
		for _, at := range attached {
			w.flows[at.Port] = at
		}
		a.SetReady(nil)
		return a
	}
	a := begin(dir)
	got, err := a.Add(ctx, request(1))
	if err != nil {
		t.Fatal(err)
	}
	want := []cniapi.IP{
		{Address: netip.MustParsePrefix("172.11.0.2/32"), Gateway: dual.Gateways[0]},
		{Address: netip.MustParsePrefix("fd00:1:2:3::ac0b:2/128"), Gateway: dual.Gateways[1]},
	}
	if !slices.Equal(want, got.IPs) || got.MAC.String() != "0a:58:ac:0b:00:02" || len(got.Routes) != 4 {
		t.Errorf("result %+v", got)
	}
	name := HostIf(request(1).Attachment())
	for key, value := range map[string]string{keyAddress: "172.11.0.2", keyAddresses: "172.11.0.2 fd00:1:2:3::ac0b:2", keyMAC: "0a:58:ac:0b:00:02"} {
		if got := w.ports[name].ExternalIDs[key]; got != value {
			t.Errorf("external_ids:%s is %q, want %q", key, got, value)
		}
	}
	two := []netip.Addr{want[0].Address.Addr(), want[1].Address.Addr()}
	for _, then := range []struct {
		what string
		do   func() string
		want []netip.Addr
	}{
		{"restart", func() string { return dir }, two},
		{"file lost", t.TempDir, two},
		{"database lost", func() string { clear(w.ports); return dir }, two},
		{"somebody changed the MAC", func() string { w.ports[name].ExternalIDs[keyMAC] = "02:00:00:00:00:01"; return dir }, two},
		{"somebody removed the MAC", func() string { delete(w.ports[name].ExternalIDs, keyMAC); return t.TempDir() }, two},
		{"row of the release before", func() string { delete(w.ports[name].ExternalIDs, keyAddresses); return t.TempDir() }, two[:1]},
		{"row of nonsense", func() string { w.ports[name].ExternalIDs[keyAddresses] = "x"; return dir }, two},
	} {
		row := w.ports[name]
		row.ExternalIDs = maps.Clone(row.ExternalIDs)
		list := begin(then.do()).List()
		if len(list) != 1 || !slices.Equal(then.want, list[0].Addresses) || list[0].MAC.String() != "0a:58:ac:0b:00:02" || !w.flows[12].Equal(list[0].told) {
			t.Errorf("%s: %+v, flows %v", then.what, list, w.flows)
		}
		w.ports[name] = row
	}
	for ids, why := range map[string]string{"172.11.0.2 172.11.0.3": "not in this node's subnets", "172.11.0.9 fd00::1": "pod went", "x": "pod went"} {
		row := w.ports[name]
		row.ExternalIDs = maps.Clone(row.ExternalIDs)
		row.ExternalIDs[keyAddresses] = ids
		before := w.ports[name]
		w.ports[name] = row
		_, err := New(NewBare(w, w, dual.Bridge, t.TempDir(), slog.New(slog.DiscardHandler)), w, w, w).Start(ctx, dual, t.TempDir(), "boot")
		if went := err == nil && len(w.ports) == 0; went != (why == "pod went") || !went && !strings.Contains(err.Error(), why) {
			t.Errorf("external_ids with %q: %v, want %s", ids, err, why)
		}
		w.ports[name] = before
	}
}

func TestErrorCodes(t *testing.T) {
	for _, err := range []error{flowstore.ErrDisconnected, flowstore.ErrNotReady, fmt.Errorf("x: %w", ovs.ErrDisconnected)} {
		if got := cniapi.AsError(classify(err)).Code; got != cniapi.CodeTryAgain {
			t.Errorf("%v has code %d", err, got)
		}
	}
}

func TestHostIf(t *testing.T) {
	seen := map[string]bool{}
	for i := range 1000 {
		name := HostIf(request(i).Attachment())
		if err := cniapi.ValidateIfName(name); err != nil || seen[name] {
			t.Fatalf("%s: %v, seen %t", name, err, seen[name])
		}
		seen[name] = true
	}
}

// A namespace gets no more pods than it may have, at once or one after the other; others
// get theirs, and one that goes makes room.
func TestMaxPods(t *testing.T) {
	ctx := context.Background()
	a := start(t, newWorld(), t.TempDir())
	a.SetMaxPods(2)
	results := make(chan error)
	for i := range 6 {
		go func() {
			_, err := a.Add(ctx, request(i+1))
			results <- err
		}()
	}
	refused := 0
	for range 6 {
		if err := <-results; err != nil {
			refused++
			if !strings.Contains(err.Error(), "--max-pods-per-namespace") {
				t.Error(err)
			}
		}
	}
	if n := len(a.List()); refused != 4 || n != 2 {
		t.Errorf("%d of 6 refused, %d attached", refused, n)
	}
	other := request(7)
	other.PodNamespace = "b"
	if _, err := a.Add(ctx, other); err != nil {
		t.Errorf("another namespace: %v", err)
	}
	if err := a.Del(ctx, cniapi.Request{ContainerID: a.List()[0].ContainerID, IfName: a.List()[0].IfName}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Add(ctx, request(8)); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}
