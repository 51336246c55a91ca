package exits

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

var (
	self      = netip.MustParseAddr("198.18.0.7")
	near, far = netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.19.0.1") // by eth0 and eth1
	both      = Peers{near: 4789, far: 4789}
)

// nodesOf is the check of the ways to other nodes, of an agent that starts.
func (l *lab) nodesOf() *Nodes {
	end, err := hostnet.NewTunnelEnd(l.host.NS)
	l.must(err)
	n := NewNodes(l.host, end, slog.New(slog.NewTextHandler(&l.log, nil)))
	n.patience = 100 * time.Millisecond
	return n
}

// TestReach keeps tunnels' packets of a real node back, one way after the other.
func TestReach(t *testing.T) {
	l := newLab(t)
	n := l.nodesOf()
	check := func(when, want, why string) {
		t.Helper()
		err := n.Reach(t.Context(), self, both, false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", when, err, want)
		}
		if got := n.Why(); (got == "") != (why == "") || !strings.Contains(got, why) {
			t.Errorf("%s: some are kept back: %q, want %q", when, got, why)
		}
	}
	check("all well", "", "")
	check("again", "", "")
	const (
		in, out = "tunnels' packets of 198.18.0.1 and 1 more do not get in: somebody's firewall", "tunnels' packets to 198.18.0.1 and 1 more do not get out: somebody's firewall"
		input   = "nft 'add table inet fw; add chain inet fw i { type filter hook input priority %s; policy %s; }; add rule inet fw i %s'"
		output  = "nft 'add table inet fw; add chain inet fw o { type filter hook %s priority %s; }; add rule inet fw o %s'"
		undo    = "nft delete table inet fw"
	)
	type change struct{ name, do, undo, want, why string }
	try := func(changes ...change) {
		t.Helper()
		for _, c := range changes {
			l.run(c.do)
			check(c.name, c.want, c.why)
			check(c.name+", again", c.want, c.why)
			l.run(c.undo)
			l.ensure()
			check("after "+c.name, "", "")
		}
	}
	try([]change{
		{"a firewall of input", fmt.Sprintf(input, "filter", "accept", "udp dport 4789 drop"), undo, in, ""},
		{"one that refuses", fmt.Sprintf(input, "filter", "accept", "udp dport 4789 reject"), undo, in, ""},
		{"one that drops by default", fmt.Sprintf(input, "filter", "drop", "tcp dport 22 accept"), undo, in, ""},
		{"and lets tunnels in", fmt.Sprintf(input, "filter", "drop", "udp dport 4789 accept"), undo, "", ""},
		{"one that lets only known connections in", fmt.Sprintf(input, "filter", "drop", "ct state established accept"), undo, in, ""},
		{"one behind ours", fmt.Sprintf(input, "1000", "accept", "udp dport 4789 drop"), undo, in, ""},
		{"one that drops what is not tracked", fmt.Sprintf(input, "filter", "accept", "ct state untracked drop"), undo, in, ""},
		{"one of what is sent", fmt.Sprintf(output, "output", "filter", "udp dport 4789 drop"), undo, out, ""},
		{"one of what leaves", fmt.Sprintf(output, "postrouting", "300", "udp dport 4789 drop"), undo, out, ""},
		{"one that refuses what is sent", fmt.Sprintf(output, "output", "filter", "udp dport 4789 reject"), undo, out, ""},
		{"one of all that comes", "nft 'add table ip fw; add chain ip fw p { type filter hook prerouting priority -400; }; add rule ip fw p ip protocol udp drop'", "nft delete table ip fw", in, ""},
		{"one of what a device receives", "nft 'add table netdev fw; add chain netdev fw i { type filter hook ingress device eth0 priority 0; }; add rule netdev fw i udp dport 4789 drop'", "nft delete table netdev fw", "", "packets of 198.18.0.1 do not get in"},
		{"traffic control of what a device receives", "tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress protocol ip u32 match ip protocol 17 0xff action mirred egress redirect dev tun0", "tc qdisc del dev eth0 clsact", "", "packets of 198.18.0.1 do not get in"},
		{"one that knows one node", fmt.Sprintf(input, "filter", "drop", "ip saddr 198.18.0.1 udp dport 4789 accept"), undo, "", "packets of 198.19.0.1 do not get in"},
		{"one of another port", fmt.Sprintf(input, "filter", "accept", "udp dport 4790 drop"), undo, "", ""},
		{"one of pods", "nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; }'", undo, "", ""},
		{"no route to one", "ip route add blackhole 198.19.0.1", "ip route del blackhole 198.19.0.1", "", "the node has no route to 198.19.0.1 "},
		{"no route to any", "ip route add blackhole 198.18.0.1; ip route add unreachable 198.19.0.1", "ip route del blackhole 198.18.0.1; ip route del unreachable 198.19.0.1", "the node has no route to 198.18.0.1 and 1 more", ""},
		{"a rule of routing", "ip rule add to 198.16.0.0/12 prohibit", "ip rule del to 198.16.0.0/12 prohibit", "the node has no route to 198.18.0.1 and 1 more", ""},
		{"strict reverse paths", "sysctl -qw net.ipv4.conf.all.rp_filter=1", "sysctl -qw net.ipv4.conf.all.rp_filter=0", "", ""},
	}...)
	for _, f := range l.seen.Frames() {
		if bytes.Contains(f, n.crossing.Mark()) {
			t.Errorf("a packet of the check left the node: %x", f)
		}
	}
	// One datagram of the first attempt gets out here, which no tunnel takes.
	try(change{"a flushed table", "nft flush table ip k8s-ovs-tunnels", ":", "", ""},
		change{"a flushed firewall", "nft flush ruleset", ":", "", ""},
		change{"a table put to sleep", "nft 'add table ip k8s-ovs-tunnels { flags dormant; }'", ":", "", ""})
	if strings.Contains(l.log.String(), "not known") {
		t.Errorf("it could not do all: %s", l.log.String())
	}
	l.must(n.crossing.(*hostnet.TunnelEnd).Cleanup(t.Context()))
}

