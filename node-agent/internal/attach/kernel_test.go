package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

var spaces atomic.Int32

// space makes a namespace for the test.
func space(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("attach-test-%d-%d", os.Getpid(), spaces.Add(1))
	if err := ns.Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Delete(name) })
	return name
}

func kernel(t testing.TB) (Netlink, string) {
	t.Helper()
	name := space(t)
	host, err := link.Open(ns.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	return Netlink{Host: host, Shaper: shaping.New(host, slog.New(slog.DiscardHandler))}, name
}

// TestKernel goes through what an Attacher asks of the kernel.
func TestKernel(t *testing.T) {
	k, node := kernel(t)
	pod := space(t)
	at := Attachment{Attachment: request(1).Attachment(), Netns: ns.Path(pod), Address: theNode.Gateway.Next(), Limits: both(10_000_000)}
	node1500 := theNode
	node1500.MTU = MTU{1500, 1400}
	w := (&Attacher{}).wire(theNode, at)
	differs := func(what string, w Wire, want string) {
		t.Helper()
		diff, err := k.Differences(w)
		shaped, err2 := k.ShapeDifferences(w)
		if err := errors.Join(err, err2); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got := strings.Join(append(diff, shaped...), "; ")
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: differences %q, want %q", what, got, want)
		}
	}
	same := func(what string, w Wire) {
		t.Helper()
		differs(what, w, "")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time over what was cut off
		must(k.CreateVeth(w))
	}
	must(k.Configure(w))
	must(k.Shape(w))
	same("attached", w)
	grown := (&Attacher{}).wire(node1500, at)
	differs("another MTU", grown, at.HostIf()+" has MTU 1450, not 1500")
	must(k.SetMTU(grown))
	same("grown", grown)
	must(k.SetMTU(w))
	same("shrunk", w)
	if out, err := exec.Command("tc", "-n", pod, "qdisc", "del", "dev", "eth0", "root").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	differs("the pod took its limit off", w, "10000000 bit/s")
	must(k.Shape(w))
	same("put back", w)
	free := w
	free.Limits = limits.Limits{}
	must(k.Shape(free))
	same("no limits", free)
	must(k.Shape(w))
	must(k.Delete(w.HostIf))
	if n, err := k.Sweep(map[string]bool{w.HostIf: true}); n != 0 || err != nil {
		t.Errorf("swept %d, %v of what is to be kept", n, err)
	}
	if n, err := k.Sweep(nil); n != 1 || err != nil {
		t.Errorf("swept %d, %v; want the one that is left", n, err)
	}
	for range 2 {
		must(k.Unshape(w.HostIf))
	}
	if err := k.SetMTU(w); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("MTU of a pair that is gone: %v", err)
	}
	left, err := ns.Output(t.Context(), node, "-br", "link", "show")
	must(err)
	if strings.Contains(left, "ko") {
		t.Errorf("left behind: %s", left)
	}
}

// BenchmarkSetMTU changes the MTU of 250 running pods, half of them with limits.
func BenchmarkSetMTU(b *testing.B) {
	const pods = 250
	k, _ := kernel(b)
	w := newWorld()
	a := New(k, w, w, w, w, slog.New(slog.DiscardHandler))
	a.node = &theNode
	for i := range pods {
		at := Attachment{Attachment: cniapi.Attachment{ContainerID: fmt.Sprint("c", i), IfName: "eth0"}, Netns: ns.Path(space(b)), Address: theNode.Gateway.Next()}
		if i%2 == 0 {
			at.Limits = both(10_000_000)
		}
		wire := a.wire(theNode, at)
		if err := errors.Join(k.CreateVeth(wire), a.configure(wire)); err != nil {
			b.Fatal(err)
		}
		a.put(at)
	}
	for i := 0; b.Loop(); i++ {
		if err := a.SetMTU(context.Background(), MTU{1400 + i%2*50, 1400 + i%2*50}); err != nil {
			b.Fatal(err)
		}
	}
}
