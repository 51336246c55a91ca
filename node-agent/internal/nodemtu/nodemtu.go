// Package nodemtu takes the node's part in the MTU that the cluster has: it measures what the node's paths
// carry, says what pods are to have now, and writes the node's MTU record.
//
// Package mtu decides. Nothing is set here: whoever sets it says so with [MTU.Done], and until then no other
// node is told.
package nodemtu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/mtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// ethernetMTU is taken of a node that has neither a link that surely counts nor a
// peer: its address is on loopback. IEEE 802.3, bytes.
const ethernetMTU = 1500

// ErrNotAgreed: pods could get a device that others do not know of yet.
var ErrNotAgreed = errors.New("the MTU of pods is not agreed with the other nodes yet")

// Config is whose MTU it is, and where it is read and written.
type Config struct {
	// Name and Self are the node's name and tunnel address.
	Name string
	Self netip.Addr
	// Configured is the MTU of pods that was asked for, bytes; 0 for none. Policy says what a path does that
	// loses large packets.
	Configured int
	Policy     mtu.Policy
	// Put writes the node's record.
	Put      func(context.Context, topology.NodeMTU) (revision int64, err error)
	Host     Host
	Switch   Switch
	Underlay Underlay
	// Prober is nil without probes.
	Prober  Prober
	Metrics *Metrics
	Logger  *slog.Logger
}

// Host is the node's stack; [link.NS] is one.
type Host interface {
	PathsTo(source netip.Addr, peers []netip.Addr) map[netip.Addr]link.Path
	LinkExists(name string) (bool, error)
	ReadConfig(name string) (link.Config, error)
}

// Switch knows ports as the database has them; [ovs.Client] is one.
type Switch interface {
	Port(name string) (ovs.Port, bool)
}

// Underlay knows the devices below; [underlay.Setup] is one.
type Underlay interface {
	Narrowest(u underlay.Underlay) (device string, mtu int, err error)
}

// Prober tries what paths carry; [pathprobe.Prober] is one.
type Prober interface {
	// Changed wakes up after a measurement.
	Changed() <-chan struct{}
	// SetPeers replaces the peers, with the largest packets that they are sent, and the size that is taken to
	// pass where anything does, bytes of IP packets.
	SetPeers(floor int, needs map[netip.Addr]int)
	Holes() map[netip.Addr]int
	// Silent are the peers, in order, that have answered and do not any more.
	Silent() []netip.Addr
	Run(ctx context.Context)
}

// MTU is the node's part in the MTU that the cluster has. But for [MTU.Run] it belongs to one goroutine.
type MTU struct {
	cfg    Config
	writer *writer

	// under is the underlay as last seen, narrowest the least MTU of its devices.
	under     underlay.Underlay
	narrowest int
	// paths are the ways to the nodes in records, ways as the kernel has them, with
	// none where there is no route; stale asks to look anew.
	paths   []mtu.Path
	ways    map[netip.Addr]link.Path
	records *topology.Snapshot
	stale   bool
	// tunnels are those that the node is to have, by which packets travel.
	tunnels desired.Tunnels

	capacity mtu.Capacity
	// floor is the least that a record or a path to one peer counts with, see [mtu.Node.Floor].
	floor int
	// arrives is the largest packet that can come at all; 0 where that is not known.
	arrives int
	// ignored are the nodes whose records do not count, as told last.
	ignored []netip.Addr
	// silent are the peers that do not answer any more, as told last.
	silent []netip.Addr
	// view is what all nodes have written, damper what counts of it; seen is false before there is any.
	view   topology.MTUs
	damper *mtu.Damper
	seen   bool
	// has is what is set, once that was read back.
	has  mtu.Values
	read bool
	// failed is that pods do not follow.
	failed backoff.Trouble
}

// New returns the part of a node that nothing is known of.
func New(cfg Config) *MTU {
	return &MTU{cfg: cfg, writer: newWriter(cfg.Put, cfg.Logger), damper: mtu.NewDamper(cfg.Self)}
}

// Has is what pods have, once that is known.
func (n *MTU) Has() mtu.Values { return n.has }

// Ways are the ways to all peers as the kernel has them, with none where there is no route.
func (n *MTU) Ways() map[netip.Addr]link.Path { return n.ways }

// See takes in what all nodes have written.
func (n *MTU) See(view topology.MTUs) {
	if view.Revision < n.view.Revision {
		n.writer.forget() // etcd went back to older records
	}
	n.view, n.seen = view, true
	for _, ip := range n.damper.See(time.Now(), view) {
		n.cfg.Logger.Warn("the MTU record of a node changes again and again: the worst that it says counts until it has rested for a minute. Look at that node's links, and whether it is still yours", "node", ip)
	}
}

