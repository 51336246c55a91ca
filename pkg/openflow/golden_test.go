package openflow

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenMessages are one of each message that this package sends.
func goldenMessages(t *testing.T) []struct {
	name string
	wire []byte
} {
	flow := Flow{
		Table: 3, Priority: 100, Cookie: 0xabc, Goto: GotoTable(9), Meter: 2, IdleTimeout: 5, HardTimeout: 6, Importance: 7, Flags: SendFlowRemoved,
		Match:   NewMatch(InPort(3), TCPDst(80), IPv4Dst(pfx("10.0.0.0/24")), RegMasked(0, 5, 0xff), TunnelID(10)),
		Actions: []Action{SetField(TunnelDst(addr("198.18.0.1"))), Move(Whole(FieldReg0), Range(FieldTunnelID, 0, 32)), Load(Bits(FieldReg1, 0, 7), 3), CT(CTSpec{Commit: true, Zone: 1, NAT: &NATSpec{DNAT: true, AddrMin: addr("10.0.0.9"), PortMin: 8080}}), Output(PortInPort)},
	}
	group := GroupEntry{ID: 7, Type: GroupSelect, Buckets: []Bucket{{Weight: 2, Actions: []Action{Output(1)}}, {Weight: 1, WatchPort: 2, Actions: []Action{Output(2)}}}}
	meter := Meter{ID: 4, Flags: MeterKbps | MeterBurst, Bands: []Band{{Rate: 1000, Burst: 100}}}
	filter := FlowFilter{Table: GotoTable(3), Cookie: 1, CookieMask: 0xff, Match: NewMatch(IP())}
	zone := uint16(9)
	b := &bundle{id: 5, mods: []Mod{AddFlow(flow)}, call: &call{first: 10, n: 4}}
	add, err := b.add(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var hi bytes.Buffer
	_ = hello(&hi, bufio.NewReader(strings.NewReader("")))
	return []struct {
		name string
		wire []byte
	}{
		{"hello", hi.Bytes()},
		{"add flow", AddFlow(flow).append(nil, 1)},
		{"modify flow", ModifyFlow(flow).append(nil, 1)},
		{"delete flow", DeleteFlow(flow).append(nil, 1)},
		{"delete flows", DeleteFlows(filter).append(nil, 1)},
		{"add group", AddGroup(group).append(nil, 2)},
		{"set group", SetGroup(group).append(nil, 2)},
		{"delete group", DeleteGroup(7).append(nil, 2)},
		{"add meter", appendMeterMod(nil, 3, meterAdd, meter)},
		{"packet-out", appendPacketOut(nil, 3, udpFrame(1), []Action{SetQueue(7), Output(5)})},
		{"set async", appendSetAsync(nil, 3, options{portEvents: func(PortEvent) {}, packetIns: func(PacketIn) {}})},
		{"set async, with others' changes", appendSetAsync(nil, 3, options{forwards: true})},
		{"set config", appendSetConfig(nil, 3, 0, 128)},
		{"watch flows", appendMultipartRequest(nil, 4, multipartFlowMonitor, appendMonitor(appendMonitor(nil, 1, 0), 2, 65))},
		{"delete meter", appendMeterMod(nil, 3, meterDelete, Meter{ID: 4})},
		{"bundle open", b.control(nil, b.xid(0), bundleOpen)},
		{"bundle add", add},
		{"bundle close", b.control(nil, b.xid(2), bundleClose)},
		{"bundle commit", b.control(nil, b.xid(3), bundleCommit)},
		{"bundle discard", b.control(nil, b.xid(3), bundleDiscard)},
		{"dump flows", appendMultipartRequest(nil, 4, multipartFlow, appendFlowRequest(nil, filter))},
		{"dump groups", appendMultipartRequest(nil, 4, multipartGroupDesc, sentRequest(t, func(ctx context.Context, c *Conn) { _, _ = c.Groups(ctx) }))},
		{"meter counters", appendMultipartRequest(nil, 4, multipartMeterStats, sentRequest(t, func(ctx context.Context, c *Conn) { _, _ = c.MeterCounters(ctx) }))},
		{"dump meters", appendMultipartRequest(nil, 4, multipartMeterConfig, sentRequest(t, func(ctx context.Context, c *Conn) { _, _ = c.Meters(ctx) }))},
		{"describe", appendMultipartRequest(nil, 4, multipartDesc, sentRequest(t, func(ctx context.Context, c *Conn) { _, _ = c.Software(ctx) }))},
		{"dump ports", appendMultipartRequest(nil, 4, multipartPortDesc, sentRequest(t, func(ctx context.Context, c *Conn) { _, _ = c.Ports(ctx) }))},
		{"learn", AddFlow(Flow{Match: NewMatch(TCPDst(80)), Actions: []Action{Learn(affinity())}}).append(nil, 6)},
		{"flush every connection", appendCTFlush(nil, 7, CTFilter{})},
		{"flush connections", appendCTFlush(nil, 7, CTFilter{
			Zone: &zone, Protocol: ProtoTCP, Orig: CTTuple{Src: addr("10.0.0.1"), Dst: addr("10.96.0.10"), SrcPort: 1024, DstPort: 80},
			Reply: CTTuple{Src: addr("10.0.0.2"), SrcPort: 8080},
		})},
		{"flush IPv6 connections", appendCTFlush(nil, 7, CTFilter{Orig: CTTuple{Dst: addr("fd00::1")}})},
		{"barrier", finishMessage(appendMessageHeader(nil, msgBarrierRequest, 5), 0)},
	}
}

// The bytes are those of the golden file, and ovs-ofctl ofp-print, which shares
// no code with this package, reads out of them what the file says.
func TestGoldenMessages(t *testing.T) {
	var got strings.Builder
	for _, m := range goldenMessages(t) {
		got.WriteString("== " + m.name + "\n")
		for part := range chunks(hex.EncodeToString(m.wire), 64) {
			got.WriteString(part + "\n")
		}
		out, err := exec.Command("ovs-ofctl", "ofp-print", hex.EncodeToString(m.wire)).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: ovs-ofctl ofp-print: %v: %s", m.name, err, out)
		}
		got.WriteString(strings.TrimSpace(string(out)) + "\n")
	}
	file := filepath.Join("testdata", "messages.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("(-golden +got), -update writes it anew:\n%s", d)
	}
}

func chunks(s string, n int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for len(s) > n {
			if !yield(s[:n]) {
				return
			}
			s = s[n:]
		}
		yield(s)
	}
}

// sentRequest is the body of the multipart request that do sends.
func sentRequest(t *testing.T, do func(context.Context, *Conn)) []byte {
	t.Helper()
	sent := make(chan message, 1)
	c := dial(t, fakeSwitch(t, func(nc net.Conn, r *bufio.Reader) {
		_, _ = readMessage(r)
		_, _ = nc.Write([]byte{version, byte(msgHello), 0, 8, 0, 0, 0, 0})
		m, _ := readMessage(r)
		sent <- m
	}))
	do(testContext(t), c)
	m := <-sent
	return m.body[multipartHeadSize:]
}
