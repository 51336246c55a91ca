package link

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a device merges is seen, switched off and switched on again; all else stays.
func TestMerging(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	all := func() string {
		out, err := exec.Command("ip", "netns", "exec", nameOf(node), "ethtool", "-k", "ovs1").Output()
		noErr(t, err)
		return string(out)
	}
	on := func(want ...string) {
		t.Helper()
		got, fixed, err := node.Merging("ovs1")
		noErr(t, err)
		if d := cmp.Diff(want, got); d != "" || len(fixed) > 0 {
			t.Errorf("merging (-want +got), fixed %v:\n%s", fixed, d)
		}
	}
	on()
	before := all()
	noErr(t, node.SetMerging("ovs1", []string{"rx-gro", "rx-lro", "rx-no-such"}, true)) // veth has no LRO
	on("rx-gro")
	if got := all(); got != strings.Replace(before, "generic-receive-offload: off", "generic-receive-offload: on", 1) {
		t.Errorf("before:\n%safter:\n%s", before, got)
	}
	noErr(t, node.SetMerging("ovs1", []string{"rx-gro"}, false))
	on()
	if got := all(); got != before {
		t.Errorf("before:\n%safter:\n%s", before, got)
	}
	if _, _, err := node.Merging("none0"); !errors.Is(err, ErrNoLink) {
		t.Errorf("a device that is not there: %v", err)
	}
}

// A feature that is on and that the device cannot switch, as some virtio devices cannot, is named.
func TestMergingFixed(t *testing.T) {
	bits := map[string]int{"rx-gro": 3, "rx-lro": 33, "rx-gro-hw": 34}
	words := []featureWord{{available: 1 << 3, active: 1<<3 | 1<<4}, {available: 1 << 1, active: 1<<1 | 1<<2, neverChanged: 1 << 1}}
	on, fixed := mergingOf(bits, words)
	if d := cmp.Diff([][]string{{"rx-gro", "rx-gro-hw", "rx-lro"}, {"rx-gro-hw", "rx-lro"}}, [][]string{on, fixed}); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if on, _ := mergingOf(bits, words[:1]); !cmp.Equal(on, []string{"rx-gro"}) {
		t.Errorf("in a kernel with fewer features: %v", on)
	}
}
