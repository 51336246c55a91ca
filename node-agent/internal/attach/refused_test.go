package attach

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// A pod whose device on the node somebody renamed keeps its address and its network, whether the
// agent was there or not.
func TestRenamed(t *testing.T) {
	for name, later := range map[string]func(t *testing.T, w *world, dir string, a *Attacher) *Attacher{
		"while the agent runs": func(_ *testing.T, _ *world, _ string, a *Attacher) *Attacher { return a },
		"while it is away":     func(t *testing.T, w *world, dir string, _ *Attacher) *Attacher { return start(t, w, dir) },
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			a := withPod(t, w, dir)
			at := a.List()[0]
			w.renamed[at.HostIf()] = w.links[at.HostIf()]
			delete(w.links, at.HostIf())
			a = later(t, w, dir, a)
			if _, err := a.Repair(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			if _, there := w.links[at.HostIf()]; !there || len(a.List()) != 1 || w.flowsOf(at.Addresses[0]).Port != at.Port {
				t.Errorf("the device has its name: %t; attached are %v; flows %v", there, a.List(), w.flows)
			}
		})
	}
}

// withPod is an Attacher with one pod.
func withPod(t *testing.T, w *world, dir string) *Attacher {
	t.Helper()
	a := start(t, w, dir)
	if _, err := a.Add(t.Context(), request(1)); err != nil {
		t.Fatal(err)
	}
	return a
}

// Whatever one pod does to its end keeps no other pod from its network, and the agent from nothing,
// whether it runs or comes back: why is said once.
func TestOnePodKeepsNoOtherFromMending(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := start(t, w, dir)
	for i := range 3 {
		if _, err := a.Add(t.Context(), withUID(i)); err != nil {
			t.Fatal(err)
		}
	}
	list := a.List()
	forger, loser, other := list[0], list[1], list[2]
	w.unnamed = map[string]error{forger.HostIf(): errors.New("its device is odd")}
	w.unset = map[string]error{loser.Netns: errors.New("its device is gone again")}
	for _, later := range []func(){func() {}, func() { a = start(t, w, dir) }} {
		w.renamed[other.HostIf()] = w.links[other.HostIf()]
		for _, at := range list {
			delete(w.links, at.HostIf())
		}
		later()
		var log bytes.Buffer
		a.log = slog.New(slog.NewTextHandler(&log, nil))
		if err := a.SetMTU(t.Context(), theNode.MTU); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := a.Repair(t.Context(), true); err != nil {
				t.Fatal(err)
			}
		}
		if _, there := w.links[other.HostIf()]; !there {
			t.Error("another pod's device has not got its name back")
		}
		for _, why := range []string{"its device is odd", "its device is gone again"} {
			if n := strings.Count(log.String(), why); n != 1 {
				t.Errorf("said %d times that %s, want once:\n%s", n, why, &log)
			}
		}
	}
}

// After the machine was booted no device has its name back: the path of a sandbox of before may lead to
// anybody's.
func TestNothingIsNamedAfterABoot(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	at := withPod(t, w, dir).List()[0]
	w.renamed[at.HostIf()] = w.links[at.HostIf()]
	delete(w.links, at.HostIf())
	a := New(NewBare(w, w, theNode.Bridge, dir, slog.New(slog.DiscardHandler)), w, w, w)
	attached, err := a.Start(t.Context(), theNode, dir, "another boot")
	if err != nil || len(attached) > 0 || len(w.renamed) != 1 {
		t.Errorf("attached %v, %v; %d devices still have other names, want 1", attached, err, len(w.renamed))
	}
}

// A pod that deletes its device as soon as it is made has it made anew after longer and longer pauses; one
// whose device somebody deletes now and then has it at the next look.
func TestDeletedAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a := withPod(t, w, t.TempDir())
		at := a.List()[0]
		made := 0
		w.making = func() { made++ }
		looks := func(n int) {
			t.Helper()
			for range n {
				if _, err := a.Repair(t.Context(), true); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
			}
		}
		for range 5 {
			delete(w.links, at.HostIf())
			looks(3)
		}
		if made != 5 {
			t.Fatalf("made %d times, want each of 5 times at once", made)
		}
		made = 0
		for range 720 { // an hour
			delete(w.links, at.HostIf())
			looks(1)
		}
		if made < 10 || made > 40 {
			t.Errorf("made %d times within an hour, want some 17", made)
		}
		looks(int(2 * lastPause / (5 * time.Second)))
		if _, there := w.links[at.HostIf()]; !there || w.flowsOf(at.Addresses[0]).Port != at.Port {
			t.Errorf("the pod that let it be has its device: %t, and flows %v", there, w.flows)
		}
	})
}

// A port that Open vSwitch has refused is made anew when all is looked at, after longer and longer
// pauses, and said once of as long as it is refused; that keeps nothing else from being put right.
func TestRefusedPort(t *testing.T) { synctest.Test(t, testRefusedPort) }

func testRefusedPort(t *testing.T) {
	w := newWorld()
	a := withPod(t, w, t.TempDir())
	var log bytes.Buffer
	a.log = slog.New(slog.NewTextHandler(&log, nil))
	at := a.List()[0]
	const why = "could not open network device (Device or resource busy)"
	w.refused[at.HostIf()] = why
	w.ports[at.HostIf()] = func(p ovs.Port) ovs.Port { p.Ofport, p.Error = 0, why; return p }(w.ports[at.HostIf()])
	deleted := 0
	w.deleting = func() { deleted++ }
	for range 720 { // an hour
		if n, err := a.Repair(t.Context(), true); n != 0 || err != nil {
			t.Fatalf("mended %d, %v", n, err)
		}
		time.Sleep(5 * time.Second)
	}
	// 5 s, 10 s, up to 5 min, each from half of it to half as much again.
	if deleted < 10 || deleted > 40 {
		t.Errorf("the port was made anew %d times within an hour, want some 17", deleted)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), why) || !strings.Contains(log.String(), at.HostIf()) {
		t.Errorf("%d warnings, want one that says what of why: %s", n, &log)
	}
	delete(w.refused, at.HostIf())
	time.Sleep(2 * lastPause)
	if n, err := a.Repair(t.Context(), false); n != 0 || err != nil {
		t.Fatalf("mended %d, %v at a look that is not whole", n, err)
	}
	if n, err := a.Repair(t.Context(), true); n != 1 || err != nil {
		t.Fatalf("mended %d, %v", n, err)
	}
	if p := w.ports[at.HostIf()]; p.Ofport != at.Port || w.flowsOf(at.Addresses[0]).Port != at.Port {
		t.Errorf("port %+v, flows %v; want number %d", p, w.flows, at.Port)
	}
}
