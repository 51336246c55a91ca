package pathprobe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

const (
	port     = 4790
	patience = 20 * time.Second
)

// quick is a prober's timing in tests.
var quick = timing{interval: 200 * time.Millisecond, retry: 100 * time.Millisecond, recheck: 500 * time.Millisecond}

// lab is nodes on a bridge in a namespace between them.
type lab struct {
	t    *testing.T
	name string
}

func newLab(t *testing.T) *lab {
	l := &lab{t, nstest.New(t)}
	l.ip(l.name, "link add wire mtu 9000 type bridge", "link set wire up")
	return l
}

func (l *lab) ip(name string, lines ...string) {
	l.t.Helper()
	if err := ns.IP(l.t.Context(), name, lines...); err != nil {
		l.t.Fatal(err)
	}
}

// node is a namespace with address 192.0.2.number on eth0 of MTU mtu.
func (l *lab) node(number, mtu int) *link.NS {
	l.t.Helper()
	name := nstest.New(l.t)
	l.ip(l.name, fmt.Sprintf("link add port%d mtu 9000 master wire type veth peer name eth0 mtu %d netns %s", number, mtu, name), fmt.Sprintf("link set port%d up", number))
	l.ip(name, "link set eth0 up", fmt.Sprintf("addr add 192.0.2.%d/24 dev eth0", number))
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	if err := ns.WaitRunning(ctx, name, "eth0"); err != nil {
		l.t.Fatal(err)
	}
	n, err := link.Open(ns.Path(name))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = n.Close() })
	return n
}

func vtep(number int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(number)}) }

// probe runs a prober until the test ends.
func (l *lab) probe(n *link.NS, number int, peers map[netip.Addr]int) *Prober {
	p := newProber(Config{NS: n, Address: netip.AddrPortFrom(vtep(number), port), Logger: slog.New(slog.DiscardHandler)}, quick)
	p.SetPeers(floor, peers)
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
	l.t.Cleanup(func() { cancel(); <-done })
	return p
}

// until waits for a verdict: the largest size that passes is least to most.
func until(t *testing.T, p *Prober, peer netip.Addr, least, most int) {
	t.Helper()
	timeout := time.After(patience)
	for {
		if size := p.Holes()[peer]; size >= least && size <= most {
			return
		}
		select {
		case <-p.Changed():
		case <-timeout:
			t.Fatalf("the verdict on %s is %d, not %d to %d, after %s", peer, p.Holes()[peer], least, most, patience)
		}
	}
}

// heard waits until both know what the other would send.
func heard(t *testing.T, p *Prober, peer netip.Addr) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		p.mu.Lock()
		ok := p.machine.peers[peer].theirs > 0
		p.mu.Unlock()
		if ok {
			return
		}
	}
	t.Fatalf("%s was not heard within %s", peer, patience)
}

func TestRealBlackHole(t *testing.T) {
	l := newLab(t)
	a, b := l.node(1, 9000), l.node(2, 1500)
	pa := l.probe(a, 1, map[netip.Addr]int{vtep(2): 9000})
	pb := l.probe(b, 2, map[netip.Addr]int{vtep(1): 1500})
	heard(t, pa, vtep(2))
	heard(t, pb, vtep(1))
	// A veth drops what is larger than the other end's MTU and a VLAN tag (4), and
	// says nothing.
	l.ip(l.name, "link set port2 mtu 1400")
	until(t, pa, vtep(2), 1400, 1404)
	until(t, pb, vtep(1), 1400, 1404)
	l.ip(l.name, "link set port2 mtu 1300")
	until(t, pb, vtep(1), 1300, 1304)
	l.ip(l.name, "link set port2 mtu 9000")
	until(t, pa, vtep(2), 0, 0)
	until(t, pb, vtep(1), 0, 0)
}

