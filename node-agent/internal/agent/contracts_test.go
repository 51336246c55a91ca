package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/switchports"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// What the loop relies on of what it stands on holds for the real things and for the fakes that its stories run
// with: the tests below, and TestTableContract. Fakes without one answer what a story has put into them, no more:
// whether packets get out, whether routes lead astray, the runtime's way to the agent.

// soon waits until ok.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in 20 s", what)
		}
	}
}

// woken reports whether somebody was told, and takes that.
func woken(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// realSwitch is an Open vSwitch, and a client of it.
func realSwitch(t *testing.T) (*ovstest.OVS, *ovs.Client) {
	o := ovstest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: "unix:" + o.DB, RunDir: o.RunDir, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return o, client
}

// specOf is the node's bridge on a datapath.
func specOf(datapath string) bridge.Spec {
	return bridge.Spec{
		Name: "br0", Datapath: datapath, VTEP: labSelf.HostIP, Gateway: labSelf.Subnet.Addr().Next(), MTU: 1450,
		Tunnels: desired.NodeTunnels(labSelf.HostIP, tunnel.Encap{Type: tunnel.VXLAN, Port: 4790}),
	}
}

// TestConnectionContract: of the connection to ovs-vswitchd.
func TestConnectionContract(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		m := newMachine()
		connectionContract(t, &fakeConn{machine: m}, m.lose, func() { m.set(func() { m.switchAway = false }) })
	})
	t.Run("real", func(t *testing.T) {
		o := ovstest.Start(t)
		o.AddBridge("br0", "dummy")
		c := newConnection(switchports.NewEvents(), func() string { return o.Mgmt("br0") }, func(*of.Conn, of.PacketIn) {}, quiet())
		t.Cleanup(c.close)
		connectionContract(t, c, o.KillVswitchd, func() { o.StartVswitchd() })
	})
}

func connectionContract(t *testing.T, c switchConnection, lose, back func()) {
	ctx := t.Context()
	is := func(what string, alive, ended bool) {
		t.Helper()
		soon(t, what, func() bool { return c.alive() == alive })
		if ended {
			soon(t, what+": it is told", func() bool { return woken(c.ended()) })
		} else if woken(c.ended()) {
			t.Errorf("%s: told to have ended", what)
		}
	}
	dials := func(what string) {
		t.Helper()
		if err := c.dial(ctx); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	is("before it is dialled", false, false)
	dials("first")
	is("first", true, false)
	if _, err := c.unblock(ctx, nil); err != nil {
		t.Errorf("unblock: %v", err)
	}
	dials("in place of one that stands")
	is("in place of one that stands", true, false)
	lose()
	is("ovs-vswitchd gone", false, true)
	if err := c.dial(ctx); err == nil {
		t.Error("dialled without ovs-vswitchd")
	}
	is("refused", false, false)
	back()
	dials("anew")
	is("anew", true, false)
	c.close()
	is("closed", false, true)
}

// testDatabase is all that the loop asks of the database.
type testDatabase interface {
	database
	changing
	restorer
	Port(name string) (ovs.Port, bool)
	Writable(ctx context.Context) error
}

// TestBridgeContract: of the database, and of the bridge that is made by it.
func TestBridgeContract(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		m := newMachine()
		bridgeContract(t, m, fakeBridge{m}, "system", func(away bool) {
			m.set(func() {
				if m.databaseAway = away; !away {
					m.databases++
				}
			})
			newest(m.changes, struct{}{})
		}, m.lose)
	})
	t.Run("real", func(t *testing.T) {
		o, client := realSwitch(t)
		bridgeContract(t, client, switchBridge{client, nil}, "dummy", func(away bool) {
			if away {
				o.KillOVSDB()
			} else {
				o.StartOVSDB()
			}
		}, o.KillVswitchd)
	})
}

