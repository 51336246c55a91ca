package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// host is where traffic starts or ends: a sandbox and its address.
type host struct {
	netns string
	ip    netip.Addr
}

// path is two hosts that reach each other.
type path struct {
	from, to host
	// via is a service's address that stands for to's own; not valid where there
	// is none.
	via netip.Addr
}

// target is the address that from asks.
func (p path) target() netip.Addr {
	if p.via.IsValid() {
		return p.via
	}
	return p.to.ip
}

// echoPort is where echo servers listen.
const echoPort = 7

// udpSocket makes a blocking socket in a namespace, so that no poller stands
// between the program and the packet.
func udpSocket(h host, port int) (int, error) {
	fd := -1
	err := ns.Do(h.netns, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("socket in %s: %w", h.netns, err)
	}
	// Bounds every wait, so that whoever ends the run is obeyed.
	timeout := unix.NsecToTimeval((500 * time.Millisecond).Nanoseconds())
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: h.ip.As4()})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("socket in %s: %w", h.netns, err)
	}
	return fd, nil
}

// serveEcho sends back what comes, on a thread of its own, until stop is called.
func serveEcho(h host) (stop func(), err error) {
	fd, err := udpSocket(h, echoPort)
	if err != nil {
		return nil, err
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		buf := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				_ = unix.Sendto(fd, buf[:n], 0, from) // one that is lost shows at the client
				continue
			}
			select {
			case <-end:
				return
			default:
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		_ = unix.Close(fd)
	}, nil
}

// requestSize is a small request's payload, bytes.
const requestSize = 64

// client asks one echo server, one request after the other.
type client struct {
	path     path
	fd       int
	request  []byte
	received []byte
}

func newClient(p path) (*client, error) {
	fd, err := udpSocket(p.from, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: echoPort, Addr: p.target().As4()}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect %s to %s: %w", p.from.ip, p.target(), err)
	}
	return &client{path: p, fd: fd, request: make([]byte, requestSize), received: make([]byte, 2*requestSize)}, nil
}

func (c *client) close() { _ = unix.Close(c.fd) }

// ask makes one round trip. An answer that does not come in 0.5 s is an error.
func (c *client) ask() error {
	if err := c.exchange(); err != nil {
		return fmt.Errorf("round trip from %s to %s: %w", c.path.from.ip, c.path.target(), err)
	}
	return nil
}

func (c *client) exchange() error {
	if _, err := unix.Write(c.fd, c.request); err != nil {
		return err
	}
	for {
		n, err := unix.Read(c.fd, c.received)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return errors.New("no answer")
		case err != nil:
			return err
		case n != requestSize:
			return fmt.Errorf("an answer of %d bytes, want %d", n, requestSize)
		default:
			return nil
		}
	}
}

// warmUp sets up the datapath's flows. A bridge that was made just now may not
// forward yet, so a client may ask its first question a few times.
func warmUp(clients []*client) error {
	for _, c := range clients {
		err := c.ask()
		for range 5 {
			if err == nil {
				break
			}
			err = c.ask()
		}
		for range max(3, 20/len(clients)) {
			if err != nil {
				return err
			}
			err = c.ask()
		}
	}
	return nil
}

// roundTrips counts the round trips a second of clients that ask one after the
// other, for a while.
func roundTrips(ctx context.Context, clients []*client, during time.Duration) (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := warmUp(clients); err != nil {
		return 0, err
	}
	n := 0
	began := time.Now()
	for time.Since(began) < during {
		for _, c := range clients {
			if err := c.ask(); err != nil {
				return 0, err
			}
			n++
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}
