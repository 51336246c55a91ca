package e2e

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// answerTime is how long an answer of a service may take; a SYN that was lost is sent again later than that.
const answerTime = 900 * time.Millisecond

// asking is new connections of a pod to services, each of which somebody has to answer.
type asking struct {
	lab  *lab
	end  chan struct{}
	each sync.WaitGroup

	mu   sync.Mutex
	sent int
	// lost is when those were made that nobody has answered.
	lost []time.Time
}

// asks has a pod make a connection every so often ("tcp4", "udp4"), to one of these addresses after the other. It does not
// wait for the answer to the one before, so what is lost is how long nobody answers.
func (l *lab) asks(from netlab.Pod, network string, every time.Duration, at ...string) *asking {
	l.t.Helper()
	for _, address := range at {
		l.eventually("an answer from "+address, 30*time.Second, func() error { return askAnew(l.t.Context(), from, network, address) })
	}
	a := &asking{lab: l, end: make(chan struct{})}
	tick := time.NewTicker(every)
	a.each.Go(func() {
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-a.end:
				return
			case <-tick.C:
			}
			a.each.Go(func() { a.ask(from, network, at[n%len(at)]) })
		}
	})
	l.t.Cleanup(func() { a.stop() })
	return a
}

func (a *asking) ask(from netlab.Pod, network, at string) {
	made := time.Now()
	err := askAnew(a.lab.t.Context(), from, network, at)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent++
	if err != nil {
		a.lost = append(a.lost, made)
	}
}

// stop ends them, and returns how many were made, and when those that nobody has answered.
func (a *asking) stop() (sent int, lost []time.Time) {
	select {
	case <-a.end:
	default:
		close(a.end)
	}
	a.each.Wait()
	return a.sent, slices.SortedFunc(slices.Values(a.lost), time.Time.Compare)
}

// askAnew is nil where somebody answers a new connection of a pod.
func askAnew(ctx context.Context, from netlab.Pod, network, at string) error {
	var conn net.Conn
	var err error
	if network == "tcp4" {
		conn, err = ns.DialTCP(from.Sandbox(), at, answerTime)
	} else {
		err = ns.DoPath(from.Sandbox(), func() (err error) { conn, err = (&net.Dialer{}).DialContext(ctx, network, at); return err })
	}
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	if network != "tcp4" {
		if _, err := conn.Write([]byte("who?")); err != nil {
			return err
		}
	}
	if n, err := conn.Read(make([]byte, 100)); n == 0 {
		return errors.Join(errors.New("no answer"), err)
	}
	return nil
}
