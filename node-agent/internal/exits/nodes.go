package exits

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/rawpacket"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// mostPeers is how many ways to other nodes one look tries: all of them in turn, so that a look costs the same in a
// large network.
const mostPeers = 64

// mostBeside is how many more are tried where there is no way to any of these.
const mostBeside = 1024

// Crossing is where datagrams of the agent's own end that go the way of tunnels' packets: see [hostnet.TunnelEnd].
type Crossing interface {
	Mark() []byte
	Ended(ctx context.Context) ([]hostnet.Ended, error)
	// Forget has what notes them made anew.
	Forget()
}

// Underlay is the node as tunnels' packets meet it. [NodeIn] makes one.
type Underlay interface {
	PathsTo(source netip.Addr, peers []netip.Addr) map[netip.Addr]link.Path
	Arrive(by, device string, packets ...[]byte) error
	// Depart sends what carries says to all of them from one port of the node's own, which it returns.
	Depart(from netip.Addr, to []netip.AddrPort, carries []byte) (port uint16, err error)
}

// Depart implements [Underlay]. What the node itself refuses to send is not told: it does not come to its end.
func (n Node) Depart(from netip.Addr, to []netip.AddrPort, carries []byte) (port uint16, err error) {
	err = n.Do(func() error {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
		if err != nil {
			return err
		}
		defer conn.Close()
		port = conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		for _, peer := range to {
			_, _ = conn.WriteToUDPAddrPort(carries, peer)
		}
		return nil
	})
	return port, err
}

// Nodes is the check of the ways between one node and the others. But for [Nodes.Why] one goroutine may use it at a time.
type Nodes struct {
	host     Underlay
	crossing Crossing
	log      *slog.Logger
	// last is the peer that was tried last.
	last netip.Addr
	// kept are the peers that there is no way to, as last seen.
	kept map[netip.Addr]peerWay
	why  atomic.Pointer[string]
	said said
	// patience is how long a packet may take to its end.
	patience, pause time.Duration
}

// NewNodes makes a check.
func NewNodes(host Underlay, crossing Crossing, log *slog.Logger) *Nodes {
	return &Nodes{host: host, crossing: crossing, log: log, kept: map[netip.Addr]peerWay{}, said: said{}, patience: patience / 2, pause: pause}
}

// Peers are the other nodes, and the ports where they take tunnels' packets.
type Peers map[netip.Addr]tunnel.Port

// peerWay is what a look found of the way to a peer: by which device, and what keeps packets back.
type peerWay struct {
	device string
	port   tunnel.Port
	barrier
}

// barrier is what keeps tunnels' packets back; the zero value is nothing.
type barrier struct {
	// noRoute is that the node's routes lead nowhere; out and in that packets do not leave, or do not come in.
	noRoute, out, in bool
}

// Kept are how many peers there is no way to, as last seen.
func (n *Nodes) Kept() int { return len(n.kept) }

// Why names the peers that there is no way to while there is one to others; empty where there are none. It may be called
// at any time.
func (n *Nodes) Why() string {
	if why := n.why.Load(); why != nil {
		return *why
	}
	return ""
}

// Reach says what keeps tunnels' packets of all other nodes back: no route leads to them, or the node's rules let
// none of the packets in or out. It is nil where one gets through, and where there is no other node; where some do not,
// [Nodes.Why] says so. With routes, nothing is sent: tunnels' packets do not take the way of the node's own.
func (n *Nodes) Reach(ctx context.Context, self netip.Addr, peers Peers, routes bool) error {
	maps.DeleteFunc(n.kept, func(peer netip.Addr, _ peerWay) bool { return peers[peer] == 0 })
	turn, rest := n.turn(peers)
	ways, err := n.try(ctx, self, peers, turn, routes)
	if err == nil && len(rest) > 0 && closed(ways) { // perhaps these alone
		var more map[netip.Addr]peerWay
		more, err = n.try(ctx, self, peers, rest, routes)
		maps.Copy(ways, more)
	}
	if err != nil {
		return err
	}
	n.note(ways)
	if len(ways) > 0 && closed(ways) {
		n.why.Store(nil)
		return errors.New(explain(ways))
	}
	why := ""
	if len(n.kept) > 0 {
		why = explain(n.kept)
	}
	n.why.Store(&why)
	return nil
}

// turn are the peers to be tried now, and those to be tried beside them where there is no way to any of these.
func (n *Nodes) turn(peers Peers) (turn, rest []netip.Addr) {
	all := slices.SortedFunc(maps.Keys(peers), netip.Addr.Compare)
	first, _ := slices.BinarySearchFunc(all, n.last, netip.Addr.Compare)
	if first < len(all) && all[first] == n.last {
		first++
	}
	all = slices.Concat(all[first:], all[:first])
	turn = all[:min(mostPeers, len(all))]
	if len(turn) > 0 {
		n.last = turn[len(turn)-1]
	}
	return turn, all[len(turn):min(mostBeside+len(turn), len(all))]
}

// closed reports whether there is no way to any of them.
func closed(ways map[netip.Addr]peerWay) bool {
	for _, w := range ways {
		if w.barrier == (barrier{}) {
			return false
		}
	}
	return true
}

