package attach

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
)

// TestStartByLease: a start goes by leases, whatever somebody has made of the ports' names meanwhile, and the names are
// put right; of what has no lease it goes by them.
func TestStartByLease(t *testing.T) {
	other := map[string]string{
		keyNamespace: "blue", keyPod: "other", keyAddress: "172.11.0.5", keyNetns: "/run/netns/other", keyNetwork: "other", keyPodUID: "other", keyIfName: "eth9", keyContainer: "c2",
		keyMAC: "02:00:00:00:00:01", keyAddresses: "172.11.0.2 fd00::1", keyIfaceID: "x", keyNamespaceUID: "other",
	}
	type attached struct {
		At   Attachment
		Flow desired.Attached
	}
	run := func(t *testing.T, spoil func(ids map[string]string, dir string) string) (got map[string]attached, ids map[string]string) {
		t.Helper()
		w, dir := newWorld(), t.TempDir()
		w.namespaceUID, w.asked["p1"] = "uid", both(5_000_000)
		a := start(t, w, dir)
		for i := range 2 {
			req := request(i + 1)
			req.PodUID = "pod-uid"
			if _, err := a.Add(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
		name := HostIf(request(1).Attachment())
		p := w.ports[name]
		p.ExternalIDs = maps.Clone(p.ExternalIDs)
		dir = spoil(p.ExternalIDs, dir)
		w.ports[name] = p
		a = start(t, w, dir)
		if _, err := a.Repair(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		got = map[string]attached{}
		for _, at := range a.List() {
			got[at.HostIf()] = attached{at, w.flowsOf(at.Addresses[0])}
		}
		ids = w.ports[name].ExternalIDs
		delete(ids, keyNamespaceUID) // as of ADD
		return got, ids
	}
	compare := []cmp.Option{cmpopts.IgnoreUnexported(Attachment{}), cmp.Comparer(func(x, y netip.Addr) bool { return x == y })}
	nothing := func(_ map[string]string, dir string) string { return dir }
	want, names := run(t, nothing)
	for key, value := range other {
		t.Run(key, func(t *testing.T) {
			got, ids := run(t, func(ids map[string]string, dir string) string { ids[key] = value; return dir })
			if diff := cmp.Diff(want, got, compare...); diff != "" {
				t.Errorf("attached (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(names, ids); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("all", func(t *testing.T) {
		got, ids := run(t, func(ids map[string]string, dir string) string { clear(ids); return dir })
		if diff := cmp.Diff(want, got, compare...) + cmp.Diff(names, ids); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("limits, which the lease has of ADD", func(t *testing.T) {
		got, _ := run(t, func(ids map[string]string, dir string) string { delete(ids, keyLimits); return dir })
		if at := got[HostIf(request(1).Attachment())].At; at.Limits != (limits.Limits{}) {
			t.Errorf("it has %+v", at.Limits)
		}
	})
	t.Run("leases of an earlier release", func(t *testing.T) {
		got, _ := run(t, func(_ map[string]string, dir string) string { bareLeases(t, dir); return dir })
		if diff := cmp.Diff(want, got, compare...); diff != "" {
			t.Errorf("attached (-want +got):\n%s", diff)
		}
	})
	t.Run("no leases", func(t *testing.T) {
		got, _ := run(t, func(ids map[string]string, _ string) string { ids[keyNamespace] = "blue"; return t.TempDir() })
		if at := got[HostIf(request(1).Attachment())].At; at.Namespace != "blue" || len(got) != 2 {
			t.Errorf("attached: %+v", got)
		}
	})
	t.Run("no leases, and another's address", func(t *testing.T) {
		got, _ := run(t, func(ids map[string]string, _ string) string { ids[keyAddress] = "172.11.0.3"; return t.TempDir() })
		if len(got) != 1 {
			t.Errorf("attached: %+v; want one with that address", got)
		}
	})
	t.Run("no leases, and another's key", func(t *testing.T) {
		got, _ := run(t, func(ids map[string]string, _ string) string { ids[keyContainer] = "c2"; return t.TempDir() })
		if at, ok := got[HostIf(request(2).Attachment())]; len(got) != 1 || !ok || at.At.Pod != "p2" {
			t.Errorf("attached: %+v; want pod p2 alone", got)
		}
	})
}

// bareLeases takes all from the leases in dir that a lease need not have.
func bareLeases(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "addresses.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var pool map[string]any
	if err := json.Unmarshal(data, &pool); err != nil {
		t.Fatal(err)
	}
	for _, l := range pool["leases"].([]any) {
		maps.DeleteFunc(l.(map[string]any), func(key string, _ any) bool {
			return !strings.Contains("address containerID ifName since", key)
		})
	}
	if data, err = json.Marshal(pool); err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPathsUsedAgain: a pod whose device went is gone, though its path leads to a namespace, where that may be anybody's
// by now: a process's, and one outside Kubernetes.
func TestPathsUsedAgain(t *testing.T) {
	for _, tc := range []struct {
		netns, uid string
		stays      bool
	}{{"/proc/7/ns/net", "uid", false}, {"/run/netns/p1", "", false}, {"/run/netns/p1", "uid", true}} {
		w, dir := newWorld(), t.TempDir()
		req := request(1)
		req.Netns, req.PodUID = tc.netns, tc.uid
		if _, err := start(t, w, dir).Add(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		clear(w.links)
		if a := start(t, w, dir); len(a.List()) > 0 != tc.stays || len(w.ports) > 0 != tc.stays {
			t.Errorf("%s of a pod with UID %q: attached: %v, ports %v", tc.netns, tc.uid, a.List(), w.ports)
		}
	}
}

// TestMovedDevice: a pod whose end on the node somebody moved into another namespace has another pair at the next look.
func TestMovedDevice(t *testing.T) {
	w := newWorld()
	a := withPod(t, w, t.TempDir())
	at := a.List()[0]
	w.move(at.HostIf())
	if n, err := a.Repair(t.Context(), true); err != nil || n == 0 {
		t.Errorf("mended %d, %v", n, err)
	}
	if err := a.Check(t.Context(), request(1)); err != nil || len(w.moved) > 0 {
		t.Errorf("CHECK: %v; elsewhere is %v", err, w.moved)
	}
}
