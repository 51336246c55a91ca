package answers

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// tooLargeLab is a node with one pod, a peer whose path carries less than the pod's
// device, and a service whose only endpoint is on that peer.
type tooLargeLab struct {
	t         *testing.T
	node, pod string // namespaces
	proxy     pipeline.ServiceProxy
	table     *nodeflows.Table
	conn      *of.Conn
	told      *told
	seen      *seen
}

const pathMTU = 1300

var (
	labPod  = netip.MustParseAddr("172.11.0.2")
	labPeer = topology.Node{Host: "n2", HostIP: netip.MustParseAddr("198.18.0.2"), Subnet: netip.MustParsePrefix("172.11.4.0/22")}
	labSelf = topology.Node{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22")}
)

func (l *tooLargeLab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func newTooLargeLab(t *testing.T, proxy pipeline.ServiceProxy) *tooLargeLab {
	t.Helper()
	id := fmt.Sprintf("toobig-%d-", os.Getpid())
	l := &tooLargeLab{t: t, node: id + "node", pod: id + "pod", proxy: proxy}
	for _, name := range []string{l.node, l.pod} {
		l.ok(ns.Create(name))
		t.Cleanup(func() { _ = ns.Delete(name) })
	}
	o := ovstest.StartIn(t, ns.Path(l.node))
	o.AddBridge("br0", "netdev")
	o.VSCtl("add-port", "br0", "vxlan0", "--", "set", "Interface", "vxlan0", "type=vxlan", "options:key=flow", "options:remote_ip=flow", "ofport_request=1")
	o.VSCtl("add-port", "br0", "tun0", "--", "set", "Interface", "tun0", "type=internal", "ofport_request=2")
	l.plug(o)
	l.program(o)
	return l
}

// plug connects the pod, on port 12, and the host.
func (l *tooLargeLab) plug(o *ovstest.OVS) {
	gateway := labSelf.Gateway()
	l.ok(ns.IP(l.t.Context(), l.node, "link add pod0 type veth peer name eth0 address "+topology.MAC(labPod).String()+" netns "+l.pod, "link set pod0 up"))
	l.ok(ns.IP(l.t.Context(), l.pod, "link set eth0 up", "addr add "+labPod.String()+"/32 dev eth0", "route add "+gateway.String()+" dev eth0",
		"route add default via "+gateway.String(), "neigh add "+gateway.String()+" lladdr "+topology.MAC(gateway).String()+" dev eth0"))
	l.ok(ns.Do(l.pod, func() error { return ns.TxChecksumOff("eth0") }))
	o.VSCtl("add-port", "br0", "pod0", "--", "set", "Interface", "pod0", "ofport_request=12")
	l.ok(ns.IP(l.t.Context(), l.node, "addr add "+labSelf.HostIP.String()+"/32 dev lo"))
	host, err := link.Open(ns.Path(l.node))
	l.ok(err)
	l.t.Cleanup(func() { _ = host.Close() })
	h, err := hostnet.New(host)
	l.ok(err)
	c := topology.DefaultConfig()
	_, err = h.Ensure(l.t.Context(), hostnet.Spec{
		Device: "tun0", Gateway: gateway, NodeSubnet: labSelf.Subnet, ClusterNetwork: c.Network,
		ServiceNetwork: c.ServiceNetwork, ServiceProxy: l.proxy, TunnelPorts: []tunnel.Port{4789}, SwitchDevices: []string{"pod0"},
	})
	l.ok(err)
}

// seen counts what the table does and says.
type seen struct{ dropped, repaired atomic.Uint64 }

func (s *seen) Committed(string, int, float64)      {}
func (s *seen) Repaired(_ flowstore.Kind, n int)    { s.repaired.Add(uint64(n)) }
func (s *seen) Dropped(_ pipeline.Reason, n uint64) { s.dropped.Add(n) }

// told counts the senders that were told.
type told struct{ atomic.Uint64 }

func (t *told) Inc() { t.Add(1) }

// program connects a table, and who answers, to the switch.
func (l *tooLargeLab) program(o *ovstest.OVS) {
	l.seen, l.told = &seen{}, &told{}
	flows := flowstore.New(flowstore.Config{Areas: []flowstore.Area{nodeflows.Area()}, Observer: l.seen})
	table := nodeflows.New(labSelf.HostIP, []tunnel.Port{4789}, flows, l.seen)
	l.table = table
	ctx := l.t.Context()
	packets := make(chan of.PacketIn, 64)
	conn, err := of.Dial(ctx, o.Mgmt("br0"), of.WithPacketIns(func(p of.PacketIn) {
		select {
		case packets <- p:
		default:
		}
	}))
	l.ok(err)
	l.conn = conn
	answer := TooLarge{Table: table, Timeout: 10 * time.Second, Told: l.told, Logger: slog.New(slog.DiscardHandler)}
	var answering sync.WaitGroup
	answering.Go(func() {
		for {
			select {
			case p := <-packets:
				answer.Answer(conn, p)
			case <-conn.Done():
				return
			}
		}
	})
	l.t.Cleanup(func() { _ = conn.Close(); answering.Wait() })
	table.SetServiceProxy(l.proxy)
	l.ok(table.SetPathMTUs(ctx, map[netip.Addr]int{labPeer.HostIP: pathMTU}))
	l.ok(table.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}))
	id := netid.ID(10)
	_, _, err = table.SetRecords(ctx, topology.Snapshot{
		Revision: 1, Config: topology.DefaultConfig(),
		Nodes:      map[netip.Addr]topology.Node{labSelf.HostIP: labSelf, labPeer.HostIP: labPeer},
		Namespaces: map[string]topology.Namespace{"a": {NetName: "a", Effective: &id}},
	})
	if err != flowstore.ErrDisconnected {
		l.t.Fatal(err)
	}
	flows.Connect(l.conn)
	l.ok(table.Connected(ctx))
	l.ok(table.Attach(ctx, desired.Attached{Port: 12, Namespace: "a", MAC: topology.MAC(labPod), Addresses: []netip.Addr{labPod}}))
	l.ok(table.Serve(ctx, map[string]bool{"a": true}))
	l.serve()
}