// try looks what keeps packets to and from these peers back.
func (n *Nodes) try(ctx context.Context, self netip.Addr, peers Peers, these []netip.Addr, routes bool) (map[netip.Addr]peerWay, error) {
	ways := make(map[netip.Addr]peerWay, len(these))
	paths := n.host.PathsTo(self, these)
	var to []netip.Addr
	for _, peer := range these {
		path, ok := paths[peer]
		ways[peer] = peerWay{device: path.Link.Name, port: peers[peer], barrier: barrier{noRoute: !ok}}
		if ok && !path.Link.Loopback { // an address of this node is no peer
			to = append(to, peer)
		}
	}
	for attempt := 0; !routes && attempt < attempts && len(to) > 0; attempt++ {
		if attempt > 0 {
			n.crossing.Forget() // somebody may have flushed it
		}
		out, in, err := n.send(ctx, self, ways, to)
		if err != nil {
			return nil, err
		}
		to = slices.DeleteFunc(to, func(peer netip.Addr) bool {
			w := ways[peer]
			w.barrier = barrier{out: !out[peer], in: !in[peer]}
			ways[peer] = w
			return out[peer] && in[peer]
		})
	}
	return ways, nil
}

// send has datagrams leave for these peers, and come in from them, and waits for them to come to their end: out and in are
// those that did. Where the node cannot have packets arrive, all count as in.
func (n *Nodes) send(ctx context.Context, self netip.Addr, ways map[netip.Addr]peerWay, these []netip.Addr) (out, in map[netip.Addr]bool, err error) {
	if _, err := n.crossing.Ended(ctx); err != nil { // it is there
		return nil, nil, err
	}
	to := make([]netip.AddrPort, 0, len(these))
	by := map[string][]netip.Addr{}
	for _, peer := range these {
		to = append(to, netip.AddrPortFrom(peer, uint16(ways[peer].port)))
		by[ways[peer].device] = append(by[ways[peer].device], peer)
	}
	port, err := n.host.Depart(self, to, n.crossing.Mark())
	if err != nil {
		return nil, nil, fmt.Errorf("sending to other nodes from %s: %w", self, err)
	}
	arrived := true
	for device, peers := range by {
		var packets [][]byte
		for _, peer := range peers {
			packets = append(packets, rawpacket.Datagram(netip.AddrPortFrom(peer, port), netip.AddrPortFrom(self, uint16(ways[peer].port)), n.crossing.Mark()...))
		}
		if err := n.host.Arrive(Device, device, packets...); err != nil {
			arrived = false
			n.said.once(n.log, "it is not known whether tunnels' packets of other nodes come in: the node cannot have packets arrive that nobody sent", err)
		}
	}
	pauses := backoff.Pauses{First: n.pause, Last: n.patience}
	for deadline := time.Now().Add(n.patience); ; {
		out, in = map[netip.Addr]bool{}, map[netip.Addr]bool{}
		ended, err := n.crossing.Ended(ctx)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range ended {
			switch {
			case e.Port != port:
			case e.From == self:
				out[e.To] = true
			case e.To == self:
				in[e.From] = true
			}
		}
		if !arrived {
			for _, peer := range these {
				in[peer] = true
			}
		}
		left := time.Until(deadline)
		if len(out) >= len(these) && len(in) >= len(these) || left <= 0 {
			return out, in, nil
		}
		select {
		case <-time.After(min(pauses.Next(), left)):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// note keeps what was found, and logs what is new.
func (n *Nodes) note(ways map[netip.Addr]peerWay) {
	for _, peer := range slices.SortedFunc(maps.Keys(ways), netip.Addr.Compare) {
		was, now := n.kept[peer], ways[peer]
		switch {
		case now.barrier == was.barrier:
		case now.barrier == (barrier{}):
			delete(n.kept, peer)
			n.log.Info("tunnels' packets get to a node and come from it again", "node", peer)
		default:
			n.kept[peer] = now
			n.log.Warn("tunnels' packets to a node or from it are kept back", "node", peer, "error", explain(map[netip.Addr]peerWay{peer: now}))
		}
	}
}

// explain says what keeps packets to and from these peers back, of those of them that there is no way to, by the first of
// them.
func explain(ways map[netip.Addr]peerWay) string {
	var of []netip.Addr
	for peer, w := range ways {
		if w.barrier != (barrier{}) {
			of = append(of, peer)
		}
	}
	slices.SortFunc(of, netip.Addr.Compare)
	one := of[0]
	w, whom := ways[one], one.String()
	if more := len(of) - 1; more > 0 {
		whom = fmt.Sprintf("%s and %d more", whom, more)
	}
	switch {
	case w.noRoute:
		return fmt.Sprintf("the node has no route to %s (ip route get %s): its pods and theirs do not reach each other; put the route back", whom, one)
	case w.in:
		rule := fmt.Sprintf("somebody's firewall, or its reverse path filter, drops UDP port %d that comes in by %s; have it accepted (iptables -I INPUT -i %s -p udp --dport %d -j ACCEPT, or the same in nft list ruleset)", w.port, w.device, w.device, w.port)
		if w.out {
			rule += ", and what leaves by it, too"
		}
		return fmt.Sprintf("tunnels' packets of %s do not get in: %s", whom, rule)
	}
	return fmt.Sprintf("tunnels' packets to %s do not get out: somebody's firewall drops what leaves for UDP port %d by %s; have it accepted (iptables -I OUTPUT -o %s -p udp --dport %d -j ACCEPT, or the same in nft list ruleset)", whom, w.port, w.device, w.device, w.port)
}
