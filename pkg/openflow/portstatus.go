package openflow

import (
	"fmt"
)

// PortEvent is a change of one port that the switch tells of by itself
// (OFPT_PORT_STATUS; OpenFlow 1.4, section 7.4.3).
type PortEvent struct {
	PortDesc
	// Gone is set when the port was removed.
	Gone bool
}

// Reasons of a message (ofp_port_reason).
const (
	portAdded   = 0
	portDeleted = 1
	portChanged = 2
)

// WithPortEvents calls f for every change of a port, in order. It is called by
// the connection's reader, so it must return at once and call nothing of the Conn.
// The switch needs about as long to take a port in as to say so here; in OVSDB the
// same shows only when it has looked at all its ports.
func WithPortEvents(f func(PortEvent)) Option { return func(o *options) { o.portEvents = f } }

// decodePortStatus reads the body of a message of type OFPT_PORT_STATUS.
func decodePortStatus(b []byte) (PortEvent, error) {
	const head = 8 // reason and padding
	if len(b) < head {
		return PortEvent{}, fmt.Errorf("port status of %d bytes is too short", len(b))
	}
	ports, err := decodePortDesc(b[head:], nil)
	if err != nil {
		return PortEvent{}, fmt.Errorf("port status: %w", err)
	}
	if len(ports) != 1 {
		return PortEvent{}, fmt.Errorf("port status describes %d ports, not one", len(ports))
	}
	return PortEvent{PortDesc: ports[0], Gone: b[0] == portDeleted}, nil
}
