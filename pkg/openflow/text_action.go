package openflow

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

func (a outputAction) String() string {
	switch {
	case a.port == PortController:
		return fmt.Sprintf("CONTROLLER:%d", a.maxLen)
	case a.port < maxPhysicalPort:
		return fmt.Sprintf("output:%d", a.port)
	}
	return portText(a.port)
}

func (a outputRegAction) String() string { return "output:" + a.src.String() }

func (a setFieldAction) String() string {
	return "set_field:" + a.field.setText() + "->" + setName(a.field.id)
}

// setText is the value as where it is set, not matched.
func (f Field) setText() string {
	switch f.id {
	case FieldCTLabel, FieldEthType, FieldIPv6Label:
		return f.maskedText(hexText)
	}
	return f.valueText()
}

func (a loadAction) String() string {
	v := "0"
	if a.value != 0 {
		v = "0x" + strconv.FormatUint(a.value, 16)
	}
	return "load:" + v + "->" + a.dst.String()
}

func (a moveAction) String() string { return "move:" + a.src.String() + "->" + a.dst.String() }

func (a resubmitAction) String() string {
	const inPort = uint16(PortInPort & 0xffff)
	port := strconv.Itoa(int(a.port))
	if a.port >= uint16(maxPhysicalPort) {
		port = portText(0xffff0000 | uint32(a.port))
	}
	switch {
	case a.port != inPort && a.table == 0xff:
		return "resubmit:" + port
	case a.port == inPort:
		port = ""
	}
	table := ""
	if a.table != 0xff {
		table = strconv.Itoa(int(a.table))
	}
	return "resubmit(" + port + "," + table + ")"
}

func (decTTLAction) String() string { return "dec_ttl" }

func (a groupAction) String() string { return fmt.Sprintf("group:%d", a.id) }

func (a setQueueAction) String() string { return fmt.Sprintf("set_queue:%d", a.id) }

func (a noteAction) String() string {
	parts := make([]string, len(a.data))
	for i := range len(a.data) {
		parts[i] = hex.EncodeToString([]byte{a.data[i]})
	}
	return "note:" + strings.Join(parts, ".")
}

func (a checkPktLargerAction) String() string {
	return fmt.Sprintf("check_pkt_larger(%d)->%s", a.bytes, a.dst)
}

func (a conjunctionAction) String() string {
	return fmt.Sprintf("conjunction(%d,%d/%d)", a.id, int(a.clause)+1, a.n)
}

func (ctClearAction) String() string { return "ct_clear" }

func (a rawAction) String() string { return "unknown(0x" + hex.EncodeToString([]byte(a.data)) + ")" }

func (a ctAction) String() string {
	s := a.spec
	var parts []string
	if s.Commit {
		parts = append(parts, "commit")
	}
	if s.Force {
		parts = append(parts, "force")
	}
	if s.Table != nil {
		parts = append(parts, fmt.Sprintf("table=%d", *s.Table))
	}
	switch {
	case s.ZoneFrom.n != 0:
		parts = append(parts, "zone="+s.ZoneFrom.String())
	case s.Zone != 0:
		parts = append(parts, fmt.Sprintf("zone=%d", s.Zone))
	}
	if s.NAT != nil {
		parts = append(parts, s.NAT.String())
	}
	if len(s.Actions) > 0 {
		parts = append(parts, "exec("+actionsText(s.Actions)+")")
	}
	if s.ALG != 0 {
		parts = append(parts, "alg="+algText(s.ALG))
	}
	return "ct(" + strings.Join(parts, ",") + ")"
}

func algText(port uint16) string {
	switch port {
	case 21:
		return "ftp"
	case 69:
		return "tftp"
	}
	return strconv.Itoa(int(port))
}

// String is the translation as ovs-ofctl writes it, "nat(dst=10.0.0.1:80)".
func (n NATSpec) String() string {
	if !n.SNAT && !n.DNAT {
		return "nat"
	}
	s := "nat(src"
	if n.DNAT {
		s = "nat(dst"
	}
	if !n.hasRange() {
		return s + ")"
	}
	s += "=" + n.addrText(n.AddrMin)
	if n.AddrMax.IsValid() && n.AddrMax != n.AddrMin {
		s += "-" + n.addrText(n.AddrMax)
	}
	if n.PortMin != 0 {
		s += fmt.Sprintf(":%d", n.PortMin)
		if n.PortMax != 0 && n.PortMax != n.PortMin {
			s += fmt.Sprintf("-%d", n.PortMax)
		}
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{n.Persistent, ",persistent"}, {n.Hash, ",hash"}, {n.Random, ",random"}} {
		if f.on {
			s += f.name
		}
	}
	return s + ")"
}

func (n NATSpec) hasRange() bool { return n.AddrMin.IsValid() || n.PortMin != 0 }

func (n NATSpec) addrText(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "0.0.0.0"
	case a.Is6() && n.PortMin != 0:
		return "[" + a.String() + "]"
	}
	return a.String()
}

func actionsText(actions []Action) string {
	parts := make([]string, len(actions))
	for i, a := range actions {
		parts[i] = a.String()
	}
	return strings.Join(parts, ",")
}

// String is the flow as ovs-ofctl dump-flows writes it without counters, with
// cookie, table and priority always there. add-flow reads it.
func (f Flow) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "cookie=%#x, table=%d, ", f.Cookie, f.Table)
	for _, p := range []struct {
		name  string
		value uint16
	}{{"idle_timeout", f.IdleTimeout}, {"hard_timeout", f.HardTimeout}} {
		if p.value != 0 {
			fmt.Fprintf(&s, "%s=%d, ", p.name, p.value)
		}
	}
	s.WriteString(f.Flags.text())
	if f.Importance != 0 {
		fmt.Fprintf(&s, "importance=%d, ", f.Importance)
	}
	fmt.Fprintf(&s, "priority=%d", f.Priority)
	if m := f.Match.String(); m != "" {
		s.WriteString("," + m)
	}
	return s.String() + " actions=" + f.instructionsText()
}

func (fl FlowFlags) text() string {
	s := ""
	for _, p := range []struct {
		flag FlowFlags
		name string
	}{
		{SendFlowRemoved, "send_flow_rem "}, {CheckOverlap, "check_overlap "}, {ResetCounts, "reset_counts "},
		{NoPacketCounts, "no_packet_counts "}, {NoByteCounts, "no_byte_counts "},
	} {
		if fl&p.flag != 0 {
			s += p.name
		}
	}
	return s
}

func (f Flow) instructionsText() string {
	var parts []string
	if f.Meter != 0 {
		parts = append(parts, fmt.Sprintf("meter:%d", f.Meter))
	}
	if len(f.Actions) > 0 {
		parts = append(parts, actionsText(f.Actions))
	}
	if f.others != "" {
		parts = append(parts, "unknown_instruction(0x"+hex.EncodeToString([]byte(f.others))+")")
	}
	if f.Goto != nil {
		parts = append(parts, fmt.Sprintf("goto_table:%d", *f.Goto))
	}
	if parts == nil {
		return "drop"
	}
	return strings.Join(parts, ",")
}
