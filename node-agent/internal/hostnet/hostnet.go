// Package hostnet keeps the node's side of the overlay: the gateway device's
// address, routes and settings, and the firewall rules by which pods reach the
// outside and nobody gets past the switch.
//
// It owns the nftables tables "ip k8s-ovs", "ip6 k8s-ovs" and "bridge k8s-ovs", those whose names
// begin with "k8s-ovs-" and nothing else in the firewall, and of the network configuration only what belongs to
// the gateway device.
package hostnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// family is that of the firewall's tables of pods' packets. By IPv6 there are none: see [Net.ensureHostEnds].
const family = knftables.IPv4Family

// table is the name of the firewall table, and of its siblings for IPv6 and the kernel's bridges.
const table = "k8s-ovs"

// Spec is what the node's side should be.
type Spec struct {
	// Device is the gateway port of the bridge, such as "tun0".
	Device string
	// Gateway is its address, the first of NodeSubnet.
	Gateway netip.Addr
	// NodeSubnet has this node's pods, ClusterNetwork all pods.
	NodeSubnet, ClusterNetwork netip.Prefix
	// Outside is the device by which answers to pods come back, such as the one with the
	// node's address; empty for none.
	Outside string
	// RouteMTU is the most that the node sends to pods, bytes, where that is less than
	// the device's MTU; else 0.
	RouteMTU int
	// ServiceProxy says who serves services, ServiceNetwork has their addresses. With
	// the bridge as proxy, what pods still send there is refused; with either, pods use
	// ports of the node (NodePort, hostPort, load balancers) as the node itself.
	ServiceProxy   pipeline.ServiceProxy
	ServiceNetwork netip.Prefix
	// TunnelPorts are the UDP ports of the tunnels, OtherTunnelPorts those that other nodes'
	// may have meanwhile: no pod may make packets for them either.
	TunnelPorts, OtherTunnelPorts []tunnel.Port
	// ProbePort is the UDP port where agents measure the paths between nodes, which is
	// none for pods; 0 where they do not.
	ProbePort uint16
	// SwitchDevices are the devices whose packets belong to the switch alone: names,
	// or prefixes followed by "*". Needed with the userspace datapath, harmless
	// with the kernel's: pods' host ends and the uplink.
	SwitchDevices []string
	// HostEnds are the devices of the node that lead to pods: a prefix followed by "*". The
	// node itself has no IPv6 there. Empty: there are none.
	HostEnds string
	// SwitchBridges are bridges of the kernel that are the uplink of the userspace
	// datapath: as SwitchDevices, but their ports' packets come to the node's hooks
	// before the switch has seen them, where br_netfilter is in use.
	SwitchBridges []string
	// NodeAddress is the node's own, which the uplink itself has while Open vSwitch is away: then
	// the node takes what comes there for it. Not valid: it never does.
	NodeAddress netip.Addr
}

// Net keeps the node's side of the overlay in one namespace. One goroutine may
// use it at a time.
type Net struct {
	ns  *link.NS
	nft knftables.Interface
	log *slog.Logger
	// open is openTable; a test has kernels that lack something.
	open func(ns *link.NS, family knftables.Family, name string) (knftables.Interface, error)
	// ends are the tables for host ends once they are needed, lacks those that the kernel lacks and
	// need not have.
	ends  map[knftables.Family]knftables.Interface
	lacks map[knftables.Family]*lackError
	// counted is what the table's counters said last.
	counted map[Reason]uint64
}

// Option is something about a [Net] that has a default.
type Option func(*Net)

// WithLog makes the Net log there.
func WithLog(log *slog.Logger) Option { return func(n *Net) { n.log = log } }

