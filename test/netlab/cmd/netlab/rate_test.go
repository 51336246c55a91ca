package main

import "testing"

func TestParseRate(t *testing.T) {
	for in, want := range map[string]uint64{
		"": 0, "10M": 10e6, "1.5G": 1.5e9, "512k": 512e3, "1Ki": 1024, "1Mi": 1 << 20, "2Gi": 2 << 30, "1000": 1000,
	} {
		if got, err := parseRate("--x", in); err != nil || got != want {
			t.Errorf("parseRate(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"M", "0", "0.1", "-5M", "10Q", "10 M", "1e30G", "NaN", "Inf"} {
		if got, err := parseRate("--ingress-bandwidth", in); err == nil {
			t.Errorf("parseRate(%q) = %d, want an error", in, got)
		}
	}
}
