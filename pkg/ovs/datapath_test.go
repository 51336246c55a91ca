package ovs

import (
	"slices"
	"testing"
)

// What dpctl/show of Open vSwitch 3.1 says, and what it says of a datapath without ports of its own.
func TestParseDatapathPorts(t *testing.T) {
	const out = `netdev@ovs-netdev:
  lookups: hit:1667 missed:74 lost:0
  flows: 10
  port 0: ovs-netdev (tap)
  port 2: eth0
  port 4: vxlan_sys_4789 (vxlan: packet_type=ptap)
`
	if got := parseDatapathPorts(out); !slices.Equal(got, []string{"ovs-netdev", "eth0", "vxlan_sys_4789"}) {
		t.Errorf("the ports are %q", got)
	}
	if got := parseDatapathPorts("netdev@ovs-netdev:\n  flows: 0\n"); got != nil {
		t.Errorf("without ports they are %q", got)
	}
}
