package exits

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/rawpacket"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/toobig"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/conntrack"
)

// icmp is a frame with an ICMP message of a pod to the outside that says rest.
func icmp(gw Gateway, kind byte, rest []byte) []byte {
	pod, outside := netip.MustParseAddrPort("172.11.0.9:0"), netip.MustParseAddrPort("198.18.0.1:0")
	p := rawpacket.Packet(pod, outside, unix.IPPROTO_ICMP, 8+len(rest))
	m := p[rawpacket.IPSize:]
	m[0], m[1], m[2], m[3] = kind, 0, 0, 0
	copy(m[8:], rest)
	binary.BigEndian.PutUint16(m[2:], toobig.Checksum(m))
	return gw.frame(p)
}

// TestErrorsOfPods: what pods tell the outside about packets of theirs gets out, though it looks
// much like what is told of the agent's own, which does not.
func TestErrorsOfPods(t *testing.T) {
	l := newLab(t)
	l.run("ip route add default via 198.18.0.1; sysctl -qw net.ipv4.ip_forward=1")
	if _, err := l.exit.Passed(t.Context(), l.gw.way()); err != nil {
		t.Fatal(err)
	}
	from := netip.MustParseAddrPort("198.18.0.1:443")
	to := netip.MustParseAddrPort("172.11.0.9:40000")
	segment := func(sequence uint32) []byte {
		s := rawpacket.Acknowledgment(from, to, hostnet.Sequence)
		binary.BigEndian.PutUint32(s[rawpacket.IPSize+4:], sequence)
		return s
	}
	full := rawpacket.Datagram(from, to)
	binary.BigEndian.PutUint16(full[rawpacket.IPSize+4:], 100)
	for _, tcp := range []bool{false, true} { // errors about what nobody sent are nobody's
		l.must(l.host.Track(conntrack.Translated{From: to, To: from, As: netip.MustParseAddrPort("198.18.0.7:40000"), TCP: tcp}, time.Minute))
	}
	for i, c := range []struct {
		name string
		kind byte
		rest []byte
		out  bool
	}{
		{"about the agent's datagram", 3, rawpacket.Datagram(from, to), false},
		{"about its segment", 3, segment(hostnet.Sequence), false},
		{"about a datagram", 3, full, true},
		{"about a segment whose sequence number begins like a datagram's length", 3, segment(0x00080000), true},
		{"its time exceeded", 11, segment(0x0008ffff), true},
		{"an echo whose data looks like the agent's datagram", 8, rawpacket.Datagram(from, to), true},
	} {
		mark := fmt.Sprintf("message %d", i)
		l.must(l.pods.Send(icmp(l.gw, c.kind, append(c.rest, mark...))))
		if c.out {
			if _, err := l.seen.WaitFor(mark, 5*time.Second); err != nil {
				t.Errorf("%s: it did not get out: %v", c.name, err)
			}
		}
	}
	// They were sent before those that got out.
	for _, mark := range []string{"message 0", "message 1"} {
		if l.seen.Saw(mark) {
			t.Errorf("%s got out", mark)
		}
	}
}
