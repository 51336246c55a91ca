package e2e

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// offered is what floods offer, bits of payload per second: more than the limits
// in these tests, and no more than an emulated machine carries both ways.
const offered = 28e6

// flood is a client that sends to one who answers (see [lab.answers]) and counts
// what comes back: it passes both directions of a pod's link.
type flood struct {
	received atomic.Int64 // bytes
	sent     atomic.Int64 // bytes, as far as its turn came to send them
	writing  atomic.Int64 // nanoseconds that took: it waits where a limit has it wait
	conn     net.Conn
	done     sync.WaitGroup
}

// flood starts one from a pod to an address; rate is what it offers. It ends with
// the test at the latest.
func (l *lab) flood(network string, from netlab.Pod, to string, rate float64) *flood {
	l.t.Helper()
	f := &flood{}
	l.must(ns.DoPath(from.Sandbox(), func() (err error) {
		f.conn, err = net.DialTimeout(network, to, 5*time.Second)
		return err
	}))
	f.done.Go(func() { f.send(rate) })
	f.done.Go(f.receive)
	l.t.Cleanup(f.stop)
	return f
}

func (f *flood) stop() {
	_ = f.conn.Close() // may be closed already
	f.done.Wait()
}

// datagram is the payload that fills a packet at the least MTU that pods of these
// tests have while they are limited, with room for the name of who answers.
const datagram = 1400

// send writes until the connection is closed. What it could not send in time it
// does not make up for.
func (f *flood) send(rate float64) {
	const every = 2 * time.Millisecond
	message := make([]byte, datagram)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for range tick.C {
		began := time.Now()
		for range int(rate*every.Seconds()/8/datagram) + 1 {
			if _, err := f.conn.Write(message); f.ended(err) {
				return
			}
			f.sent.Add(datagram)
		}
		f.writing.Add(int64(time.Since(began)))
	}
}

func (f *flood) receive() {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.conn.Read(buf)
		f.received.Add(int64(n))
		if f.ended(err) {
			return
		}
	}
}

// ended reports whether err is the end of the flood: a datagram may be refused while
// nobody forwards it.
func (f *flood) ended(err error) bool {
	return errors.Is(err, net.ErrClosed) || err != nil && f.conn.LocalAddr().Network() == "tcp"
}

// rate is what comes back during a window of time, bits per second.
func (f *flood) rate(window time.Duration) float64 {
	began, was := time.Now(), f.received.Load()
	time.Sleep(window)
	return float64(f.received.Load()-was) * 8 / time.Since(began).Seconds()
}

// keepsTo fails the test unless a flood comes to be as fast as its limit, bits per
// second, and no faster. It is not exact: that is the benchmark's.
func (l *lab) keepsTo(what string, f *flood, limit float64) {
	l.t.Helper()
	var seen []string
	for range 4 {
		r := f.rate(time.Second)
		if r > 0.85*limit && r < 1.15*limit {
			return
		}
		seen = append(seen, fmt.Sprintf("%.1f", r/1e6))
	}
	l.t.Errorf("%s: Mbit/s one second after the other: %v, want %.1f", what, seen, limit/1e6)
}

// within waits until a flood is as fast as its limit, seen over windows of a tenth
// of a second that begin in the time given, and returns how long that took. Windows
// in which the flood did not get the processor to send that much show nothing, and do
// not count, for up to ten seconds.
func (l *lab) within(what string, d time.Duration, f *flood, limit float64) {
	l.t.Helper()
	const window = 100 * time.Millisecond
	var last float64
	var counted, starved time.Duration
	for counted < d && starved < 10*time.Second {
		began, sent, writing := time.Now(), f.sent.Load(), f.writing.Load()
		if last = f.rate(window); last > 0.8*limit && last < 1.2*limit {
			l.t.Logf("%s: after %s, and %s without a processor", what, counted.Round(time.Millisecond), starved.Round(time.Millisecond))
			return
		}
		took := time.Since(began)
		offered := float64(f.sent.Load()-sent) * 8 / took.Seconds()
		if waited := time.Duration(f.writing.Load() - writing); offered < 0.8*limit && waited < took/2 {
			starved += took
		} else {
			counted += took
		}
	}
	l.t.Errorf("%s: %.1f Mbit/s after %s, and %s without a processor, want %.1f", what, last/1e6, counted.Round(time.Millisecond), starved.Round(time.Millisecond), limit/1e6)
}

// moves waits until a flood has brought n more bytes, so it is not stuck.
func (l *lab) moves(what string, f *flood, n int64, timeout time.Duration) {
	l.t.Helper()
	was := f.received.Load()
	l.eventually(what, timeout, func() error {
		if got := f.received.Load() - was; got < n {
			return fmt.Errorf("%d of %d bytes", got, n)
		}
		return nil
	})
}
