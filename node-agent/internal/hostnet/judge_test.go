package hostnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// judgeLab is a node with a proxy: port 80 and 53 of the service's address are port 8080 of the outside,
// port 81 port 8080 of the node.
type judgeLab struct {
	*lab
	judge *Judge
	five  netip.Addr
	// services is the service network, where what ipvs does is judged as well.
	services netip.Prefix
}

func newJudgeLab(t *testing.T) *judgeLab {
	l := newLab(t)
	l.spec.ServiceProxy, l.spec.ServiceNetwork = pipeline.KubeProxy, netip.MustParsePrefix("10.96.0.0/12")
	l.ensure(true)
	l.up()
	l.run(l.node, "nft", `add table ip proxy; add chain ip proxy pre { type nat hook prerouting priority dstnat; };
		add rule ip proxy pre ip daddr 10.96.0.10 tcp dport 80 dnat to 198.18.0.1:8080;
		add rule ip proxy pre ip daddr 10.96.0.10 tcp dport 81 dnat to 198.18.0.7:8080;
		add rule ip proxy pre ip daddr 10.96.0.10 udp dport 53 dnat to 198.18.0.1:8080`)
	judge, err := NewJudge(l.ns)
	l.ok(err)
	return &judgeLab{l, judge, netip.MustParseAddr("172.11.0.5"), l.spec.ServiceNetwork}
}

// allow is what a block with some ports is to 172.11.0.5.
func (l *judgeLab) allow(block string, ports ...policy.PortRange) policy.Allow {
	return policy.Allow{
		Name: fmt.Sprint(block, ports), Subjects: []netip.Addr{l.five}, AnyPort: len(ports) == 0, Ports: ports,
		Peers: policy.Peers{Prefixes: []netip.Prefix{netip.MustParsePrefix(block)}},
	}
}

// senders isolates 172.11.0.5, but for what it is allowed; its own node is nobody here, so that what
// is judged of it is seen.
func (l *judgeLab) senders(allows ...policy.Allow) Senders {
	c := policy.Compiled{Network: l.spec.ClusterNetwork, Egress: policy.Table{Allows: allows}}
	reach, _ := c.Reaches(map[netip.Addr]bool{l.five: true})
	return Senders{Services: l.services, Reach: reach}
}

func (l *judgeLab) set(allows ...policy.Allow) {
	l.t.Helper()
	l.ok(l.judge.Set(l.t.Context(), l.senders(allows...)))
}

// asks reports whether a pod is answered at a port of the service's address.
func (l *judgeLab) asks(from string, port int) bool {
	l.t.Helper()
	if port == 81 {
		return l.tcp(l.pods, from, "10.96.0.10:81", l.node, "198.18.0.7:8080") != ""
	}
	return l.tcp(l.pods, from, fmt.Sprint("10.96.0.10:", port), l.outside, "198.18.0.1:8080") != ""
}

func (l *judgeLab) table() string { return l.run(l.node, "nft", "-a", "-s", "list", "ruleset") }

func tcpPorts(first, last uint16) policy.PortRange {
	return policy.PortRange{Protocol: service.TCP, First: first, Last: last}
}

// TestJudge: what the node translates is judged by where it ends, for the pods that are judged; what it
// does not translate was judged by the switch.
func TestJudge(t *testing.T) {
	l := newJudgeLab(t)
	for _, tc := range []struct {
		name          string
		allows        []policy.Allow
		outside, node bool
	}{
		{"nothing", nil, false, false},
		{"a port", []policy.Allow{l.allow("198.18.0.1/32", tcpPorts(8080, 8080))}, true, false},
		{"some ports", []policy.Allow{l.allow("198.18.0.0/30", tcpPorts(1, 79), tcpPorts(8000, 8080))}, true, false},
		{"the service's port, which is none there", []policy.Allow{l.allow("198.18.0.1/32", tcpPorts(80, 80))}, false, false},
		{"the service's address, which it does not end at", []policy.Allow{l.allow("10.96.0.0/12")}, false, false},
		{"another protocol", []policy.Allow{l.allow("198.18.0.1/32", policy.PortRange{Protocol: service.UDP, First: 8080, Last: 8080}, policy.PortRange{Protocol: service.SCTP, Last: 65535})}, false, false},
		{"another address", []policy.Allow{l.allow("198.18.0.2/31"), l.allow("0.0.0.0/1")}, false, false},
		{"every port of TCP", []policy.Allow{l.allow("198.18.0.1/32", tcpPorts(0, 65535))}, true, false},
		{"every address but the node's", []policy.Allow{l.allow("198.18.0.0/30")}, true, false},
		{"all", []policy.Allow{l.allow("198.18.0.0/24")}, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l.t = t
			l.set(tc.allows...)
			if got := l.asks("172.11.0.5", 80); got != tc.outside {
				t.Errorf("the outside is reached: %t, want %t\n%s", got, tc.outside, l.table())
			}
			if got := l.asks("172.11.0.5", 81); got != tc.node {
				t.Errorf("the node is reached: %t, want %t\n%s", got, tc.node, l.table())
			}
			if !l.asks("172.11.0.6", 80) || !l.asks("172.11.0.6", 81) {
				t.Error("a pod that nobody judges does not reach the service")
			}
			if got := l.tcp(l.pods, "172.11.0.5", "198.18.0.1:8080", l.outside, "198.18.0.1:8080"); got == "" {
				t.Error("what is not translated is dropped here")
			}
		})
	}
	n, err := l.judge.Dropped(t.Context())
	l.ok(err)
	more, err := l.judge.Dropped(t.Context())
	l.ok(err)
	if n < 10 || more != 0 {
		t.Errorf("%d packets were counted, then %d", n, more)
	}
}

