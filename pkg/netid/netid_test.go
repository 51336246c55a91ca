package netid

import "testing"

func TestValidate(t *testing.T) {
	for id, good := range map[ID]bool{0: true, 1: false, 9: false, 10: true, 1<<24 - 1: true, 1 << 24: false, 1<<32 - 1: false} {
		if err := id.Validate(); (err == nil) != good {
			t.Errorf("%d: %v, want good %v", id, err, good)
		}
	}
}

func TestAllowed(t *testing.T) {
	for _, test := range []struct {
		from, to ID
		want     bool
	}{{12, 12, true}, {12, 13, false}, {0, 12, true}, {12, 0, true}, {0, 0, true}} {
		if got := Allowed(test.from, test.to); got != test.want {
			t.Errorf("Allowed(%d, %d) = %v", test.from, test.to, got)
		}
	}
}
