package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
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

var (
	self    = netip.MustParseAddr("198.18.0.1")
	peer    = netip.MustParseAddr("198.18.0.2")
	gateway = netip.MustParseAddr("172.11.0.1")
	vip     = netip.MustParseAddr("10.96.0.10")
	labs    atomic.Int32
)

// podNames are the pods of a lab: pod i has address 172.11.0.(2+i) and is in the
// namespace that the name begins with. Namespace a has netID 10, b 11, g is global.
var podNames = []string{"a1", "a2", "b1", "g1"}

// lab is a node with a real bridge on the userspace datapath, pods, and the node's
// firewall.
type lab struct {
	*ovstest.OVS
	t     testing.TB
	id    string
	store *flowstore.Store
	base  *nodeflows.Table
	table *Table
	conn  *of.Conn
	rules *pipeline.Rules
	// repaired counts, ahead is how far its clock is.
	repaired int
	ahead    time.Duration
}

func newLab(t testing.TB, proxy pipeline.ServiceProxy) *lab {
	t.Helper()
	l := &lab{t: t, id: fmt.Sprintf("services-%d-%d-", os.Getpid(), labs.Add(1)), rules: pipeline.NewRules()}
	for _, n := range append([]string{"node"}, podNames...) {
		l.ok(ns.Create(l.id + n))
		t.Cleanup(func() { _ = ns.Delete(l.id + n) })
	}
	l.OVS = ovstest.StartIn(t, ns.Path(l.id+"node"))
	l.AddBridge("br0", "netdev")
	l.VSCtl("add-port", "br0", "vxlan0", "--", "set", "Interface", "vxlan0", "type=vxlan", "options:key=flow", "options:remote_ip=flow", "ofport_request=1")
	l.VSCtl("add-port", "br0", "tun0", "--", "set", "Interface", "tun0", "type=internal", "ofport_request=2")
	l.host(proxy)
	l.store = flowstore.New(flowstore.Config{
		Areas: []flowstore.Area{nodeflows.Area(), Area(), ruleArea()}, Observer: l, Now: func() time.Time { return time.Now().Add(l.ahead) },
	})
	l.base = nodeflows.New(self, []tunnel.Port{4789}, l.store, l)
	l.base.SetServiceProxy(proxy)
	l.table = New(Config{
		Base: l.base, Store: l.store, Tracker: l.store, Public: []service.Key{{Namespace: "b", Name: "public"}},
		Logger: slog.New(slog.DiscardHandler),
	})
	ctx := context.Background()
	var err error
	l.conn, err = of.Dial(ctx, l.Mgmt("br0"))
	l.ok(err)
	t.Cleanup(func() { l.conn.Close() })
	if _, _, err := l.base.SetRecords(ctx, records(10)); !errors.Is(err, flowstore.ErrNotReady) {
		t.Fatal(err)
	}
	l.base.SetPorts(ctx, desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2})
	l.store.Connect(l.conn)
	l.ok(l.base.Connected(ctx))
	l.ok(l.table.Connected(ctx))
	var none flowstore.Change
	none.All(ruleArea().Kinds...)
	_, err = l.store.Set(ctx, none)
	l.ok(err)
	for i, name := range podNames {
		l.pod(i, name)
	}
	return l
}

func (l *lab) Committed(string, int, float64)   {}
func (l *lab) Repaired(_ flowstore.Kind, n int) { l.repaired += n }
func (l *lab) Dropped(pipeline.Reason, uint64)  {}

// records are this node and a peer, and namespaces a with the netID given, b with 11, and g.
func records(a netid.ID) topology.Snapshot {
	b, g := netid.ID(11), netid.Global
	s := topology.Snapshot{
		Revision: 1, Config: topology.DefaultConfig(),
		Nodes: map[netip.Addr]topology.Node{
			self: {Host: "n1", HostIP: self, Subnet: netip.MustParsePrefix("172.11.0.0/22")},
			peer: {Host: "n2", HostIP: peer, Subnet: netip.MustParsePrefix("172.11.4.0/22")},
		},
		Namespaces: map[string]topology.Namespace{},
	}
	for name, id := range map[string]*netid.ID{"a": &a, "b": &b, "g": &g} {
		s.Namespaces[name] = topology.Namespace{NetName: name, Effective: id}
	}
	return s
}

