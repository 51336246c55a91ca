package tunnel

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// TestOverhead: a tunnel's packet is the headers of RFC 7348, section 5, and the pod's.
func TestOverhead(t *testing.T) {
	for vtep, want := range map[string]int{"198.18.0.1": 20 + 8 + 8 + 14, "2001:db8::1": 40 + 8 + 8 + 14} {
		tun := Tunnel{Type: VXLAN, Family: FamilyOf(netip.MustParseAddr(vtep))}
		if got := tun.Overhead(); got != want {
			t.Errorf("from %s: %d, want %d", vtep, got, want)
		}
	}
}

// TestKernelDevice: the name is Open vSwitch's, and one that the kernel takes at whatever port.
func TestKernelDevice(t *testing.T) {
	if got := (Tunnel{Name: "t", Type: VXLAN, Port: 4789}).KernelDevice(); got != "vxlan_sys_4789" {
		t.Errorf("VXLAN at 4789 is %s", got)
	}
	for name := range kinds {
		if got := (Tunnel{Type: name, Port: 65535}).KernelDevice(); len(got) > 15 || strings.HasPrefix(got, "_") {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestVTEP: a node's end of tunnels is an IPv4 address of its own.
func TestVTEP(t *testing.T) {
	if a, err := ParseVTEP("198.18.0.1"); err != nil || a != netip.MustParseAddr("198.18.0.1") {
		t.Errorf("%s, %v", a, err)
	}
	for _, text := range []string{"", "n1", "198.18.0.1/24", "2001:db8::1", "::ffff:198.18.0.1", "0.0.0.0", "127.0.0.1", "224.0.0.1"} {
		if a, err := ParseVTEP(text); err == nil || !strings.Contains(err.Error(), "is not an") {
			t.Errorf("%q: %s, %v", text, a, err)
		}
	}
}

// TestKey: every netID fits.
func TestKey(t *testing.T) {
	if most := 1<<VXLAN.KeyBits() - 1; int(netid.Max) > most {
		t.Errorf("a VNI goes up to %d, a netID to %d", most, netid.Max)
	}
	for name, k := range kinds {
		if k.port == 0 || k.keyBits == 0 || k.keyBits > 8*binary.Size(uint64(0)) || k.inner != ethernetHeader {
			t.Errorf("%s: %+v", name, k)
		}
	}
}

func TestPort(t *testing.T) {
	if VXLAN.Port() != 4789 {
		t.Errorf("VXLAN at %d", VXLAN.Port())
	}
	for text, want := range map[string]Port{"1": 1, "4789": 4789, "65535": 65535} {
		var got Port
		if err := got.Set(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "65536", "70000", "vxlan", "4789/udp"} {
		if got, err := ParsePort(text); err == nil || !strings.Contains(err.Error(), "1 to 65535") {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	if Port(0).String() != "" {
		t.Errorf("no port is %q", Port(0))
	}
	type record struct {
		Port Port `json:"Port,omitempty"`
	}
	for text, r := range map[string]record{`{}`: {}, `{"Port":8472}`: {8472}} {
		data, err := json.Marshal(r)
		if err != nil || string(data) != text {
			t.Errorf("%+v is written as %s, %v", r, data, err)
		}
		var back record
		if err := json.Unmarshal(data, &back); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(r, back); diff != "" {
			t.Error(diff)
		}
	}
}
