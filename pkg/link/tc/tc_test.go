package tc

import (
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

// world is a namespace with its traffic control.
type world struct {
	*link.NS
	Control
	name string
}

// space makes a namespace for the test and opens it.
func space(t testing.TB) world {
	t.Helper()
	name := nstest.New(t)
	n := must(link.Open(ns.Path(name)))(t)
	t.Cleanup(func() { _ = n.Close() })
	return world{n, In(n), name}
}

func ip(t testing.TB, n world, args string) string {
	t.Helper()
	return nstest.Run(t, n.name, "ip "+args)
}

func tc(t testing.TB, n world, args string) string {
	t.Helper()
	return nstest.Run(t, n.name, "tc "+args)
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
