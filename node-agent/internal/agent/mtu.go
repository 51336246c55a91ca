package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/mtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pathprobe"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// ethernetMTU is taken of a node that has neither a link that surely counts nor a
// peer: its address is on loopback. IEEE 802.3, bytes.
const ethernetMTU = 1500

// errNoMTU: pods could get a device that others do not know of yet.
var errNoMTU = errors.New("the MTU of pods is not agreed with the other nodes yet")

// agreement is the node's part in the MTU that the cluster has. It belongs to the
// loop's goroutine.
type agreement struct {
	writer *mtuWriter
	prober *pathprobe.Prober // nil without probes

	// under is the underlay as last seen, narrowest the least MTU of its devices.
	under     underlay.Underlay
	narrowest int
	// paths are the ways to the nodes in records, ways as the kernel has them, with
	// none where there is no route; stale asks to look anew.
	paths   []mtu.Path
	ways    map[netip.Addr]link.Path
	records *topology.Snapshot
	stale   bool

	capacity mtu.Capacity
	// view is what all nodes have written; seen is false before there is any.
	view topology.MTUs
	seen bool
	// has is what is set, once that was read back.
	has  mtu.Values
	read bool
	// failed is what was last said about pods that do not follow.
	failed string
}

func (n *node) newAgreement() *agreement {
	a := &agreement{writer: newMTUWriter(n.store.PutNodeMTU, n.log)}
	if n.cfg.MTUProbePort != 0 {
		a.prober = pathprobe.New(pathprobe.Config{
			NS: n.host, Address: netip.AddrPortFrom(n.self, n.cfg.MTUProbePort), Interval: n.cfg.MTUProbeInterval,
			Floor: topology.MinMTU + tunnel.VXLAN.Overhead(n.self), Logger: n.log,
		})
	}
	return a
}

// holes wakes up after a measurement; nil without probes.
func (a *agreement) holes() <-chan struct{} {
	if a.prober == nil {
		return nil
	}
	return a.prober.Changed()
}

func (n *node) mtuView() mtu.View {
	a := n.agreement
	return mtu.View{Self: n.self, Records: a.view, Confirmed: a.writer.confirmed(a.view.Revision)}
}

// nextMTU is the next step towards the cluster's MTU: what to set, and then to write.
func (n *node) nextMTU() (set, write mtu.Values) {
	a := n.agreement
	set, write = n.mtuView().Agree(a.capacity.Carries, a.has)
	if !a.seen {
		set.Receives = a.has.Receives // what the others send is not known
	}
	return set, write
}

// agree says what MTU pods are to have now; [node.agreed] follows when they have it.
func (n *node) agree(under underlay.Underlay) (mtu.Values, error) {
	a := n.agreement
	if err := n.measure(under); err != nil {
		return mtu.Values{}, err
	}
	if !a.read {
		has, err := n.readMTU()
		if err != nil {
			return mtu.Values{}, err
		}
		a.has, a.read = has, true
	}
	set, write := n.nextMTU()
	if set.Receives < math.MaxInt && set.Sends > 0 {
		return set, nil
	}
	if n.fromEtcd {
		n.writeMTU(write)
		return mtu.Values{}, errNoMTU
	}
	return mtu.Values{Receives: a.capacity.Carries, Sends: a.capacity.Carries}, nil
}

// readMTU is what an earlier agent has set.
func (n *node) readMTU() (mtu.Values, error) {
	port, ok := n.ovs.Port(bridge.GatewayPort)
	if !ok || port.MTURequest == 0 {
		return mtu.Nothing, nil
	}
	has := mtu.Values{Receives: port.MTURequest, Sends: port.MTURequest}
	if exists, err := n.host.LinkExists(bridge.GatewayPort); err != nil || !exists {
		return has, err
	}
	config, err := n.host.ReadConfig(bridge.GatewayPort)
	for _, r := range config.Routes {
		if r.Dst == n.records.Config.Network && r.MTU > 0 {
			has.Sends = r.MTU
		}
	}
	return has, err
}