func bridgeContract(t *testing.T, db testDatabase, b bridgeOwner, datapath string, away func(bool), lose func()) {
	ctx, spec := t.Context(), specOf(datapath)
	want := desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: desired.NodeOfport}, Gateway: 2}
	if !db.Connected() {
		t.Error("not connected")
	}
	if err := errors.Join(db.Init(ctx), db.Writable(ctx)); err != nil {
		t.Error(err)
	}
	if waits, ours := db.RestoreWait(); waits || ours {
		t.Errorf("a switch that nobody asked to wait: waits %t, ours %t", waits, ours)
	}
	if _, err := db.Ports(spec.Name); !errors.Is(err, ovs.ErrNoBridge) {
		t.Errorf("ports of no bridge: %v", err)
	}
	if _, there := db.Port(bridge.GatewayPort); there {
		t.Error("a gateway before there is a bridge")
	}
	// made is the bridge as it should be; changed only where it was not.
	made := func(what string) {
		t.Helper()
		ports, _, refused, err := b.Ensure(ctx, spec)
		if err != nil || refused != nil || !ports.Equal(want) {
			t.Fatalf("%s: ports %+v, refused %v, %v; want %+v", what, ports, refused, err, want)
		}
		if _, changed, _, err := b.Ensure(ctx, spec); err != nil || changed {
			t.Errorf("%s, again: changed %t, %v", what, changed, err)
		}
		all, err := db.Ports(spec.Name)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		at := slices.IndexFunc(all, func(p ovs.Port) bool { return p.Name == desired.NodeTunnel })
		if at < 0 || all[at].Type != string(tunnel.VXLAN) || bridge.UDPPort(all[at]) != spec.Tunnels.Named(desired.NodeTunnel).Port {
			t.Errorf("%s: ports %+v", what, all)
		}
		if p, there := db.Port(bridge.GatewayPort); !there || p.MTURequest != spec.MTU {
			t.Errorf("%s: gateway %+v, there %t", what, p, there)
		}
	}
	made("made")
	spec.MTU = 1400
	made("another MTU")
	spec.Tunnels = desired.NodeTunnels(labSelf.HostIP, tunnel.Encap{Type: tunnel.VXLAN, Port: 4791})
	made("another port of the tunnels")

	sessions := db.Sessions()
	away(true)
	soon(t, "the database is away", func() bool { return !db.Connected() })
	_, ports := db.Ports(spec.Name)
	_, _, _, ensure := b.Ensure(ctx, spec)
	for what, err := range map[string]error{"Ports": ports, "Init": db.Init(ctx), "Ensure": ensure, "Refill": b.Refill(ctx, spec)} {
		if !errors.Is(err, ovs.ErrDisconnected) {
			t.Errorf("%s without the database: %v", what, err)
		}
	}
	for woken(db.Changes()) {
	}
	away(false)
	soon(t, "the database is back", db.Connected)
	soon(t, "it is told", func() bool { return woken(db.Changes()) })
	if now := db.Sessions(); now <= sessions {
		t.Errorf("%d connections when it is back, %d before", now, sessions)
	}
	made("when it is back")

	lose()
	spec.MTU = 1300
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if ports, _, _, err := b.Ensure(short, spec); err == nil {
		t.Errorf("without ovs-vswitchd: ports %+v", ports)
	}
	spec.MTU = 1290
	if err := b.Refill(ctx, spec); err != nil {
		t.Errorf("rows without ovs-vswitchd: %v", err)
	}
	soon(t, "they are there", func() bool { p, _ := db.Port(bridge.GatewayPort); return p.MTURequest == spec.MTU })
}

// TestHostContract: of the node's own stack, its underlay and what it has for pods.
func TestHostContract(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		m := newMachine()
		hostContract(t, fakeUnderlay{m}, fakeHost{m}, func() { m.set(func() { m.gateway = ovs.Port{Name: bridge.GatewayPort} }) },
			func(to netip.Addr) { m.set(func() { m.address = to }) })
	})
	t.Run("real", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root: it makes a network namespace")
		}
		node := nstest.New(t)
		nstest.Run(t, node, "ip link add eth0 type veth peer name other")
		nstest.Run(t, node, fmt.Sprintf("ip addr add %s/24 dev eth0", labSelf.HostIP))
		nstest.Run(t, node, "ip link set other up")
		nstest.Run(t, node, "ip link set eth0 up")
		nstest.Run(t, node, "ip route add default dev eth0")
		host, err := link.Open(ns.Path(node))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = host.Close() })
		firewall, err := hostnet.New(host)
		if err != nil {
			t.Fatal(err)
		}
		_, client := realSwitch(t)
		hostContract(t, underlay.New(underlay.Config{Datapath: ovs.DatapathSystem}, host, client), firewall,
			func() { nstest.Run(t, node, "ip link add "+bridge.GatewayPort+" type veth peer name pods") },
			func(to netip.Addr) {
				nstest.Run(t, node, fmt.Sprintf("ip addr del %s/24 dev eth0", labSelf.HostIP))
				nstest.Run(t, node, fmt.Sprintf("ip addr add %s/24 dev eth0", to))
				nstest.Run(t, node, "ip route replace default dev eth0")
			})
	})
}

