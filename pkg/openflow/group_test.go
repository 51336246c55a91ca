package openflow

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// serviceGroup has the buckets of a service's backends.
func serviceGroup(id uint32) GroupEntry {
	g := GroupEntry{ID: id, Type: GroupSelect}
	for _, backend := range []string{"10.0.0.8", "10.0.0.9"} {
		g.Buckets = append(g.Buckets, Bucket{Weight: 100, Actions: []Action{
			SetField(Reg(4, 5)), SetField(RegMasked(5, 0x1f90, 0xffff)),
			CT(CTSpec{Commit: true, Table: GotoTable(9), ZoneFrom: Bits(FieldReg6, 0, 15), NAT: &NATSpec{DNAT: true, AddrMin: addr(backend), PortMin: 8080},
				Actions: []Action{SetField(CTMark(1, ^uint32(0))), Move(Whole(FieldReg4), Range(FieldCTLabel, 0, 32))}}),
		}})
	}
	return g
}

// Groups and the flows that refer to them change in one bundle, if the group
// stands before the flow.
func TestGroupsInBundles(t *testing.T) {
	_, c := startBridge(t)
	ctx := testContext(t)
	g, changed := serviceGroup(70), serviceGroup(70)
	changed.Buckets = changed.Buckets[1:]
	use := Flow{Table: 1, Match: NewMatch(TCPDst(80)), Actions: []Action{Group(70)}}
	other := use
	other.Actions = []Action{Output(1)}
	for _, tc := range []struct {
		name   string
		mods   []Mod
		groups []GroupEntry // but for group 1
		flows  []Flow
		refuse string
	}{
		{"flow before its group", []Mod{AddFlow(use), AddGroup(g)}, nil, nil, "OFPBAC_BAD_OUT_GROUP"},
		{"group before its flow", []Mod{AddGroup(g), AddFlow(use)}, []GroupEntry{g}, []Flow{use}, ""},
		{"flow that a deletion takes with it", []Mod{DeleteGroup(70), AddGroup(changed)}, []GroupEntry{changed}, nil, ""},
		{"flow again", []Mod{AddFlow(use), SetGroup(g)}, []GroupEntry{g}, []Flow{use}, ""},
		{"modification keeps flows", []Mod{ModifyGroup(changed)}, []GroupEntry{changed}, []Flow{use}, ""},
		{"flow leaves the group, then it goes", []Mod{AddFlow(other), DeleteGroup(70)}, nil, []Flow{other}, ""},
		{"refused part behind a group", []Mod{AddGroup(g), AddFlow(use), ModifyGroup(serviceGroup(71))}, nil, []Flow{other}, "OFPGMFC_UNKNOWN_GROUP"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := c.Commit(ctx, tc.mods)
			var refused *SwitchError
			if tc.refuse != "" && (!errors.As(err, &refused) || refused.Name() != tc.refuse) || tc.refuse == "" && err != nil {
				t.Errorf("Commit: %v, want %q", err, tc.refuse)
			}
			groups, err := c.Groups(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var got []GroupEntry
			for _, g := range groups {
				if g.ID != 1 {
					got = append(got, g)
				}
			}
			if len(got) != len(tc.groups) || len(got) == 1 && !got[0].Equal(tc.groups[0]) {
				t.Errorf("groups %v, want %v", got, tc.groups)
			}
			if d := diffFlows(tc.flows, readFlows(t, c)); d != "" {
				t.Errorf("flows (-want +got):\n%s", d)
			}
		})
	}
}

// A bucket does the last kind of what ends it, and nothing that an action set has
// no room for.
func TestBucketIsActionSet(t *testing.T) {
	o, c := startBridge(t)
	ct, learn := CT(CTSpec{Commit: true, Table: GotoTable(9)}), Learn(LearnSpec{Table: 9, Parts: []LearnPart{LearnMatchValue(IP())}})
	move := Move(Whole(FieldReg4), Whole(FieldReg5))
	for name, tc := range map[string]struct {
		bucket []Action
		does   []string
		not    []string
	}{
		"ct after fields":    {[]Action{ct, SetField(Reg(4, 1)), move}, []string{"set_field:0x1->reg4", "move:", "ct(commit,table=9)"}, nil},
		"resubmit over ct":   {[]Action{ct, Resubmit(8)}, []string{"resubmit(,8)"}, []string{"ct("}},
		"output over both":   {[]Action{Output(2), Resubmit(8), ct}, []string{"output:2"}, []string{"ct(", "resubmit("}},
		"neither learn, nor": {[]Action{learn, Note(nil), Output(2)}, []string{"output:2"}, []string{"learn(", "note:"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := GroupEntry{ID: 70, Type: GroupIndirect, Buckets: []Bucket{{Actions: tc.bucket}}}
			use := Flow{Match: NewMatch(UDPDst(80)), Actions: []Action{Group(g.ID)}}
			if err := c.Commit(testContext(t), []Mod{SetGroup(g), AddFlow(use)}); err != nil {
				t.Fatal(err)
			}
			_, trace, _ := strings.Cut(o.AppCtl("ofproto/trace", "br0", "in_port=1,udp,udp_dst=80"), "group:70")
			for _, want := range tc.does {
				if !strings.Contains(trace, want) {
					t.Errorf("no %s in\n%s", want, trace)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(trace, not) {
					t.Errorf("%s in\n%s", not, trace)
				}
			}
		})
	}
}

// A select group without a selection method takes a connection's bucket from a
// hash, and uses all buckets.
func TestSelectGroupSpreadsConnections(t *testing.T) {
	o, c := startBridge(t)
	use := Flow{Match: NewMatch(IPv4Dst(pfx("10.96.0.10/32"))), Actions: []Action{Group(70)}}
	if err := c.Commit(testContext(t), []Mod{AddGroup(serviceGroup(70)), AddFlow(use)}); err != nil {
		t.Fatal(err)
	}
	for name, packet := range map[string]func(i int) string{
		"TCP from one client":   func(i int) string { return tcpPacket("10.0.0.1", "10.96.0.10", 1000+i, 80) },
		"UDP from many clients": func(i int) string { return udpPacket(fmt.Sprintf("10.0.1.%d", i), "10.96.0.10", 1000, 80) },
	} {
		t.Run(name, func(t *testing.T) {
			const n = 32
			for i := range n {
				receive(o, 1, packet(i))
			}
			waitFor(t, func() bool { return len(connections(o)) == n })
			dump := o.AppCtl("dpctl/dump-conntrack")
			for _, backend := range []string{"10.0.0.8", "10.0.0.9"} {
				if got := strings.Count(dump, "reply=(src="+backend+","); got < n/4 {
					t.Errorf("%s has %d of %d connections:\n%s", backend, got, n, dump)
				}
			}
			if err := c.FlushConnections(testContext(t), CTFilter{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}
