package link

import "testing"

// Virtual devices make up their speed.
func TestSpeedIsOfHardware(t *testing.T) {
	n := space(t)
	ip(t, n, "link add d0 type veth peer name d1")
	ip(t, n, "link add b0 type bridge")
	ip(t, n, "link set d0 master b0 up")
	ip(t, n, "link set d1 up")
	if made := n.ownSpeed("d0"); made != 10_000_000_000 {
		t.Errorf("a veth says %d bit/s, want 10 G", made)
	}
	for _, name := range []string{"d0", "b0", "lo", "d7"} {
		if bits, ok, err := n.Speed(name); bits != 0 || ok || err != nil {
			t.Errorf("speed of %s: %d, %t, %v; want none", name, bits, ok, err)
		}
	}
}
