package fairness

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

var dns, web = Destination{netip.MustParseAddrPort("203.0.113.53:53"), 17}, Destination{netip.MustParseAddrPort("203.0.113.53:443"), 6}

// Connections are counted when a destination can be busy and a namespace have its part since they were
// counted last, and not again and again for one that has many connections.
func TestPortsDue(t *testing.T) {
	at := time.Unix(1000, 0)
	after := func(seconds float64) time.Time { return at.Add(time.Duration(seconds * float64(time.Second))) }
	counted := func(took time.Duration, used uint64, made, to uint64) *Ports {
		p := &Ports{}
		p.Counted(at, took, Table{Used: used}, map[string]Asked{"red": {All: made}}, map[string]map[Destination]uint64{"red": {dns: to}})
		return p
	}
	for _, tc := range []struct {
		name  string
		p     *Ports
		at    time.Time
		used  uint64
		asked Asked
		due   bool
	}{
		{"too few connections for anybody to have its part", &Ports{}, at, PortsBusy - 1, Asked{All: 1 << 20}, false},
		{"never counted", &Ports{}, at, PortsBusy, Asked{}, true},
		{"few more than when they were counted", counted(0, 40_000, 30_000, 9_000), after(100), 41_000, Asked{All: 44_999}, false},
		{"as many more as one needs", counted(0, 40_000, 30_000, 9_000), after(2), 40_000, Asked{All: 45_000}, true},
		{"as many more, but refused", counted(0, 40_000, 30_000, 9_000), after(2), 40_000, Asked{All: 45_000, Crowded: 1}, false},
		{"as many more, but just counted", counted(0, 40_000, 30_000, 9_000), after(0.3), 40_000, Asked{All: 66_000}, false},
		{"as many more, but counting takes long", counted(time.Second, 40_000, 30_000, 9_000), after(1.9), 40_000, Asked{All: 66_000}, false},
		{"counters began anew", counted(0, 40_000, 30_000, 9_000), after(2), 40_000, Asked{All: 15_000}, true},
		{"many of nobody knows whom", counted(0, 40_000, 30_000, 9_000), after(2), 47_500, Asked{All: 30_000}, true},
		{"has its part, and nobody is in need", counted(0, 40_000, 30_000, PortsPart), after(2), 40_000, Asked{All: 30_000 + PortsBusy - PortsPart - 1}, false},
		{"has its part, and could have more than others can spare", counted(0, 40_000, 30_000, PortsPart), after(2), 40_000, Asked{All: 30_000 + PortsBusy - PortsPart}, true},
		{"somebody has its part", counted(0, 40_000, 30_000, PortsBusy), after(2), 40_000, Asked{All: 30_000}, false},
		{"somebody has had it for a while", counted(0, 40_000, 30_000, PortsBusy), after(5), 100, Asked{All: 30_000}, true},
	} {
		if got := tc.p.Due(tc.at, Table{Used: tc.used}, map[string]Asked{"red": tc.asked}); got != tc.due {
			t.Errorf("%s: due is %t", tc.name, got)
		}
	}
}

// A namespace is refused where it has its part and the destination is busy, and nowhere else, until either
// is down to two thirds.
func TestPortsTaken(t *testing.T) {
	var p Ports
	for _, step := range []struct {
		red, blue map[Destination]uint64
		want      []Destination
	}{
		{map[Destination]uint64{dns: PortsPart - 1, web: 5}, map[Destination]uint64{dns: PortsPart - 1}, nil},
		{map[Destination]uint64{dns: PortsBusy - 1}, nil, nil},
		{map[Destination]uint64{dns: PortsPart, web: PortsBusy}, map[Destination]uint64{dns: PortsBusy - PortsPart}, []Destination{dns, web}},
		{map[Destination]uint64{dns: leavesAgain + 1, web: calm}, map[Destination]uint64{dns: calm - leavesAgain}, []Destination{dns}},
		{map[Destination]uint64{dns: leavesAgain}, map[Destination]uint64{dns: PortsPart - 1}, nil},
		{nil, nil, nil},
	} {
		p.Counted(time.Unix(1000, 0), 0, Table{}, nil, map[string]map[Destination]uint64{"red": step.red, "blue": step.blue})
		if got := p.Taken("red"); !slices.Equal(got, step.want) {
			t.Errorf("red is refused at %v, want %v", got, step.want)
		}
		if blue := p.Taken("blue"); len(blue) > 0 {
			t.Errorf("blue is refused at %v", blue)
		}
	}
}
