package openflow

import "encoding/binary"

// Properties that ask for messages which answer nothing (OFPACPT_*_MASTER of
// OpenFlow 1.4, section 7.3.10; they also count for connections of no particular role).
const (
	asyncPacketIn       = 1
	asyncPortStatus     = 3
	asyncRequestForward = 11 // of others' groups and meters
)

// async says whether the connection asks for such messages: management connections of
// Open vSwitch get none unless they do.
func (o options) async() bool { return o.portEvents != nil || o.packetIns != nil }

// appendSetAsync asks the switch for what the options have somebody for, and nothing else.
func appendSetAsync(b []byte, xid uint32, o options) []byte {
	var ports, packets, forwards uint32
	if o.portEvents != nil {
		ports = 1<<portAdded | 1<<portDeleted | 1<<portChanged
	}
	if o.packetIns != nil {
		packets = 1 << packetInAction
	}
	if o.forwards {
		forwards = 1<<0 | 1<<1 // OFPRFR_GROUP_MOD, OFPRFR_METER_MOD
	}
	start := len(b)
	b = appendMessageHeader(b, msgSetAsync, xid)
	for _, p := range []struct {
		property uint16
		reasons  uint32
	}{{asyncPacketIn, packets}, {asyncPortStatus, ports}, {asyncRequestForward, forwards}} {
		b = binary.BigEndian.AppendUint16(b, p.property)
		b = binary.BigEndian.AppendUint16(b, 8)
		b = binary.BigEndian.AppendUint32(b, p.reasons)
	}
	return finishMessage(b, start)
}

// notice takes in a message that answers nothing.
func (c *Conn) notice(m message) error {
	switch {
	case m.typ == msgPortStatus && c.opts.portEvents != nil:
		e, err := decodePortStatus(m.body)
		if err != nil {
			return err
		}
		c.opts.portEvents(e)
	case m.typ == msgPacketIn && c.opts.packetIns != nil:
		p, err := decodePacketIn(m.body)
		if err != nil {
			return err
		}
		c.opts.packetIns(p)
	case m.typ == msgMultipartReply:
		t, _, body, err := cutMultipart(m.body)
		if err != nil || t != multipartFlowMonitor {
			return err
		}
		changed, err := changedByOthers(body)
		if changed {
			c.hear()
		}
		return err
	case m.typ == msgRequestForward:
		c.hear()
	}
	return nil
}

// hear calls who watches what others change.
func (c *Conn) hear() {
	if heard := c.heardOthers.Load(); heard != nil {
		(*heard)()
	}
}
