package services

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// remote is the address of the pod on the other node, in namespace a.
var remote = netip.MustParseAddr("172.11.4.9")

// TestRemote: an endpoint on another node, through real tunnels.
func TestRemote(t *testing.T) {
	l := newLab(t, pipeline.OVS)
	l.other()
	web, dns := vip.String()+":80", vip.String()+":53"
	l.set(svc(tcpPort(remote.String()), udpPort(53, remote.String())))
	l.reach("a1", remote.String()+":8080", "remote 172.11.0.2")
	l.reach("a1", web, "remote 172.11.0.2")
	l.reach("g1", web, "remote 172.11.0.5")
	l.reach("b1", web, "nothing")
	l.udp("a1", dns).reach(10, "remote 172.11.0.2")
	l.udp("a1", dns).reach(4000, "remote 172.11.0.2")
}

// other adds another node, with one pod, which has the flows of every node and
// serves nothing.
func (l *lab) other() {
	l.t.Helper()
	for _, n := range []string{"other", "remote"} {
		l.ok(ns.Create(l.id + n))
		l.t.Cleanup(func() { _ = ns.Delete(l.id + n) })
	}
	o := ovstest.StartIn(l.t, ns.Path(l.id+"other"))
	o.AddBridge("br0", "netdev")
	o.VSCtl("add-port", "br0", "vxlan0", "--", "set", "Interface", "vxlan0", "type=vxlan", "options:key=flow", "options:remote_ip=flow", "ofport_request=1")
	gateway := netip.MustParseAddr("172.11.4.1")
	mac := topology.MAC(remote).String()
	l.ip("other", "link add ovs0 type veth peer name eth0 address "+mac+" netns "+l.id+"remote", "link set ovs0 up",
		"link add uplink0 type veth peer name uplink0 netns "+l.id+"node", "link set uplink0 up")
	l.ip("remote", "link set eth0 up mtu 1450", "addr add "+remote.String()+"/32 dev eth0", "route add "+gateway.String()+" dev eth0",
		"route add default via "+gateway.String(), "neigh add "+gateway.String()+" lladdr "+topology.MAC(gateway).String()+" dev eth0")
	l.ok(ns.Do(l.id+"remote", func() error { return ns.TxChecksumOff("eth0") }))
	o.VSCtl("add-port", "br0", "ovs0", "--", "set", "Interface", "ovs0", "ofport_request=12")
	m := pipeline.Model{
		Nets: []pipeline.Net{{
			Cluster: topology.DefaultConfig().Network, Subnet: netip.MustParsePrefix("172.11.4.0/22"), Gateway: gateway, Services: topology.DefaultConfig().ServiceNetwork,
		}},
		TunnelPorts: []uint32{1}, GatewayPort: 2, Host: peer, UDPPorts: []tunnel.Port{4789}, ServiceProxy: pipeline.OVS,
		Peers:   []pipeline.Peer{{Port: 1, VTEP: self, Prefixes: []netip.Prefix{netip.MustParsePrefix("172.11.0.0/22")}, NetIDs: pipeline.NetIDs{All: true}}},
		Tenants: []pipeline.Tenant{{Slot: 1, NetID: 10, Known: true}},
		Pods:    []pipeline.Pod{{Port: 12, MAC: topology.MAC(remote), Addresses: []netip.Addr{remote}, Slot: 1}},
	}
	conn, err := of.Dial(l.t.Context(), o.Mgmt("br0"))
	l.ok(err)
	l.t.Cleanup(func() { conn.Close() })
	var mods []of.Mod
	for _, f := range m.Flows() {
		mods = append(mods, of.AddFlow(f))
	}
	l.ok(conn.Commit(l.t.Context(), mods))
	l.ip("node", "addr del "+self.String()+"/32 dev lo", "link set uplink0 up")
	for _, pod := range podNames {
		l.ip(pod, "link set eth0 mtu 1450")
	}
	here, there := l.underlay("node", l.OVS, self), l.underlay("other", o, peer)
	l.AppCtl("tnl/neigh/set", "br-phy", peer.String(), there)
	o.AppCtl("tnl/neigh/set", "br-phy", self.String(), here)
	l.serve("remote")
}

// underlay puts a node's VTEP on a bridge of its own, with the uplink, and returns
// its MAC address.
func (l *lab) underlay(node string, o *ovstest.OVS, vtep netip.Addr) (mac string) {
	l.t.Helper()
	o.AddBridge("br-phy", "netdev")
	o.VSCtl("add-port", "br-phy", "uplink0")
	o.OFCtl("add-flow", "br-phy", "actions=normal")
	l.ip(node, "addr add "+vtep.String()+"/24 dev br-phy", "link set br-phy up")
	return strings.Trim(strings.TrimSpace(o.VSCtl("get", "Interface", "br-phy", "mac_in_use")), `"`)
}
