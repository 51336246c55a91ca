package openflow

import (
	"context"
	"encoding/binary"
	"fmt"
)

// PacketIn is a packet that a flow sent to the connection by [Output]
// (OFPT_PACKET_IN; OpenFlow 1.4, section 7.4.1).
type PacketIn struct {
	// Table and Cookie are of the flow.
	Table  uint8
	Cookie uint64
	// Match is what the switch knows of the packet besides its headers, as exact
	// fields: port, tunnel, registers, connection. What is zero is left out.
	Match Match
	// Data is the frame as it was at that point.
	Data []byte
}

// packetInAction is the reason of a packet sent by a flow's action (OFPR_APPLY_ACTION).
const packetInAction = 1

// WithPacketIns calls f for every packet that a flow sends to the connection, in
// order. It is called by the connection's reader, so it must return at once and call
// nothing of the Conn. Open vSwitch drops such packets where they are not read as fast as they come.
func WithPacketIns(f func(PacketIn)) Option { return func(o *options) { o.packetIns = f } }

// decodePacketIn reads the body of a message of type OFPT_PACKET_IN.
func decodePacketIn(b []byte) (PacketIn, error) {
	const head, padding = 16, 2
	if len(b) < head {
		return PacketIn{}, fmt.Errorf("packet-in: %w", errShort)
	}
	p := PacketIn{Table: b[7], Cookie: binary.BigEndian.Uint64(b[8:])}
	m, rest, err := cutMatch(b[head:])
	if err == nil && len(rest) < padding {
		err = errShort
	}
	if err != nil {
		return PacketIn{}, fmt.Errorf("packet-in: %w", err)
	}
	p.Match, p.Data = m, rest[padding:]
	return p, nil
}

// PacketOut has the switch carry out actions on a frame, which comes from no port.
func (c *Conn) PacketOut(ctx context.Context, frame []byte, actions ...Action) error {
	err := c.confirm(ctx, func(b []byte, xid uint32) []byte { return appendPacketOut(b, xid, frame, actions) })
	if err != nil {
		return fmt.Errorf("send a packet of %d bytes (%s): %w", len(frame), actionsText(actions), err)
	}
	return nil
}

// appendPacketOut writes an OFPT_PACKET_OUT (OpenFlow 1.4, section 7.3.7).
func appendPacketOut(b []byte, xid uint32, frame []byte, actions []Action) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgPacketOut, xid)
	b = binary.BigEndian.AppendUint32(b, noBuffer)
	b = binary.BigEndian.AppendUint32(b, PortController)
	list := appendActions(nil, actions)
	b = binary.BigEndian.AppendUint16(b, uint16(len(list)))
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = append(b, list...)
	return finishMessage(append(b, frame...), start)
}
