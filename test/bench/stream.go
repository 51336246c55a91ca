package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// streamPort is where sinks listen.
const streamPort = 5201

// sink takes in what streams bring.
type sink struct {
	listener net.Listener
	bytes    atomic.Int64
	readers  errgroup.Group
	// over has the readers end, also those whose stream's end does not get here.
	over context.CancelFunc
}

func newSink(h host) (*sink, error) {
	listener, err := ns.ListenTCP(ns.Path(h.netns), netip.AddrPortFrom(h.ip, streamPort).String())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &sink{listener: listener, over: cancel}
	s.readers.Go(func() error {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return nil // closed, which ends it
			}
			s.readers.Go(func() error {
				defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })()
				buf := make([]byte, 256<<10)
				for {
					n, err := conn.Read(buf)
					s.bytes.Add(int64(n))
					if err != nil {
						return conn.Close()
					}
				}
			})
		}
	})
	return s, nil
}

func (s *sink) close() error {
	s.over()
	return errors.Join(s.listener.Close(), s.readers.Wait())
}

// stream is one TCP connection to a sink, which sends now and then. Many short measurements in turn
// need connections that are there already, which iperf3 does not have.
type stream struct {
	path path
	conn *net.TCPConn
	sink *sink
}

func newStream(p path, to *sink) (*stream, error) {
	conn, err := ns.DialTCP(ns.Path(p.from.netns), netip.AddrPortFrom(p.target(), streamPort).String(), 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("stream from %s: %w", p.from.ip, err)
	}
	return &stream{p, conn.(*net.TCPConn), to}, nil
}

func (s *stream) close() error { return s.conn.Close() }

const (
	// streamSkip is how long a stream sends before it counts: it finds its speed again.
	streamSkip = 50 * time.Millisecond
	// streamTime is how long it counts.
	streamTime = 200 * time.Millisecond
	// streamDrain bounds how long what was sent may take to arrive.
	streamDrain = 5 * time.Second
)

// rate is what the stream carries now, bits a second, as the sink counts. When it returns nothing
// of it is on its way any more.
func (s *stream) rate(ctx context.Context) (float64, error) {
	had := s.sink.bytes.Load()
	sending := make(chan error, 1)
	sent := int64(0)
	go func() {
		data := make([]byte, 128<<10)
		for {
			n, err := s.conn.Write(data)
			sent += int64(n)
			if err != nil {
				sending <- err
				return
			}
		}
	}()
	time.Sleep(streamSkip)
	from, began := s.sink.bytes.Load(), time.Now()
	time.Sleep(streamTime)
	bits := float64(s.sink.bytes.Load()-from) * 8 / time.Since(began).Seconds()
	err := s.conn.SetWriteDeadline(time.Now())
	if ended := <-sending; !errors.Is(ended, os.ErrDeadlineExceeded) {
		err = errors.Join(err, ended)
	}
	if err = errors.Join(err, s.conn.SetWriteDeadline(time.Time{})); err != nil {
		return 0, fmt.Errorf("stream from %s to %s: %w", s.path.from.ip, s.path.target(), err)
	}
	ctx, cancel := context.WithTimeout(ctx, streamDrain)
	defer cancel()
	for s.sink.bytes.Load()-had < sent {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("stream from %s to %s: %d of %d bytes have not arrived: %w", s.path.from.ip, s.path.target(), sent-(s.sink.bytes.Load()-had), sent, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
	return bits, nil
}
