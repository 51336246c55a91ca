package attach

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// TestNamespaceUIDWithoutPodUID: a pod whose UID the runtime does not say is not held to the record of the moment, as
// nobody could tell later that it is of another Namespace of that name. What is found out later holds.
func TestNamespaceUIDWithoutPodUID(t *testing.T) {
	ctx := context.Background()
	w := newWorld()
	a := start(t, w, t.TempDir())
	w.namespaceUID = "gone"
	if _, err := a.Add(ctx, request(1)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", "now"} {
		at := a.List()[0]
		if told := w.flowsOf(at.Addresses[0]).NamespaceUID; at.UIDs.Namespace != want || told != want {
			t.Errorf("it is of %q, and its flows of %q; want %q", at.UIDs.Namespace, told, want)
		}
		if err := a.Bind(ctx, map[cniapi.Attachment]string{request(1).Attachment(): "now"}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNamespaceUID: the Namespace that a pod came in is known after a restart, by its lease and
// without it, and what was found out later by its lease.
func TestNamespaceUID(t *testing.T) {
	ctx := context.Background()
	w, dir := newWorld(), t.TempDir()
	a := start(t, w, dir)
	for i, uid := range []string{1: "", 2: "A", 3: "A"} {
		if i == 0 {
			continue
		}
		w.namespaceUID = uid
		req := request(i)
		req.PodUID = "pod"
		if _, err := a.Add(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(a *Attacher, want ...string) {
		t.Helper()
		var have, told []string
		for _, at := range a.List() {
			have = append(have, at.UIDs.Namespace)
			told = append(told, w.flowsOf(at.Addresses[0]).NamespaceUID)
			if at.UIDs.Pod != "pod" {
				t.Errorf("the pod has UID %q", at.UIDs.Pod)
			}
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("flows: %s", diff)
		}
	}
	expect(a, "", "A", "A")
	if err := a.Bind(ctx, map[cniapi.Attachment]string{request(1).Attachment(): "A", request(3).Attachment(): "B", request(4).Attachment(): "A"}); err != nil {
		t.Fatal(err)
	}
	expect(a, "A", "A", "B")
	for i := 1; i <= 3; i++ {
		if err := a.Check(ctx, request(i)); err != nil {
			t.Error(err)
		}
	}
	restart := func(dir string) *Attacher {
		b := start(t, w, dir)
		for _, at := range b.List() {
			if err := w.Attach(ctx, at.told); err != nil {
				t.Fatal(err)
			}
		}
		return b
	}
	expect(restart(dir), "A", "A", "B")
	expect(restart(t.TempDir()), "", "A", "A")
}
