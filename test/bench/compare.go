package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// comparison is traffic on two sides' paths in turn, or on the same paths in two
// states. Each turn takes the next path.
type comparison struct {
	name, title string
	paths       [sides][]path
	// prepare brings about the state of a side; nil where there is nothing to do.
	prepare func(ctx context.Context, side int) error
	// rare is for states that take long to bring about: fewer turns, each longer
	// and on all paths by turns, and no TCP.
	rare bool
	// free is for what has no bar: fewer turns.
	free bool
	// bar is that of both rows where it is another than usual.
	bar *bar
}

// compare measures a comparison's round trips, then its throughput.
func (b *bench) compare(ctx context.Context, c comparison) error {
	stop, err := b.serve(ctx, c)
	if err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	defer stop()
	trips, err := b.compareTrips(ctx, c)
	if err == nil {
		b.add(trafficRow(c.name+"_round_trips", c.title+": UDP round trips", "1/s", trips, c))
	}
	if err == nil && !c.rare {
		var bits [sides][]float64
		if bits, err = b.compareThroughput(ctx, c); err == nil {
			b.add(trafficRow(c.name+"_tcp", c.title+": TCP, one connection", "Mbit/s", bits, c))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

// trafficRow's numbers are means: what differs between pairs has to even out.
// Where both sides have the same pairs its ratio is the median of the turns',
// in which what the machine else does cancels out.
func trafficRow(name, title, unit string, x [sides][]float64, c comparison) Row {
	r := paired(name, title, unit, average, x, cmp.Or(c.bar, ratioAtLeast(0.95)))
	if c.free {
		r.bar = nil
	}
	if c.same() {
		turns := ratios(x[ours], x[reference])
		r.Ratio = number(median(turns))
		r = r.from(turns, nil, func(turns, _ []float64) float64 { return median(turns) })
	}
	return r
}

// serve starts the servers at the paths' ends; both sides may have the same.
func (b *bench) serve(ctx context.Context, c comparison) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	at := map[host]bool{}
	for _, paths := range c.paths {
		for _, p := range paths {
			if at[p.to] {
				continue
			}
			at[p.to] = true
			s, err := serveEcho(p.to)
			if err == nil {
				stops = append(stops, s)
			}
			if err == nil && !c.rare {
				if s, err = b.serveIperf(ctx, p.to); err == nil {
					stops = append(stops, s)
				}
			}
			if err != nil {
				stop()
				return nil, err
			}
		}
	}
	return stop, nil
}

// same reports whether both sides have the same paths.
func (c comparison) same() bool { return slices.Equal(c.paths[ours], c.paths[reference]) }

// throughputTurns is how often TCP is measured: by all pairs alike where pairs differ, and often, as
// what one connection carries differs by a quarter from one second to the next.
func (c comparison) throughputTurns() int {
	if c.free {
		return 4
	}
	return 2 * max(6, len(c.paths[ours]))
}

func (c comparison) ready(ctx context.Context, side int) error {
	if c.prepare == nil {
		return nil
	}
	return c.prepare(ctx, side)
}

func (b *bench) compareTrips(ctx context.Context, c comparison) (trips [sides][]float64, err error) {
	var clients [sides][]*client
	for side, paths := range c.paths {
		for _, p := range paths {
			k, err := newClient(p)
			if err != nil {
				return trips, err
			}
			defer k.close()
			clients[side] = append(clients[side], k)
		}
	}
	const warm = 1
	turns, during := b.times(24, 2), time.Duration(b.times(400, 300))*time.Millisecond
	if c.free {
		turns = b.times(12, 2)
	}
	if c.rare {
		turns, during = b.times(10, 1), time.Duration(b.times(1500, 500))*time.Millisecond
	}
	err = inTurn(ctx, warm, turns, func(side, i int) error {
		if err := c.ready(ctx, side); err != nil {
			return err
		}
		use := clients[side]
		if !c.rare {
			k := (i + warm) % len(use)
			use = use[k : k+1]
		}
		n, err := roundTrips(ctx, use, during)
		if err == nil && i >= 0 {
			trips[side] = append(trips[side], n)
		}
		return err
	})
	return trips, err
}

func (b *bench) compareThroughput(ctx context.Context, c comparison) (mbits [sides][]float64, err error) {
	err = inTurn(ctx, 0, b.times(c.throughputTurns(), 1), func(side, i int) error {
		if err := c.ready(ctx, side); err != nil {
			return err
		}
		n, err := b.throughput(ctx, c.paths[side][i%len(c.paths[side])])
		if err == nil {
			mbits[side] = append(mbits[side], n/1e6)
		}
		return err
	})
	return mbits, err
}