// Written tells what became of what was written, for [MTU.TakeWritten].
func (n *MTU) Written() <-chan Written { return n.writer.done }

// TakeWritten takes in what came from [MTU.Written].
func (n *MTU) TakeWritten(w Written) { n.writer.take(w) }

// Measured wakes up after a measurement; nil without probes.
func (n *MTU) Measured() <-chan struct{} {
	if n.cfg.Prober == nil {
		return nil
	}
	return n.cfg.Prober.Changed()
}

func (n *MTU) mtuView() mtu.View {
	return mtu.View{Self: n.cfg.Self, Records: n.damper.View(time.Now()), Floor: n.floor, Arrives: n.arrives, Confirmed: n.writer.confirmed(n.view.Revision)}
}

// tooSmall reports whether pods cannot do with what the node's paths carry.
func (n *MTU) tooSmall() bool { return n.capacity.Carries < topology.MinMTU }

// Unwell is why packets that pods of this node are sent do not come; nil where they do. It is for the operator
// to mend, and all else of the node is kept up meanwhile.
func (n *MTU) Unwell() error {
	c := n.capacity
	switch {
	case n.tooSmall():
		return fmt.Errorf("%s leaves pods packets of %d bytes, and they need %d: raise its MTU (ip link set dev DEVICE mtu BYTES)", c.Limit, c.Carries, topology.MinMTU)
	case n.mtuView().Unheeded(c.Carries):
		return fmt.Errorf("%s leaves pods packets of %d bytes, and most other nodes, whose links are larger, send more: raise its MTU (ip link set dev DEVICE mtu BYTES), or give the agents of all nodes --mtu %d", c.Limit, c.Carries, c.Carries)
	}
	return nil
}

// next is the next step towards the cluster's MTU: what to set, and then to write.
func (n *MTU) next() (set, write mtu.Values) {
	set, write = n.mtuView().Agree(n.capacity.Carries, n.has)
	if !n.seen {
		set.Receives = n.has.Receives // what the others send is not known
	}
	return set, write
}

// Want says what MTU pods are to have now, by the tunnels that the node is to have, the records and, where they
// are fromEtcd, by what the other nodes have written; [MTU.Done] follows when they have it.
func (n *MTU) Want(under underlay.Underlay, tunnels desired.Tunnels, records *topology.Snapshot, fromEtcd bool) (mtu.Values, error) {
	if err := n.measure(under, tunnels, records); err != nil {
		return mtu.Values{}, err
	}
	if !n.read {
		has, err := n.readMTU()
		if err != nil {
			return mtu.Values{}, err
		}
		n.has, n.read = has, true
	}
	if n.tooSmall() { // pods that run keep what they have, and nobody is told another thing
		if n.has == mtu.Nothing {
			return mtu.Values{Receives: topology.MinMTU, Sends: topology.MinMTU}, nil
		}
		return n.has, nil
	}
	set, write := n.next()
	if set.Receives < math.MaxInt && set.Sends > 0 {
		return set, nil
	}
	if fromEtcd {
		n.writeRecord(write)
		return mtu.Values{}, ErrNotAgreed
	}
	return mtu.Values{Receives: n.capacity.Carries, Sends: n.capacity.Carries}, nil
}

// readMTU is what an earlier agent has set.
func (n *MTU) readMTU() (mtu.Values, error) {
	port, ok := n.cfg.Switch.Port(bridge.GatewayPort)
	if !ok || port.MTURequest == 0 {
		return mtu.Nothing, nil
	}
	has := mtu.Values{Receives: port.MTURequest, Sends: port.MTURequest}
	if exists, err := n.cfg.Host.LinkExists(bridge.GatewayPort); err != nil || !exists {
		return has, err
	}
	config, err := n.cfg.Host.ReadConfig(bridge.GatewayPort)
	for _, r := range config.Routes {
		if r.Dst == n.records.Config.Network && r.MTU > 0 {
			has.Sends = r.MTU
		}
	}
	return has, err
}

// Done takes in that set is what pods have, and returns the peers whose path carries less.
func (n *MTU) Done(set mtu.Values) (narrow map[netip.Addr]int) {
	if n.has != set {
		n.cfg.Logger.Info("MTU of pods", "mtu", set.Sends, "receives", set.Receives, "carries", n.capacity.Carries, "limit", n.capacity.Limit)
	}
	n.has = set
	_, write := n.next()
	n.writeRecord(write)
	n.observe()
	return n.capacity.Narrow(set.Receives)
}

