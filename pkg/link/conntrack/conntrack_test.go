package conntrack

import (
	"fmt"
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

// Connections whose source is translated are told apart by where they go once their destination is
// translated as well; all others do not count. Closed ones count, by halves, where the kernel gives their
// ports to nobody else.
func TestOutgoing(t *testing.T) {
	name, table := space(t)
	was := reusing
	t.Cleanup(func() { reusing = was })
	for i := range 4 {
		nstest.Run(t, name, fmt.Sprintf("conntrack -I --timeout 100 -p tcp -s 172.11.0.4 -d 203.0.113.9 --sport 100%d --dport 53 --state TIME_WAIT --src-nat 198.18.0.1:800%d", i, i))
	}
	for _, args := range []string{
		"-p udp -s 172.11.0.2 -d 203.0.113.9 --sport 1000 --dport 53 --src-nat 198.18.0.1:7000",
		"-p udp -s 172.11.0.2 -d 203.0.113.9 --sport 1001 --dport 53 --src-nat 198.18.0.1:7001",
		"-p udp -s 172.11.0.2 -d 10.96.0.1 --sport 1000 --dport 54 --src-nat 198.18.0.1:7002 --dst-nat 203.0.113.9:53",
		"-p tcp -s 172.11.0.3 -d 203.0.113.9 --sport 1000 --dport 53 --state SYN_SENT --src-nat 198.18.0.1:7000",
		"-p icmp -s 172.11.0.3 -d 203.0.113.9 --icmp-type 8 --icmp-code 0 --icmp-id 5 --src-nat 198.18.0.1",
		"-p udp -s 172.11.0.3 -d 203.0.113.9 --sport 1000 --dport 55",
		"-p udp -s 172.11.0.3 -d 10.96.0.1 --sport 1000 --dport 55 --dst-nat 203.0.113.9:56",
	} {
		nstest.Run(t, name, "conntrack -I --timeout 100 "+args)
	}
	want := map[string]int{"172.11.0.2 by 17 to 203.0.113.9:53": 3, "172.11.0.3 by 6 to 203.0.113.9:53": 1, "172.11.0.3 by 1 to 203.0.113.9:0": 1}
	for _, version := range [][2]int{{1, 9}, {999, 0}} {
		reusing = version
		if version[0] == 999 {
			want["172.11.0.4 by 6 to 203.0.113.9:53"] = 2
		}
		got := map[string]int{}
		noErr(t, table.Outgoing(func(from netip.Addr, protocol uint8, to netip.AddrPort) {
			got[fmt.Sprintf("%s by %d to %s", from, protocol, to)]++
		}))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("where kernels since %v give ports of closed connections to others: %s", version, diff)
		}
	}
}
