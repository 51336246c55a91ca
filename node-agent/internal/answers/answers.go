// Package answers tells who sent a packet that its path does not carry, as a router would.
//
// It reads the picture that the flows follow from, and never changes it. What the answer says package toobig
// writes.
package answers

import (
	"context"
	"log/slog"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// Table has the picture of the node; [nodeflows.Table] is one.
type Table interface {
	// View is false before the table knows the records.
	View() (nodeflows.View, bool)
}

// Switch sends frames; [of.Conn] is one.
type Switch interface {
	PacketOut(ctx context.Context, frame []byte, actions ...of.Action) error
}

// TooLarge answers packets that are too large for their path.
type TooLarge struct {
	Table Table
	// Timeout bounds one answer.
	Timeout time.Duration
	// Told counts the senders that were told.
	Told   interface{ Inc() }
	Logger *slog.Logger
}

// Answer tells the sender of a packet that the switch handed over. It may run beside what changes the table.
func (t TooLarge) Answer(conn Switch, in of.PacketIn) {
	p, port, ok := pipeline.ReadTooLarge(in)
	m, known := t.Table.View()
	if !ok || !known {
		return
	}
	from := m.Of(p.Destination()).Gateway
	if port == m.GatewayPort {
		// The node would not take a packet from its own address.
		from = p.Destination()
	}
	answer, ok := p.Answer(from)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.Timeout)
	defer cancel()
	if err := conn.PacketOut(ctx, answer, of.Output(port)); err != nil {
		t.Logger.Debug("the sender of a packet that is too large cannot be told", "ofport", port, "error", err)
		return
	}
	t.Told.Inc()
}
