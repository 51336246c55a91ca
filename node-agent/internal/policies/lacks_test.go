package policies

import "testing"

func TestLacks(t *testing.T) {
	for _, test := range []struct {
		datapath, version string
		lacks             bool
	}{
		{"netdev", "3.1.0", true},
		{"netdev", "2.17.9", true},
		{"netdev", "3.2.0", false},
		{"netdev", "3.10.1-r2", false},
		{"netdev", "4.0.0", false},
		{"netdev", "unknown", true},
		{"system", "3.1.0", false},
	} {
		if got := len(Lacks(test.datapath, test.version)) > 0; got != test.lacks {
			t.Errorf("%s of %s: %v", test.datapath, test.version, got)
		}
	}
}
