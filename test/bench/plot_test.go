package main

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file anew")

// testLimits has a limit that is met, one that the machine hardly carries, and one
// beyond the plot's scale, of each kind of traffic.
func testLimits() []limitResult {
	var out []limitResult
	for i, rate := range limitRates {
		for _, l := range limitedTraffic(rate) {
			r := limitResult{limited: l, n: 3}
			for side := range r.sides {
				r.free[side] = carried{mbits: 900}
				r.sides[side] = carried{mbits: float64(rate) / 1e6 * (1 - 0.04*float64(side) - 0.005*float64(i)), retransmits: 0.5, roundTrip: 20}
			}
			if rate == 1e9 {
				r.sides[ours].mbits = 850
				r.free[reference].mbits = 4000
			}
			if rate == 10e6 && l.protocol == "udp" {
				r.sides[reference].mbits = 12
			}
			out = append(out, r)
		}
	}
	return out
}

func TestPlot(t *testing.T) {
	got := limitsPlot(testLimits())
	const path = "testdata/limits.svg"
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for d := xml.NewDecoder(strings.NewReader(string(got))); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not XML: %v", err)
		}
	}
}
