package topology

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

func TestParseNodeMTU(t *testing.T) {
	want := NodeMTU{Host: "n1", HostIP: netip.MustParseAddr("192.0.2.1"), Carries: 1450, Receives: 8950, Sends: 1450, Limit: "eth0"}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseNodeMTU("192.0.2.1", data); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for text, reason := range map[string]string{
		`{`: "not valid JSON",
		`{"HostIP":"192.0.2.2","Carries":1450,"Receives":1450,"Sends":1450}`: "must be the address in the key",
		`{"HostIP":"192.0.2.1","Carries":1450,"Receives":1450}`:              "Sends 0 is not 576 to 65535",
		`{"HostIP":"192.0.2.1","Carries":575,"Receives":1450,"Sends":1450}`:  "Carries 575 is not",
		`{"Carries":1450,"Receives":1450,"Sends":1450}`:                      "must be the address in the key",
	} {
		if _, err := ParseNodeMTU("192.0.2.1", []byte(text)); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v, want %q", text, err, reason)
		}
	}
}

func TestHoldsBack(t *testing.T) {
	for _, tc := range []struct {
		carries []int
		want    []bool
	}{
		{[]int{1450}, []bool{false}},
		{[]int{1450, 1450}, []bool{false, false}},
		{[]int{1450, 1400}, []bool{false, true}},
		{[]int{8950, 1400, 8950, 1400, 8950, 8950}, []bool{false, true, false, true, false, false}},
		{[]int{8950, 1450, 1450}, []bool{false, false, false}},                         // nothing to be mended
		{[]int{1450, 1450, 1450, 1300, 800}, []bool{false, false, false, true, false}}, // whom nobody listens to
		{[]int{1450, 1450, 1450, 800}, []bool{false, false, false, false}},             // and who is alone in that
		{[]int{1100, 1100, 800, 1450}, []bool{false, false, true, false}},              // links that give no more
	} {
		m := MTUs{Nodes: map[netip.Addr]NodeMTU{}}
		address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }
		for i, c := range tc.carries {
			m.Nodes[address(i)] = NodeMTU{Carries: c}
		}
		for i, want := range tc.want {
			if got := m.HoldsBack(address(i)); got != want {
				t.Errorf("%v: node %d holds back: %t", tc.carries, i, got)
			}
		}
		if m.HoldsBack(address(99)) {
			t.Error("a node without record holds back")
		}
	}
}
