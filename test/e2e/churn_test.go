package e2e

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestPodsComeAndGo: nobody loses a packet because pods of others come and go, on
// one node or between nodes.
func TestPodsComeAndGo(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "red/c"}, "n2": {"red/d", "red/e", "red/f"}})
	pods, err := l.Pods()
	l.must(err)
	p, err := probe.Open(netlab.Endpoints(pods))
	l.must(err)
	defer func() { l.must(p.Close()) }()
	run := p.Start(probe.Exactly(everybody), probe.RunOptions{Interval: 10 * time.Millisecond, Protocols: []probe.Protocol{probe.UDP}})
	l.traffic(run, 20)
	for i := range 10 { // with the race detector a plugin needs a second to end
		for _, namespace := range []string{"red", "blue"} {
			l.must(l.DelPod(t.Context(), l.pod("n1", fmt.Sprintf("%s/passing%d", namespace, i))))
		}
	}
	l.traffic(run, 20)
	report := run.Stop()
	if err := report.Err(); err != nil {
		t.Errorf("while pods came and went: %v", err)
	}
}

// TestFirstPacket: a pod's first packet is not lost, also when ADD is only just answered and
// ovs-vswitchd still takes in the ports of others.
func TestFirstPacket(t *testing.T) {
	long(t)
	const rounds, atOnce, idle = 3, 8, 30
	l := up(t, netlab.Options{Nodes: 1})
	server := l.pod("n1", "red/server")
	l.answers(server)
	var others []string
	for i := range idle {
		others = append(others, fmt.Sprintf("red/idle-%d", i))
	}
	l.pods(map[string][]string{"n1": others})
	first := func(name string) error {
		p, err := l.AddPod(t.Context(), "n1", "red", name, netlab.PodOptions{})
		if err != nil {
			return err
		}
		var conn net.Conn
		if err := ns.DoPath(p.Sandbox(), func() (err error) { conn, err = net.Dial("udp4", server.IP.String()+":8080"); return err }); err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if who := ask(conn, 1); who != server.String() {
			t.Errorf("the first packet of %s is answered by %s", p, who)
		}
		return l.DelPod(t.Context(), p)
	}
	for round := range rounds {
		var pods errgroup.Group
		for i := range atOnce {
			pods.Go(func() error { return first(fmt.Sprintf("new-%d-%d", round, i)) })
		}
		l.must(pods.Wait())
	}
}

// TestVswitchdPaused: packets that come while ovs-vswitchd waits for a processor wait
// for it, and are not lost.
func TestVswitchdPaused(t *testing.T) {
	const pause = 300 * time.Millisecond
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "red/c"}, "n2": {"red/d", "red/e", "red/f"}})
	l.roomForPackets("n1", "n2")
	pods, err := l.Pods()
	l.must(err)
	p, err := probe.Open(netlab.Endpoints(pods))
	l.must(err)
	defer func() { l.must(p.Close()) }()
	run := p.Start(probe.Exactly(everybody), probe.RunOptions{Interval: 5 * time.Millisecond, Protocols: []probe.Protocol{probe.UDP, probe.Ping}, Grace: 5 * time.Second})
	l.traffic(run, 20)
	vswitchd := l.Process("n2/ovs-vswitchd")
	l.must(vswitchd.Suspend())
	time.Sleep(pause)
	l.must(vswitchd.Resume())
	l.traffic(run, 20)
	report := run.Stop()
	if err := report.Err(); err != nil {
		t.Errorf("while ovs-vswitchd was paused: %v", err)
	}
}

// packetSocket finds device and size of the receive buffer in what ss(8) says of a packet socket.
var packetSocket = regexp.MustCompile(`\*:(\S+) .*skmem:\(r\d+,rb(\d+),`)

// roomForPackets waits until packets have room while they wait for ovs-vswitchd: the
// agent makes it within a second after a port has come.
func (l *lab) roomForPackets(nodes ...string) {
	l.t.Helper()
	const least = 1 << 20 // bytes
	for _, node := range nodes {
		l.eventually("room for packets on "+node, 10*time.Second, func() error {
			out, err := l.NodeExec(l.t.Context(), node, "ss", "--packet", "--all", "--memory")
			if err != nil {
				return err
			}
			for _, found := range packetSocket.FindAllStringSubmatch(out, -1) {
				if size, err := strconv.Atoi(found[2]); err != nil || size < least {
					return fmt.Errorf("%s has %s bytes", found[1], found[2])
				}
			}
			return nil
		})
	}
}

// TestSystemRoutes: with an ovs-vswitchd that also reads the kernel's routes, as it
// does where it is the node's own service, all is the same.
func TestSystemRoutes(t *testing.T) {
	apart := tenants{"red": "1", "blue": "2"}.allowed
	l := up(t, netlab.Options{SystemRoutes: true})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b", "blue/b"}})
	l.requireMatrix("at first", apart)
	l.must(l.OVS("n1").KillVswitchd())
	l.must(l.OVS("n1").StartVswitchd(t.Context()))
	l.waitMatrix("after ovs-vswitchd has started anew", 30*time.Second, apart)
}
