package openflow

import "fmt"

// Mod is one part of a bundle, see [Conn.Commit].
type Mod interface {
	// String is the part as text, such as "add-flow cookie=0x1, table=0, ...".
	String() string
	// append writes its message.
	append(b []byte, xid uint32) []byte
}

type flowMod struct {
	cmd  flowCommand
	flow Flow
}

type deleteFlows struct{ filter FlowFilter }

type groupMod struct {
	cmd   groupCommand
	group GroupEntry
}

// AddFlow adds a flow, or replaces the one with the same [Flow.Key] whole,
// cookie and timeouts too.
func AddFlow(f Flow) Mod { return flowMod{flowAdd, f} }

// ModifyFlow changes what the flow with the same [Flow.Key] does. Its cookie,
// timeouts and counters stay. There being none is not an error and adds none.
func ModifyFlow(f Flow) Mod { return flowMod{flowModifyStrict, f} }

// DeleteFlow removes the flow with the same [Flow.Key], whatever else it says.
// There being none is not an error.
func DeleteFlow(f Flow) Mod { return flowMod{flowDeleteStrict, f} }

// DeleteFlows removes all flows that the filter chooses. It may overlook flows
// that the same bundle has added before it (Open vSwitch 3.1.0, also from
// ovs-ofctl --bundle: a kind of match that is new to a table is found only after
// the bundle); put it first, or remove such flows with [DeleteFlow].
func DeleteFlows(filter FlowFilter) Mod { return deleteFlows{filter} }

// AddGroup adds a group; the switch refuses it when there is one of its number.
// In a bundle it stands before the flows that refer to it.
func AddGroup(g GroupEntry) Mod { return groupMod{groupAdd, g} }

// SetGroup adds a group or replaces the one of its number.
func SetGroup(g GroupEntry) Mod { return groupMod{groupAddOrModify, g} }

// ModifyGroup replaces a group; the switch refuses it when there is none of its number.
func ModifyGroup(g GroupEntry) Mod { return groupMod{groupModify, g} }

// DeleteGroup removes a group, [EveryGroup] all, and every flow that refers to
// it. There being none is not an error.
func DeleteGroup(id uint32) Mod { return groupMod{groupDelete, GroupEntry{ID: id}} }

func (m flowMod) append(b []byte, xid uint32) []byte {
	f := m.flow
	if m.cmd == flowDeleteStrict {
		f.Cookie = 0 // with mask 0 any
	}
	return appendFlowMod(b, xid, m.cmd, f, 0)
}

func (m flowMod) String() string {
	switch m.cmd {
	case flowAdd:
		return "add-flow " + m.flow.String()
	case flowModifyStrict:
		return "mod-flows --strict " + m.flow.String()
	}
	return "del-flows --strict " + m.flow.String()
}

func (m deleteFlows) append(b []byte, xid uint32) []byte {
	f := Flow{Table: m.filter.table(), Cookie: m.filter.Cookie, Match: m.filter.Match}
	return appendFlowMod(b, xid, flowDelete, f, m.filter.CookieMask)
}

func (m deleteFlows) String() string { return "del-flows " + m.filter.String() }

func (m groupMod) append(b []byte, xid uint32) []byte {
	return appendGroupMod(b, xid, m.cmd, m.group)
}

func (m groupMod) String() string {
	switch m.cmd {
	case groupAdd:
		return "add-group " + m.group.String()
	case groupModify:
		return "mod-group " + m.group.String()
	case groupAddOrModify:
		return "--may-create mod-group " + m.group.String()
	}
	if m.group.ID == EveryGroup {
		return "del-groups"
	}
	return fmt.Sprintf("del-groups group_id=%d", m.group.ID)
}
