package openflow

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A real switch hands over what a flow sends here, with what it
// knows of the packet; only to who asked; and it sends what it is given.
func TestPacketInOut(t *testing.T) {
	o, quiet := startBridge(t)
	packets := make(chan PacketIn, 10)
	c := dial(t, o.Mgmt("br0"), WithPacketIns(func(p PacketIn) { packets <- p }))
	flows := []Flow{
		{Cookie: 5, Match: NewMatch(IP()), Actions: []Action{SetField(Reg(4, 1350)), CheckPktLarger(80, Bits(FieldReg10, 0, 0))}, Goto: GotoTable(35)},
		{Cookie: 6, Table: 35, Priority: 100, Match: NewMatch(RegMasked(10, 1, 1)), Actions: []Action{SetField(TunnelID(77)), Output(PortController)}},
		{Cookie: 7, Table: 35, Actions: []Action{Output(2)}},
	}
	if err := c.Commit(t.Context(), addAll(flows)); err != nil {
		t.Fatal(err)
	}
	frame := func(payload int) string {
		return hex.EncodeToString(udpFrame(payload))
	}
	o.AppCtl("netdev-dummy/receive", "p1", frame(30)) // 72 bytes: not larger
	o.AppCtl("netdev-dummy/receive", "p1", frame(100))
	next := func() PacketIn {
		select {
		case p := <-packets:
			return p
		case <-time.After(20 * time.Second):
			t.Fatalf("no packet came; the switch has\n%s", o.OFCtl("dump-flows", "br0"))
		}
		return PacketIn{}
	}
	got := next()
	want := PacketIn{
		Table: 35, Cookie: 6, Data: udpFrame(100),
		Match: NewMatch(InPort(1), TunnelID(77), Reg(4, 1350), Reg(10, 1)),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}

	sent := filepath.Join(t.TempDir(), "p3.pcap")
	o.VSCtl("set", "Interface", "p3", "options:tx_pcap="+sent)
	out := udpFrame(90)
	if err := c.PacketOut(t.Context(), out, SetField(EthDst(mac("0a:58:0a:00:00:09"))), Output(3)); err != nil {
		t.Fatal(err)
	}
	copy(out, mac("0a:58:0a:00:00:09"))
	waitFor(t, func() bool {
		all, err := os.ReadFile(sent)
		return err == nil && bytes.HasSuffix(all, out)
	})
	if err := c.PacketOut(t.Context(), out, Group(99)); err == nil || !strings.Contains(err.Error(), "group:99") {
		t.Errorf("packet to a group that is not there: %v", err)
	}
	if err := quiet.Barrier(t.Context()); err != nil {
		t.Error(err)
	}
	if len(packets) > 0 {
		t.Errorf("one more packet: %+v", <-packets)
	}
}

// udpFrame is a frame with a UDP datagram of n bytes payload.
func udpFrame(n int) []byte {
	head := fmt.Sprintf("0a580a000002"+"0a580a000001"+"0800"+"4500%04x00004000401100000a0000010a000002"+"00010002%04x0000", 28+n, 8+n)
	b, _ := hex.DecodeString(head)
	return append(b, make([]byte, n)...)
}

func TestDecodePacketIn(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 15), make([]byte, 24), append(make([]byte, 16), 0, 1, 0, 4, 0, 0, 0, 0, 0)} {
		if p, err := decodePacketIn(b); err == nil {
			t.Errorf("%x is taken as %+v", b, p)
		}
	}
}

// The counters of meters are what ovs-ofctl shows.
func TestMeterCounters(t *testing.T) {
	o, c := startBridge(t)
	for _, m := range []Meter{
		{ID: 65279, Flags: MeterPktps | MeterBurst | MeterStats, Bands: []Band{{Rate: 1, Burst: 2}}},
		{ID: 9, Flags: MeterKbps | MeterStats, Bands: []Band{{Rate: 1000}, {Rate: 2000}}},
	} {
		if err := c.AddMeter(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Commit(t.Context(), addAll([]Flow{{Meter: 65279, Actions: []Action{Output(2)}}})); err != nil {
		t.Fatal(err)
	}
	const sent = 20
	for range sent {
		o.AppCtl("netdev-dummy/receive", "p1", hex.EncodeToString(udpFrame(100)))
	}
	counters := func() map[uint32]MeterCounters {
		all, err := c.MeterCounters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		byID := map[uint32]MeterCounters{}
		for _, m := range all {
			byID[m.ID] = m
		}
		return byID
	}
	waitFor(t, func() bool { return counters()[65279].Packets == sent })
	got := counters()
	m := got[65279]
	if len(got) != 3 || m.Bytes != sent*142 || m.Dropped == 0 || m.Dropped >= sent || got[9] != (MeterCounters{ID: 9}) {
		t.Errorf("counters %+v", got)
	}
	for _, want := range []string{"meter:65279", "packet_in_count:20 byte_in_count:2840", fmt.Sprintf("0: packet_count:%d ", m.Dropped)} {
		if text := o.OFCtl("meter-stats", "br0"); !strings.Contains(text, want) {
			t.Errorf("ovs-ofctl does not show %q:\n%s", want, text)
		}
	}
}