// New makes a Net for the node's namespace. It fails where nftables cannot be used.
func New(ns *link.NS, opts ...Option) (*Net, error) {
	nft, err := openTable(ns, family, table)
	if err != nil {
		return nil, fmt.Errorf("%w; the package nftables has the program nft, and the kernel needs nf_tables", err)
	}
	n := &Net{
		ns: ns, nft: nft, log: slog.Default(), open: openTable,
		ends: map[knftables.Family]knftables.Interface{}, lacks: map[knftables.Family]*lackError{},
	}
	for _, o := range opts {
		o(n)
	}
	return n, nil
}

// Ensure compares the node's side with spec, mends what differs, and reports
// whether it had to. The device must be there ([link.ErrNoLink]): ovs-vswitchd makes
// it. Call it every few seconds: others flush firewalls.
//
// Rules come first: no packet is forwarded before they are there.
func (n *Net) Ensure(ctx context.Context, spec Spec) (changed bool, err error) {
	if err := spec.validate(); err != nil {
		return false, err
	}
	rules, err := n.ensureRules(ctx, n.nft, chains(spec), Reasons()...)
	if err != nil {
		return rules, err
	}
	if rules {
		n.counted = nil
	}
	ends, err := n.ensureHostEnds(ctx, spec)
	if err != nil {
		return rules || ends, err
	}
	device, err := n.ensureDevice(spec)
	if err != nil {
		err = fmt.Errorf("host network: %w", err)
	}
	return rules || ends || device, err
}

// ensureRules replaces a table in one transaction where it is not as wanted.
func (n *Net) ensureRules(ctx context.Context, nft knftables.Interface, want []chain, counters ...Reason) (changed bool, err error) {
	err = n.ns.Do(func() error {
		have, err := nft.ListRules(ctx, "")
		if err != nil && !knftables.IsNotFound(err) {
			return fmt.Errorf("firewall table %s: listing: %w", table, err)
		}
		if err == nil && matches(have, comments(want)) {
			return nil
		}
		tx := nft.NewTransaction()
		replace(tx, want, counters...)
		if err := nft.Run(ctx, tx); err != nil {
			return fmt.Errorf("firewall table %s: writing: %w", table, err)
		}
		faultpoint.Here("firewall", table)
		changed = true
		return nil
	})
	return changed, err
}

// matches reports whether the rules are those wanted, in order, and no others.
func matches(have []*knftables.Rule, want map[string][]string) bool {
	found := map[string][]string{}
	for c := range want {
		found[c] = []string{}
	}
	for _, r := range have {
		if r.Comment == nil {
			return false
		}
		found[r.Chain] = append(found[r.Chain], *r.Comment)
	}
	if len(found) != len(want) {
		return false
	}
	for c, texts := range want {
		if !slices.Equal(found[c], texts) {
			return false
		}
	}
	return true
}

