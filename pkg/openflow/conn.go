package openflow

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A switch from which nothing came for defaultIdle is asked whether it is there, and
	// given up when nothing has come for defaultDead; 0.1 ms later for each part of a bundle
	// that is under way.
	defaultIdle = 1 * time.Second
	defaultDead = 3 * time.Second
	// writeQueue is how many chunks may wait for the writer. Few: what is queued
	// cannot be taken back.
	writeQueue = 16
	// partTime is how long ovs-vswitchd may be silent for each part of a bundle:
	// it carries one out in one go. 10,000 parts took it 0.11 s on an idle
	// machine, and 0.54 s on a busy one.
	partTime = 100 * time.Microsecond
	// readBuffer holds the longest message, so that a dump is read in few calls.
	readBuffer = 1 << 17
)

// Conn is a connection to one bridge. Its methods may be called from several
// goroutines at once; what one of them waits for does not hold up the others,
// except that the switch answers in order.
type Conn struct {
	socket string
	nc     net.Conn
	opts   options

	toSwitch chan []byte // whole messages, to the writer
	done     chan struct{}
	end      sync.Once
	err      error // why; set before done is closed
	running  sync.WaitGroup

	heard      atomic.Int64 // nanoseconds from start until the last message came
	start      time.Time
	lastBundle atomic.Uint32
	parts      atomic.Int64 // of bundles under way

	heardOthers atomic.Pointer[func()] // see Watch; nil for nobody
	lastMonitor atomic.Uint32

	mu      sync.Mutex
	nextXID uint32
	calls   map[*call]struct{}
}

// Option changes how [Dial] connects.
type Option func(*options)

type options struct {
	idle, dead time.Duration
	portEvents func(PortEvent)
	packetIns  func(PacketIn)
	// forwards is that others' changes of groups and meters are told.
	forwards bool
}

// Dial connects to a bridge's management socket, <rundir>/<bridge>.mgmt, and
// agrees on OpenFlow 1.4. It fails when the bridge does not have that enabled
// (by default Open vSwitch has). ctx bounds the dialing only.
func Dial(ctx context.Context, mgmtSocket string, opts ...Option) (*Conn, error) {
	o := options{idle: defaultIdle, dead: defaultDead}
	for _, opt := range opts {
		opt(&o)
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", mgmtSocket)
	if err != nil {
		return nil, fmt.Errorf("connect to bridge at %s (is ovs-vswitchd running, and does it have the bridge?): %w", mgmtSocket, err)
	}
	r := bufio.NewReaderSize(nc, readBuffer)
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	err = hello(nc, r)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = nc.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connect to bridge at %s: %w", mgmtSocket, err)
	}
	c := &Conn{
		socket: mgmtSocket, nc: nc, opts: o, start: time.Now(),
		toSwitch: make(chan []byte, writeQueue), done: make(chan struct{}),
		nextXID: 1, calls: make(map[*call]struct{}),
	}
	if o.async() {
		c.toSwitch <- appendSetAsync(nil, 0, o) // the queue is empty
	}
	c.running.Go(func() { c.read(r) })
	c.running.Go(c.write)
	c.running.Go(c.keepalive)
	return c, nil
}

// Close ends the connection and waits until nothing of it runs any more. Calls
// that are under way return [ErrClosed].
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	c.running.Wait()
	return nil
}

// Done is closed when the connection has ended, by [Conn.Close] or because it was lost.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; nil as long as it has not.
func (c *Conn) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// fail ends the connection for the first reason that is given.
func (c *Conn) fail(why error) {
	c.end.Do(func() {
		if !errors.Is(why, ErrClosed) {
			why = fmt.Errorf("OpenFlow connection to bridge at %s lost: %w", c.socket, why)
		}
		c.err = why
		close(c.done)
		_ = c.nc.Close() // wakes reader and writer
	})
}

// read takes messages until the connection ends. It never waits for anything
// else: a switch whose answers are not read stops reading requests.
func (c *Conn) read(r *bufio.Reader) {
	for {
		m, err := readMessage(r)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("ovs-vswitchd closed it: %w", err)
			}
			c.fail(err)
			return
		}
		c.heard.Store(int64(time.Since(c.start)))
		switch {
		case m.typ == msgEchoRequest:
			b := appendMessageHeader(nil, msgEchoReply, m.xid)
			select {
			case c.toSwitch <- finishMessage(append(b, m.body...), 0):
			default: // requests are waiting to be written; they show as well that we live
			}
		case m.typ == msgPortStatus, m.typ == msgPacketIn, m.typ == msgRequestForward, m.typ == msgMultipartReply && m.xid == 0:
			if err := c.notice(m); err != nil {
				c.fail(err)
				return
			}
		default:
			c.deliver(m)
		}
	}
}

