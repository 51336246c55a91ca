package openflow

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// GroupType says what a group does with its buckets (OpenFlow 1.4, section 5.6.1).
type GroupType uint8

// The kinds of groups. What a select group hashes is the switch's to choose:
// OpenFlow 1.4 cannot say. Open vSwitch takes addresses and ports in the
// datapath (dp_hash); its userspace datapath (3.1.0) leaves out the ports of UDP,
// so that all UDP of a client meets the same bucket.
const (
	GroupAll      GroupType = 0 // every bucket
	GroupSelect   GroupType = 1 // one bucket, by weight and a hash of the packet
	GroupIndirect GroupType = 2 // its only bucket
	GroupFastFail GroupType = 3 // the first live bucket
)

// String is the type as ovs-ofctl writes it.
func (t GroupType) String() string {
	if int(t) < len(groupTypeNames) {
		return groupTypeNames[t]
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

var groupTypeNames = [...]string{"all", "select", "indirect", "ff"}

// Group numbers with a meaning (OpenFlow 1.4, section 7.3.4.2). Groups have 0 to GroupMax.
const (
	GroupMax uint32 = 0xffffff00
	// EveryGroup stands for all groups in [DeleteGroup].
	EveryGroup uint32 = 0xfffffffc
	// GroupAny is the wildcard.
	GroupAny uint32 = 0xffffffff
)

// GroupEntry is a group: something that flows send packets through with
// [Group]. Flows that refer to it follow its changes at once.
type GroupEntry struct {
	ID      uint32
	Type    GroupType
	Buckets []Bucket
}

// Bucket is a choice of a group.
type Bucket struct {
	// Weight is the bucket's share in a select group; there 0 takes no traffic.
	// Groups of other types have none: leave it 0.
	Weight uint16
	// WatchPort and WatchGroup are what the bucket's being live depends on; 0,
	// PortAny or GroupAny for nothing.
	WatchPort, WatchGroup uint32
	// Actions are done as an action set (OpenFlow 1.4, section 5.10), not as a
	// list: first what changes fields, then only one of ct, resubmit, output and
	// group, the last of these kinds that there is. Open vSwitch silently leaves
	// out the other of them, and learn and note.
	Actions []Action
}

// Equal compares all of two groups; the order of buckets counts.
func (g GroupEntry) Equal(h GroupEntry) bool {
	return g.ID == h.ID && g.Type == h.Type && slices.EqualFunc(g.Buckets, h.Buckets, Bucket.Equal)
}

// Equal compares all of two buckets.
func (b Bucket) Equal(c Bucket) bool {
	return b.Weight == c.Weight && watched(b.WatchPort) == watched(c.WatchPort) &&
		watched(b.WatchGroup) == watched(c.WatchGroup) && actionsEqual(b.Actions, c.Actions)
}

// watched is the one form of "nothing": PortAny and GroupAny, which are the same number.
func watched(n uint32) uint32 {
	if n == 0 {
		return PortAny
	}
	return n
}

// String is the group as ovs-ofctl add-group takes it.
func (g GroupEntry) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "group_id=%d,type=%s", g.ID, g.Type)
	for _, b := range g.Buckets {
		s.WriteString(",bucket=")
		if g.Type == GroupSelect {
			fmt.Fprintf(&s, "weight:%d,", b.Weight)
		}
		if p := watched(b.WatchPort); p != PortAny {
			fmt.Fprintf(&s, "watch_port:%s,", portText(p))
		}
		if w := watched(b.WatchGroup); w != GroupAny {
			fmt.Fprintf(&s, "watch_group:%d,", w)
		}
		actions := actionsText(b.Actions)
		if actions == "" {
			actions = "drop"
		}
		s.WriteString("actions=" + actions)
	}
	return s.String()
}

// groupCommand is OFPGC_* (OpenFlow 1.4, section 7.3.4.2).
type groupCommand uint16

const (
	groupAdd    groupCommand = 0
	groupModify groupCommand = 1
	groupDelete groupCommand = 2
	// groupAddOrModify is Open vSwitch's own (OFPGC11_ADD_OR_MOD, openflow-1.1.h).
	groupAddOrModify groupCommand = 0x8000
)

const bucketFixed = 16 // length of ofp_bucket before its actions

func appendGroupMod(b []byte, xid uint32, cmd groupCommand, g GroupEntry) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgGroupMod, xid)
	b = binary.BigEndian.AppendUint16(b, uint16(cmd))
	b = append(b, byte(g.Type), 0)
	b = binary.BigEndian.AppendUint32(b, g.ID)
	if cmd != groupDelete {
		b = appendBuckets(b, g.Buckets)
	}
	return finishMessage(b, start)
}

func appendBuckets(b []byte, buckets []Bucket) []byte {
	for _, k := range buckets {
		start := len(b)
		b = append(b, 0, 0)
		b = binary.BigEndian.AppendUint16(b, k.Weight)
		b = binary.BigEndian.AppendUint32(b, watched(k.WatchPort))
		b = binary.BigEndian.AppendUint32(b, watched(k.WatchGroup))
		b = append(b, 0, 0, 0, 0)
		b = appendActions(b, k.Actions)
		binary.BigEndian.PutUint16(b[start:], uint16(len(b)-start))
	}
	return b
}

func decodeBuckets(b []byte) ([]Bucket, error) {
	var buckets []Bucket
	for len(b) > 0 {
		one, rest, err := cutRecord(b, "bucket", 0, bucketFixed)
		if err != nil {
			return nil, err
		}
		k := Bucket{Weight: binary.BigEndian.Uint16(one[2:])}
		if p := binary.BigEndian.Uint32(one[4:]); p != PortAny {
			k.WatchPort = p
		}
		if w := binary.BigEndian.Uint32(one[8:]); w != GroupAny {
			k.WatchGroup = w
		}
		if k.Actions, err = decodeActions(one[bucketFixed:]); err != nil {
			return nil, fmt.Errorf("bucket: %w", err)
		}
		buckets, b = append(buckets, k), rest
	}
	return buckets, nil
}

// decodeGroupDesc reads the body of a reply of type OFPMP_GROUP_DESC.
func decodeGroupDesc(b []byte, to []GroupEntry) ([]GroupEntry, error) {
	for len(b) > 0 {
		one, rest, err := cutRecord(b, "group description", 0, 8)
		if err != nil {
			return nil, err
		}
		g := GroupEntry{ID: binary.BigEndian.Uint32(one[4:]), Type: GroupType(one[2])}
		if g.Buckets, err = decodeBuckets(one[8:]); err != nil {
			return nil, fmt.Errorf("group %d: %w", g.ID, err)
		}
		to, b = append(to, g), rest
	}
	return to, nil
}
