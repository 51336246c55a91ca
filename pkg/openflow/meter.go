package openflow

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Meter is a rate limit that flows refer to by its number (Flow.Meter).
type Meter struct {
	// ID is 1 or more; the switch says how many there can be.
	ID    uint32
	Flags MeterFlags
	Bands []Band
}

// MeterFlags are OFPMF_* (OpenFlow 1.4, section 7.3.4.4).
type MeterFlags uint16

// One of MeterKbps and MeterPktps is needed.
const (
	MeterKbps  MeterFlags = 1 << 0 // rates in kbit/s
	MeterPktps MeterFlags = 1 << 1 // rates in packets/s
	MeterBurst MeterFlags = 1 << 2 // Band.Burst counts
	MeterStats MeterFlags = 1 << 3 // count what the bands drop
)

// Band drops what exceeds its rate.
type Band struct {
	// Rate in kbit/s, or packets/s with MeterPktps.
	Rate uint32
	// Burst in kbit, or packets with MeterPktps.
	Burst uint32

	// other is a band of a type that this package does not understand, encoded.
	other string
}

// Equal compares all of two meters.
func (m Meter) Equal(n Meter) bool {
	return m.ID == n.ID && m.Flags == n.Flags && slices.Equal(m.Bands, n.Bands)
}

// String is the meter as ovs-ofctl add-meter takes it.
func (m Meter) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "meter=%d", m.ID)
	for i, name := range []string{"kbps", "pktps", "burst", "stats"} {
		if m.Flags>>i&1 != 0 {
			s.WriteString("," + name)
		}
	}
	if len(m.Bands) > 0 {
		s.WriteString(",band=")
	}
	for i, b := range m.Bands {
		if i > 0 {
			s.WriteByte(',')
		}
		if b.other != "" {
			fmt.Fprintf(&s, "type=unknown(%#x)", b.other)
			continue
		}
		fmt.Fprintf(&s, "type=drop,rate=%d", b.Rate)
		if m.Flags&MeterBurst != 0 {
			fmt.Fprintf(&s, ",burst_size=%d", b.Burst)
		}
	}
	return s.String()
}

// MeterCounters are a meter's counters (OpenFlow 1.4, section 7.3.5.14).
type MeterCounters struct {
	ID uint32
	// Packets and Bytes are what came.
	Packets, Bytes uint64
	// Dropped are the packets of it that one of the bands dropped.
	Dropped uint64
}

// meterCommand is OFPMC_*.
type meterCommand uint16

const (
	meterAdd    meterCommand = 0
	meterModify meterCommand = 1
	meterDelete meterCommand = 2

	bandDrop = 1  // OFPMBT_DROP
	bandSize = 16 // length of ofp_meter_band_drop

	// everyMeter is OFPM_ALL.
	everyMeter = 0xffffffff
)

func appendMeterMod(b []byte, xid uint32, cmd meterCommand, m Meter) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgMeterMod, xid)
	b = binary.BigEndian.AppendUint16(b, uint16(cmd))
	b = binary.BigEndian.AppendUint16(b, uint16(m.Flags))
	b = binary.BigEndian.AppendUint32(b, m.ID)
	for _, k := range m.Bands {
		if k.other != "" {
			b = append(b, k.other...)
			continue
		}
		b = append(b, 0, bandDrop, 0, bandSize)
		b = binary.BigEndian.AppendUint32(b, k.Rate)
		b = binary.BigEndian.AppendUint32(b, k.Burst)
		b = append(b, 0, 0, 0, 0)
	}
	return finishMessage(b, start)
}

func decodeBands(b []byte) ([]Band, error) {
	var bands []Band
	for len(b) > 0 {
		one, rest, err := cutRecord(b, "meter band", 2, 8)
		if err != nil {
			return nil, err
		}
		k := Band{other: string(one)}
		if binary.BigEndian.Uint16(one) == bandDrop && len(one) == bandSize {
			k = Band{Rate: binary.BigEndian.Uint32(one[4:]), Burst: binary.BigEndian.Uint32(one[8:])}
		}
		bands, b = append(bands, k), rest
	}
	return bands, nil
}

// appendMeterRequest is the body of a request about a meter, or [everyMeter].
func appendMeterRequest(b []byte, id uint32) []byte {
	return append(binary.BigEndian.AppendUint32(b, id), 0, 0, 0, 0)
}

// decodeMeterConfig reads the body of a reply of type OFPMP_METER_CONFIG.
func decodeMeterConfig(b []byte, to []Meter) ([]Meter, error) {
	for len(b) > 0 {
		one, rest, err := cutRecord(b, "meter", 0, 8)
		if err != nil {
			return nil, err
		}
		m := Meter{ID: binary.BigEndian.Uint32(one[4:]), Flags: MeterFlags(binary.BigEndian.Uint16(one[2:]))}
		if m.Bands, err = decodeBands(one[8:]); err != nil {
			return nil, fmt.Errorf("meter %d: %w", m.ID, err)
		}
		to, b = append(to, m), rest
	}
	return to, nil
}

// decodeMeterStats reads the body of a reply of type OFPMP_METER.
func decodeMeterStats(b []byte, to []MeterCounters) ([]MeterCounters, error) {
	const head, band = 40, 16 // lengths of ofp_meter_stats and ofp_meter_band_stats
	for len(b) > 0 {
		one, rest, err := cutRecord(b, "meter statistics", 4, head)
		if err != nil {
			return nil, err
		}
		m := MeterCounters{ID: binary.BigEndian.Uint32(one), Packets: binary.BigEndian.Uint64(one[16:]), Bytes: binary.BigEndian.Uint64(one[24:])}
		for bands := one[head:]; len(bands) >= band; bands = bands[band:] {
			m.Dropped += binary.BigEndian.Uint64(bands)
		}
		to, b = append(to, m), rest
	}
	return to, nil
}
