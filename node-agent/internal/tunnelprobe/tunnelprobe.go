// Package tunnelprobe asks other nodes through the tunnels whether they are there, and answers them. What else the
// agent looks at ends at its own node; this finds what is in between, and in the datapath itself: a firewall or a
// security group that does not let tunnels' packets pass, a neighbour that is a wrong one, a port that the datapath lost.
//
// A question goes the way of a pod's packet: out of the gateway port through the flows to the tunnel, and out of the other
// node's gateway port. It is sent and received below the firewall of the nodes themselves (packet(7)), so that none
// of its rules has to know it. Only nodes are asked that say outside of the tunnels that they answer ([Outside]), and
// their silence counts only where they answer there meanwhile: a node that is away, restarts or has another
// release proves nothing.
package tunnelprobe

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/rawpacket"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// A message is "kovt", its kind, three zeros, and 64 random bits, which an answer repeats.
const (
	magic      = "kovt"
	kindAsk    = 1
	kindAnswer = 2
	messageLen = 16
)

// reopenTime is the pause before a socket is opened again.
const reopenTime = time.Second

// ErrCut is that no other node answers through the tunnels, though some answer outside of them.
var ErrCut = errors.New("no other node answers through the tunnels")

// Node is another node.
type Node struct {
	// Tunnel is its tunnel address, Overlay that of its gateway port.
	Tunnel, Overlay netip.Addr
}

// Outside asks nodes past the tunnels; [pathprobe.Prober] does.
type Outside interface {
	// Ask asks these nodes at once.
	Ask(nodes []netip.Addr)
	// Answered is when a node answered last, and whether it said then that it listens for what comes through tunnels.
	Answered(node netip.Addr) (at time.Time, listens bool)
}

// Config of a Prober.
type Config struct {
	// NS is the node's namespace, Device the gateway port.
	NS     *link.NS
	Device string
	// Port is the UDP port of questions and answers, the same on all nodes.
	Port    uint16
	Outside Outside
	// Fresh is how old what a node said outside of the tunnels may be.
	Fresh time.Duration
	// Well reports whether this node is well but for what other nodes do not answer.
	Well func() bool
	// AnswersOnly is that nobody is asked.
	AnswersOnly bool
	Logger      *slog.Logger
}

// Prober asks and answers. Its methods may be called at any time.
type Prober struct {
	cfg Config
	// listens is that there is a socket.
	listens atomic.Bool

	mu sync.Mutex // guards what follows
	// subnet is the node's, not valid as long as that is not known.
	subnet  netip.Prefix
	tunnels tunnel.Port
	machine *machine

	changed chan struct{}
	// said are the nodes that were told last, alone that there is no other: Run's.
	said  map[netip.Addr]bool
	alone bool
}

// New makes a Prober; it sends nothing before Run.
func New(cfg Config) *Prober {
	return &Prober{cfg: cfg, machine: newMachine(randomNonce, cfg.Outside, cfg.Fresh), changed: make(chan struct{}, 1), said: map[netip.Addr]bool{}}
}

// randomNonce cannot be guessed, and is not 0.
func randomNonce() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint64(b[:]) | 1
}

// Listens reports whether what comes through tunnels is answered.
func (p *Prober) Listens() bool { return p.listens.Load() }

// SetNodes replaces the nodes that are asked. Subnet is this node's own, and those of all are as long, tunnels
// is the port of their tunnels.
func (p *Prober) SetNodes(subnet netip.Prefix, tunnels tunnel.Port, nodes []Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subnet, p.tunnels = subnet, tunnels
	p.machine.setNodes(nodes)
}

// Kept is how many nodes do not answer through the tunnels while they answer outside of them.
func (p *Prober) Kept() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	cut, _ := p.machine.cut()
	return len(cut)
}

// Reach is [ErrCut] with what there is to look for where nodes do not answer through the tunnels while they answer
// outside of them, and no other one answers through them.
func (p *Prober) Reach() error {
	if why, all := p.explain(); all {
		return fmt.Errorf("%w: %s", ErrCut, why)
	}
	return nil
}

// Changed wakes up after what [Prober.Reach] says has begun or ended.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

// Why names nodes that do not answer through the tunnels, and do outside of them, while others do; empty where there are none.
func (p *Prober) Why() string {
	why, all := p.explain()
	if all {
		return ""
	}
	return why
}

