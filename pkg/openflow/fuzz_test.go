package openflow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// FuzzDecodeMatch: no panic, and what decodes is canonical: written and read
// again it is the same.
func FuzzDecodeMatch(f *testing.F) {
	for _, m := range matchSamples() {
		f.Add([]byte(m.oxm))
	}
	f.Add([]byte{0, 1, 36 << 1, 4, 0, 0, 0, 9})
	f.Add([]byte{0xff, 0xff, 2, 8, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 60000 {
			return // does not fit in a message
		}
		m, err := decodeMatch(b)
		if err != nil {
			return
		}
		again, rest, err := cutMatch(appendMatch(nil, m))
		if err != nil || len(rest) != 0 || again != m {
			t.Fatalf("%x: %s becomes %s, %v", b, m, again, err)
		}
		if m.Typed() && matchOf(m.Fields(), "") != m {
			t.Fatalf("%x: %s is not its fields", b, m)
		}
		_ = m.String()
	})
}

// FuzzDecodeActions: no panic, and what decodes reads back equal.
func FuzzDecodeActions(f *testing.F) {
	for _, s := range actionSamples() {
		f.Add(appendActions(nil, s.a))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 60000 {
			return
		}
		actions, err := decodeActions(b)
		if err != nil {
			return
		}
		wire := appendActions(nil, actions)
		again, err := decodeActions(wire)
		if err != nil || !actionsEqual(actions, again) {
			t.Fatalf("%x: %s becomes %s, %v", b, actionsText(actions), actionsText(again), err)
		}
		if third := appendActions(nil, again); !bytes.Equal(wire, third) {
			t.Fatalf("%x: written %x and then %x", b, wire, third)
		}
	})
}

// FuzzDecodeMessage: no panic from any message, and flows, groups and meters
// read back equal.
func FuzzDecodeMessage(f *testing.F) {
	for _, fl := range sampleFlows() {
		f.Add(appendFlowMod(nil, 1, flowAdd, fl, 0))
		f.Add(statsReply(multipartFlow, appendFlowStats(nil, fl)))
	}
	g := GroupEntry{ID: 1, Type: GroupSelect, Buckets: []Bucket{{Weight: 1, Actions: []Action{Output(1)}}}}
	f.Add(appendGroupMod(nil, 1, groupAdd, g))
	desc := appendBuckets([]byte{0, 0, 1, 0, 0, 0, 0, 1}, g.Buckets)
	desc[1] = byte(len(desc))
	f.Add(statsReply(multipartGroupDesc, desc))
	m := appendMeterMod(nil, 1, meterAdd, Meter{ID: 1, Flags: MeterKbps, Bands: []Band{{Rate: 5}}})
	f.Add(m)
	config := bytes.Clone(m[headerSize:])
	config[1] = byte(len(config))
	f.Add(statsReply(multipartMeterConfig, config))
	f.Add(statsReply(multipartPortDesc, append([]byte{0, 0, 0, 1, 0, 40}, make([]byte, 34)...)))
	f.Add(statsReply(multipartMeterStats, append([]byte{0, 0, 0, 1, 0, 56}, make([]byte, 50)...)))
	f.Add(statsReply(multipartFlowMonitor, flowUpdates))
	f.Add(append([]byte{version, byte(msgPacketIn), 0, 34}, make([]byte, 30)...))
	f.Add([]byte{version, byte(msgError), 0, 12, 0, 0, 0, 1, 0, 2, 0, 4})
	f.Add([]byte{version, byte(msgHello), 0, 16, 0, 0, 0, 1, 0, 1, 0, 8, 0, 0, 0, 0x32})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if err != nil || h.length > len(b) {
			return
		}
		body := b[headerSize:h.length]
		switch h.typ {
		case msgHello:
			helloVersions(h.version, body)
		case msgError:
			if e, err := decodeError(body); err == nil {
				_ = e.Error()
			}
		case msgFlowMod:
			fl, _, _, err := decodeFlowMod(body)
			if err == nil {
				fuzzFlow(t, fl)
			}
		case msgGroupMod:
			if g, cmd, err := decodeGroupMod(body); err == nil {
				fuzzGroup(t, g, cmd)
			}
		case msgMeterMod:
			if m, cmd, err := decodeMeterMod(body); err == nil {
				again, _, err := decodeMeterMod(appendMeterMod(nil, 0, cmd, m)[headerSize:])
				if err != nil || !again.Equal(m) {
					t.Fatalf("%s becomes %s, %v", m, again, err)
				}
			}
		case msgPortStatus:
			if e, err := decodePortStatus(body); err == nil {
				_ = e.String()
			}
		case msgPacketIn:
			if p, err := decodePacketIn(body); err == nil {
				_ = p.Match.String()
			}
		case msgMultipartReply:
			fuzzMultipart(t, body)
		}
	})
}

