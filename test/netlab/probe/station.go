package probe

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// newSession tells this prober's messages from another's that ran before.
func newSession() uint32 { return rand.Uint32() }

// station is the sockets of one endpoint.
type station struct {
	p     *Prober
	index int

	// udp is asked; client asks, from a port of its own. If one socket did both, what two
	// endpoints send to each other would be one connection to whoever tracks connections.
	udp, client *net.UDPConn
	icmp, raw   *net.IPConn // raw sees what TCP segments arrive
	tcp         net.Listener
	stream      net.Listener
	http        net.Listener

	// ports that the sockets listen on, which nobody has: several probers can use one
	// endpoint at a time.
	ports [protocols]int

	mu    sync.Mutex
	conns map[net.Conn]struct{} // accepted ones; nil when closed
}

// receiveBuffer in bytes: enough that no datagram is lost in the socket of a
// receiver that waits for a processor.
const receiveBuffer = 8 << 20

func openStation(p *Prober, index int) (*station, error) {
	s := &station{p: p, index: index, conns: map[net.Conn]struct{}{}}
	path := p.endpoints[index].Sandbox
	err := ns.DoPath(path, s.open)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// open makes the sockets; the calling thread is in the endpoint's namespace.
func (s *station) open() error {
	var err error
	for _, c := range []**net.UDPConn{&s.udp, &s.client} {
		if *c, err = net.ListenUDP("udp4", nil); err != nil {
			return err
		}
	}
	s.ports[UDP] = s.udp.LocalAddr().(*net.UDPAddr).Port
	if s.icmp, err = listenIP("ip4:icmp"); err != nil {
		return err
	}
	if s.raw, err = listenIP("ip4:tcp"); err != nil {
		return err
	}
	if err := onlySYN(s.raw); err != nil {
		return err
	}
	for _, c := range []syscall.Conn{s.udp, s.client, s.icmp, s.raw} {
		if err := forceReceiveBuffer(c); err != nil {
			return err
		}
	}
	for p, l := range map[Protocol]*net.Listener{TCP: &s.tcp, Stream: &s.stream, HTTP: &s.http} {
		if *l, err = listenTCP(); err != nil {
			return err
		}
		s.ports[p] = (*l).Addr().(*net.TCPAddr).Port
	}
	return nil
}

// firstClientPort is the first of the ports that the kernel gives to who connects
// (ip_local_port_range in ip(7)).
const firstClientPort = 32768

// listenTCP listens on a port that nobody has, below those of clients, as servers do:
// there are networks that tell by that who of two is the server.
func listenTCP() (l net.Listener, err error) {
	for range 20 {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", 1024+rand.IntN(firstClientPort-1024)))
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return l, err
}

func listenIP(network string) (*net.IPConn, error) {
	c, err := net.ListenPacket(network, "0.0.0.0")
	if err != nil {
		return nil, err
	}
	return c.(*net.IPConn), nil
}

// onlySYN lets through only what opens a connection: TCP segments with SYN and
// without ACK (RFC 9293, section 3.1: flags in byte 13). A raw IPv4 socket's
// filter sees the packet from its IP header on (raw(7)).
func onlySYN(c *net.IPConn) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},           // X = length of the IP header
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 13},           // A = flags
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x12},        // SYN and ACK
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: 0x02}, // SYN alone?
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},                     // take it
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},                          // drop it
	}
	sc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = sc.Control(func(fd uintptr) {
		set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	return errors.Join(err, set)
}

// forceReceiveBuffer sets a receive buffer beyond the machine's limit, which root may.
func forceReceiveBuffer(c syscall.Conn) error {
	sc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = sc.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	})
	return errors.Join(err, set)
}

// listen serves all sockets until close.
func (s *station) listen() {
	udp := func() { s.serveUDP(s.udp) }
	answers := func() { s.serveUDP(s.client) }
	for _, serve := range []func(){udp, answers, s.serveICMP, s.serveRaw, s.serveTCP, s.serveStream, s.serveHTTP} {
		s.p.wg.Add(1)
		go func() {
			defer s.p.wg.Done()
			serve()
		}()
	}
}

func (s *station) close() error {
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close() // only ends what reads from it
	}
	s.conns = nil
	s.mu.Unlock()
	var errs []error
	for _, c := range []*net.UDPConn{s.udp, s.client} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	for _, c := range []*net.IPConn{s.icmp, s.raw} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	for _, l := range []net.Listener{s.tcp, s.stream, s.http} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// see passes a message that arrived here to who wants to know.