// host is the node's side: address self, gateway and firewall.
func (l *lab) host(proxy pipeline.ServiceProxy) {
	l.ip("node", "addr add "+self.String()+"/32 dev lo", "route add 203.0.113.0/24 dev lo")
	n, err := link.Open(ns.Path(l.id + "node"))
	l.ok(err)
	l.t.Cleanup(func() { _ = n.Close() })
	h, err := hostnet.New(n)
	l.ok(err)
	c := topology.DefaultConfig()
	_, err = h.Ensure(context.Background(), hostnet.Spec{
		Device: "tun0", Gateway: gateway, NodeSubnet: netip.MustParsePrefix("172.11.0.0/22"), ClusterNetwork: c.Network,
		ServiceNetwork: c.ServiceNetwork, ServiceProxy: proxy, TunnelPorts: []tunnel.Port{4789}, SwitchDevices: []string{"ovs*"},
	})
	l.ok(err)
}

func podAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 11, 0, byte(2 + i)}) }

// pod plugs a pod in, with servers on TCP and UDP port 8080.
func (l *lab) pod(i int, name string) {
	l.t.Helper()
	port, mac := fmt.Sprintf("ovs%d", i), topology.MAC(podAddr(i)).String()
	l.ip("node", "link add "+port+" type veth peer name eth0 address "+mac+" netns "+l.id+name, "link set "+port+" up")
	l.ip(name, "link set eth0 up", fmt.Sprintf("addr add %s/32 dev eth0", podAddr(i)), "route add 172.11.0.1 dev eth0",
		"route add default via 172.11.0.1", "neigh add 172.11.0.1 lladdr "+topology.MAC(gateway).String()+" dev eth0")
	l.ok(ns.Do(l.id+name, func() error { return ns.TxChecksumOff("eth0") }))
	l.VSCtl("add-port", "br0", port, "--", "set", "Interface", port, fmt.Sprintf("ofport_request=%d", 10+i))
	l.ok(l.base.Attach(context.Background(), desired.Attached{
		Port: uint32(10 + i), Namespace: name[:1], MAC: topology.MAC(podAddr(i)), Addresses: []netip.Addr{podAddr(i)},
	}))
	l.serve(name)
}

// serve answers on port 8080: over TCP with one line, the server's name and the
// client's address, then what comes; over UDP with the name, the client's address and
// what came.
func (l *lab) serve(name string) {
	l.t.Helper()
	tcp, err := ns.ListenTCP(ns.Path(l.id+name), "0.0.0.0:8080")
	l.ok(err)
	l.t.Cleanup(func() { _ = tcp.Close() })
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr().(*net.TCPAddr).IP)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	bind := "0.0.0.0:8080"
	if name == "node" {
		bind = self.String() + ":8080" // or it would answer from the gateway's address
	}
	udp, err := ns.ListenUDP(ns.Path(l.id+name), bind)
	l.ok(err)
	l.t.Cleanup(func() { _ = udp.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s\n%s", name, from.Addr(), buf[:n]), from)
		}
	}()
}

func (l *lab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) ip(name string, lines ...string) {
	l.t.Helper()
	l.ok(ns.IP(context.Background(), l.id+name, lines...))
}

// patience is how long something may take that is expected not to work. What
// works takes a millisecond, and longer only on a busy machine.
const patience = 400 * time.Millisecond

// busy is how long something may take that is expected to work.
const busy = 10 * time.Second

// tcp connects from a pod and returns the server's name and whom it takes for its
// client; or "refused", or "nothing".
func (l *lab) tcp(from, dst string) string {
	l.t.Helper()
	c, answer := l.dial(from, dst)
	if c != nil {
		_ = c.Close()
	}
	return answer
}

