package tc

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// What somebody else puts on a device goes; the gate, the kernel's own and what only orders packets stay.
func TestForeignQdiscs(t *testing.T) {
	n := space(t)
	root := func(dev string) string {
		out, _, _ := strings.Cut(strings.TrimPrefix(tc(t, n, "qdisc show dev "+dev+" root"), "qdisc "), "\n")
		return strings.Join(strings.Fields(out)[:2], " ")
	}
	var devices []link.Link
	for _, name := range []string{"a0", "b0", "c0", "d0", "e0"} {
		ip(t, n, "link add "+name+" type veth peer name "+name+"p")
		ip(t, n, "link set "+name+" up")
		devices = append(devices, must(n.ns.Existing(name))(t))
	}
	must(n.EnsureGate("a0"))(t)
	gate := root("a0")
	must(n.EnsureGate("b0"))(t)
	tc(t, n, "qdisc replace dev b0 root tbf rate 1kbit burst 1540 latency 1ms")
	// As Open vSwitch does for a QoS of type linux-htb.
	tc(t, n, "qdisc add dev c0 root handle 1: htb default 1")
	tc(t, n, "class add dev c0 parent 1: classid 1:1 htb rate 10kbit")
	tc(t, n, "qdisc add dev e0 root tbf rate 1kbit burst 1540 latency 1ms")
	mended := must(n.EnsureGates(devices[:4]...))(t)
	slices.Sort(mended)
	if !slices.Equal(mended, []string{"b0", "c0"}) {
		t.Errorf("mended %v", mended)
	}
	if root("a0") != gate || !strings.HasPrefix(root("b0"), "htb") || !strings.HasPrefix(root("d0"), "noqueue") || !strings.HasPrefix(root("e0"), "tbf") {
		t.Errorf("a0 has %s (had %s), b0 %s, d0 %s, e0 %s", root("a0"), gate, root("b0"), root("d0"), root("e0"))
	}
	if out := tc(t, n, "class show dev c0"); out != "" {
		t.Errorf("c0 has classes still: %s", out)
	}
	if again := must(n.EnsureGates(devices[:4]...))(t); len(again) > 0 {
		t.Errorf("mended again: %v", again)
	}
	if freed := must(n.FreeRoots(devices[3:]...))(t); !slices.Equal(freed, []string{"e0"}) || !strings.HasPrefix(root("e0"), "noqueue") {
		t.Errorf("freed %v: e0 has %s", freed, root("e0"))
	}
	for _, tt := range []struct {
		qdisc string
		stays bool
	}{
		{"pfifo limit 0", false}, {"pfifo limit 1000", false}, {"bfifo limit 0", false}, {"sfq limit 1", false}, {"fq maxrate 1kbit", false}, {"fq limit 0", false},
		{"fq flow_limit 0", false}, {"fq_codel limit 0", false}, {"fq", true}, {"fq_codel", true}, {"pfifo_fast", true},
	} {
		kind, _, _ := strings.Cut(tt.qdisc, " ")
		args := append([]string{"-n", n.name, "qdisc", "replace", "dev", "d0", "root"}, strings.Fields(tt.qdisc)...)
		if out, err := exec.CommandContext(t.Context(), "tc", args...).CombinedOutput(); err != nil {
			t.Logf("%s: this kernel does not take it: %v: %s", tt.qdisc, err, out)
			continue
		}
		freed := must(n.FreeRoots(devices[3:]...))(t)
		if stays := strings.HasPrefix(root("d0"), kind+" "); stays != tt.stays || stays == slices.Equal(freed, []string{"d0"}) {
			t.Errorf("%s: freed %v, d0 has %s", tt.qdisc, freed, root("d0"))
		}
	}
}