func (s *station) see(p Protocol, h header) {
	if !s.p.ours(h) {
		return
	}
	if sink := s.p.getSink(); sink != nil {
		sink.delivered(p, h, s.index)
	}
}

func (s *station) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error for something sent before
		}
		h, err := decodeHeader(buf[:n])
		if err != nil || !s.p.ours(h) {
			continue
		}
		switch h.kind {
		case kindRequest, kindAsked:
			s.see(UDP, h)
			h.kind = kindAnswer
			_, _ = conn.WriteToUDPAddrPort(h.encode(), from) // a lost answer shows
		case kindOneWay:
			s.see(UDP, h)
		case kindAnswer:
			if sink := s.p.getSink(); sink != nil {
				sink.answered(UDP, h)
			}
		}
	}
}

// ICMP types (RFC 792).
const (
	echoReply   = 0
	echoRequest = 8
)

func (s *station) serveICMP() {
	buf := make([]byte, 2048)
	for {
		n, err := s.icmp.Read(buf) // with the IP header
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		msg := buf[:n]
		if n > 0 && msg[0]>>4 == 4 {
			ihl := int(msg[0]&0xf) * 4
			if n < ihl {
				continue
			}
			msg = msg[ihl:]
		}
		if len(msg) < 8 {
			continue
		}
		h, err := decodeHeader(msg[8:])
		if err != nil || !s.p.ours(h) {
			continue
		}
		switch msg[0] {
		case echoRequest:
			s.see(Ping, h)
		case echoReply:
			if sink := s.p.getSink(); sink != nil {
				sink.answered(Ping, h)
			}
		}
	}
}

// sendPing sends an echo request; the receiver's kernel answers it.
func (s *station) sendPing(h header) error {
	msg := make([]byte, 8, 8+headerLen)
	msg[0] = echoRequest
	msg[4], msg[5] = byte(s.p.session>>8), byte(s.p.session)
	msg[6], msg[7] = byte(h.seq>>8), byte(h.seq)
	msg = append(msg, h.encode()...)
	sum := checksum(msg)
	msg[2], msg[3] = byte(sum>>8), byte(sum)
	to := s.p.endpoints[h.to].IP
	_, err := s.icmp.WriteToIP(msg, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (s *station) sendUDP(h header) error {
	_, err := s.client.WriteToUDPAddrPort(h.encode(), s.p.address(int(h.to), UDP))
	return err
}

func (s *station) serveRaw() {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.raw.ReadFromIP(buf) // without the IP header
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		addr, _ := netip.AddrFromSlice(from.IP)
		index, ok := s.p.byIP[addr.Unmap()]
		if n < 4 || !ok {
			continue
		}
		port := int(buf[2])<<8 | int(buf[3])
		p := Protocol(slices.Index(s.ports[:], port))
		if p != TCP && p != Stream && p != HTTP {
			continue // not to this prober
		}
		if sink := s.p.getSink(); sink != nil {
			sink.syn(p, index, s.index)
		}
	}
}

// accept serves each connection of l by fn.
func (s *station) accept(l net.Listener, fn func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		s.mu.Lock()
		if s.conns == nil {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.p.wg.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.p.wg.Done()
			fn(c)
			_ = c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		}()
	}
}

// serveTCP answers one request a connection.
func (s *station) serveTCP() {
	s.accept(s.tcp, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, headerLen)
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
		h, err := decodeHeader(buf)
		if err != nil {
			return
		}
		s.see(TCP, h)
		h.kind = kindAnswer
		_, _ = c.Write(h.encode()) // a lost answer shows
	})
}

// serveStream takes numbered messages until the connection ends.
func (s *station) serveStream() {
	s.accept(s.stream, func(c net.Conn) {
		buf := make([]byte, headerLen)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			h, err := decodeHeader(buf)
			if err != nil {
				return
			}
			s.see(Stream, h)
		}
	})
}

// serveHTTP answers with the endpoint's name.
func (s *station) serveHTTP() {
	name := s.p.endpoints[s.index].String()
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintln(w, name) // a lost answer shows
		}),
	}
	_ = server.Serve(s.http) // ends when the listener is closed
	_ = server.Close()
}

// dial connects to another endpoint from this one.
func (s *station) dial(to int, p Protocol, timeout time.Duration) (net.Conn, error) {
	return ns.DialTCP(s.p.endpoints[s.index].Sandbox, s.p.address(to, p).String(), timeout)
}
