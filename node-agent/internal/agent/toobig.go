package agent

import (
	"context"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// answerTooLarge tells who sent a packet that its path does not carry. It runs beside
// the loop, which has set the table before.
func (n *node) answerTooLarge(conn *of.Conn, in of.PacketIn) {
	p, port, ok := pipeline.ReadTooLarge(in)
	m, known := n.table.View()
	if !ok || !known {
		return
	}
	from := m.Gateway
	if port == m.GatewayPort {
		// The node would not take a packet from its own address.
		from = p.Destination()
	}
	answer, ok := p.Answer(from)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	if err := conn.PacketOut(ctx, answer, of.Output(port)); err != nil {
		n.log.Debug("the sender of a packet that is too large cannot be told", "ofport", port, "error", err)
		return
	}
	n.metrics.tooLarge.Inc()
}
