package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// flood is traffic from one host to another, as much as they carry. It is made
// and measured here and not by iperf3, whose receiver learns by a connection
// through the same full queue when to begin and to end.
type flood struct {
	path
	flows int
	// offered is how fast UDP is sent, bits of payload a second; 0 is TCP, as fast
	// as it goes.
	offered float64
	// payload of one datagram, bytes.
	payload int
	// skip is how long it runs before it counts; window is how long it counts.
	skip, window time.Duration
}

// carried is what a flood found out.
type carried struct {
	// mbits is what arrived, 10^6 bits of payload a second.
	mbits float64
	// retransmits is the part of the segments with data in the window, in percent; NaN
	// for UDP.
	retransmits float64
	// roundTrip is the longest of small datagrams meanwhile, ms.
	roundTrip float64
}

// run makes the flood, as soon as packets pass between the hosts at all.
func (f flood) run(ctx context.Context) (result carried, err error) {
	ctx, cancel := context.WithTimeout(ctx, floodTimeout+f.skip+f.window)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	var again, longest float64
	defer func() {
		cancel()
		if err = errors.Join(err, g.Wait()); err != nil {
			err = fmt.Errorf("flood from %s to %s: %w", f.from.ip, f.to.ip, err)
		}
		result.retransmits, result.roundTrip = again, longest
	}()
	reached := make(chan struct{})
	g.Go(func() (err error) { longest, err = f.longestTrip(ctx, reached); return err })
	select {
	case <-reached:
	case <-ctx.Done():
		return carried{}, errors.New("no datagram came back")
	}
	w := newWindow()
	receive := f.receiveTCP
	if f.offered > 0 {
		receive = f.receiveUDP
	}
	port, closeReceiver, err := receive(w)
	if err != nil {
		return carried{}, err
	}
	defer func() {
		cancel()
		_ = g.Wait() // asked again above; the senders go before the receiver
		err = errors.Join(err, closeReceiver())
	}()
	to := netip.AddrPortFrom(f.to.ip, port)
	if f.offered > 0 {
		again = math.NaN()
		g.Go(func() error { return f.sendUDP(ctx, to, w) })
	} else {
		g.Go(func() (err error) { again, err = f.sendTCP(ctx, to, w); return err })
	}
	select {
	case <-w.full:
	case <-ctx.Done():
	}
	return carried{mbits: w.bits(time.Now()) / 1e6}, nil
}

// floodTimeout is how long a flood may take beside its time: until packets pass,
// and until a lost segment comes again that the window waits for.
const floodTimeout = 5 * time.Second

// receiveBuffer is a socket's, bytes: what comes while the receiver does not run.
const receiveBuffer = 4 << 20

func (f flood) receiveUDP(w *window) (port uint16, stop func() error, err error) {
	conn, port, err := f.listenUDP()
	if err != nil {
		return 0, nil, err
	}
	if err := control(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	}); err != nil {
		return 0, nil, errors.Join(err, conn.Close())
	}
	var g errgroup.Group
	g.Go(func() error { count(conn, w); return nil })
	stop = func() error { return errors.Join(conn.Close(), g.Wait()) }
	return port, stop, nil
}

// listenUDP makes a socket at the receiver.
func (f flood) listenUDP() (conn *net.UDPConn, port uint16, err error) {
	if conn, err = ns.ListenUDP(ns.Path(f.to.netns), f.to.any()); err != nil {
		return nil, 0, err
	}
	return conn, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

func (f flood) receiveTCP(w *window) (port uint16, stop func() error, err error) {
	listener, err := ns.ListenTCP(ns.Path(f.to.netns), f.to.any())
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return nil // closed, which ends it
			}
			g.Go(func() error {
				// Not the sender's end of it, which waits in the limit's queue.
				defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })()
				count(conn, w)
				return conn.Close()
			})
		}
	})
	stop = func() error { cancel(); return errors.Join(listener.Close(), g.Wait()) }
	return listener.Addr().(*net.TCPAddr).AddrPort().Port(), stop, nil
}

// count counts what conn receives until it cannot be read any more.
func count(conn net.Conn, w *window) {
	buf := make([]byte, 256<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		w.arrived(time.Now, n)
	}
}

