package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/switchports"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// connection keeps the OpenFlow connection of the bridge. It belongs to the
// loop's goroutine.
type connection struct {
	log *slog.Logger
	// socket is the bridge's.
	socket func() string
	// take takes packets that flows send to the agent, one after the other.
	take func(*of.Conn, of.PacketIn)
	conn *of.Conn
	// software is the version of Open vSwitch; empty before the first connection.
	software string
	// lost wakes the loop when the connection ends: ovs-vswitchd went.
	lost chan struct{}
	// ports hears of the bridge's ports.
	ports   *switchports.Events
	running sync.WaitGroup
}

// packetsWaiting is how many packets of the switch may wait for the agent; more are lost.
const packetsWaiting = 64

func newConnection(ports *switchports.Events, socket func() string, take func(*of.Conn, of.PacketIn), log *slog.Logger) *connection {
	return &connection{log: log, socket: socket, take: take, lost: make(chan struct{}, 1), ports: ports}
}

// alive reports whether there is a connection that has not ended.
func (c *connection) alive() bool {
	if c.conn == nil {
		return false
	}
	select {
	case <-c.conn.Done():
		return false
	default:
		return true
	}
}

// dial connects to the bridge's socket.
func (c *connection) dial(ctx context.Context) error {
	c.close()
	select {
	case <-c.lost: // it was the one before that ended
	default:
	}
	socket := c.socket()
	c.ports.Reset()
	packets := make(chan of.PacketIn, packetsWaiting)
	conn, err := of.Dial(ctx, socket, of.WithPortEvents(c.ports.Event), of.WithPacketIns(func(p of.PacketIn) {
		select {
		case packets <- p:
		default:
		}
	}))
	if err != nil {
		return fmt.Errorf("connect to ovs-vswitchd: %w", err)
	}
	if c.software, err = conn.Software(ctx); err != nil {
		_ = conn.Close()
		return err
	}
	c.conn = conn
	c.ports.Connected(conn.Barrier)
	c.running.Go(func() {
		for conn.Err() == nil {
			select {
			case p := <-packets:
				c.take(conn, p)
			case <-conn.Done():
			}
		}
		c.log.Warn("the connection to ovs-vswitchd ended", "socket", socket, "error", conn.Err())
		select {
		case c.lost <- struct{}{}:
		default:
		}
	})
	return nil
}

func (c *connection) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
		c.running.Wait()
	}
}

// ended implements switchConnection.
func (c *connection) ended() <-chan struct{} { return c.lost }

// flows implements switchConnection.
func (c *connection) flows() flowstore.Switch { return c.conn }

// unblock implements switchConnection.
func (c *connection) unblock(ctx context.Context, tunnels []string) ([]string, error) {
	return bridge.Unblock(ctx, c.conn, tunnels, attach.HostIfPrefix)
}

// Send implements exits.Switch: the frames go out of the bridge's gateway port, past all flows.
func (c *connection) Send(ctx context.Context, frames ...[]byte) error {
	ports, err := c.conn.Ports(ctx)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if p.Name != bridge.GatewayPort {
			continue
		}
		for _, frame := range frames {
			if err := c.conn.PacketOut(ctx, frame, of.Output(p.Port)); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("the bridge has no port %s", bridge.GatewayPort)
}
