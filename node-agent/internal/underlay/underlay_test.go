package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

var labs atomic.Int32

// node is a namespace with an Open vSwitch, and eth0 to a wire.
type node struct {
	t       testing.TB
	name    string
	ns      *link.NS
	vswitch *ovstest.OVS
	client  *ovs.Client
	setup   *Setup
}

// wire is a namespace with a bridge that all nodes are connected to; it is also
// the router 192.0.2.254.
func newWire(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("underlay-%d-%d", os.Getpid(), labs.Add(1))
	create(t, name)
	ip(t, name, "link add wire type bridge", "link set wire up", "addr add 192.0.2.254/24 dev wire", "addr add 203.0.113.1/32 dev lo")
	return name
}

func create(t testing.TB, name string) {
	t.Helper()
	if err := ns.Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Delete(name) })
}

func ip(t testing.TB, name string, lines ...string) {
	t.Helper()
	if err := ns.IP(context.Background(), name, lines...); err != nil {
		t.Fatal(err)
	}
}

func show(t testing.TB, name, args string) string {
	t.Helper()
	out, err := ns.Output(context.Background(), name, strings.Fields(args)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func newNode(t testing.TB, wire string, number int) *node {
	t.Helper()
	n := &node{t: t, name: fmt.Sprintf("%s-n%d", wire, number)}
	create(t, n.name)
	port := fmt.Sprint("port", number)
	ip(t, wire, "link add "+port+" mtu 1500 master wire type veth peer name eth0 netns "+n.name, "link set "+port+" up")
	ip(t, n.name, "link set eth0 up", fmt.Sprintf("addr add 192.0.2.%d/24 dev eth0", number), "route add default via 192.0.2.254 metric 100 proto dhcp")
	n.vswitch = ovstest.StartIn(t, ns.Path(n.name))
	var err error
	if n.ns, err = link.Open(ns.Path(n.name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.ns.Close() })
	if n.client, err = ovs.Connect(within(t, 10*time.Second), ovs.Config{Endpoint: "unix:" + n.vswitch.DB, RunDir: n.vswitch.RunDir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.client.Close)
	n.setup = New(Config{Datapath: ovs.DatapathNetdev}, n.ns, n.client)
	return n
}

// ensure calls Ensure and checks whether it found something to do.
func (n *node) ensure(want bool) Underlay {
	n.t.Helper()
	u, changed, err := n.setup.Ensure(within(n.t, 20*time.Second))
	if err != nil {
		n.t.Fatal(err)
	}
	if changed != want {
		n.t.Errorf("Ensure: changed %t, want %t", changed, want)
	}
	return u
}

// pings sends packets and returns how many answers came to them, duplicates included. Without a deadline ping ends
// twice the longest round trip after the last packet; with one it sends on until as many are answered as asked for,
// and what it sent beyond does not count.
func (n *node) pings(count int, args ...string) (answers int) {
	n.t.Helper()
	args = append([]string{"netns", "exec", n.name, "ping", "-n", "-i", "0.02", "-w", "5", "-c", fmt.Sprint(count)}, args...)
	out, _ := exec.Command("ip", args...).CombinedOutput()
	for _, m := range answered.FindAllSubmatch(out, -1) {
		if seq, err := strconv.Atoi(string(m[1])); err == nil && seq <= count {
			answers++
		}
	}
	return answers
}

var answered = regexp.MustCompile(`bytes from .* icmp_seq=(\d+)`)

// reaches is how many of 5 packets are answered once one was: a switch that is still learning, and
// whoever looks up a neighbour, may lose the first.
func (n *node) reaches(address string) int {
	n.t.Helper()
	for range 10 {
		if n.pings(1, address) == 1 {
			break
		}
	}
	return n.pings(5, address)
}

func TestMoveAndBack(t *testing.T) {
	wire := newWire(t)
	n := newNode(t, wire, 1)
	before := show(t, n.name, "route show") + show(t, n.name, "-4 -o addr show dev eth0")
	want := Underlay{VTEP: netip.MustParseAddr("192.0.2.1"), Link: "br-phy", MTU: 1500, Narrowest: "eth0", Uplink: "eth0"}
	if d := cmp.Diff(want, n.ensure(true), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("underlay (-want +got):\n%s", d)
	}
	for range 2 {
		n.ensure(false)
	}
	if got := show(t, n.name, "-4 addr show dev eth0"); got != "" {
		t.Errorf("eth0 still has an address: %s", got)
	}
	for _, want := range []string{"default via 192.0.2.254 dev br-phy proto dhcp metric 100", "192.0.2.0/24 dev br-phy proto kernel scope link src 192.0.2.1"} {
		if got := show(t, n.name, "route show"); !strings.Contains(got, want) {
			t.Errorf("routes lack %q:\n%s", want, got)
		}
	}
	uplink, _, _ := n.ns.Link("eth0")
	local, _, _ := n.ns.Link("br-phy")
	if uplink.MAC.String() != local.MAC.String() {
		t.Errorf("br-phy has MAC %s, not the uplink's %s: neighbours have to learn again", local.MAC, uplink.MAC)
	}
	// Beyond the router, and each answered once: the kernel does not answer on
	// the uplink as well.
	if got := n.pings(10, "203.0.113.1"); got != 10 {
		t.Errorf("%d answers to 10 packets to the outside", got)
	}
	other := &node{t: t, name: wire}
	if got := other.pings(10, "192.0.2.1"); got != 10 {
		t.Errorf("%d answers to 10 packets from the wire: lost, or answered twice", got)
	}
	if err := n.setup.Remove(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if after := show(t, n.name, "route show") + show(t, n.name, "-4 -o addr show dev eth0"); words(after) != words(before) {
		t.Errorf("before:\n%safter removal:\n%s", before, after)
	}
	if got := n.pings(3, "203.0.113.1"); got != 3 {
		t.Errorf("%d answers to 3 packets after removal", got)
	}
}

// words leaves out the broadcast address, which netlink adds and nobody needs.
func words(s string) string {
	return strings.Join(strings.Fields(regexp.MustCompile(`brd \S+`).ReplaceAllString(s, "")), " ")
}

// Two nodes, a tunnel between them, full-size packets.
func TestTunnelBetweenTwoNodes(t *testing.T) {
	wire := newWire(t)
	nodes := []*node{newNode(t, wire, 1), newNode(t, wire, 2)}
	for i, n := range nodes {
		u := n.ensure(true)
		ctx := within(t, 10*time.Second)
		if _, err := n.client.EnsureBridge(ctx, ovs.BridgeSpec{Name: "br0", DatapathType: ovs.DatapathNetdev, FailMode: ovs.FailStandalone, LocalMTU: u.MTU - 50}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.client.EnsurePort(ctx, "br0", ovs.PortSpec{Name: "vxlan0", Type: "vxlan", Options: map[string]string{"remote_ip": fmt.Sprintf("192.0.2.%d", 2-i), "key": "77"}}); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"br0", "vxlan0"} {
			if _, err := n.client.WaitOfport(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
		ip(t, n.name, "link set br0 up", fmt.Sprintf("addr add 10.1.0.%d/24 dev br0", i+1))
	}
	nodes[0].pings(20, "-c1", "10.1.0.2") // the tunnel's neighbour is looked up with the first packet, which is lost
	if got := nodes[0].pings(10, "-M", "do", "-s", fmt.Sprint(1450-28), "10.1.0.2"); got != 10 {
		t.Errorf("%d answers to 10 full-size packets over the tunnel", got)
	}
	// Also when the local port was made anew, which takes along what the tunnel knows of neighbours.
	ip(t, nodes[0].name, "link del br-phy")
	nodes[0].ensure(true)
	if err := nodes[0].ns.ProbeNeighbour(netip.MustParseAddr("192.0.2.2")); err != nil {
		t.Fatal(err)
	}
	if got := nodes[0].reaches("10.1.0.2"); got != 5 {
		t.Errorf("%d answers to 5 packets over the tunnel after the local port was lost", got)
	}
}

// ovs-vswitchd takes the local port with it when it ends in order, and leaves it
// when it crashes (it makes the tap device persistent while it runs). The address and
// the routes must be there again at once either way, and with them the tunnels.
func TestVswitchdAway(t *testing.T) {
	for _, crash := range []bool{true, false} {
		t.Run(fmt.Sprintf("crash=%t", crash), func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			n.ensure(true)
			routes, addrs := show(t, n.name, "route show"), show(t, n.name, "-4 addr show br-phy")
			for round := range 3 {
				if crash {
					n.vswitch.KillVswitchd()
				} else {
					n.stopVswitchd("br-phy")
					if _, _, err := n.setup.Ensure(within(t, 100*time.Millisecond)); err == nil || !strings.Contains(err.Error(), "ovs-vswitchd") {
						t.Errorf("without ovs-vswitchd: %v", err)
					}
				}
				n.vswitch.StartVswitchd()
				began := time.Now()
				n.ensure(!crash)
				t.Logf("round %d: restored in %v", round, time.Since(began))
				if got := show(t, n.name, "route show"); got != routes {
					t.Errorf("routes before:\n%safter:\n%s", routes, got)
				}
				if got := addresses(show(t, n.name, "-4 addr show br-phy")); got != addresses(addrs) {
					t.Errorf("addresses before %s, after %s", addresses(addrs), got)
				}
				n.ensure(false)
				if got := n.reaches("203.0.113.1"); got != 5 {
					t.Errorf("%d answers to 5 packets after the restart", got)
				}
			}
		})
	}
}

// stopVswitchd leaves behind what ovs-vswitchd leaves when it ends in order: no device.
func (n *node) stopVswitchd(device string) {
	n.t.Helper()
	n.vswitch.KillVswitchd()
	ip(n.t, n.name, "link del "+device)
}

func addresses(s string) string {
	return strings.Join(regexp.MustCompile(`inet \S+`).FindAllString(s, -1), " ")
}

// The node's start scripts give the uplink its address back at boot, while the
// bridge comes up from the database.
func TestAddressOnBoth(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.ensure(true)
	ip(t, n.name, "addr add 192.0.2.1/24 dev eth0")
	n.stopVswitchd("br-phy")
	n.vswitch.StartVswitchd()
	if u := n.ensure(true); u.Link != "br-phy" {
		t.Errorf("the address is used on %s", u.Link)
	}
	if got := show(t, n.name, "-4 addr show dev eth0"); got != "" {
		t.Errorf("eth0 keeps the address: %s", got)
	}
	if got := n.reaches("203.0.113.1"); got != 5 {
		t.Errorf("%d answers to 5 packets", got)
	}
	// What was added to the bridge by hand is remembered, too.
	ip(t, n.name, "route add 198.51.100.0/24 via 192.0.2.254 dev br-phy")
	n.ensure(false)
	n.stopVswitchd("br-phy")
	n.vswitch.StartVswitchd()
	n.ensure(true)
	if got := show(t, n.name, "route show"); !strings.Contains(got, "198.51.100.0/24 via 192.0.2.254") {
		t.Errorf("the route of the operator is lost:\n%s", got)
	}
}

func TestUplinkMTUChanges(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.ensure(true)
	// The wire's port takes them all.
	for _, mtu := range []int{1400, 9000, 1280} {
		ip(t, n.name, fmt.Sprintf("link set eth0 mtu %d", mtu))
		if name, now, err := n.setup.Narrowest(Underlay{Link: "br-phy", Uplink: "eth0"}); name != "eth0" || now != mtu || err != nil {
			t.Errorf("narrowest %s, %d, %v", name, now, err)
		}
		if u := n.ensure(true); u.MTU != mtu {
			t.Errorf("MTU %d, want the uplink's %d", u.MTU, mtu)
		}
		if l, _, _ := n.ns.Link("br-phy"); l.MTU != mtu {
			t.Errorf("br-phy has MTU %d, want %d", l.MTU, mtu)
		}
	}
	n.ensure(false)
}

// A lease that changed while the machine was off: the uplink has a new address,
// the database remembers the old one.
func TestNewAddressAtBoot(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.ensure(true)
	n.stopVswitchd("br-phy")
	ip(t, n.name, "addr add 192.0.2.99/24 dev eth0", "route add default via 192.0.2.254 dev eth0 metric 100")
	n.vswitch.StartVswitchd()
	if u := n.ensure(true); u.VTEP != netip.MustParseAddr("192.0.2.99") || u.Link != "br-phy" {
		t.Errorf("underlay %+v", u)
	}
	n.ensure(false)
	if got := addresses(show(t, n.name, "-4 addr show")); got != "inet 127.0.0.1/8 inet 192.0.2.99/24" {
		t.Errorf("addresses %s", got)
	}
	if got := n.reaches("203.0.113.1"); got != 5 {
		t.Errorf("%d answers to 5 packets", got)
	}
}

// A default route out of another device does not change which address is the node's.
func TestOtherDefaultRoute(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.ensure(true)
	ip(t, n.name, "link add v0 type veth peer name v1", "link set v0 up", "link set v1 up", "addr add 198.18.9.1/24 dev v0", "route add default via 198.18.9.2 metric 5")
	for range 2 {
		if u := n.ensure(false); u.VTEP != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("underlay %+v", u)
		}
		n.stopVswitchd("br-phy")
		n.vswitch.StartVswitchd()
		n.ensure(true)
	}
}

// Where the bridge does not come up the node keeps its address where it was.
func TestFailureIsUndone(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	before := show(t, n.name, "route show") + show(t, n.name, "-4 addr show")
	n.vswitch.KillVswitchd()
	_, _, err := n.setup.Ensure(within(t, 200*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "br-phy") {
		t.Errorf("without ovs-vswitchd: %v", err)
	}
	if after := show(t, n.name, "route show") + show(t, n.name, "-4 addr show"); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
	if got := n.pings(3, "203.0.113.1"); got != 3 {
		t.Errorf("%d answers to 3 packets: the node is cut off", got)
	}
	if _, ok := n.client.Bridge("br-phy"); ok {
		t.Error("br-phy is left in the database")
	}
	n.vswitch.StartVswitchd()
	n.ensure(true)
}

func TestUnsuitableUplinks(t *testing.T) {
	tests := []struct {
		name   string
		nodeIP string
		setup  []string
		vsctl  string
		want   string
	}{
		{"nobody's address", "192.0.2.77", nil, "", "no network device has the node address 192.0.2.77"},
		{"loopback", "203.0.113.9", []string{"addr add 203.0.113.9/32 dev lo"}, "", "loopback lo"},
		{"bridge port", "192.0.2.1", []string{"link add br9 type bridge", "link set br9 up", "link set eth0 master br9"}, "", "belongs to bridge br9"},
		{"port of another switch", "192.0.2.1", nil, "add-br br-ex -- set bridge br-ex datapath_type=netdev -- add-port br-ex eth0", "port of Open vSwitch bridge br-ex"},
		{"not IPv4", "2001:db8::1", nil, "", "not an IPv4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			if tt.setup != nil {
				ip(t, n.name, tt.setup...)
			}
			if tt.vsctl != "" {
				n.vswitch.VSCtl(strings.Fields(tt.vsctl)...)
				if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			before := show(t, n.name, "route show") + show(t, n.name, "-4 addr show") + n.vswitch.VSCtl("list-br")
			setup := New(Config{Datapath: ovs.DatapathNetdev, NodeIP: netip.MustParseAddr(tt.nodeIP)}, n.ns, n.client)
			_, _, err := setup.Ensure(within(t, 5*time.Second))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want %q in it", err, tt.want)
			}
			if after := show(t, n.name, "route show") + show(t, n.name, "-4 addr show") + n.vswitch.VSCtl("list-br"); after != before {
				t.Errorf("a refusal changed something:\n%s\n%s", before, after)
			}
		})
	}
}

// A bridge of somebody else with the address on it is used, and only its own
// address is put back.
func TestBridgeIsGiven(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.vswitch.VSCtl("add-br", "br-ex", "--", "set", "bridge", "br-ex", "datapath_type=netdev", "--", "add-port", "br-ex", "eth0")
	ip(t, n.name, "addr flush dev eth0", "link set br-ex up", "addr add 192.0.2.1/24 dev br-ex", "route add default via 192.0.2.254", "route add 198.51.100.0/24 via 192.0.2.254")
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if u := n.ensure(false); u.Link != "br-ex" || u.Uplink != "" {
		t.Errorf("underlay %+v", u)
	}
	ip(t, n.name, "route del 198.51.100.0/24")
	n.ensure(false)
	n.stopVswitchd("br-ex")
	n.vswitch.StartVswitchd()
	n.ensure(true)
	routes := show(t, n.name, "route show")
	if !strings.Contains(routes, "default via 192.0.2.254 dev br-ex") || strings.Contains(routes, "198.51.100.0") {
		t.Errorf("routes after the restart:\n%s", routes)
	}
	if got := strings.Fields(n.vswitch.VSCtl("list-br")); !cmp.Equal(got, []string{"br-ex"}) {
		t.Errorf("bridges %v", got)
	}
	if err := n.setup.Remove(within(t, 5*time.Second)); err != nil || !strings.Contains(show(t, n.name, "-4 addr show br-ex"), "192.0.2.1") {
		t.Errorf("Remove touched a bridge of somebody else (%v)", err)
	}
}

func TestSystemDatapath(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.setup = New(Config{Datapath: ovs.DatapathSystem}, n.ns, n.client)
	if u := n.ensure(false); u != (Underlay{VTEP: netip.MustParseAddr("192.0.2.1"), Link: "eth0", MTU: 1500, Narrowest: "eth0"}) {
		t.Errorf("underlay %+v", u)
	}
	ip(t, n.name, "link set eth0 mtu 9000")
	if u := n.ensure(false); u.MTU != 9000 {
		t.Errorf("MTU %d, want the link's 9000", u.MTU)
	}
	// Routed hosts have it there: routes say the rest.
	loopback := netip.MustParseAddr("192.0.2.77")
	ip(t, n.name, "addr add 192.0.2.77/32 dev lo")
	n.setup = New(Config{Datapath: ovs.DatapathSystem, NodeIP: loopback}, n.ns, n.client)
	if u := n.ensure(false); u != (Underlay{VTEP: loopback, Link: "lo"}) {
		t.Errorf("underlay %+v", u)
	}
	n.setup = New(Config{Datapath: ovs.DatapathNetdev, NodeIP: loopback}, n.ns, n.client)
	if _, _, err := n.setup.Ensure(within(t, time.Second)); err == nil || !strings.Contains(err.Error(), "loopback lo, which cannot be an uplink") {
		t.Errorf("node address on loopback: %v", err)
	}
}

// What the move costs running traffic: a packet every 10 ms from the wire.
func TestMoveUnderTraffic(t *testing.T) {
	wire := newWire(t)
	n := newNode(t, wire, 1)
	const count = 150
	answers := make(chan int)
	started := make(chan struct{})
	go func() {
		cmd := exec.Command("ip", "netns", "exec", wire, "ping", "-n", "-i", "0.01", "-W", "1", "-c", fmt.Sprint(count), "192.0.2.1")
		out, _ := cmd.StdoutPipe()
		_ = cmd.Start()
		got, first := "", true
		buf := make([]byte, 4096)
		for {
			k, err := out.Read(buf)
			got += string(buf[:k])
			if first && strings.Contains(got, "bytes from") {
				close(started)
				first = false
			}
			if err != nil {
				break
			}
		}
		_ = cmd.Wait()
		answers <- strings.Count(got, "bytes from")
	}()
	<-started
	began := time.Now()
	n.ensure(true)
	took := time.Since(began)
	got := <-answers
	t.Logf("the move took %v; %d answers to %d packets", took, got, count)
	if got < count*9/10 {
		t.Errorf("%d answers to %d packets", got, count)
	}
}

// Each device below the node's address counts, and only those.
func TestNarrowest(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.setup = New(Config{Datapath: ovs.DatapathSystem, NodeIP: netip.MustParseAddr("198.51.100.1")}, n.ns, n.client)
	ip(t, n.name, "link set eth0 mtu 1400", "link add under mtu 9000 type veth peer name other", "link set under up", "link set other up")
	n.vswitch.VSCtl("add-br", "br-ex", "--", "set", "bridge", "br-ex", "datapath_type=netdev", "--", "set", "interface", "br-ex", "mtu_request=9000",
		"--", "add-port", "br-ex", "vtep0", "--", "set", "interface", "vtep0", "type=internal", "mtu_request=9000")
	ip(t, n.name, "link set vtep0 up")
	for _, tc := range []struct {
		name  string
		setup []string
		want  string
		mtu   int
	}{
		{"bridge and its port", []string{"link add name brl type bridge", "link set brl mtu 9000", "link set brl up", "link set under mtu 1460 master brl", "link set brl mtu 1500", "addr add 198.51.100.1/24 dev brl"}, "under", 1460},
		{"macvlan", []string{"addr del 198.51.100.1/24 dev brl", "link set under nomaster mtu 9000", "link add name mac link under mtu 1300 type macvlan", "link set mac up", "addr add 198.51.100.1/24 dev mac"}, "mac", 1300},
		{"internal port", []string{"link del mac", "addr add 198.51.100.1/24 dev vtep0"}, "vtep0", 9000},
	} {
		ip(t, n.name, tc.setup...)
		if u := n.ensure(false); u.Narrowest != tc.want || u.MTU != tc.mtu {
			t.Errorf("%s: %+v, want %s with %d", tc.name, u, tc.want, tc.mtu)
		}
	}
	ip(t, n.name, "link set under mtu 1350")
	n.vswitch.VSCtl("add-port", "br-ex", "under")
	if u := n.ensure(false); u.Narrowest != "under" || u.MTU != 1350 {
		t.Errorf("port of the bridge: %+v", u)
	}
}

// A bridge of the kernel can be the uplink: its ports' MTU counts, and nobody is
// answered twice.
func TestLinuxBridgeAsUplink(t *testing.T) {
	wire := newWire(t)
	n := newNode(t, wire, 1)
	ip(t, n.name, "link add name host0 type bridge", "addr flush dev eth0", "link set eth0 master host0", "link set host0 up",
		"addr add 192.0.2.1/24 dev host0", "route add default via 192.0.2.254")
	want := Underlay{VTEP: netip.MustParseAddr("192.0.2.1"), Link: "br-phy", MTU: 1500, Narrowest: "host0", Uplink: "host0"}
	if u := n.ensure(true); u != want {
		t.Errorf("underlay %+v, want %+v", u, want)
	}
	n.ensure(false)
	for _, from := range []struct {
		node *node
		to   string
	}{{n, "203.0.113.1"}, {&node{t: t, name: wire}, "192.0.2.1"}} {
		if got := from.node.pings(10, from.to); got != 10 {
			t.Errorf("%d answers to 10 packets to %s", got, from.to)
		}
	}
	ip(t, n.name, "link set eth0 mtu 1400")
	if u := n.ensure(true); u.MTU != 1400 {
		t.Errorf("MTU %d, want 1400", u.MTU)
	}
}