// sendUDP sends datagrams until ctx ends: in its first moments twice what is offered,
// which uses up the limits' bursts.
func (f flood) sendUDP(ctx context.Context, to netip.AddrPort, w *window) (err error) {
	conn, err := f.dial("udp4", to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	began := time.Now()
	w.open(began.Add(f.skip), f.window)
	interval := time.Duration(float64(f.payload) * 8 / f.offered * float64(time.Second))
	const slack = 5 * time.Millisecond // that it may be behind and catch up
	data := make([]byte, f.payload)
	for next := began; ctx.Err() == nil; {
		now := time.Now()
		if wait := next.Sub(now); wait > 0 {
			time.Sleep(wait)
			continue
		}
		if _, err := conn.Write(data); err != nil {
			return err
		}
		if next = next.Add(interval); now.Sub(began) < f.skip {
			next = next.Add(-interval / 2)
		}
		if behind := now.Add(-slack); next.Before(behind) {
			next = behind
		}
	}
	return nil
}

// sendTCP sends by all connections until ctx ends, and returns how many of the
// window's segments were sent again, in percent.
func (f flood) sendTCP(ctx context.Context, to netip.AddrPort, w *window) (retransmits float64, err error) {
	conns := make([]*net.TCPConn, f.flows)
	for i := range conns {
		conn, err := f.dial("tcp4", to)
		if err != nil {
			return 0, err
		}
		conns[i] = conn.(*net.TCPConn)
		// What waits in a socket must not run on into the next measurement.
		defer func() { err = errors.Join(err, conns[i].SetLinger(0), conn.Close()) }()
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, conn := range conns {
		g.Go(func() (err error) {
			data := make([]byte, 128<<10)
			for err == nil {
				_, err = conn.Write(data)
			}
			if ctx.Err() != nil {
				return nil // the deadline below
			}
			return err
		})
	}
	w.open(time.Now().Add(f.skip), f.window)
	select {
	case <-time.After(f.skip):
	case <-ctx.Done():
	}
	early, err := segmentsOf(conns)
	<-ctx.Done()
	late, lateErr := segmentsOf(conns)
	for _, conn := range conns {
		err = errors.Join(err, conn.SetWriteDeadline(time.Now()))
	}
	if err := errors.Join(err, lateErr, g.Wait()); err != nil {
		return 0, err
	}
	return 100 * (late.again - early.again) / (late.all - early.all), nil
}

// segments counts those with data.
type segments struct{ all, again float64 }

func segmentsOf(conns []*net.TCPConn) (sum segments, err error) {
	for _, conn := range conns {
		err := control(conn, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil {
				sum.all += float64(info.Data_segs_out)
				sum.again += float64(info.Total_retrans)
			}
			return err
		})
		if err != nil {
			return segments{}, err
		}
	}
	return sum, nil
}

// dial makes a connection in the sender's namespace.
func (f flood) dial(network string, to netip.AddrPort) (conn net.Conn, err error) {
	err = ns.Do(f.from.netns, func() error {
		d := net.Dialer{Timeout: 5 * time.Second}
		conn, err = d.Dial(network, to.String())
		return err
	})
	return conn, err
}

// longestTrip sends small datagrams to and fro until ctx ends, and closes reached
// when the first is back. What is lost has no round trip.
func (f flood) longestTrip(ctx context.Context, reached chan<- struct{}) (ms float64, err error) {
	const interval = 200 * time.Millisecond // 2 kbit/s: little beside the smallest limit
	server, port, err := f.listenUDP()
	if err != nil {
		return 0, err
	}
	conn, err := f.dial("udp4", netip.AddrPortFrom(f.to.ip, port))
	if err != nil {
		return 0, errors.Join(err, server.Close())
	}
	began, longest := time.Now(), time.Duration(0)
	var g errgroup.Group
	g.Go(func() error { echo(server); return nil })
	g.Go(func() error {
		for data := make([]byte, 8); ; {
			if _, err := conn.Read(data); err != nil {
				return nil // closed below
			}
			if longest == 0 {
				close(reached)
			}
			longest = max(longest, time.Since(began)-time.Duration(binary.BigEndian.Uint64(data)))
		}
	})
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil && err == nil {
		_, err = conn.Write(binary.BigEndian.AppendUint64(nil, uint64(time.Since(began))))
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	err = errors.Join(err, conn.Close(), server.Close(), g.Wait())
	return longest.Seconds() * 1000, err
}

// echo sends back what comes until conn is closed.
func echo(conn *net.UDPConn) {
	for data := make([]byte, 64); ; {
		n, from, err := conn.ReadFromUDPAddrPort(data)
		if err == nil {
			_, err = conn.WriteToUDPAddrPort(data[:n], from)
		}
		if err != nil {
			return
		}
	}
}

// any is h's address with a port that the kernel chooses.
func (h host) any() string { return netip.AddrPortFrom(h.ip, 0).String() }

// datagram is the payload of the largest UDP datagram that fits h's device: without
// the headers of IPv4 and UDP.
func (h host) datagram() (bytes int, err error) {
	err = ns.Do(h.netns, func() error {
		device, err := net.InterfaceByName("eth0")
		if err == nil {
			bytes = device.MTU - 28
		}
		return err
	})
	return bytes, err
}

// control calls f with a connection's file descriptor.
func control(conn syscall.Conn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(failed, err)
}
