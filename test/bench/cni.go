package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// sideNames are the two sides of a comparison: 0 is ours, 1 the reference.
const (
	ours = iota
	reference
	sides
)

// eachSide calls f for both sides, the other one first every other turn.
func eachSide(ctx context.Context, turn int, f func(side int) error) error {
	for k := range sides {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := f((k + turn) & 1); err != nil {
			return err
		}
	}
	return nil
}

// inTurn calls f for both sides n times after warm discarded times, for which i
// is negative.
func inTurn(ctx context.Context, warm, n int, f func(side, i int) error) error {
	for i := -warm; i < n; i++ {
		if err := eachSide(ctx, i, func(side int) error { return f(side, i) }); err != nil {
			return err
		}
	}
	return nil
}

// startup measures a plugin's program alone: VERSION needs neither agent nor device.
func startup(ctx context.Context, b *bench) error {
	var took [sides][]time.Duration
	programs := [sides]string{filepath.Join(b.bin, "k8s-ovs"), filepath.Join(b.bin, "bridge")}
	n := b.times(400, 40)
	err := inTurn(ctx, 10, n, func(side, i int) error {
		cmd := exec.CommandContext(ctx, programs[side])
		cmd.Env = append(os.Environ(), "CNI_COMMAND=VERSION")
		cmd.Stdin = bytes.NewReader([]byte(`{"cniVersion":"1.1.0"}`))
		began := time.Now()
		if out, err := cmd.Output(); err != nil {
			return fmt.Errorf("VERSION of %s: %w: %s", programs[side], err, out)
		}
		if i >= 0 {
			took[side] = append(took[side], time.Since(began))
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.latency("plugin_version", "plugin's start alone (CNI VERSION)", took, nil)
	return nil
}

// latency adds median and p99 of two lists of durations; the bar is the median's.
func (b *bench) latency(name, title string, took [sides][]time.Duration, bar *bar) {
	both := bothMilliseconds(took)
	b.add(
		paired(name+"_median", title+", median", "ms", median, both, bar),
		paired(name+"_p99", title+", p99", "ms", rank(0.99), both, nil),
	)
}

// spare is how many sandboxes each side's single ADDs go round: none is used
// again right after its DEL, while the kernel still takes its devices apart.
const spare = 8

func cniEmpty(ctx context.Context, b *bench) error {
	return b.cniLatency(ctx, 0, ratioAtMost(1.0))
}

func cniFull(ctx context.Context, b *bench) error {
	if err := b.populate(ctx, fullPods); err != nil {
		return err
	}
	return b.cniLatency(ctx, len(b.full), ratioAtMost(1.3))
}

// cniLatency measures ADD and DEL one at a time while pods others are there: on a node at
// rest, which a DEL leaves behind it about half a second later, and one after the other
// without a pause, where each pays for what the ones before left to do.
func (b *bench) cniLatency(ctx context.Context, pods int, bar *bar) error {
	var boxes [sides][]attached
	for side := range boxes {
		var err error
		if boxes[side], err = b.sandboxes(spare, func(int) string { return "bench" }); err != nil {
			return err
		}
	}
	standing, err := b.hostEnds()
	if err != nil {
		return err
	}
	busyAdd, busyDel, err := b.addsAndDels(ctx, boxes, b.times(100, 8), func() error { return nil })
	if err != nil {
		return err
	}
	before, err := b.agentTimes(ctx)
	if err != nil {
		return err
	}
	add, del, err := b.addsAndDels(ctx, boxes, b.times(200, 16), func() error { return b.atRest(ctx, standing) })
	if err != nil {
		return err
	}
	after, err := b.agentTimes(ctx)
	if err != nil {
		return err
	}
	b.latency(fmt.Sprintf("cni_add_%d_pods", pods), fmt.Sprintf("CNI ADD, %d pods there", pods), add, bar)
	b.latency(fmt.Sprintf("cni_del_%d_pods", pods), fmt.Sprintf("CNI DEL, %d pods there", pods), del, ratioAtMost(1.0))
	b.latency(fmt.Sprintf("cni_add_%d_pods_busy", pods), fmt.Sprintf("CNI ADD, %d pods there, without a pause after the DEL before", pods), busyAdd, nil)
	b.latency(fmt.Sprintf("cni_del_%d_pods_busy", pods), fmt.Sprintf("CNI DEL, %d pods there, without a pause after the DEL before", pods), busyDel, nil)
	port, err := b.portAlone(ctx)
	if err != nil {
		return fmt.Errorf("a port alone: %w", err)
	}
	b.add(measured(fmt.Sprintf("ovs_port_%d_pods", pods), fmt.Sprintf("a veth and its Open vSwitch port alone, %d pods there, median", pods), "ms", median, milliseconds(port), nil))
	b.section(fmt.Sprintf("Where an ADD's time goes, %d pods there", pods), "%s", addBreakdown(before, after, add[ours], port))
	b.section(fmt.Sprintf("Where a DEL's time goes, %d pods there", pods), "%s", delBreakdown(before, after, del[ours]))
	return nil
}

// addsAndDels attaches and detaches a sandbox of each side n times, after as many discarded
// times as there are sandboxes, and returns how long each took. It calls rest before each turn.
func (b *bench) addsAndDels(ctx context.Context, boxes [sides][]attached, n int, rest func() error) (add, del [sides][]time.Duration, err error) {
	const warm = spare
	for i := -warm; i < n; i++ {
		if err := rest(); err != nil {
			return add, del, err
		}
		var box [sides]*attached
		for side := range box {
			box[side] = &boxes[side][(i+warm)%spare]
		}
		if err := b.addAndDel(ctx, i, box, &add, &del); err != nil {
			return add, del, err
		}
	}
	return add, del, nil
}

// atRest waits until nothing is left to do on n1 of DELs that were answered, neither by the
// agent nor by ovs-vswitchd, so that no ADD of either side pays for it. n1 had that many
// pods' devices before.
func (b *bench) atRest(ctx context.Context, standing int) error {
	if err := b.devicesGone(ctx, standing); err != nil {
		return err
	}
	looks, same := "", 0
	return wait(ctx, "ovs-vswitchd on n1 has nothing to do", func() (bool, error) {
		// It answers between two looks at its ports.
		count, err := b.lab.OVS("n1").AppCtl(ctx, "coverage/read-counter", "bridge_reconfigure")
		if same++; count != looks {
			looks, same = count, 0
		}
		return same == 3, err
	})
}

// addAndDel attaches and detaches one sandbox of each side and notes how long
// it took, unless turn is negative.
func (b *bench) addAndDel(ctx context.Context, turn int, box [sides]*attached, add, del *[sides][]time.Duration) error {
	plugins := [sides]*plugin{b.ours, b.reference}
	note := func(to *[sides][]time.Duration, side int, took time.Duration) {
		if turn >= 0 {
			to[side] = append(to[side], took)
		}
	}
	err := eachSide(ctx, turn, func(side int) error {
		took, err := plugins[side].add(ctx, box[side])
		note(add, side, took)
		return err
	})
	if err != nil {
		return err
	}
	return eachSide(ctx, turn, func(side int) error {
		took, err := plugins[side].del(ctx, *box[side])
		note(del, side, took)
		return err
	})
}