// paper is a node whose ways are open to all peers but those that are named.
type paper struct {
	shut  map[netip.Addr]bool
	tried map[netip.Addr]int
	ended []hostnet.Ended
	fails error
}

func (p *paper) PathsTo(_ netip.Addr, peers []netip.Addr) map[netip.Addr]link.Path {
	paths := map[netip.Addr]link.Path{}
	for _, peer := range peers {
		paths[peer] = link.Path{Link: link.Link{Name: "eth0"}}
	}
	return paths
}

func (p *paper) Depart(from netip.Addr, to []netip.AddrPort, _ []byte) (uint16, error) {
	p.ended = nil
	for _, peer := range to {
		p.tried[peer.Addr()]++
		if !p.shut[peer.Addr()] {
			p.ended = append(p.ended, hostnet.Ended{From: from, To: peer.Addr(), Port: 7}, hostnet.Ended{From: peer.Addr(), To: from, Port: 7})
		}
	}
	return 7, nil
}

func (p *paper) Arrive(string, string, ...[]byte) error         { return p.fails }
func (p *paper) Mark() []byte                                   { return make([]byte, 8) }
func (p *paper) Ended(context.Context) ([]hostnet.Ended, error) { return p.ended, nil }
func (p *paper) Forget()                                        {}

// TestPeersInTurn: of many peers each look tries a few; none is left out, and a node is well as long as there is a way to one.
func TestPeersInTurn(t *testing.T) {
	p := &paper{shut: map[netip.Addr]bool{}, tried: map[netip.Addr]int{}}
	peers := Peers{}
	for i := range 200 {
		peers[netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})] = tunnel.VXLANPort
	}
	var log bytes.Buffer
	n := NewNodes(p, p, slog.New(slog.NewTextHandler(&log, nil)))
	n.patience = time.Millisecond
	look := func() error { return n.Reach(t.Context(), self, peers, false) }
	for range 4 {
		if err := look(); err != nil {
			t.Fatal(err)
		}
	}
	for peer := range peers {
		if p.tried[peer] == 0 {
			t.Errorf("%s was not tried", peer)
		}
	}
	for i := range 64 {
		p.shut[netip.AddrFrom4([4]byte{192, 0, 2, byte(56 + i)})] = true // those that are next
	}
	if err := look(); err != nil || n.Kept() != 64 || !strings.Contains(n.Why(), "192.0.2.56 and 63 more") {
		t.Errorf("a look that finds only shut ones: %v, %d, %q", err, n.Kept(), n.Why())
	}
	for peer := range peers {
		p.shut[peer] = true
	}
	for range 2 {
		if err := look(); err == nil || n.Kept() != 200 || n.Why() != "" {
			t.Errorf("all are shut: %v, %d, %q", err, n.Kept(), n.Why())
		}
	}
	p.shut = map[netip.Addr]bool{}
	for range 4 {
		if err := look(); err != nil {
			t.Errorf("all are open again: %v", err)
		}
	}
	if n.Kept() != 0 || n.Why() != "" {
		t.Errorf("all are open again: %d, %q", n.Kept(), n.Why())
	}
	if got := strings.Count(log.String(), "WARN"); got != 200 {
		t.Errorf("it warned %d times of 200 peers", got)
	}
	p.fails = errors.New("no ifb")
	if err := look(); err != nil {
		t.Errorf("a node that can have nothing arrive: %v", err)
	}
	if err := n.Reach(t.Context(), self, Peers{}, false); err != nil {
		t.Errorf("a node alone: %v", err)
	}
}
