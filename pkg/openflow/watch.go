package openflow

import (
	"context"
	"encoding/binary"
)

// Flow monitors (OpenFlow 1.4, section 7.3.5.17; Open vSwitch from 3.0 on).
const (
	monitorAdd    = 0 // the command
	monitorEvents = 1<<1 | 1<<2 | 1<<3
	// flowUpdateSize is the length of the shortest update.
	flowUpdateSize = 8

	updateRemoved = 2
	updateAbbrev  = 4
	updatePaused  = 5
	// Reasons of updateRemoved.
	reasonIdle = 0
	reasonHard = 1
)

// Watch has the switch tell when somebody else changes groups, meters, or flows of the given
// tables. heard is called then, often more than once for one change and at times for none:
// it is a reason to look, no more. The goroutine that reads from the switch calls it, so it
// must not wait for anything. It is not called for what this connection changes, nor for
// flows that time out. What was changed before Watch returns may go unheard. The error of a
// switch that cannot tell, Open vSwitch before 3.0, is a *[SwitchError].
func (c *Conn) Watch(ctx context.Context, tables []uint8, heard func()) error {
	c.heardOthers.Store(&heard)
	o := c.opts
	o.forwards = true
	if err := c.send(ctx, appendSetAsync(nil, 0, o)); err != nil {
		return err
	}
	var body []byte
	for _, t := range tables {
		body = appendMonitor(body, c.lastMonitor.Add(1), t)
	}
	return c.multipart(ctx, multipartFlowMonitor, body, func([]byte) error { return nil })
}

// appendMonitor writes an ofp_flow_monitor_request: without the flow's instructions, and
// with one short update in place of those that this connection itself brings about.
func appendMonitor(b []byte, id uint32, table uint8) []byte {
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, PortAny)
	b = binary.BigEndian.AppendUint32(b, GroupAny)
	b = binary.BigEndian.AppendUint16(b, monitorEvents)
	b = append(b, table, monitorAdd)
	return appendMatch(b, Match{})
}

// changedByOthers reads the body of an OFPMP_FLOW_MONITOR reply, and reports whether it tells
// of a change that somebody else made.
//
// Updates are missing between those that say paused and resumed. What says resumed counts as a
// change, for it comes when all of them can be seen in the tables.
func changedByOthers(b []byte) (changed bool, err error) {
	for len(b) > 0 {
		var one []byte
		if one, b, err = cutRecord(b, "flow update", 0, flowUpdateSize); err != nil {
			return false, err
		}
		switch event, reason := binary.BigEndian.Uint16(one[2:]), one[5]; {
		case event == updateAbbrev, event == updatePaused:
		case event == updateRemoved && (reason == reasonIdle || reason == reasonHard):
		default:
			changed = true
		}
	}
	return changed, nil
}
