// Package pathprobe finds black holes: paths between nodes that lose large packets
// and do not say so. It sends each peer datagrams that must not be fragmented, as
// large as tunnels' packets may be, and answers those of peers.
//
// It measures and judges paths, and changes nothing. The way it goes about it is
// that of RFC 8899 (Datagram Packetization Layer Path MTU Discovery), with a
// responder of its own.
package pathprobe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

const (
	// answerTime is how long an answer may take; a path that takes longer is not judged.
	answerTime = time.Second
	// recheckAfter is how many intervals pass until a black hole is looked at for a
	// larger size: a minute by default.
	recheckAfter = 6
	// reopenTime is the pause before the socket is opened again.
	reopenTime = 2 * time.Second
)

// A datagram is "kovp", its kind, what its sender says of itself, what it would send (bytes, 0 for
// unknown), and 64 random bits; a probe is filled up with zeros. An answer repeats
// the bits, so it can only come from who got the probe, and is never longer than it.
// Releases before this one say nothing of themselves: zero.
const (
	magic      = "kovp"
	kindProbe  = 1
	kindAnswer = 2
	messageLen = 16
	// listens is what a sender says of itself that listens for what comes through tunnels.
	listens = 1
)

// Config of a Prober.
type Config struct {
	// NS is the node's namespace.
	NS *link.NS
	// Address is the VTEP address, with the UDP port of probes; peers use the same.
	Address netip.AddrPort
	// Interval is between probes of one peer.
	Interval time.Duration
	// Listens reports whether the node answers what comes through tunnels, as long as they are open, which peers are told.
	Listens func() bool
	Logger  *slog.Logger
}

// Prober probes the paths to a node's peers and answers theirs.
type Prober struct {
	cfg     Config
	log     *slog.Logger
	headers int
	wake    chan struct{}
	changed chan struct{}

	mu      sync.Mutex // guards machine
	machine *machine
}

// New makes a Prober; it sends nothing before Run.
func New(cfg Config) *Prober {
	return newProber(cfg, timing{interval: cfg.Interval, retry: min(answerTime, cfg.Interval), recheck: recheckAfter * cfg.Interval})
}

func newProber(cfg Config, t timing) *Prober {
	headers := 20 + 8 // IPv4 (RFC 791), UDP (RFC 768)
	if cfg.Address.Addr().Is6() {
		headers = 40 + 8
	}
	return &Prober{
		cfg: cfg, log: cfg.Logger, headers: headers, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		machine: newMachine(t, 0, randomNonce),
	}
}

// randomNonce cannot be guessed.
func randomNonce() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint64(b[:])
}

// SetPeers replaces the peers. The values are the largest packets that tunnels
// send them, bytes of an IP packet; probes are no larger, nor larger than what the
// peer would send. Packets of the size floor are taken to pass where anything does.
func (p *Prober) SetPeers(floor int, peers map[netip.Addr]int) {
	p.mu.Lock()
	p.machine.floor = floor
	p.machine.setPeers(time.Now(), peers)
	p.mu.Unlock()
	signal(p.wake)
}

// Holes are the peers whose path loses packets that it should take, and the
// largest that pass, bytes of an IP packet. A peer that was never heard is not among
// them; one that is not heard any more stays what it was.
func (p *Prober) Holes() map[netip.Addr]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.machine.holes()
}

// Silent are the peers, in order, that have answered probes and have not for six intervals: their agents are away, or nothing gets
// through between the two nodes.
func (p *Prober) Silent() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.machine.silent(time.Now())
}

// Ask has these peers asked at once.
func (p *Prober) Ask(peers []netip.Addr) {
	p.mu.Lock()
	p.machine.ask(time.Now(), peers)
	p.mu.Unlock()
	signal(p.wake)
}

// Answered is when a peer answered last, and whether it said then that it listens for what comes through tunnels. The time
// is zero where it never has.
func (p *Prober) Answered(at netip.Addr) (last time.Time, listens bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if peer, ok := p.machine.peers[at]; ok {
		return peer.answered, peer.listens
	}
	return time.Time{}, false
}

// Changed wakes up after [Prober.Holes] changed.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