// writeRecord writes the node's record where it says something else.
func (n *MTU) writeRecord(write mtu.Values) {
	if !n.seen || n.tooSmall() {
		return // it would say what does not fit the others', or what no record may
	}
	record := topology.NodeMTU{
		Host: n.cfg.Name, HostIP: n.cfg.Self, Carries: n.capacity.Carries, Receives: write.Receives, Sends: write.Sends,
		Limit: n.capacity.Limit, BlackHoles: namePeers(n.capacity.BlackHoles),
	}
	differs := n.writer.last != record
	if n.writer.confirmed(n.view.Revision) {
		written, ok := n.view.Nodes[n.cfg.Self]
		_, here := n.records.Nodes[n.cfg.Self]
		differs = written != record && (ok || here) // of a node that left, none counts
	}
	if differs {
		n.writer.write(record)
	}
}

// namePeers lists peers, and counts those that are too many.
func namePeers(peers []netip.Addr) string {
	const most = 4
	var b strings.Builder
	for i, p := range peers[:min(len(peers), most)] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(p.String())
	}
	if more := len(peers) - most; more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	return b.String()
}

// Next does what follows from news of other nodes or of what was written: it writes the node's record. It
// reports whether a pass has to set something before; ready is that all was well after the last one.
func (n *MTU) Next(ready bool) (pass bool) {
	if !n.read || !ready {
		return true
	}
	if n.tooSmall() {
		return false
	}
	set, write := n.next()
	if set != n.has {
		return true
	}
	n.writeRecord(write)
	n.observe()
	return false
}

// RoutesChanged has the ways to peers looked up anew at the next [MTU.Want].
func (n *MTU) RoutesChanged() { n.stale = true }

// LinksChanged reports whether the underlay's MTU is another one. Routes are
// looked at in the next pass.
func (n *MTU) LinksChanged() bool {
	n.stale = true
	if !n.under.VTEP.IsValid() {
		return false
	}
	_, now, err := n.cfg.Underlay.Narrowest(n.under)
	return err == nil && now != n.narrowest
}

// measure finds out what the node's paths carry.
func (n *MTU) measure(under underlay.Underlay, tunnels desired.Tunnels, records *topology.Snapshot) error {
	n.under = under
	var err error
	if _, n.narrowest, err = n.cfg.Underlay.Narrowest(under); err != nil {
		return err
	}
	if n.stale || n.records != records || !slices.Equal(n.tunnels, tunnels) {
		n.tunnels = tunnels
		n.paths, n.records, n.stale = n.findPaths(records), records, false
	}
	node := mtu.Node{
		Overhead: n.tunnels.Overhead(), Configured: n.cfg.Configured, Link: under.Narrowest, LinkMTU: under.MTU, Paths: n.paths, Policy: n.cfg.Policy,
	}
	n.arrives = node.Arrives()
	if node.LinkMTU == 0 && len(node.Paths) == 0 {
		node.Link, node.LinkMTU = "Ethernet", ethernetMTU
	}
	if n.cfg.Prober != nil {
		needs := make(map[netip.Addr]int, len(node.Paths))
		for _, p := range node.Paths {
			needs[p.Peer] = max(needs[p.Peer], node.Needs(p))
		}
		n.cfg.Prober.SetPeers(topology.MinMTU+tunnels.Overhead(), needs)
		holes := n.cfg.Prober.Holes()
		for i, p := range node.Paths {
			node.Paths[i].Measured = holes[p.Peer]
		}
	}
	now := node.Capacity()
	n.floor = node.Floor()
	n.tellCapacity(n.capacity, now)
	n.capacity = now
	return nil
}

// findPaths looks up the ways to all peers, and keeps them. A peer that there is no
// route to just now keeps the way that it had: with no packets there are none too large.
func (n *MTU) findPaths(records *topology.Snapshot) []mtu.Path {
	had := map[netip.Addr]mtu.Path{}
	for _, p := range n.paths {
		had[p.Peer] = p
	}
	ends := desired.Ends(*records, n.cfg.Self)
	var peers []netip.Addr
	for _, e := range ends {
		peers = append(peers, e.VTEP)
	}
	found := n.cfg.Host.PathsTo(n.cfg.Self, peers)
	var out []mtu.Path
	ways := make(map[netip.Addr]link.Path, len(peers))
	for _, e := range ends {
		peer, overhead := e.VTEP, n.tunnels.Named(e.Tunnel).Overhead()
		p, ok := found[peer]
		ways[peer] = p
		if !ok {
			ways[peer] = n.ways[peer]
		}
		switch before, known := had[peer]; {
		case ok && p.Link.Loopback: // an address of this node is no peer
		case ok:
			out = append(out, mtu.Path{Peer: peer, Link: p.Link.Name, MTU: p.MTU, Overhead: overhead})
		case known:
			before.Overhead = overhead
			out = append(out, before)
		}
	}
	n.ways = ways
	return out
}