// agreed takes in that set is what pods have.
func (n *node) agreed(ctx context.Context, set mtu.Values) error {
	a := n.agreement
	if a.has != set {
		n.log.Info("MTU of pods", "mtu", set.Sends, "receives", set.Receives, "carries", a.capacity.Carries, "limit", a.capacity.Limit)
	}
	a.has = set
	n.mu.Lock()
	n.mtu = set.Sends
	n.mu.Unlock()
	_, write := n.nextMTU()
	n.writeMTU(write)
	n.observeMTU()
	return n.table.SetPathMTUs(ctx, a.capacity.Narrow(set.Receives))
}

// writeMTU writes the node's record where it says something else.
func (n *node) writeMTU(write mtu.Values) {
	a := n.agreement
	if !a.seen {
		return // it would say what does not fit the others'
	}
	record := topology.NodeMTU{
		Host: n.cfg.NodeName, HostIP: n.self, Carries: a.capacity.Carries, Receives: write.Receives, Sends: write.Sends,
		Limit: a.capacity.Limit, BlackHoles: namePeers(a.capacity.BlackHoles),
	}
	differs := a.writer.last != record
	if a.writer.confirmed(a.view.Revision) {
		written, ok := a.view.Nodes[n.self]
		differs = ok && written != record
	}
	if differs {
		a.writer.write(record)
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

// mtuNews says what to do after nodes have written.
func (n *node) mtuNews() due {
	a := n.agreement
	if a.capacity.Carries == 0 || n.Ready() != nil {
		return aPass
	}
	set, write := n.nextMTU()
	if set != a.has {
		return aPass
	}
	n.writeMTU(write)
	n.observeMTU()
	return nothing
}

// linksChanged reports whether the underlay's MTU is another one. Routes are
// looked at in the next pass.
func (n *node) linksChanged() bool {
	a := n.agreement
	a.stale = true
	if !a.under.VTEP.IsValid() {
		return false
	}
	_, now, err := n.underlay.Narrowest(a.under)
	return err == nil && now != a.narrowest
}

// measure finds out what the node's paths carry.
func (n *node) measure(under underlay.Underlay) error {
	a := n.agreement
	a.under = under
	var err error
	if _, a.narrowest, err = n.underlay.Narrowest(under); err != nil {
		return err
	}
	if a.stale || a.records != n.records {
		a.paths, a.records, a.stale = n.findPaths(), n.records, false
	}
	node := mtu.Node{
		VTEP: n.self, Configured: n.cfg.MTU, Link: under.Narrowest, LinkMTU: under.MTU, Paths: a.paths, Policy: n.cfg.MTUOnBlackHole,
	}
	if node.LinkMTU == 0 && len(node.Paths) == 0 {
		node.Link, node.LinkMTU = "Ethernet", ethernetMTU
	}
	if a.prober != nil {
		needs := make(map[netip.Addr]int, len(node.Paths))
		for _, p := range node.Paths {
			needs[p.Peer] = node.Needs(p)
		}
		a.prober.SetPeers(needs)
		holes := a.prober.Holes()
		for i, p := range node.Paths {
			node.Paths[i].Measured = holes[p.Peer]
		}
	}
	now := node.Capacity()
	n.tellCapacity(a.capacity, now)
	a.capacity = now
	if now.Carries < topology.MinMTU {
		return fmt.Errorf("%s leaves pods packets of %d bytes, and they need %d: raise its MTU (ip link set dev DEVICE mtu BYTES)", now.Limit, now.Carries, topology.MinMTU)
	}
	return nil
}

// findPaths looks up the ways to all peers, and keeps them. A peer that there is no
// route to just now keeps the way that it had: with no packets there are none too large.
func (n *node) findPaths() []mtu.Path {
	had := map[netip.Addr]mtu.Path{}
	for _, p := range n.agreement.paths {
		had[p.Peer] = p
	}
	var peers []netip.Addr
	for ip, r := range n.records.Nodes {
		if ip != n.self && r.Validate(n.records.Config) == nil {
			peers = append(peers, ip)
		}
	}
	found := n.host.PathsTo(n.self, peers)
	var out []mtu.Path
	ways := make(map[netip.Addr]link.Path, len(peers))
	for _, peer := range peers {
		p, ok := found[peer]
		ways[peer] = p
		if !ok {
			ways[peer] = n.agreement.ways[peer]
		}
		switch before, known := had[peer]; {
		case ok && p.Link.Loopback: // an address of this node is no peer
		case ok:
			out = append(out, mtu.Path{Peer: peer, Link: p.Link.Name, MTU: p.MTU})
		case known:
			out = append(out, before)
		}
	}
	n.agreement.ways = ways
	return out
}

// tellCapacity says once what changed.
func (n *node) tellCapacity(was, now mtu.Capacity) {
	if now.Clamped && (!was.Clamped || was.Carries != now.Carries || was.Limit != now.Limit) {
		n.log.Warn("--mtu is more than the node's paths carry: clamped", "configured", n.cfg.MTU, "mtu", now.Carries, "limit", now.Limit)
	}
	before := map[netip.Addr]int{}
	for _, peer := range was.BlackHoles {
		before[peer] = was.Paths[peer]
	}
	for _, peer := range now.BlackHoles {
		if before[peer] != now.Paths[peer] {
			n.log.Warn("the path to a node loses large packets and does not say so: a black hole", "node", peer, "carries", now.Paths[peer], "policy", n.cfg.MTUOnBlackHole)
		}
		delete(before, peer)
	}
	for peer := range before {
		n.log.Info("the path to a node is no black hole any more", "node", peer)
	}
}

// observeMTU shows how the node stands to the others.
func (n *node) observeMTU() {
	a, m := n.agreement, n.metrics
	m.mtu.Set(float64(a.has.Sends))
	m.paths.carries.Set(float64(a.capacity.Carries))
	m.paths.cluster.Set(float64(n.mtuView().Cluster(a.capacity.Carries)))
	m.paths.blackHoles.Set(float64(len(a.capacity.BlackHoles)))
	m.paths.holdsBack.Set(0)
	if a.view.HoldsBack(n.self) {
		m.paths.holdsBack.Set(1)
	}
	m.paths.narrow.Reset()
	if a.narrowest > 0 {
		for peer, takes := range a.capacity.Narrow(a.narrowest - tunnel.VXLAN.Overhead(n.self)) {
			m.paths.narrow.WithLabelValues(peer.String()).Set(float64(takes))
		}
	}
}

// pathMetrics are about what the node's paths carry, bytes of a pod's packet.
type pathMetrics struct {
	carries, cluster, blackHoles, holdsBack prometheus.Gauge
	narrow                                  *prometheus.GaugeVec
}

func newPathMetrics(reg prometheus.Registerer) *pathMetrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "k8s_ovs", Name: name, Help: help})
	}
	m := &pathMetrics{
		carries:    gauge("mtu_carries_bytes", "Packets of pods that every path of this node carries."),
		cluster:    gauge("cluster_mtu_bytes", "Least of what the nodes carry: the MTU of pods, once all have it."),
		blackHoles: gauge("mtu_black_holes", "Paths to other nodes that lose large packets and do not say so."),
		holdsBack:  gauge("mtu_holds_cluster_back", "1 when no node carries less than this one, and most carry more."),
		narrow: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "k8s_ovs", Name: "path_mtu_bytes", Help: "Packets of pods that the path to a node carries, only where its route or a measurement says less than the link.",
		}, []string{"peer"}),
	}
	reg.MustRegister(m.carries, m.cluster, m.blackHoles, m.holdsBack, m.narrow)
	return m
}

// tellFailed says once that pods do not follow; each pass tries again.
func (n *node) tellFailed(set mtu.Values, err error) {
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && said != n.agreement.failed {
		n.log.Warn("pods do not have the MTU that they should", "mtu", set.Sends, "receives", set.Receives, "error", err)
	}
	n.agreement.failed = said
}

// start runs what the agreement needs beside the loop; the returned function waits
// until it has ended, after ctx.
func (a *agreement) start(ctx context.Context) (wait func()) {
	var running sync.WaitGroup
	running.Go(func() { a.writer.run(ctx) })
	if a.prober != nil {
		running.Go(func() { a.prober.Run(ctx) })
	}
	return running.Wait
}

// resyncMTU writes anew what never came back: etcd may be another one now.
func (n *node) resyncMTU() {
	a := n.agreement
	a.stale = true
	if _, ok := a.view.Nodes[n.self]; !ok || !a.writer.confirmed(a.view.Revision) {
		a.writer.forget()
	}
}
