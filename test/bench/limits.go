package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// limitRates are the limits that are measured, bits a second.
var limitRates = []uint64{1e6, 10e6, 100e6, 1e9}

const (
	// offeredUDP is how much faster than the limit UDP is sent.
	offeredUDP = 1.25
	// headroom is what an unlimited pair must carry for a limit to show, in parts of it.
	headroom = 1.1
	// slowRate is up to which limit all pairs are measured at once: together
	// they are far from what the machine carries.
	slowRate = 10e6
	// manyFlows is how many connections share a limit, where there is not one.
	manyFlows = 16
)

// limited is traffic through one limit.
type limited struct {
	direction, protocol string
	rate                uint64 // 0: no limit
	flows               int
	// offered is flood's.
	offered float64
}

// name is that of its rows.
func (l limited) name() string {
	name := fmt.Sprintf("limit %s %s %s", l.direction, l.protocol, shortRate(l.rate))
	if l.flows > 1 {
		name += fmt.Sprintf(" %d flows", l.flows)
	}
	return name
}

// shortRate is a rate as the annotation has it: "10M".
func shortRate(bits uint64) string {
	if bits >= 1e9 && bits%1e9 == 0 {
		return fmt.Sprintf("%dG", bits/1e9)
	}
	return fmt.Sprintf("%dM", bits/1e6)
}

// slow reports whether this leaves room for others at the same time.
func (l limited) slow() bool { return l.rate > 0 && l.rate <= slowRate }

// delay is the bound of docs/limits.md on how long a limit's queue holds a packet, ms.
func (l limited) delay() float64 { return max(100, 2.1e6/float64(l.rate)*1000) }

// limitedTraffic are the measurements of one rate.
func limitedTraffic(rate uint64) []limited {
	var out []limited
	for _, direction := range []string{"ingress", "egress"} {
		out = append(out,
			limited{direction: direction, protocol: "tcp", rate: rate, flows: 1},
			limited{direction: direction, protocol: "udp", rate: rate, flows: 1, offered: offeredUDP * float64(rate)})
		if rate == 10e6 || rate == 100e6 {
			out = append(out, limited{direction: direction, protocol: "tcp", rate: rate, flows: manyFlows})
		}
	}
	return out
}

// bandwidth is runtimeConfig.bandwidth of a pod with this limit. Ours gets no
// burst, so it takes its default; the reference wants one, and gets 100 ms of
// the rate, and what one packet with offloads needs.
func (l limited) bandwidth(side int) map[string]uint64 {
	if l.rate == 0 {
		return nil
	}
	b := map[string]uint64{l.direction + "Rate": l.rate}
	if side == reference {
		b[l.direction+"Burst"] = max(l.rate/10, 8*65536)
	}
	return b
}

// limitResult is what was measured of one limit, medians.
type limitResult struct {
	limited
	sides [sides]carried
	// free is the same without a limit.
	free [sides]carried
	n    int
	// runs are the single measurements of ours.
	runs []carried
}

// ratio is the goodput in parts of the limit.
func (r limitResult) ratio(side int) float64 { return r.sides[side].mbits * 1e6 / float64(r.rate) }

// shows reports whether the side's pair carries enough for the limit to show.
func (r limitResult) shows(side int) bool { return r.free[side].mbits*1e6 >= headroom*float64(r.rate) }

// limits measures pods with a limit: what they carry beside what was asked for.
func limits(ctx context.Context, b *bench) error {
	m, err := b.newLimitBench(ctx)
	if err != nil {
		return err
	}
	rates := limitRates
	if b.short {
		rates = []uint64{10e6, 100e6}
	}
	var results []limitResult
	// The fastest first: what a pair carries then, it carries of less.
	for _, rate := range slices.Backward(rates) {
		some, err := m.measure(ctx, limitedTraffic(rate))
		if err != nil {
			return fmt.Errorf("limit %s: %w", shortRate(rate), err)
		}
		for i := range some {
			if err := m.unlimited(ctx, &some[i]); err != nil {
				return fmt.Errorf("no limit: %w", err)
			}
		}
		results = append(some, results...)
	}
	b.addLimits(results)
	for side, peer := range m.peers {
		if err := m.remove(ctx, side, peer); err != nil {
			return err
		}
	}
	return nil
}

// limitBench has a pod of each side that all limited pods talk with.
type limitBench struct {
	*bench
	plugins [sides]*plugin
	peers   [sides]attached
	// free is what was found out last of what pairs carry without a limit.
	free map[string]limitResult
}

