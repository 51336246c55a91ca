package ovs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/batch"
)

// Config says where Open vSwitch is.
type Config struct {
	// Endpoint of ovsdb-server, "unix:<path of its socket>".
	Endpoint string
	// RunDir holds the bridges' management sockets. Default: the folder of the
	// database's socket, which is where both daemons put them.
	RunDir string
	// Logger gets what is worth knowing about the connection. Default: discard.
	Logger *slog.Logger
}

// Client is a connection to one Open vSwitch. It reconnects by itself. Its
// methods may be called from several goroutines.
type Client struct {
	socket  string
	runDir  string
	log     *slog.Logger
	changes chan struct{}
	waiters waiters
	// adding lets ports that come at once share a transaction.
	adding *batch.Batch[newPort, error]

	mu sync.RWMutex
	// current is nil while disconnected.
	current *session
	// sessions counts connections.
	sessions int
	// up is closed when current is set, and replaced when it is unset.
	up chan struct{}

	// kept is a connection to ovs-vswitchd that the next question may use; nil for none.
	kept atomic.Pointer[control]

	cancel context.CancelFunc
	done   chan struct{}
}

// Connect connects to ovsdb-server and reads the database. It fails when ctx
// ends before that is done; afterwards the client lives until [Client.Close],
// whatever becomes of ctx.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Scheme != "unix" || u.Path == "" {
		return nil, fmt.Errorf("endpoint %q of ovsdb-server is not of the form unix:/run/openvswitch/db.sock", cfg.Endpoint)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	runDir := cfg.RunDir
	if runDir == "" {
		runDir = filepath.Dir(u.Path)
	}
	c := &Client{
		socket:  u.Path,
		runDir:  runDir,
		log:     log.With("ovsdb", u.Path),
		changes: make(chan struct{}, 1),
		up:      make(chan struct{}),
		done:    make(chan struct{}),
	}
	c.adding = batch.New(addAtOnce, c.addPorts)
	life, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	s, err := c.dialUntil(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	c.setSession(s)
	go c.run(life, s)
	return c, nil
}

// Close ends the connection. Waiting calls return an error.
func (c *Client) Close() {
	c.cancel()
	<-c.done
	c.keepControl(nil)
}

// Changes receives after anything changed that this package shows: bridges,
// ports, interfaces, the Open_vSwitch row, or the connection itself. Several
// changes may make one wake-up; read again what matters. It is never closed.
func (c *Client) Changes() <-chan struct{} { return c.changes }

// Connected reports whether there is a connection and its data is whole.
func (c *Client) Connected() bool {
	_, err := c.session()
	return err == nil
}

// Sessions counts the connections made so far. What was read by an earlier one may be of
// another database: one that was restored, or made anew.
func (c *Client) Sessions() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.sessions
}

// WaitConnected returns when the client is connected, or with ctx's error.
func (c *Client) WaitConnected(ctx context.Context) error {
	for {
		c.mu.RLock()
		s, up := c.current, c.up
		c.mu.RUnlock()
		if s != nil {
			return nil
		}
		select {
		case <-up:
		case <-c.done:
			return fmt.Errorf("ovsdb-server at %s: client is closed: %w", c.socket, ErrDisconnected)
		case <-ctx.Done():
			return fmt.Errorf("ovsdb-server at %s: %w: %w", c.socket, ErrDisconnected, ctx.Err())
		}
	}
}

// MgmtSocket is the path of the bridge's OpenFlow management socket.
func (c *Client) MgmtSocket(bridge string) string {
	return filepath.Join(c.runDir, bridge+".mgmt")
}

const (
	// minBackoff and maxBackoff bound the pause between attempts to reconnect:
	// a restarted ovsdb-server is noticed within the latter. An attempt on a
	// socket that nobody serves costs microseconds.
	minBackoff = 5 * time.Millisecond
	maxBackoff = 100 * time.Millisecond
	// dialTimeout bounds one attempt: connecting and reading the whole database.
	dialTimeout = 5 * time.Second
)

// run keeps a session up until ctx ends.
func (c *Client) run(ctx context.Context, s *session) {
	defer close(c.done)
	for {
		select {
		case <-ctx.Done():
			c.setSession(nil)
			s.close()
			return
		case <-s.lost:
		}
		c.setSession(nil)
		s.close()
		c.log.Warn("connection to ovsdb-server lost")
		var err error
		if s, err = c.dialUntil(ctx); err != nil {
			return // ctx ended
		}
		c.setSession(s)
		c.log.Info("connection to ovsdb-server is back")
	}
}

// dialUntil dials until it succeeds or ctx ends; then the last error says why
// there was no connection.
func (c *Client) dialUntil(ctx context.Context) (*session, error) {
	pauses := backoff.Pauses{First: minBackoff, Last: maxBackoff}
	var last error
	for {
		attempt, cancel := context.WithTimeout(ctx, dialTimeout)
		s, err := dial(attempt, c.socket, c.log, c.changed)
		cancel()
		if err == nil {
			return s, nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if !pauses.Wait(ctx) {
			return nil, fmt.Errorf("connecting to ovsdb-server at %s: %w; is ovsdb-server running, and is this its socket?", c.socket, errors.Join(last, ctx.Err()))
		}
	}
}

func (c *Client) setSession(s *session) {
	c.mu.Lock()
	if s != nil && c.current == nil {
		close(c.up)
	} else if s == nil && c.current != nil {
		c.up = make(chan struct{})
	}
	if c.current = s; s != nil {
		c.sessions++
	}
	c.mu.Unlock()
	c.wake()
	c.waiters.wakeAll()
}

// changed is called for every changed row; waiter is the name of a changed
// interface, syncWaiter for the Open_vSwitch row, else empty.
func (c *Client) changed(waiter string) {
	c.wake()
	if waiter != "" {
		c.waiters.wake(waiter)
	}
}

func (c *Client) wake() {
	select {
	case c.changes <- struct{}{}:
	default:
	}
}

func (c *Client) session() (*session, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.current == nil {
		return nil, fmt.Errorf("ovsdb-server at %s: %w", c.socket, ErrDisconnected)
	}
	return c.current, nil
}
