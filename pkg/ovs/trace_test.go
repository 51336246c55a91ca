package ovs

import "testing"

func TestParseTrace(t *testing.T) {
	const head = "Flow: udp,in_port=LOCAL\n\nbridge(\"br-phy\")\n----\n 0. priority 0\n    NORMAL\n\nFinal flow: unchanged\nMegaflow: recirc_id=0\n"
	for actions, want := range map[string]struct {
		eth0, popped bool
		vlan         int
	}{
		"eth0":                        {true, false, 0},
		"drop":                        {},
		"br-phy,eth0":                 {true, false, 0},
		"eth0.5":                      {},
		"push_vlan(vid=5,pcp=0),eth0": {true, false, 5},
		"tnl_pop(vxlan_sys_4789)":     {false, true, 0},
		"pop_vlan,tnl_pop(eth_sys)":   {false, true, 0},
		"clone(push_vlan(vid=7,pcp=0),eth0),br-phy": {true, false, 7},
	} {
		a, ok := parseTrace(head + "Datapath actions: " + actions + "\n")
		if !ok || string(a) != actions || a.Reach("eth0") != want.eth0 || a.Detunnelled() != want.popped || a.VLAN() != want.vlan {
			t.Errorf("%q: %q, %t; reaches eth0 %t, a tunnel %t, VLAN %d; want %+v", actions, a, ok, a.Reach("eth0"), a.Detunnelled(), a.VLAN(), want)
		}
	}
	if a, ok := parseTrace(head); ok {
		t.Errorf("of nothing: %q", a)
	}
}

func TestParseLearned(t *testing.T) {
	const out = " port  VLAN  MAC                Age\nLOCAL     0  36:c7:3e:6a:b6:49    0\n    1     5  e6:f3:1b:0e:f0:40  299\n   12     0  e6:f3:1b:0e:f0:41   12\n"
	for at, want := range map[[2]int]bool{{1, 5}: true, {1, 0}: false, {12, 0}: true, {2, 0}: false} {
		if got := parseLearned(out, uint32(at[0]), at[1]); got != want {
			t.Errorf("port %d, VLAN %d: %t, want %t", at[0], at[1], got, want)
		}
	}
	if !parseLearned(" port  VLAN  MAC                Age\n", 1, 5) {
		t.Error("of a bridge that learns nothing")
	}
}

// TestRemakePort: a port that is made anew is in the VLAN that its owner gave it; one that is not there is made.
func TestRemakePort(t *testing.T) {
	c, o, _ := start(t)
	bridge(t, c, "br0")
	spec := PortSpec{Name: "p0", Type: "internal"}
	for _, when := range []string{"made", "made anew"} {
		if err := c.RemakePort(within(t), "br0", spec); err != nil {
			t.Fatal(err)
		}
		if n, err := c.WaitOfport(within(t), "p0"); err != nil || n == 0 {
			t.Errorf("%s: it has number %d, %v", when, n, err)
		}
		if when == "made" {
			o.VSCtl("set", "port", "p0", "tag=5", "vlan_mode=access", "other_config:a=b", "external_ids:whose=mine")
		}
	}
	if got := vsctl(o, "get", "port", "p0", "tag", "vlan_mode", "trunks", "other_config", "external_ids"); got != "5\naccess\n[]\n{a=b}\n{whose=mine}" {
		t.Errorf("it has %q", got)
	}
}