// exchange is an open flow between a pod and the outside, by the service.
type exchange struct {
	// ask and answer report whether a packet of one end comes to the other.
	ask, answer func() bool
}

func carries(from io.Writer, to net.Conn) bool {
	_ = to.SetReadDeadline(time.Now().Add(patience))
	if _, err := from.Write([]byte("x")); err != nil {
		return false
	}
	_, err := io.ReadFull(to, make([]byte, 1))
	return err == nil
}

func (l *judgeLab) openTCP() exchange {
	l.t.Helper()
	listener, err := ns.ListenTCP(ns.Path(l.outside), "198.18.0.1:8080")
	l.ok(err)
	defer listener.Close()
	var c net.Conn
	l.ok(ns.Do(l.pods, func() (err error) {
		c, err = (&net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: l.five.AsSlice()}}).Dial("tcp4", "10.96.0.10:80")
		return err
	}))
	at, err := listener.Accept()
	l.ok(err)
	l.t.Cleanup(func() { _ = c.Close(); _ = at.Close() })
	return exchange{func() bool { return carries(c, at) }, func() bool { return carries(at, c) }}
}

func (l *judgeLab) openUDP() exchange {
	l.t.Helper()
	var at *net.UDPConn
	var c net.Conn
	l.ok(ns.Do(l.outside, func() (err error) {
		at, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(198, 18, 0, 1), Port: 8080})
		return err
	}))
	l.ok(ns.Do(l.pods, func() (err error) {
		c, err = (&net.Dialer{LocalAddr: &net.UDPAddr{IP: l.five.AsSlice()}}).Dial("udp4", "10.96.0.10:53")
		return err
	}))
	l.t.Cleanup(func() { _ = c.Close(); _ = at.Close() })
	var client net.Addr
	return exchange{
		func() bool {
			_ = at.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Write([]byte("x")); err != nil {
				return false
			}
			_, who, err := at.ReadFrom(make([]byte, 1))
			if err == nil {
				client = who
			}
			return err == nil
		},
		func() bool {
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := at.WriteTo([]byte("x"), client); err != nil {
				return false
			}
			_, err := c.Read(make([]byte, 1))
			return err == nil
		},
	}
}

// TestJudgeRevokes: of open flows the next packet stops, whichever end sends it; what is allowed again
// goes on.
func TestJudgeRevokes(t *testing.T) {
	l := newJudgeLab(t)
	block := l.allow("198.18.0.0/24")
	for name, open := range map[string]func() exchange{"TCP": l.openTCP, "UDP": l.openUDP} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			l.set(block)
			e := open()
			if !e.ask() || !e.answer() {
				t.Fatal("what is allowed does not pass")
			}
			l.set()
			if e.answer() {
				t.Error("an answer passes that is not allowed any more")
			}
			if e.ask() {
				t.Error("a request passes that is not allowed any more")
			}
		})
	}
	t.Run("again", func(t *testing.T) {
		l.t = t
		l.set(block)
		e := l.openUDP()
		if !e.ask() {
			t.Fatal("what is allowed does not pass")
		}
		l.set()
		l.set(block)
		if !e.ask() || !e.answer() {
			t.Error("what is allowed again does not go on")
		}
	})
}

// TestJudgeErrors: an ICMP error about what is allowed comes to the pod.
func TestJudgeErrors(t *testing.T) {
	l := newJudgeLab(t)
	l.set(l.allow("198.18.0.1/32"))
	var err error
	l.ok(ns.Do(l.pods, func() error {
		c, dialed := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: l.five.AsSlice()}}).Dial("udp4", "10.96.0.10:53")
		if dialed != nil {
			return dialed
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return nil
	}))
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens, and the pod is told: %v", err)
	}
}