func (p *Prober) explain() (why string, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cut, all := p.machine.cut()
	if len(cut) == 0 {
		return "", false
	}
	one := cut[0]
	whom := one.String() + " answers"
	if more := len(cut) - 1; more > 0 {
		whom = fmt.Sprintf("%s and %d more answer", one, more)
	}
	return fmt.Sprintf("%s outside of the tunnels only: something between the nodes drops UDP port %d (a security group of the cloud, a firewall on the way, traffic control, a policy of IPsec), or the neighbour is a wrong one (ip neigh show to %s; with the userspace datapath ovs-appctl tnl/neigh/show)",
		whom, p.tunnels, one), all
}

// Run asks and answers until ctx ends.
func (p *Prober) Run(ctx context.Context) {
	var trouble backoff.Trouble
	for ctx.Err() == nil {
		err := p.serve(ctx, func() { trouble.Over() })
		if err != nil && ctx.Err() == nil && trouble.News(err) {
			p.cfg.Logger.Debug("other nodes are not asked through the tunnels; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reopenTime):
		}
	}
}

// serve asks and answers until the socket fails, or the device is another one.
func (p *Prober) serve(ctx context.Context, opened func()) (err error) {
	subnet := p.own()
	if !subnet.IsValid() {
		return nil
	}
	s, err := open(p.cfg.NS, p.cfg.Device, p.cfg.Port, subnet)
	if err != nil {
		return err
	}
	opened()
	p.mu.Lock()
	p.machine.rest()
	p.mu.Unlock()
	p.listens.Store(true)
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	var failed error
	reading.Go(func() {
		defer cancel()
		failed = p.read(s)
	})
	defer func() {
		p.listens.Store(false)
		cancel()
		_ = s.Close()
		reading.Wait()
		err = cmp.Or(err, failed)
	}()
	for {
		if err := s.current(); err != nil || p.own() != subnet {
			return err
		}
		select {
		case <-time.After(p.round(s)):
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Prober) own() netip.Prefix {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.subnet
}

// round asks whom it is the turn of, and returns how long the round lasts.
func (p *Prober) round(s *socket) time.Duration {
	if p.cfg.AnswersOnly {
		return calm
	}
	well := p.cfg.Well()
	p.mu.Lock()
	if !well {
		p.machine.rest()
	}
	ask, doubt, lasts := p.machine.round(time.Now())
	p.mu.Unlock()
	for _, q := range ask {
		p.send(s, q.to.Overlay, kindAsk, q.nonce)
	}
	if len(doubt) > 0 {
		p.cfg.Outside.Ask(doubt)
	}
	p.tell()
	return lasts
}

// send sends a message. What goes wrong is no different from a way that loses it.
func (p *Prober) send(s *socket, to netip.Addr, kind byte, nonce uint64) {
	m := make([]byte, messageLen)
	copy(m, magic)
	m[4] = kind
	binary.BigEndian.PutUint64(m[8:], nonce)
	_ = s.send(rawpacket.Datagram(s.at, netip.AddrPortFrom(to, p.cfg.Port), m...))
}

// read takes in what arrives until the socket is closed.
func (p *Prober) read(s *socket) error {
	for {
		from, to, m, err := s.receive()
		if err != nil {
			return err
		}
		// From whom, the flows have looked at: another node's own address comes from that node's tunnel only.
		if len(m) != messageLen || string(m[:4]) != magic || to != s.at.Addr() {
			continue
		}
		nonce := binary.BigEndian.Uint64(m[8:])
		p.mu.Lock()
		if m[4] == kindAnswer {
			p.machine.answer(time.Now(), from, nonce)
		}
		p.mu.Unlock()
		if m[4] == kindAsk {
			p.send(s, from, kindAnswer, nonce)
		}
	}
}

// tell wakes who waits for verdicts, and logs which nodes are cut off since, and which are not any more.
func (p *Prober) tell() {
	p.mu.Lock()
	cut, alone := p.machine.cut()
	p.mu.Unlock()
	if alone != p.alone {
		p.alone = alone
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	now := map[netip.Addr]bool{}
	for _, at := range cut {
		if now[at] = true; !p.said[at] {
			p.cfg.Logger.Warn("a node does not answer through the tunnel, and does outside of it", "node", at)
		}
	}
	for at := range p.said {
		if !now[at] {
			p.cfg.Logger.Info("a node is not cut off any more: it answers through the tunnel, or nowhere", "node", at)
		}
	}
	p.said = now
}