func (b *bench) newLimitBench(ctx context.Context) (*limitBench, error) {
	bandwidth, err := newPlugin("bandwidth", b.bin, b.lab.Dir(), b.reference.netns, referenceConfig(b.lab.Dir(), limitingPlugin))
	if err != nil {
		return nil, err
	}
	boxes, err := b.sandboxes(sides, func(int) string { return trafficNamespace })
	if err != nil {
		return nil, err
	}
	m := &limitBench{bench: b, plugins: [sides]*plugin{b.ours, bandwidth}, free: map[string]limitResult{}}
	for side := range m.peers {
		m.peers[side] = boxes[side]
		if _, err := m.plugins[side].add(ctx, &m.peers[side]); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// measure measures each of list on both sides: slow ones all at once, fast ones in turn.
func (m *limitBench) measure(ctx context.Context, list []limited) ([]limitResult, error) {
	runs := make([][sides][]carried, len(list))
	n := m.times(3, 1)
	for turn := range n {
		boxes, err := m.sandboxes(len(list)*sides, func(int) string { return trafficNamespace })
		if err != nil {
			return nil, err
		}
		g, gctx := errgroup.WithContext(ctx)
		if !list[0].slow() {
			g.SetLimit(1)
		}
		for i, l := range list {
			// What is over the group's limit waits here, so this is the order.
			for k := range sides {
				side := (k + turn) & 1
				g.Go(func() error {
					if gctx.Err() != nil {
						return context.Cause(gctx)
					}
					got, err := m.once(gctx, side, l, boxes[sides*i+side])
					runs[i][side] = append(runs[i][side], got)
					return err
				})
			}
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
	}
	out := make([]limitResult, len(list))
	for i, l := range list {
		out[i] = limitResult{limited: l, n: n, runs: runs[i][ours]}
		for side := range sides {
			out[i].sides[side] = middle(runs[i][side])
		}
	}
	return out, nil
}

// once measures l between a new limited pod in box, which goes afterwards, and the peer.
func (m *limitBench) once(ctx context.Context, side int, l limited, box attached) (got carried, err error) {
	box.bandwidth = l.bandwidth(side)
	if _, err := m.plugins[side].add(ctx, &box); err != nil {
		return carried{}, err
	}
	pod, err := box.host()
	if err != nil {
		return carried{}, err
	}
	peer, err := m.peers[side].host()
	if err != nil {
		return carried{}, err
	}
	f := flood{path: path{from: pod, to: peer}, flows: l.flows, offered: l.offered, skip: time.Second / 2, window: 2 * time.Second}
	if l.direction == "ingress" {
		f.path = path{from: peer, to: pod}
	}
	if f.payload, err = pod.datagram(); err != nil {
		return carried{}, err
	}
	if l.slow() {
		f.skip, f.window = time.Second, 3*time.Second
	}
	if l.flows > 1 { // they take longer to find their shares
		f.skip *= 4
	}
	if got, err = f.run(ctx); err != nil {
		return carried{}, err
	}
	return got, m.remove(ctx, side, box)
}

func (m *limitBench) remove(ctx context.Context, side int, box attached) error {
	if _, err := m.plugins[side].del(ctx, box); err != nil {
		return err
	}
	return m.lab.ForgetPod(box.pod)
}

// unlimited finds out what r's traffic is without the limit. TCP is as fast as it
// goes; UDP as fast as it was sent through the limit, or through a higher one if
// that is carried.
func (m *limitBench) unlimited(ctx context.Context, r *limitResult) error {
	free, known := m.free[r.protocol]
	r.free = free.sides
	if known && (free.offered == r.offered || r.shows(ours) && r.shows(reference)) {
		return nil
	}
	got, err := m.measure(ctx, []limited{{direction: "egress", protocol: r.protocol, flows: 1, offered: r.offered}})
	if err != nil {
		return err
	}
	m.free[r.protocol], r.free = got[0], got[0].sides
	return nil
}

// middle is the medians of several runs.
func middle(runs []carried) carried {
	var mbits, retransmits, roundTrip []float64
	for _, r := range runs {
		mbits, retransmits, roundTrip = append(mbits, r.mbits), append(retransmits, r.retransmits), append(roundTrip, r.roundTrip)
	}
	return carried{median(mbits), median(retransmits), median(roundTrip)}
}