// dial is tcp with the connection left open.
func (l *lab) dial(from, dst string) (net.Conn, string) {
	l.t.Helper()
	c, err := ns.DialTCP(ns.Path(l.id+from), dst, patience)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, "refused"
	}
	if err != nil {
		return nil, "nothing"
	}
	line := make([]byte, 100)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _ := c.Read(line)
	return c, strings.TrimSpace(string(line[:n]))
}

// echo reports whether an open connection still works, within the time given.
func echo(c net.Conn, wait time.Duration) bool {
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err == nil
}

// udp is a client's socket at a pod.
type udp struct {
	l *lab
	c *net.UDPConn
}

func (l *lab) udp(from, dst string) udp {
	l.t.Helper()
	var c *net.UDPConn
	l.ok(ns.Do(l.id+from, func() (err error) {
		c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(dst)))
		return err
	}))
	l.t.Cleanup(func() { _ = c.Close() })
	return udp{l, c}
}

// ask sends n bytes and returns what tcp returns.
func (u udp) ask(n int) string {
	_ = u.c.SetDeadline(time.Now().Add(patience))
	if _, err := u.c.Write([]byte(strings.Repeat("x", n))); err != nil {
		return "refused"
	}
	buf := make([]byte, 1<<16)
	got, err := u.c.Read(buf)
	if errors.Is(err, unix.ECONNREFUSED) {
		return "refused"
	}
	if err != nil {
		return "nothing"
	}
	who, data, _ := strings.Cut(string(buf[:got]), "\n")
	if len(data) != n {
		return fmt.Sprintf("%s: %d bytes came back of %d", who, len(data), n)
	}
	return who
}

// failed waits until the socket learns, without sending anything, that its datagrams
// find no port: by an ICMP error whose address and port are those that it sends to.
func (u udp) failed() {
	u.l.t.Helper()
	_ = u.c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := u.c.Read(make([]byte, 1<<16)); !errors.Is(err, unix.ECONNREFUSED) {
		u.l.t.Errorf("%v had %d bytes (%v), want an ICMP error from %v", u.c.LocalAddr(), n, err, u.c.RemoteAddr())
	}
}

// eventually waits until ok; the test fails when that takes long.
func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: not in 10 s", what)
		}
	}
}

// svc is a service of namespace a with the ports given.
func svc(ports ...service.Port) service.Service {
	return service.Service{Key: service.Key{Namespace: "a", Name: "web"}, Ports: ports}
}

func tcpPort(endpoints ...string) service.Port {
	return service.Port{VIP: vip, Protocol: service.TCP, Port: 80, Endpoints: ends(endpoints)}
}

func udpPort(port uint16, endpoints ...string) service.Port {
	return service.Port{VIP: vip, Protocol: service.UDP, Port: port, Endpoints: ends(endpoints)}
}

// ends are port 8080 of the pods and addresses named.
func ends(names []string) []service.Endpoint {
	var out []service.Endpoint
	for _, name := range names {
		a, err := netip.ParseAddr(name)
		for i, n := range podNames {
			if n == name {
				a, err = podAddr(i), nil
			}
		}
		if err != nil {
			panic(err)
		}
		out = append(out, service.Endpoint{Address: a, Port: 8080})
	}
	return out
}

// set makes services all there are, and returns when packets follow.
func (l *lab) set(all ...service.Service) {
	l.t.Helper()
	u := service.Update{Full: true, Services: map[service.Key]service.Service{}}
	for _, s := range all {
		u.Services[s.Key] = s
	}
	l.ok(l.table.Update(context.Background(), u))
	l.settle()
}

// settle returns when the datapath has compared what it cached with the flows.
func (l *lab) settle() {
	l.t.Helper()
	for range 2 {
		l.ok(l.base.Nudge(context.Background()))
		l.AppCtl("revalidator/wait")
	}
}
