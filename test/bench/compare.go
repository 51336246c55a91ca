package main

import (
	"cmp"
	"context"
	"errors"
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

// Of a side's part of a turn, how long round trips are counted; before that, where a state takes long to
// bring about, how long packets go all ways that the datapath has to learn anew.
const (
	tripsTime     = 150 * time.Millisecond
	rareTripsTime = 500 * time.Millisecond
	rareWarmTime  = 250 * time.Millisecond
)

// turns is how many turns a comparison takes: so many that what the machine does to single ones, up
// to a third of their number, leaves the median of their ratios within some 4 %: see the bounds in RESULTS.md.
func (b *bench) turns(c comparison) int {
	switch {
	case c.rare:
		return b.times(40, 1)
	case c.free:
		return b.times(32, 2)
	case c.prepare != nil: // each takes longer
		return b.times(60, 2)
	}
	return b.times(80, 2)
}

// compare measures a comparison's round trips and its throughput, both in each turn. A turn takes
// about a second: what the machine does for longer than that cancels out.
func (b *bench) compare(ctx context.Context, c comparison) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", c.name, err)
		}
	}()
	talkers, stop, err := c.connect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var trips, mbits [sides][]float64
	const warm = 2
	err = inTurn(ctx, warm, b.turns(c), func(side, i int) error {
		if err := b.bring(ctx, c, side); err != nil {
			return err
		}
		use, during := talkers[side], rareTripsTime
		if !c.rare {
			k := (i + warm) / 2 % len(use) // each path with either side first
			use, during = use[k:k+1], tripsTime
		}
		if c.rare {
			if _, err := roundTrips(ctx, clients(use), rareWarmTime); err != nil {
				return err
			}
		}
		n, err := roundTrips(ctx, clients(use), during)
		if err != nil {
			return err
		}
		var bits float64
		if !c.rare {
			if bits, err = use[0].stream.rate(ctx); err != nil {
				return err
			}
		}
		if i >= 0 {
			trips[side], mbits[side] = append(trips[side], n), append(mbits[side], bits/1e6)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.add(trafficRow(c.name+"_round_trips", c.title+": UDP round trips", "1/s", trips, c))
	if !c.rare {
		b.add(trafficRow(c.name+"_tcp", c.title+": TCP, one connection", "Mbit/s", mbits, c))
	}
	return nil
}

// bring brings about the state of a side, and returns when no packet goes by a cached flow of the
// state before.
func (b *bench) bring(ctx context.Context, c comparison, side int) error {
	if c.prepare == nil {
		return nil
	}
	if err := c.prepare(ctx, side); err != nil {
		return err
	}
	for _, node := range []string{"n1", "n2"} {
		if _, err := b.lab.OVS(node).AppCtl(ctx, "revalidator/wait"); err != nil {
			return err
		}
	}
	return nil
}

// trafficRow's numbers are medians, and its ratio is the median of the turns' ratios.
func trafficRow(name, title, unit string, x [sides][]float64, c comparison) Row {
	r := paired(name, title, unit, median, x, cmp.Or(c.bar, ratioAtLeast(0.95)))
	if c.free {
		r.bar = nil
	}
	turns := ratios(x[ours], x[reference])
	r.Ratio = number(median(turns))
	return r.from(turns, nil, func(turns, _ []float64) float64 { return median(turns) })
}

// talker is one path's two kinds of traffic.
type talker struct {
	client *client
	stream *stream // nil where a comparison has none
}

func clients(talkers []talker) []*client {
	out := make([]*client, len(talkers))
	for i, t := range talkers {
		out[i] = t.client
	}
	return out
}

// connect starts the servers at the paths' ends, which both sides may share, and what talks with them.
func (c comparison) connect() (talkers [sides][]talker, stop func() error, err error) {
	var stops []func() error
	all := func() error {
		var errs []error
		for _, s := range slices.Backward(stops) {
			errs = append(errs, s())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, all())
		}
	}()
	sinks := map[host]*sink{}
	for side, paths := range c.paths {
		for _, p := range paths {
			if sinks[p.to] == nil {
				echo, err := serveEcho(p.to)
				if err != nil {
					return talkers, nil, err
				}
				stops = append(stops, func() error { echo(); return nil })
				if sinks[p.to], err = newSink(p.to); err != nil {
					return talkers, nil, err
				}
				stops = append(stops, sinks[p.to].close)
			}
			var t talker
			if t.client, err = newClient(p); err != nil {
				return talkers, nil, err
			}
			stops = append(stops, func() error { t.client.close(); return nil })
			if !c.rare {
				if t.stream, err = newStream(p, sinks[p.to]); err != nil {
					return talkers, nil, err
				}
				stops = append(stops, t.stream.close)
			}
			talkers[side] = append(talkers[side], t)
		}
	}
	return talkers, all, nil
}