// Run probes and answers until ctx ends. Without a socket nothing is judged.
func (p *Prober) Run(ctx context.Context) {
	var trouble backoff.Trouble
	for ctx.Err() == nil {
		err := p.serve(ctx, func() { trouble.Over() })
		if ctx.Err() != nil {
			return
		}
		if trouble.News(err) {
			p.log.Warn("paths to peers are not probed; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reopenTime):
		}
	}
}

// serve probes and answers until the socket fails.
func (p *Prober) serve(ctx context.Context, opened func()) error {
	conn, err := p.open(ctx)
	if err != nil {
		return err
	}
	opened()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var reading sync.WaitGroup
	var failed error
	reading.Go(func() {
		defer cancel()
		failed = p.read(conn)
	})
	p.send(ctx, conn)
	cancel()
	conn.Close()
	reading.Wait()
	return failed
}

// open binds to the VTEP address. Its packets are never fragmented, and as large
// as the device takes whatever the kernel has learned of the path (ip(7),
// IP_PMTUDISC_PROBE).
func (p *Prober) open(ctx context.Context) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			if network == "udp6" {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			}
		})
		return errors.Join(cerr, err)
	}}
	var conn net.PacketConn
	err := p.cfg.NS.Do(func() (err error) {
		conn, err = lc.ListenPacket(ctx, "udp", p.cfg.Address.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for probes of paths at %s (--mtu-probe-port): %w", p.cfg.Address, err)
	}
	return conn.(*net.UDPConn), nil
}

// send sends what is due until ctx ends.
func (p *Prober) send(ctx context.Context, conn *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		p.mu.Lock()
		now := time.Now()
		probes, next := p.machine.step(now)
		own := make([]int, len(probes))
		for i, pr := range probes {
			own[i] = p.machine.peers[pr.peer].own
		}
		p.mu.Unlock()
		for i, pr := range probes {
			size := max(pr.size-p.headers, messageLen)
			err := p.write(conn, buf[:size], pr.peer, kindProbe, pr.nonce, own[i])
			if errors.Is(err, unix.EMSGSIZE) {
				p.mu.Lock()
				p.machine.tooBig(now, pr.peer)
				p.mu.Unlock()
			}
		}
		p.tell()
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// write sends one datagram. What else goes wrong than its size is no different from
// a path that loses it.
func (p *Prober) write(conn *net.UDPConn, buf []byte, to netip.Addr, kind byte, nonce uint64, own int) error {
	copy(buf, magic)
	buf[4], buf[5] = kind, 0
	if p.cfg.Listens != nil && p.cfg.Listens() {
		buf[5] = listens
	}
	binary.BigEndian.PutUint16(buf[6:], uint16(min(own, 1<<16-1)))
	binary.BigEndian.PutUint64(buf[8:], nonce)
	_, err := conn.WriteToUDPAddrPort(buf, netip.AddrPortFrom(to, p.cfg.Address.Port()))
	return err
}

// read takes in what arrives until the socket is closed.
func (p *Prober) read(conn *net.UDPConn) error {
	in, out := make([]byte, messageLen), make([]byte, messageLen)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(in) // the rest of a probe is of no interest
		if err != nil {
			return err
		}
		// From a peer's agent, not from a pod that leaves with a peer's address.
		if n < messageLen || string(in[:4]) != magic || from.Port() != p.cfg.Address.Port() {
			continue
		}
		addr, theirs, nonce := from.Addr().Unmap(), int(binary.BigEndian.Uint16(in[6:])), binary.BigEndian.Uint64(in[8:])
		p.mu.Lock()
		peer, known := p.machine.peers[addr]
		own, due := 0, false
		if known {
			own = peer.own
			due = in[4] == kindAnswer && p.machine.answer(time.Now(), addr, nonce, theirs, in[5]&listens != 0)
		}
		p.mu.Unlock()
		if known && in[4] == kindProbe {
			_ = p.write(conn, out, addr, kindAnswer, nonce, own)
		}
		if due {
			signal(p.wake)
		}
	}
}

// tell wakes who waits for verdicts.
func (p *Prober) tell() {
	p.mu.Lock()
	news := p.machine.news
	p.machine.news = false
	p.mu.Unlock()
	if news {
		signal(p.changed)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
