package attach

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

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

// A port that Open vSwitch has refused is made anew when all is looked at, and said once of as long
// as it is refused; that keeps nothing else from being put right.
func TestRefusedPort(t *testing.T) {
	w := newWorld()
	a := withPod(t, w, t.TempDir())
	var log bytes.Buffer
	a.log = slog.New(slog.NewTextHandler(&log, nil))
	at := a.List()[0]
	const why = "could not open network device (Device or resource busy)"
	w.refused[at.HostIf()] = why
	w.ports[at.HostIf()] = func(p ovs.Port) ovs.Port { p.Ofport, p.Error = 0, why; return p }(w.ports[at.HostIf()])
	for range 3 {
		if n, err := a.Repair(t.Context(), true); n != 0 || err != nil {
			t.Fatalf("mended %d, %v", n, err)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), why) || !strings.Contains(log.String(), at.HostIf()) {
		t.Errorf("%d warnings, want one that says what of why: %s", n, &log)
	}
	delete(w.refused, at.HostIf())
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