// The node's own link says at once that a probe is too large: no path is judged.
func TestOwnLinkIsNotJudged(t *testing.T) {
	l := newLab(t)
	a, b := l.node(1, 1400), l.node(2, 1500)
	pa := l.probe(a, 1, map[netip.Addr]int{vtep(2): 1500})
	l.probe(b, 2, map[netip.Addr]int{vtep(1): 1500})
	heard(t, pa, vtep(2))
	select {
	case <-pa.Changed():
		t.Errorf("judged: %v", pa.Holes())
	case <-time.After(10 * quick.interval):
	}
}

// Only peers are answered, only from the agents' port, with no more than they
// sent, and nobody else can answer for one.
func TestStrangers(t *testing.T) {
	l := newLab(t)
	a, b := l.node(1, 1500), l.node(2, 1500)
	pa := l.probe(a, 1, map[netip.Addr]int{vtep(2): 1500, vtep(3): 1500})
	// An answer that comes has time on a busy machine; one that does not is not waited for as long.
	const comes, stays = 20 * time.Second, 300 * time.Millisecond
	ask := func(n *link.NS, from netip.AddrPort, message []byte, wait time.Duration) (answer []byte) {
		t.Helper()
		var conn *net.UDPConn
		err := n.Do(func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(from))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		buf := make([]byte, 2000)
		_ = conn.SetDeadline(time.Now().Add(wait))
		if _, err := conn.WriteToUDPAddrPort(message, netip.AddrPortFrom(vtep(1), port)); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if err == nil && buf[4] == kindAnswer { // pa also probes
				return buf[:n]
			}
		}
	}
	message := func(kind byte, length int) []byte {
		b := make([]byte, length)
		copy(b, magic)
		b[4] = kind
		binary.BigEndian.PutUint16(b[6:], 1500)
		binary.BigEndian.PutUint64(b[8:], 77)
		return b
	}
	l.ip(filepath.Base(b.Path()), "addr add 192.0.2.9/24 dev eth0")
	if got := ask(b, netip.AddrPortFrom(vtep(2), port), message(kindProbe, 1400), comes); len(got) != messageLen || binary.BigEndian.Uint64(got[8:]) != 77 {
		t.Errorf("a peer got %x", got)
	}
	for name, tc := range map[string]struct {
		from    netip.AddrPort
		message []byte
	}{
		"a stranger":     {netip.AddrPortFrom(vtep(9), port), message(kindProbe, 1400)},
		"another port":   {netip.AddrPortFrom(vtep(2), 5000), message(kindProbe, 1400)},
		"a short probe":  {netip.AddrPortFrom(vtep(2), port), message(kindProbe, 16)[:15]},
		"another format": {netip.AddrPortFrom(vtep(2), port), make([]byte, 100)},
		"an answer":      {netip.AddrPortFrom(vtep(2), port), message(kindAnswer, 16)},
	} {
		if got := ask(b, tc.from, tc.message, stays); got != nil {
			t.Errorf("%s got %x", name, got)
		}
	}
	pa.mu.Lock()
	defer pa.mu.Unlock()
	if theirs := pa.machine.peers[vtep(2)].theirs; theirs != 0 {
		t.Errorf("an answer that nobody asked for was believed: %d", theirs)
	}
}

// BenchmarkProbe is one full-size probe and its answer, both ends.
func BenchmarkProbe(b *testing.B) {
	host, err := link.Current()
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	open := func(number byte) (*Prober, *net.UDPConn) {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, number}), port)
		p := New(Config{NS: host, Address: addr, Interval: time.Hour, Logger: slog.New(slog.DiscardHandler)})
		conn, err := p.open(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		return p, conn
	}
	one, from := open(71)
	two, to := open(72)
	two.SetPeers(floor, map[netip.Addr]int{one.cfg.Address.Addr(): 1500})
	go func() { _ = two.read(to) }()
	buf, in := make([]byte, 1472), make([]byte, messageLen)
	for b.Loop() {
		if err := one.write(from, buf, two.cfg.Address.Addr(), kindProbe, 1, 1500); err != nil {
			b.Fatal(err)
		}
		if _, err := from.Read(in); err != nil {
			b.Fatal(err)
		}
	}
}
