package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/switchports"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// connection keeps the OpenFlow connection of the bridge. It belongs to the
// loop's goroutine.
type connection struct {
	log  *slog.Logger
	conn *of.Conn
	// lost wakes the loop when the connection ends: ovs-vswitchd went.
	lost chan struct{}
	// ports hears of the bridge's ports.
	ports   *switchports.Events
	running sync.WaitGroup
}

// packetsWaiting is how many packets of the switch may wait for the agent; more are lost.
const packetsWaiting = 64

func newConnection(log *slog.Logger) *connection {
	return &connection{log: log, lost: make(chan struct{}, 1), ports: switchports.NewEvents()}
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

// dial connects to the bridge's socket. Packets that flows send to the agent go to
// take, one after the other.
func (c *connection) dial(ctx context.Context, socket string, take func(*of.Conn, of.PacketIn)) error {
	c.close()
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
	c.conn = conn
	c.running.Go(func() {
		for conn.Err() == nil {
			select {
			case p := <-packets:
				take(conn, p)
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