func hostContract(t *testing.T, u underlayOwner, h hostOwner, gateway func(), renumber func(netip.Addr)) {
	ctx := t.Context()
	under, changed, err := u.Ensure(ctx)
	if err != nil || changed || under.VTEP != labSelf.HostIP || under.Link != "eth0" || under.Narrowest != "eth0" || under.MTU != 1500 || under.Uplink != "" {
		t.Errorf("underlay %+v, changed %t, %v", under, changed, err)
	}
	if mended, closed, err := u.EnsureForwarding(ctx, under, netip.AddrPort{}); err != nil || closed != nil || mended {
		t.Errorf("forwarding of no bridge: mended %t, closed %v, %v", mended, closed, err)
	}
	if now, moved := u.Moved(labSelf.HostIP); moved {
		t.Errorf("a node that stayed is at %s", now)
	}

	spec := hostnet.Spec{
		Device: bridge.GatewayPort, Gateway: labSelf.Subnet.Addr().Next(), NodeSubnet: labSelf.Subnet, ClusterNetwork: netip.MustParsePrefix("172.11.0.0/16"),
		TunnelPorts: []tunnel.Port{4789}, HostEnds: attach.HostIfPrefix + "*", RouteMTU: 1450,
	}
	if _, err := h.Ensure(ctx, spec); err == nil {
		t.Error("made without the gateway's device")
	}
	gateway()
	unknown := spec
	unknown.NodeSubnet = netip.Prefix{}
	if _, err := h.Ensure(ctx, unknown); err == nil {
		t.Error("made without the node's subnet")
	}
	if _, err := h.Ensure(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if changed, err := h.Ensure(ctx, spec); err != nil || changed {
		t.Errorf("again: changed %t, %v", changed, err)
	}
	dropped, err := h.Dropped(ctx)
	for reason, n := range dropped {
		if n > 0 {
			t.Errorf("%d dropped as %s", n, reason)
		}
	}
	if err != nil {
		t.Error(err)
	}

	to := labSelf.HostIP.Next().Next()
	renumber(to)
	if now, moved := u.Moved(labSelf.HostIP); !moved || now != to {
		t.Errorf("renumbered: at %s, moved %t", now, moved)
	}
	if under, _, err := u.Ensure(ctx); err != nil || under.VTEP != to {
		t.Errorf("renumbered: underlay %+v, %v", under, err)
	}
	over, end := context.WithCancel(ctx)
	end()
	if _, err := h.Ensure(over, spec); err == nil {
		t.Error("the firewall is looked at when the agent has ended")
	}
}

// TestAttachmentsContract: of the node's pods, of which there are none.
func TestAttachmentsContract(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		attachmentsContract(t, &fakePods{machine: newMachine()})
	})
	t.Run("real", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root: it makes a network namespace")
		}
		_, client := realSwitch(t)
		if _, _, _, err := (switchBridge{client, nil}).Ensure(t.Context(), specOf("dummy")); err != nil {
			t.Fatal(err)
		}
		host, err := link.Open(ns.Path(nstest.New(t)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = host.Close() })
		ports := &switchports.Late{}
		ports.Found(client)
		attachmentsContract(t, attach.New(attach.NewBare(attach.Netlink{Host: host, Shaper: shaping.New(host, quiet())}, ports, "br0", t.TempDir(), quiet()), nil, nil, nil))
	})
}

func attachmentsContract(t *testing.T, pods attachments) {
	ctx, dir := t.Context(), t.TempDir()
	mtu := attach.MTU{Device: 1450}
	if _, err := pods.Repair(ctx, true); err == nil {
		t.Error("repaired before it was started")
	}
	start := func(node attach.Node) error {
		node.Bridge = "br0"
		found, err := pods.Start(ctx, node, dir, "a boot")
		if len(found) > 0 {
			t.Errorf("found %+v", found)
		}
		return err
	}
	if err := start(attach.Node{MTU: mtu}); err == nil {
		t.Error("started without a subnet")
	}
	for range 2 {
		if err := start(attach.Node{Subnets: []netip.Prefix{labSelf.Subnet}, MTU: mtu}); err != nil {
			t.Fatal(err)
		}
		if mended, err := pods.Repair(ctx, true); err != nil || mended > 0 {
			t.Errorf("repaired %d, %v", mended, err)
		}
	}
	if err := errors.Join(pods.Writable(), pods.SetMTU(ctx, attach.MTU{Device: 1400}), pods.SetQueues(ctx, func(attach.Attachment) uint32 { return 0 })); err != nil {
		t.Error(err)
	}
	if all := pods.List(); len(all) > 0 {
		t.Errorf("attached: %+v", all)
	}
}

