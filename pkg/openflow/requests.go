package openflow

import (
	"bytes"
	"context"
	"fmt"
	"slices"
)

// internalTable is Open vSwitch's TBL_INTERNAL.
const internalTable = 254

// Software is what the switch says that it runs (OFPMP_DESC; OpenFlow 1.4, section 7.3.5.1): of
// Open vSwitch its version, such as "3.1.0".
func (c *Conn) Software(ctx context.Context) (version string, err error) {
	err = c.multipart(ctx, multipartDesc, nil, func(b []byte) (err error) {
		version, err = decodeSoftware(b)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the description of the switch: %w", err)
	}
	return version, nil
}

// decodeSoftware reads sw_desc of a struct ofp_desc: strings of 256 bytes, this the third.
func decodeSoftware(b []byte) (string, error) {
	const text = 256
	if len(b) < 3*text {
		return "", errShort
	}
	version, _, _ := bytes.Cut(b[2*text:3*text], []byte{0})
	return string(version), nil
}

// Flows reads the flows that the filter chooses, in no order. Those of table 254
// are the switch's own (ovs-fields(7)) and come only when the filter names the
// table. Errors are those of the connection, of ctx, or a *[SwitchError].
func (c *Conn) Flows(ctx context.Context, filter FlowFilter) ([]FlowStats, error) {
	var flows []FlowStats
	err := c.multipart(ctx, multipartFlow, appendFlowRequest(nil, filter), func(b []byte) (err error) {
		flows, err = decodeFlowStats(b, flows)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read flows (%s): %w", filter, err)
	}
	if filter.Table == nil {
		// Open vSwitch shows them when a cookie is asked for in all its bits.
		flows = slices.DeleteFunc(flows, func(s FlowStats) bool { return s.Table == internalTable })
	}
	return flows, nil
}

// Ports reads the bridge's ports, in no order. [PortLocal] is one of them.
func (c *Conn) Ports(ctx context.Context) ([]PortDesc, error) {
	var ports []PortDesc
	err := c.multipart(ctx, multipartPortDesc, nil, func(b []byte) (err error) {
		ports, err = decodePortDesc(b, ports)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read ports: %w", err)
	}
	return ports, nil
}

// SetPortConfig makes the bits in mask of the configuration of a port, as [Conn.Ports]
// described it, what config says.
func (c *Conn) SetPortConfig(ctx context.Context, p PortDesc, config, mask PortConfig) error {
	err := c.confirm(ctx, func(b []byte, xid uint32) []byte { return appendPortMod(b, xid, p, config, mask) })
	if err != nil {
		return fmt.Errorf("configure port %s: %w", p, err)
	}
	return nil
}

// Groups reads the bridge's groups, in no order.
func (c *Conn) Groups(ctx context.Context) ([]GroupEntry, error) {
	var groups []GroupEntry
	err := c.multipart(ctx, multipartGroupDesc, nil, func(b []byte) (err error) {
		groups, err = decodeGroupDesc(b, groups)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	return groups, nil
}

// Meters reads the bridge's meters, in no order.
func (c *Conn) Meters(ctx context.Context) ([]Meter, error) {
	var meters []Meter
	err := c.multipart(ctx, multipartMeterConfig, appendMeterRequest(nil, everyMeter), func(b []byte) (err error) {
		meters, err = decodeMeterConfig(b, meters)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read meters: %w", err)
	}
	return meters, nil
}

// MeterCounters reads the counters of the bridge's meters, in no order.
func (c *Conn) MeterCounters(ctx context.Context) ([]MeterCounters, error) {
	var meters []MeterCounters
	err := c.multipart(ctx, multipartMeterStats, appendMeterRequest(nil, everyMeter), func(b []byte) (err error) {
		meters, err = decodeMeterStats(b, meters)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the counters of meters: %w", err)
	}
	return meters, nil
}

// Barrier returns when the switch has done all that was asked of it before.
func (c *Conn) Barrier(ctx context.Context) error {
	if err := c.confirm(ctx, nil); err != nil {
		return fmt.Errorf("wait for the switch: %w", err)
	}
	return nil
}

// AddMeter adds a meter; the switch refuses it when there is one of its number.
// Meters cannot be part of a bundle.
func (c *Conn) AddMeter(ctx context.Context, m Meter) error { return c.meterMod(ctx, meterAdd, m) }

// ModifyMeter replaces a meter; the switch refuses it when there is none of its number.
func (c *Conn) ModifyMeter(ctx context.Context, m Meter) error {
	return c.meterMod(ctx, meterModify, m)
}

// DeleteMeter removes a meter and every flow that refers to it. There being
// none is not an error.
func (c *Conn) DeleteMeter(ctx context.Context, id uint32) error {
	return c.meterMod(ctx, meterDelete, Meter{ID: id})
}

func (c *Conn) meterMod(ctx context.Context, cmd meterCommand, m Meter) error {
	verb := map[meterCommand]string{meterAdd: "add-meter", meterModify: "mod-meter", meterDelete: "del-meter"}[cmd]
	if n := len(appendMeterMod(nil, 0, cmd, m)); n > maxMessage {
		return fmt.Errorf("%s %s: it takes %d bytes; a message has at most %d", verb, m, n, maxMessage)
	}
	err := c.confirm(ctx, func(b []byte, xid uint32) []byte { return appendMeterMod(b, xid, cmd, m) })
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, m, err)
	}
	return nil
}

// confirm sends a message that is answered only by an error, and a barrier
// behind it, and returns when the barrier's answer has come.
func (c *Conn) confirm(ctx context.Context, request func(b []byte, xid uint32) []byte) error {
	k := c.open(2)
	defer c.close(k)
	var b []byte
	if request != nil {
		b = request(b, k.first)
	}
	b = finishMessage(appendMessageHeader(b, msgBarrierRequest, k.first+1), len(b))
	if err := c.send(ctx, b); err != nil {
		return err
	}
	var refused error
	for {
		messages, err := c.next(ctx, k)
		if err != nil {
			return err
		}
		for _, m := range messages {
			switch {
			case m.typ == msgError && refused == nil:
				refused = asError(m)
			case m.typ == msgBarrierReply:
				return refused
			}
		}
	}
}