// tellCapacity says once what changed.
func (n *MTU) tellCapacity(was, now mtu.Capacity) {
	if now.Clamped && (!was.Clamped || was.Carries != now.Carries || was.Limit != now.Limit) {
		n.cfg.Logger.Warn("--mtu is more than the node's paths carry: clamped", "configured", n.cfg.Configured, "mtu", now.Carries, "limit", now.Limit)
	}
	before := map[netip.Addr]int{}
	for _, peer := range was.BlackHoles {
		before[peer] = was.Paths[peer]
	}
	for _, peer := range now.TooNarrow {
		if !slices.Contains(was.TooNarrow, peer) {
			n.cfg.Logger.Warn("the path to a node carries less than pods need: they send no less for it, and are told what is too large for that node alone. Mend the path, or give the agents of all nodes --mtu",
				"node", peer, "carries", now.Paths[peer], "least", n.floor)
		}
	}
	for _, peer := range now.BlackHoles {
		if before[peer] != now.Paths[peer] {
			n.cfg.Logger.Warn("the path to a node loses large packets and does not say so: a black hole", "node", peer, "carries", now.Paths[peer], "policy", n.cfg.Policy)
		}
		delete(before, peer)
	}
	for peer := range before {
		n.cfg.Logger.Info("the path to a node is no black hole any more", "node", peer)
	}
}

// tellIgnored says once which nodes' records do not count.
func (n *MTU) tellIgnored() {
	now := n.mtuView().Ignored()
	for _, ip := range now {
		if r := n.view.Nodes[ip]; !slices.Contains(n.ignored, ip) {
			n.cfg.Logger.Warn("the MTU record of a node does not count: pods would have less than they need. Raise the MTU of that node's underlay, or give the agents of all nodes --mtu",
				"node", ip, "carries", r.Carries, "receives", r.Receives, "least", n.floor)
		}
	}
	n.ignored = now
	n.cfg.Metrics.ignored.Set(float64(len(now)))
}

// tellSilent says once whose agents do not answer any more.
func (n *MTU) tellSilent() {
	if n.cfg.Prober == nil {
		return
	}
	now := n.cfg.Prober.Silent()
	if fresh := slices.DeleteFunc(slices.Clone(now), func(ip netip.Addr) bool { return slices.Contains(n.silent, ip) }); len(fresh) > 0 {
		n.cfg.Logger.Warn("agents of other nodes do not answer probes of paths any more: they are away, or nothing gets through between them and this node", "nodes", namePeers(fresh))
	}
	n.silent = now
	n.cfg.Metrics.silent.Set(float64(len(now)))
}

// observe shows how the node stands to the others.
func (n *MTU) observe() {
	m := n.cfg.Metrics
	m.mtu.Set(float64(n.has.Sends))
	m.carries.Set(float64(n.capacity.Carries))
	m.cluster.Set(float64(n.mtuView().Cluster(n.capacity.Carries)))
	m.blackHoles.Set(float64(len(n.capacity.BlackHoles)))
	n.tellIgnored()
	n.tellSilent()
	m.holdsBack.Set(0)
	if n.view.HoldsBack(n.cfg.Self) {
		m.holdsBack.Set(1)
	}
	m.narrow.Reset()
	if n.narrowest > 0 {
		for peer, takes := range n.capacity.Narrow(n.narrowest - n.tunnels.Overhead()) {
			m.narrow.WithLabelValues(peer.String()).Set(float64(takes))
		}
	}
}

// TellFailed says once that pods do not follow; each pass tries again.
func (n *MTU) TellFailed(set mtu.Values, err error) {
	if n.failed.News(err) {
		n.cfg.Logger.Warn("pods do not have the MTU that they should", "mtu", set.Sends, "receives", set.Receives, "error", err)
	}
}

// Run writes and probes until ctx ends.
func (n *MTU) Run(ctx context.Context) {
	var running sync.WaitGroup
	running.Go(func() { n.writer.run(ctx) })
	if n.cfg.Prober != nil {
		running.Go(func() { n.cfg.Prober.Run(ctx) })
	}
	running.Wait()
}

// Resync looks up the ways anew, and writes anew what never came back: etcd may be another one now.
func (n *MTU) Resync() {
	n.stale = true
	if _, ok := n.view.Nodes[n.cfg.Self]; !ok || !n.writer.confirmed(n.view.Revision) {
		n.writer.forget()
	}
}