// readMessage reads one message and checks its version.
func readMessage(r *bufio.Reader) (message, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return message{}, err
	}
	h, err := decodeHeader(head[:])
	if err != nil {
		return message{}, err
	}
	if h.version != version && h.typ != msgHello && h.typ != msgError {
		return message{}, fmt.Errorf("message of type %d has OpenFlow version %#x, not %#x (1.4)", h.typ, h.version, version)
	}
	m := message{typ: h.typ, xid: h.xid, body: make([]byte, h.length-headerSize)}
	if _, err := io.ReadFull(r, m.body); err != nil {
		return message{}, fmt.Errorf("message of type %d: %w", h.typ, err)
	}
	return m, nil
}

// write sends what is queued until the connection ends.
func (c *Conn) write() {
	for {
		select {
		case b := <-c.toSwitch:
			if _, err := c.nc.Write(b); err != nil {
				c.fail(err)
				return
			}
		case <-c.done:
			return
		}
	}
}

// keepalive notices a switch that is there but does not answer.
func (c *Conn) keepalive() {
	tick := time.NewTicker(min(c.opts.idle, c.opts.dead-c.opts.idle) / 2)
	defer tick.Stop()
	// asked is when a question went out that nothing has come after. The time
	// counts from it, not from the last message: after this process was itself
	// suspended, the switch gets a chance to answer.
	var asked time.Duration
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		now, heard := time.Since(c.start), time.Duration(c.heard.Load())
		if heard >= asked {
			asked = 0
		}
		switch {
		case asked == 0 && now-heard >= c.opts.idle:
			asked = now
			select {
			case c.toSwitch <- finishMessage(appendMessageHeader(nil, msgEchoRequest, 0), 0):
			default: // requests are waiting to be written: they ask as well
			}
		case asked != 0 && now-asked >= c.opts.dead-c.opts.idle+time.Duration(c.parts.Load())*partTime:
			c.fail(fmt.Errorf("%w: nothing came from it for %v", ErrUnresponsive, (now - heard).Round(time.Millisecond)))
			return
		}
	}
}

// hello agrees on OpenFlow 1.4 (section 6.3.1): each side sends the versions it
// has.
func hello(w io.Writer, r *bufio.Reader) error {
	b := appendMessageHeader(nil, msgHello, 0)
	b = append(b, 0, 1, 0, 8) // OFPHET_VERSIONBITMAP
	b = binary.BigEndian.AppendUint32(b, 1<<version)
	if _, err := w.Write(finishMessage(b, 0)); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	for {
		head, err := r.Peek(headerSize)
		if err != nil {
			return fmt.Errorf("wait for hello: %w", err)
		}
		theirs := head[0]
		m, err := readMessage(r)
		switch {
		case err != nil:
			return fmt.Errorf("wait for hello: %w", err)
		case m.typ == msgHello:
			return checkVersions(helloVersions(theirs, m.body))
		case m.typ == msgError:
			return errNoVersion
		}
	}
}

var errNoVersion = errors.New("the bridge does not speak OpenFlow 1.4: clear its protocols (ovs-vsctl clear bridge BRIDGE protocols) or add OpenFlow14 to them")

func checkVersions(bitmap uint32) error {
	if bitmap&(1<<version) == 0 {
		return fmt.Errorf("%w; it offers wire versions %s", errNoVersion, versionsText(bitmap))
	}
	return nil
}

func versionsText(bitmap uint32) string {
	s := ""
	for v := range 32 {
		if bitmap>>v&1 != 0 {
			s += fmt.Sprintf(" %#x", v)
		}
	}
	if s == "" {
		return "none"
	}
	return s[1:]
}

// helloVersions is a hello's bitmap of versions; without one it means all up to
// that of its header.
func helloVersions(header uint8, body []byte) uint32 {
	for len(body) >= 4 {
		typ, n := binary.BigEndian.Uint16(body), int(binary.BigEndian.Uint16(body[2:]))
		if n < 4 || n > len(body) {
			break
		}
		if typ == 1 && n >= 8 {
			return binary.BigEndian.Uint32(body[4:])
		}
		body = body[min((n+7)&^7, len(body)):]
	}
	if header >= 31 {
		return ^uint32(0)
	}
	return 1<<(header+1) - 1
}
