package conntrack

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

// space makes a namespace for the test and opens its connection table.
func space(t *testing.T) (name string, table Table) {
	t.Helper()
	name = nstest.New(t)
	n, err := link.Open(ns.Path(name))
	noErr(t, err)
	t.Cleanup(func() { _ = n.Close() })
	return name, In(n)
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestForget(t *testing.T) {
	name, table := space(t)
	for _, src := range []string{"172.11.0.2", "172.11.0.3", "172.11.0.4"} {
		nstest.Run(t, name, "conntrack -I -p udp -s "+src+" -d 203.0.113.9 --sport 1000 --dport 53 --timeout 100")
	}
	for range 2 {
		noErr(t, table.Forget(netip.MustParseAddr("172.11.0.2"), netip.MustParseAddr("172.11.0.4")))
	}
	noErr(t, table.Forget())
	left := nstest.Run(t, name, "conntrack -L")
	if strings.Contains(left, "src=172.11.0.2 ") || strings.Contains(left, "src=172.11.0.4 ") || !strings.Contains(left, "src=172.11.0.3 ") {
		t.Errorf("left:\n%s", left)
	}
}

func TestFill(t *testing.T) {
	name, table := space(t)
	for _, args := range []string{
		"-s 172.11.0.2 -d 203.0.113.9 --sport 1000 --dport 53",
		"-s 172.11.0.2 -d 203.0.113.9 --sport 1001 --dport 53",
		"-s 172.11.0.2 -d 203.0.113.9 --sport 1000 --dport 53 --zone 65520",
		"-s 172.11.0.3 -d 203.0.113.9 --sport 1000 --dport 53",
		"-s 198.18.0.1 -d 172.11.0.2 --sport 1000 --dport 53",
	} {
		nstest.Run(t, name, "conntrack -I -p udp --timeout 100 "+args)
	}
	used, size, err := table.Fill()
	noErr(t, err)
	if used != 5 || size < used {
		t.Errorf("%d of %d used, want 5", used, size)
	}
	got, err := table.BySource(netip.MustParsePrefix("172.11.0.0/22"))
	noErr(t, err)
	want := map[netip.Addr]uint64{netip.MustParseAddr("172.11.0.2"): 3, netip.MustParseAddr("172.11.0.3"): 1}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}
