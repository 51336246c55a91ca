package link

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// pairs makes veths v0, v1, ... with peers p0, p1, ...
func pairs(t testing.TB, n *NS, count int) (devices []Device) {
	t.Helper()
	var lines []string
	for i := range count {
		name := fmt.Sprint("v", i)
		lines = append(lines, fmt.Sprintf("link add %s type veth peer name p%d", name, i), fmt.Sprintf("link set %s up", name), fmt.Sprintf("link set p%d up", i))
		devices = append(devices, Device{name, "veth"})
	}
	noErr(t, ns.IP(t.Context(), nameOf(n), lines...))
	return devices
}

// Many go at once; what is not what it should be stays, and keeps nobody.
func TestDeleteDevices(t *testing.T) {
	n := space(t)
	devices := pairs(t, n, 6)
	ip(t, n, "link add i0 type ifb")
	ip(t, n, "link add d0 type bridge")
	ip(t, n, "link add stays type bridge")
	errs := n.DeleteDevices(append(devices, Device{"i0", "ifb"}, Device{"none", "veth"}, Device{"d0", "veth"})...)
	for i, err := range errs {
		if i != 8 && err != nil || i == 8 && (err == nil || !strings.Contains(err.Error(), "left alone")) {
			t.Errorf("%d: %v", i, err)
		}
	}
	want(t, n, "d0", "lo", "stays")
	for _, err := range n.DeleteDevices(devices...) {
		noErr(t, err)
	}
	if errs := n.DeleteDevices(); len(errs) != 0 {
		t.Error(errs)
	}
}

// A device that somebody else has put into the group is no reason to delete it, nor not
// to delete the others.
func TestDeleteDevicesGroup(t *testing.T) {
	n := space(t)
	devices := pairs(t, n, 3)
	ip(t, n, "link add stays type bridge")
	ip(t, n, fmt.Sprintf("link set stays group %d", goingGroup))
	for _, err := range n.DeleteDevices(devices...) {
		noErr(t, err)
	}
	want(t, n, "lo", "stays")
}

// want compares the devices of n.
func want(t testing.TB, n *NS, names ...string) {
	t.Helper()
	links := must(n.Links())(t)
	have := map[string]bool{}
	for _, l := range links {
		have[l.Name] = true
	}
	for _, name := range names {
		if !have[name] {
			t.Errorf("%s is gone", name)
		}
	}
	if len(links) != len(names) {
		t.Errorf("devices %v, want %v", have, names)
	}
}

// BenchmarkDeleteDevices removes 64 pairs, together (together-ms) and one by one (alone-ms).
func BenchmarkDeleteDevices(b *testing.B) {
	n := space(b)
	var took [2]time.Duration
	for b.Loop() {
		devices := pairs(b, n, 64)
		began := time.Now()
		n.DeleteDevices(devices...)
		took[0] += time.Since(began)
		pairs(b, n, 64)
		began = time.Now()
		for _, d := range devices {
			n.DeleteDevices(d)
		}
		took[1] += time.Since(began)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(took[0].Seconds()*1000/float64(b.N), "together-ms")
	b.ReportMetric(took[1].Seconds()*1000/float64(b.N), "alone-ms")
}
