package tc

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/conntrack"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

// udp is an IPv4 packet with no payload.
func udp(from, to netip.AddrPort) []byte {
	b := make([]byte, 28)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], 28)
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], 8)
	return b
}

// ack is an IPv4 packet with a TCP segment that only acknowledges.
func ack(from, to netip.AddrPort) []byte {
	b := append(udp(from, to)[:24], make([]byte, 16)...)
	b[9] = 6
	binary.BigEndian.PutUint16(b[2:], 40)
	binary.BigEndian.PutUint16(b[10:], 0)
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	copy(b[24:], []byte{1, 2, 3, 4, 5, 6, 7, 8, 5 << 4, 1 << 4, 1 << 7})
	binary.BigEndian.PutUint16(b[36:], checksum(slices.Concat(b[12:20], []byte{0, 6, 0, 20}, b[20:])))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return ^uint16(sum + sum>>16)
}

// A packet that arrives comes in by the device, whichever that is at the time, and is
// translated as the connection says that it answers.
func TestArrive(t *testing.T) {
	n := space(t)
	for _, c := range []string{
		"link add eth0 type ifb", "link add eth1 type ifb", "link add pods type ifb", "link set eth0 up", "link set eth1 up", "link set pods up",
		"link add other type veth peer name other-end", "addr add 198.18.0.7/24 dev eth0", "route add 203.0.113.0/24 dev eth1", "addr add 172.11.0.1/24 dev pods",
	} {
		ip(t, n, c)
	}
	nft := func(script string) string {
		t.Helper()
		out, err := exec.Command("ip", "netns", "exec", n.name, "nft", script).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %s: %v: %s", script, err, out)
		}
		return string(out)
	}
	nft(`add table ip t; add counter ip t eth0; add counter ip t eth1; add chain ip t nat { type nat hook postrouting priority srcnat; }
		add chain ip t f { type filter hook forward priority 0; policy drop; }
		add rule ip t f iifname eth0 oifname pods ip daddr 172.11.0.9 udp dport 1000 ct state established counter name eth0
		add rule ip t f iifname eth1 oifname pods ip daddr 172.11.0.9 udp dport 1000 ct state established counter name eth1`)
	if _, err := n.EnsureSysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	c := conntrack.Translated{From: netip.MustParseAddrPort("172.11.0.9:1000"), To: netip.MustParseAddrPort("203.0.113.1:53"), As: netip.MustParseAddrPort("198.18.0.7:40000")}
	connections := conntrack.In(n.NS)
	noErr(t, connections.Track(c, time.Minute))
	if err := connections.Track(c, time.Second); err == nil {
		t.Error("the same connection twice, and no error")
	}
	for _, device := range []string{"eth0", "eth1", "eth0"} {
		before := nft("list counter ip t " + device)
		noErr(t, n.Arrive("arrivals", device, udp(c.To, c.As)))
		for deadline := time.Now().Add(5 * time.Second); nft("list counter ip t "+device) == before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("nothing came in by %s: %s", device, nft("list ruleset"))
			}
		}
	}
	nft(`add counter ip t segments; add rule ip t f oifname pods ip daddr 172.11.0.9 tcp dport 1000 ct state established counter name segments`)
	c.TCP = true
	before := nft("list counter ip t segments")
	noErr(t, connections.Track(c, time.Minute))
	noErr(t, n.Arrive("arrivals", "eth0", ack(c.To, c.As)))
	for deadline := time.Now().Add(5 * time.Second); nft("list counter ip t segments") == before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no segment came in: %s", nft("list ruleset"))
		}
	}
	if out := nstest.Run(t, n.name, "conntrack -L -p udp"); strings.Count(out, "src=172.11.0.9") != 1 {
		t.Errorf("tracked: %s", out)
	}
	if err := n.Arrive("arrivals", "eth9", udp(c.To, c.As)); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("a device that is not there: %v", err)
	}
	if err := n.Arrive("other", "eth0", udp(c.To, c.As)); !errors.Is(err, link.ErrLinkExists) {
		t.Errorf("by a device of somebody else: %v", err)
	}
}