// TestJudgeWrites: what is there already is not written again, also by an agent that starts; what
// somebody changed is put right; what nobody needs goes.
func TestJudgeWrites(t *testing.T) {
	l := newJudgeLab(t)
	five := l.senders(l.allow("198.18.0.1/32", tcpPorts(8080, 8080)), l.allow("198.18.0.8/29"))
	l.ok(l.judge.Set(t.Context(), five))
	before := l.table()
	l.ok(l.judge.Set(t.Context(), five))
	again, err := NewJudge(l.ns)
	l.ok(err)
	l.ok(again.Set(t.Context(), five))
	if after := l.table(); after != before {
		t.Errorf("the table was written though nothing differed:\n%s\n%s", before, after)
	}
	plain := l.run(l.node, "nft", "-s", "list", "table", "ip", judgeTable)
	for _, breaks := range []string{
		"nft flush ruleset", "nft delete table ip k8s-ovs-policy", "nft flush table ip k8s-ovs-policy",
		"nft flush map ip k8s-ovs-policy senders", "nft insert rule ip k8s-ovs-policy forward accept",
		"nft add element ip k8s-ovs-policy senders { 172.11.0.6 : drop }", "nft flush chain ip k8s-ovs-policy input",
		"for c in $(nft list table ip k8s-ovs-policy | grep -o 'chain to-[0-9a-f]*' | cut -d' ' -f2); do nft insert rule ip k8s-ovs-policy $c accept; done",
		"nft delete table ip k8s-ovs-policy; nft add table ip k8s-ovs-policy",
	} {
		l.run(l.node, "sh", "-c", breaks)
		l.judge.Forget()
		l.ok(l.judge.Set(t.Context(), five))
		if got := l.run(l.node, "nft", "-s", "list", "table", "ip", judgeTable); got != plain {
			t.Errorf("after %s:\n%s\nnot\n%s", breaks, got, plain)
		}
	}

	// An agent that does not know yet what pods may reach leaves them what they had.
	starting, err := NewJudge(l.ns)
	l.ok(err)
	none := l.senders()
	six := netip.MustParseAddr("172.11.0.6")
	l.ok(starting.Set(t.Context(), Senders{l.services, map[netip.Addr]policy.Reach{six: none.Reach[l.five]}, func(a netip.Addr) bool { return a == l.five }}))
	if !strings.Contains(l.table(), "172.11.0.6 : goto") {
		t.Errorf("the new pod is missing in\n%s", l.table())
	}
	l.ok(starting.Set(t.Context(), Senders{l.services, map[netip.Addr]policy.Reach{l.five: none.Reach[l.five]}, func(a netip.Addr) bool { return a == l.five }}))
	for _, line := range strings.Split(plain, "\n") {
		if strings.HasPrefix(line, "\tchain") && !strings.Contains(l.table(), line) || strings.Contains(line, "172.11.0.5") && !strings.Contains(l.table(), strings.TrimSuffix(strings.TrimSpace(line), " }")) {
			t.Errorf("%s is not kept in\n%s", line, l.table())
		}
	}
	l.ok(starting.Set(t.Context(), Senders{l.services, map[netip.Addr]policy.Reach{six: none.Reach[l.five]}, func(netip.Addr) bool { return true }}))
	if strings.Contains(l.table(), "172.11.0.6") {
		t.Errorf("a pod that had nothing does not go on so:\n%s", l.table())
	}
	l.ok(starting.Set(t.Context(), Senders{netip.Prefix{}, map[netip.Addr]policy.Reach{six: none.Reach[l.five]}, func(netip.Addr) bool { return true }}))
	if got := l.run(l.node, "nft", "-s", "list", "table", "ip", judgeTable); !strings.Contains(got, "172.11.0.6") || strings.Contains(got, "10.96.0.0/12") {
		t.Errorf("with a table of another version pods go on with what it had:\n%s", got)
	}
	l.ok(starting.Set(t.Context(), none))
	if got := l.run(l.node, "nft", "-s", "list", "table", "ip", judgeTable); strings.Contains(got, judgePorts) || strings.Count(got, "chain "+judgeTo) != 1 || strings.Contains(got, "172.11.0.6") {
		t.Errorf("what nobody needs is left in\n%s", got)
	}
	l.ok(starting.Set(t.Context(), Senders{Services: l.services}))
	if got := l.run(l.node, "nft", "list", "tables"); strings.Contains(got, judgeTable) {
		t.Errorf("nobody is judged, and there is a table: %s", got)
	}
	if n, err := starting.Dropped(t.Context()); n != 0 || err != nil {
		t.Errorf("without a table %d packets are counted, %v", n, err)
	}
	l.ok(l.judge.Set(t.Context(), five))
	l.ok(starting.Remove(t.Context()))
	if got := l.run(l.node, "nft", "list", "tables"); strings.Contains(got, judgeTable) {
		t.Errorf("there is a table after Remove: %s", got)
	}
}