// serve makes 10.96.0.10:53 a service of 172.11.4.9:5353.
func (l *tooLargeLab) serve() {
	model, _ := l.table.View()
	slot, _ := model.Slot("a")
	vip, endpoint := netip.MustParseAddr("10.96.0.10"), service.Endpoint{Address: netip.MustParseAddr("172.11.4.9"), Port: 5353}
	flows := append(model.ServiceAddress(pipeline.ServiceAddress{VIP: vip, Slot: slot}), model.Endpoint(service.UDP, endpoint)...)
	var mods []of.Mod
	if l.proxy == pipeline.OVS {
		more, group := model.ServicePort(pipeline.ServicePort{ID: 1, Port: service.Port{
			VIP: vip, Protocol: service.UDP, Port: 53, Endpoints: []service.Endpoint{endpoint},
		}})
		flows, mods = append(flows, more...), append(mods, of.AddGroup(group))
	} else {
		rules := "add table ip proxy; add chain ip proxy pre { type nat hook prerouting priority dstnat; }; add rule ip proxy pre ip daddr 10.96.0.10 udp dport 53 dnat to 172.11.4.9:5353"
		if out, err := exec.Command("ip", "netns", "exec", l.node, "nft", rules).CombinedOutput(); err != nil {
			l.t.Fatalf("%v: %s", err, out)
		}
	}
	for _, f := range flows {
		mods = append(mods, of.AddFlow(f))
	}
	l.ok(l.conn.Commit(l.t.Context(), mods))
}

// learned waits until a socket in the namespace has learned what the path to the address carries,
// by sending what is too large.
func (l *tooLargeLab) learned(namespace, to string) {
	l.t.Helper()
	var conn net.Conn
	l.ok(ns.Do(namespace, func() (err error) {
		conn, err = net.Dial("udp4", to)
		return err
	}))
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	l.ok(err)
	mtu := 0
	for deadline := time.Now().Add(10 * time.Second); mtu != pathMTU; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Errorf("%s: the path to %s has MTU %d, want %d", namespace, to, mtu, pathMTU)
			return
		}
		_, _ = conn.Write(make([]byte, 1400))
		l.ok(raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU) }))
		l.ok(err)
	}
}

// Senders on this node learn what the path to a peer carries: a pod, also where it
// sends to a service, and the node itself.
func TestTooLarge(t *testing.T) {
	for _, proxy := range []pipeline.ServiceProxy{pipeline.OVS, pipeline.KubeProxy} {
		t.Run(string(proxy), func(t *testing.T) { testTooLarge(t, newTooLargeLab(t, proxy)) })
	}
}

func testTooLarge(t *testing.T, l *tooLargeLab) {
	l.learned(l.pod, "172.11.4.8:9")
	l.learned(l.pod, "10.96.0.10:53")
	l.learned(l.node, "172.11.4.7:9")
	// Open vSwitch counts what a meter of the datapath sees by itself.
	l.ok(l.table.Resync(t.Context()))
	if n := l.seen.dropped.Load(); n < 3 {
		t.Errorf("%v packets are counted as too large, want at least 3", n)
	}
	if n := l.seen.repaired.Load(); n != 0 {
		t.Errorf("%v repairs, want none", n)
	}
	// A sender may know before the switch has confirmed the packet that told it.
	for deadline := time.Now().Add(10 * time.Second); l.told.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v senders were told, want at least 3", l.told.Load())
		}
	}
}