// testEtcd is etcd with a cluster's configuration, and what an agent does with it.
type testEtcd struct {
	watch  func() (<-chan topology.Snapshot, <-chan topology.MTUs)
	put    func(context.Context, topology.NodeMTU) (int64, error)
	status statusRecord
	// namespace makes one, shown is what others see of the node's status, away has etcd go and come.
	namespace func(name string)
	shown     func() topology.NodeStatus
	away      func(bool)
}

// TestEtcdContract: of records in etcd.
func TestEtcdContract(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		e := &etcd{written: map[netip.Addr]topology.NodeMTU{}}
		held := snapshot(0, 0, labSelf)
		e.set(held)
		etcdContract(t, testEtcd{
			watch: e.watch, put: e.putMTU, status: e.openStatus(""), shown: e.shown, away: e.setAway,
			namespace: func(name string) {
				held.Namespaces[name] = topology.Namespace{NetName: name}
				e.set(held)
			},
		})
	})
	t.Run("real", func(t *testing.T) {
		server := etcdtest.Start(t)
		open := func() *store.Store {
			s, err := store.Open(store.Config{Endpoints: server.Endpoints})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
		agent, others := open(), open()
		if _, err := others.PutConfig(t.Context(), topology.DefaultConfig()); err != nil {
			t.Fatal(err)
		}
		if err := others.EnsureNode(t.Context(), labSelf.Host, labSelf.HostIP); err != nil {
			t.Fatal(err)
		}
		etcdContract(t, testEtcd{
			watch: func() (<-chan topology.Snapshot, <-chan topology.MTUs) {
				return agent.Watch(t.Context()), agent.WatchMTUs(t.Context())
			},
			put: agent.PutNodeMTU, status: agent.StatusPublisher(topology.DefaultConfig().Name, 0),
			namespace: func(name string) {
				if err := others.EnsureNamespace(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			},
			shown: func() topology.NodeStatus {
				all, err := others.Statuses(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return all[labSelf.HostIP]
			},
			away: func(away bool) {
				if away {
					server.Stop()
				} else {
					server.Restart()
				}
			},
		})
	})
}

func etcdContract(t *testing.T, e testEtcd) {
	records, mtus := e.watch()
	has := func(what, namespace string) {
		t.Helper()
		var last topology.Snapshot
		soon(t, what, func() bool {
			select {
			case s := <-records:
				if s.Revision < last.Revision {
					t.Errorf("%s: revision %d after %d", what, s.Revision, last.Revision)
				}
				last = s
			default:
			}
			_, there := last.Namespaces[namespace]
			return last.Revision > 0 && (namespace == "" || there)
		})
	}
	nobody := topology.NodeMTU{HostIP: labPeer.HostIP, Host: labPeer.Host, Carries: 1450, Receives: 1450, Sends: 1450}
	own := topology.NodeMTU{HostIP: labSelf.HostIP, Host: labSelf.Host, Receives: 1450, Sends: 1450}
	puts := func(what string, mtu int) {
		t.Helper()
		own.Carries = mtu
		revision, err := e.put(t.Context(), own)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		soon(t, what, func() bool {
			select {
			case m := <-mtus:
				if _, there := m.Nodes[nobody.HostIP]; there {
					t.Errorf("%s: told of the MTU of a node that has no record", what)
				}
				return m.Revision >= revision && m.Nodes[own.HostIP].Carries == mtu
			default:
				return false
			}
		})
	}
	has("what there was", "")
	if _, err := e.put(t.Context(), nobody); err != nil {
		t.Fatal(err)
	}
	puts("written", 1450)
	for i := range 20 {
		e.namespace(fmt.Sprintf("tenant-%d", i))
	}
	has("the newest, though nobody read what came before", "tenant-19")
	e.status.Set(topology.NodeStatus{HostIP: labSelf.HostIP, Host: labSelf.Host})
	soon(t, "the status is shown", func() bool { return e.shown().Host == labSelf.Host })

	e.away(true)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := e.put(short, own); err == nil {
		t.Error("written while etcd is away")
	}
	e.away(false)
	e.namespace("later")
	has("what came meanwhile", "later")
	puts("written when it is back", 1400)
	soon(t, "the status is shown again", func() bool { return e.shown().Host == labSelf.Host })
	e.status.Close()
	soon(t, "the status goes with the agent", func() bool { return e.shown().Host == "" })
}