func statsReply(typ multipartType, body []byte) []byte {
	b := appendMultipartRequest(nil, 1, typ, body)
	b[1] = byte(msgMultipartReply)
	return b
}

func fuzzFlow(t *testing.T, fl Flow) {
	wire := appendFlowMod(nil, 0, flowAdd, fl, 0)
	if len(wire) > maxMessage {
		return
	}
	again, _, _, err := decodeFlowMod(wire[headerSize:])
	if err != nil || !again.Equal(fl) || again.Key() != fl.Key() {
		t.Fatalf("%s becomes %s, %v", fl, again, err)
	}
}

func fuzzGroup(t *testing.T, g GroupEntry, cmd groupCommand) {
	if cmd == groupDelete {
		return
	}
	again, _, err := decodeGroupMod(appendGroupMod(nil, 0, cmd, g)[headerSize:])
	if err != nil || !again.Equal(g) {
		t.Fatalf("%s becomes %s, %v", g, again, err)
	}
}

func fuzzMultipart(t *testing.T, body []byte) {
	typ, _, body, err := cutMultipart(body)
	if err != nil {
		return
	}
	switch typ {
	case multipartFlow:
		stats, _ := decodeFlowStats(body, nil)
		for _, s := range stats {
			fuzzFlow(t, s.Flow)
		}
	case multipartGroupDesc:
		groups, _ := decodeGroupDesc(body, nil)
		for _, g := range groups {
			fuzzGroup(t, g, groupAdd)
		}
	case multipartMeterConfig:
		meters, _ := decodeMeterConfig(body, nil)
		for _, m := range meters {
			_ = m.String()
		}
	case multipartFlowMonitor:
		_, _ = changedByOthers(body)
	case multipartMeterStats:
		_, _ = decodeMeterStats(body, nil)
	case multipartPortDesc:
		ports, _ := decodePortDesc(body, nil)
		for _, p := range ports {
			_ = p.String()
		}
	}
}

// decodeFlowMod reads the body of an OFPT_FLOW_MOD.
func decodeFlowMod(b []byte) (f Flow, cmd flowCommand, cookieMask uint64, err error) {
	if len(b) < flowModFixed-headerSize {
		return f, 0, 0, fmt.Errorf("flow mod: %w", errShort)
	}
	f = Flow{
		Cookie: binary.BigEndian.Uint64(b), Table: b[16], Priority: binary.BigEndian.Uint16(b[22:]),
		IdleTimeout: binary.BigEndian.Uint16(b[18:]), HardTimeout: binary.BigEndian.Uint16(b[20:]),
		Flags: FlowFlags(binary.BigEndian.Uint16(b[36:])), Importance: binary.BigEndian.Uint16(b[38:]),
	}
	cmd, cookieMask = flowCommand(b[17]), binary.BigEndian.Uint64(b[8:])
	m, rest, err := cutMatch(b[flowModFixed-headerSize:])
	if err == nil {
		f.Match = m
		err = decodeInstructions(rest, &f)
	}
	if err != nil {
		return f, cmd, cookieMask, fmt.Errorf("flow mod: %w", err)
	}
	return f, cmd, cookieMask, nil
}

func decodeGroupMod(b []byte) (g GroupEntry, cmd groupCommand, err error) {
	if len(b) < 8 {
		return g, 0, fmt.Errorf("group mod: %w", errShort)
	}
	g = GroupEntry{ID: binary.BigEndian.Uint32(b[4:]), Type: GroupType(b[2])}
	g.Buckets, err = decodeBuckets(b[8:])
	return g, groupCommand(binary.BigEndian.Uint16(b)), err
}

func decodeMeterMod(b []byte) (m Meter, cmd meterCommand, err error) {
	if len(b) < 8 {
		return m, 0, fmt.Errorf("meter mod: %w", errShort)
	}
	m = Meter{ID: binary.BigEndian.Uint32(b[4:]), Flags: MeterFlags(binary.BigEndian.Uint16(b[2:]))}
	m.Bands, err = decodeBands(b[8:])
	return m, meterCommand(binary.BigEndian.Uint16(b)), err
}