// ensureDevice sets the gateway device up, gives it its address and the routes
// through it.
func (n *Net) ensureDevice(spec Spec) (changed bool, err error) {
	route := link.Route{Dst: spec.ClusterNetwork, Via: topology.NextHop, OnLink: true, Src: spec.Gateway, MTU: spec.RouteMTU}
	steps := []func() (bool, error){
		func() (bool, error) { return n.ensureName(spec) },
		func() (bool, error) { return n.ns.SetMAC(spec.Device, topology.MAC(spec.Gateway)) },
		func() (bool, error) { return n.dropStale(spec) },
		func() (bool, error) { return n.ensureSettings(spec.Device) },
		func() (bool, error) { return n.ns.SetUp(spec.Device) },
		func() (bool, error) {
			return n.ns.EnsureAddress(spec.Device, netip.PrefixFrom(spec.Gateway, spec.Gateway.BitLen()))
		},
		func() (bool, error) { return n.ns.EnsureNeighbour(spec.Device, topology.NextHop, nextHopMAC()) },
		func() (bool, error) { return n.ns.EnsureRoute(spec.Device, route) },
		// Last: it makes the node a router. Each device has a switch of its own, which
		// follows that of all only where somebody writes it after the device was made.
		func() (bool, error) { return n.ns.EnsureSysctl("net/ipv4/ip_forward", "1") },
		func() (bool, error) { return n.forwards(spec.Device) },
		func() (bool, error) { return n.forwards(spec.Outside) },
	}
	for _, step := range steps {
		did, err := step()
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// ensureName gives the gateway device its name back that somebody changed. It is known by its MAC, which no other has.
func (n *Net) ensureName(spec Spec) (changed bool, err error) {
	if there, err := n.ns.LinkExists(spec.Device); err != nil || there {
		return false, err
	}
	links, err := n.ns.Links()
	if err != nil {
		return false, err
	}
	mac := topology.MAC(spec.Gateway)
	i := slices.IndexFunc(links, func(l link.Link) bool { return bytes.Equal(l.MAC, mac) })
	if i < 0 {
		return false, nil
	}
	if err := n.ns.Rename(links[i], spec.Device); err != nil {
		return false, fmt.Errorf("somebody has called the gateway port %s of the bridge %s: %w; give it its name back (ip link set %s name %s)", spec.Device, links[i].Name, err, links[i].Name, spec.Device)
	}
	return true, nil
}

// nextHopMAC belongs to the next hop as a pod's does to its address.
func nextHopMAC() net.HardwareAddr { return topology.MAC(topology.NextHop) }

// dropStale takes away what an earlier node subnet or cluster network left on
// the device: another address would be answered for.
func (n *Net) dropStale(spec Spec) (changed bool, err error) {
	have, err := n.ns.ReadConfig(spec.Device)
	if err != nil {
		return false, err
	}
	var stale link.Config
	for _, a := range have.Addresses {
		if a.Addr() != spec.Gateway || !a.IsSingleIP() {
			stale.Addresses = append(stale.Addresses, a)
		}
	}
	for _, r := range have.Routes {
		if r.Via == topology.NextHop && r.Dst != spec.ClusterNetwork {
			stale.Routes = append(stale.Routes, r)
		}
	}
	if len(stale.Addresses)+len(stale.Routes) == 0 {
		return false, nil
	}
	return true, n.ns.RemoveConfig(spec.Device, stale)
}

// ensureSettings of the gateway device (the kernel's ip-sysctl.rst):
//
//   - rp_filter 2, loose: the kernel uses the larger of this and that of "all", so
//     2 is the only value that does not depend on the host's. Strict would drop
//     pods' packets wherever policy routing sends the answer another way; forged
//     sources are not its business, the switch has dropped them.
//   - disable_ipv6: the overlay is IPv4.
func (n *Net) ensureSettings(device string) (changed bool, err error) {
	changed, err = n.ns.EnsureSysctl("net/ipv4/conf/"+device+"/rp_filter", "2")
	if err != nil {
		return changed, err
	}
	did, err := n.ns.EnsureSysctl("net/ipv6/conf/"+device+"/disable_ipv6", "1")
	if errors.Is(err, link.ErrNoSysctl) {
		err = nil // no IPv6 in this kernel
	}
	return changed || did, err
}

// forwards has packets that come in by the device routed on.
func (n *Net) forwards(device string) (bool, error) {
	if device == "" {
		return false, nil
	}
	return n.ns.EnsureSysctl("net/ipv4/conf/"+device+"/forwarding", "1")
}

// Cleanup removes the firewall tables. It is for uninstalling; the device goes with
// its bridge. ip_forward stays: others may need it.
func (n *Net) Cleanup(ctx context.Context) error {
	tables := []knftables.Interface{n.nft}
	var err error
	for _, family := range endsFamilies {
		nft, ofErr := n.ofEnds(ctx, family)
		if lacks := new(lackError); ofErr != nil && !errors.As(ofErr, &lacks) {
			err = errors.Join(err, ofErr)
		}
		if nft != nil {
			tables = append(tables, nft)
		}
	}
	for _, nft := range tables {
		err = errors.Join(err, deleteTable(ctx, n.ns, nft, table))
	}
	return err
}
