package wire

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// TestKernelUnderstands sends what this package builds to the kernel, which
// takes only what is well formed.
func TestKernelUnderstands(t *testing.T) {
	name := func(s string) string { return fmt.Sprintf("wiretest-%d-%s", os.Getpid(), s) }
	a, b := name("a"), name("b")
	for _, n := range []string{a, b} {
		if err := ns.Create(n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ns.Delete(n) })
	}
	ctx := context.Background()
	macA, macB := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	ipA, ipB := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	if err := ns.IP(ctx, a, "link add eth0 address "+macA.String()+" type veth peer name eth0 address "+macB.String()+" netns "+b, "link set dev eth0 up"); err != nil {
		t.Fatal(err)
	}
	// 192.0.2.1 is nowhere: only frames of this test come from it.
	if err := ns.IP(ctx, b, "addr add 192.0.2.2/24 dev eth0", "link set dev eth0 up",
		// The kernel takes VXLAN apart on its own device.
		"link add vx type vxlan id 4711 dstport 4789 local 192.0.2.2 dev eth0", "link set dev vx up"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{a, b} {
		if err := ns.WaitRunning(t.Context(), n, "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	pa, err := Open(ns.Path(a), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	pb, err := Open(ns.Path(b), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	inner, err := Open(ns.Path(b), "vx")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Port{pa, pb, inner} {
		t.Cleanup(func() { _ = p.Close() })
	}
	udp, err := ns.ListenUDP(ns.Path(b), "192.0.2.2:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()

	send := func(frames ...[]byte) {
		t.Helper()
		for _, f := range frames {
			if err := pa.Send(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	receive := func(want string) {
		t.Helper()
		buf := make([]byte, 9000)
		_ = udp.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, from, err := udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(buf[:n])); diff != "" || from != netip.AddrPortFrom(ipA, 4000) {
			t.Errorf("from %s (-want +got):\n%s", from, diff)
		}
	}
	send(Ethernet(macB, macA, TypeIPv4, IPv4(ipA, ipB, ProtoUDP, UDP(4000, 5000, []byte("whole")))))
	receive("whole")
	fragments := Fragments(ipA, ipB, ProtoUDP, UDP(4000, 5000, []byte("in two pieces, one after the other")), 16)
	send(Ethernet(macB, macA, TypeIPv4, fragments[0]), Ethernet(macB, macA, TypeIPv4, fragments[1]))
	receive("in two pieces, one after the other")

	send(Ethernet(Broadcast, macA, TypeARP, ARP(ARPRequest, macA, ipA, make([]byte, 6), ipB, nil)))
	answer := string(Ethernet(macA, macB, TypeARP, ARP(ARPReply, macB, ipB, macA, ipA, nil)))
	if _, err := pa.WaitFor(answer, 10*time.Second); err != nil {
		t.Errorf("no ARP reply: %v", err)
	}
	in := Ethernet(Broadcast, macA, TypeIPv4, IPv4(ipA, ipB, ProtoUDP, UDP(1, 2, []byte("inner frame"))))
	send(Ethernet(macB, macA, TypeIPv4, IPv4(ipA, ipB, ProtoUDP, UDP(4000, VXLANPort, VXLAN(4711, in)))))
	got, err := inner.WaitFor("inner frame", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, got); diff != "" {
		t.Errorf("inner frame (-want +got):\n%s", diff)
	}
	if pa.Saw("inner frame") {
		t.Error("a port saw what it sent itself")
	}
	// Its socket and that of b's host are two.
	if _, err := pb.WaitFor("whole", 10*time.Second); err != nil {
		t.Error(err)
	}
	if !pb.Saw("whole") || pb.Saw("never sent") {
		t.Error("Saw is wrong")
	}
	if _, err := pb.WaitFor("never sent", 50*time.Millisecond); err == nil {
		t.Error("WaitFor found what was never sent")
	}
}
