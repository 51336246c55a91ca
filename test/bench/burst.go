package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// burstSize is how many ADDs come at once, podsAtOnce how many pods a node starts at once
// that is filled by a Deployment.
const (
	burstSize  = 64
	podsAtOnce = 55
)

// burst measures many ADDs, then many DELs, at once.
func burst(ctx context.Context, b *bench) error {
	boxes, err := b.burstBoxes(burstSize)
	if err != nil {
		return err
	}
	standing, err := b.hostEnds()
	if err != nil {
		return err
	}
	plugins := [sides]*plugin{b.ours, b.reference}
	var add, del, gone [sides][]float64
	err = inTurn(ctx, 1, b.times(8, 1), func(side, i int) error {
		a, err := plugins[side].addAll(ctx, boxes[side])
		if err != nil {
			return err
		}
		began := time.Now()
		d, err := plugins[side].delAll(ctx, boxes[side])
		if err == nil && side == ours {
			// What is left to do must not be done at the other side's expense.
			err = b.devicesGone(ctx, standing)
		}
		if err == nil && i >= 0 {
			add[side] = append(add[side], burstSize/a.Seconds())
			del[side] = append(del[side], burstSize/d.Seconds())
			gone[side] = append(gone[side], burstSize/time.Since(began).Seconds())
		}
		return err
	})
	if err != nil {
		return err
	}
	b.add(
		paired("cni_add_64_at_once", "64 CNI ADDs at once", "ADDs/s", median, add, ratioAtLeast(1)),
		paired("cni_del_64_at_once", "64 CNI DELs at once", "DELs/s", median, del, ratioAtLeast(0.7)),
		paired("cni_gone_64_at_once", "64 CNI DELs at once, until the devices are gone", "DELs/s", median, gone, nil),
	)
	return b.podsAtOnce(ctx)
}

func (b *bench) burstBoxes(n int) (boxes [sides][]attached, err error) {
	for side := range boxes {
		if boxes[side], err = b.sandboxes(n, func(int) string { return "bench" }); err != nil {
			return boxes, err
		}
	}
	return boxes, nil
}

// podsAtOnce measures each ADD of a burst: as the runtime sees it, and in the agent.
func (b *bench) podsAtOnce(ctx context.Context) error {
	boxes, err := b.burstBoxes(podsAtOnce)
	if err != nil {
		return err
	}
	before, err := b.agentTimes(ctx)
	if err != nil {
		return err
	}
	idle, err := b.processorTime()
	if err != nil {
		return err
	}
	took, inAgent, err := b.eachOfBursts(ctx, boxes)
	if err != nil {
		return err
	}
	busy, err := b.processorTime()
	if err != nil {
		return err
	}
	after, err := b.agentTimes(ctx)
	if err != nil {
		return err
	}
	b.section(fmt.Sprintf("Where the time of %d ADDs at once goes", podsAtOnce), "%s", burstBreakdown(before, after, took[ours]))
	b.add(
		paired("cni_add_55_at_once_median", "each of 55 CNI ADDs at once, median", "ms", median, took, nil),
		paired("cni_add_55_at_once_p95", "each of 55 CNI ADDs at once, p95", "ms", rank(0.95), took, nil),
		measured("cni_add_55_at_once_agent_median", "of it in the agent, median", "ms", median, inAgent, oursAtMost(150)),
		measured("cni_add_55_at_once_agent_p95", "of it in the agent, p95", "ms", rank(0.95), inAgent, nil),
	)
	calls := after[fmt.Sprintf(cniKey, "ADD")].count - before[fmt.Sprintf(cniKey, "ADD")].count
	for i, name := range busyProcesses {
		b.add(alone("cpu_add_del_"+name, "processor time of "+name+" for one of these ADDs and its DEL", "ms", (busy[i]-idle[i])/calls, int(calls), nil))
	}
	return nil
}

// eachOfBursts attaches and detaches all boxes of a side at once, in turn, and returns how
// long each ADD took, in ms: as the runtime sees it, and in our agent.
func (b *bench) eachOfBursts(ctx context.Context, boxes [sides][]attached) (took [sides][]float64, inAgent []float64, err error) {
	standing, err := b.hostEnds()
	if err != nil {
		return took, nil, err
	}
	log, err := b.agentLog()
	if err != nil {
		return took, nil, err
	}
	plugins := [sides]*plugin{b.ours, b.reference}
	err = inTurn(ctx, 1, b.times(8, 2), func(side, i int) error {
		var mu sync.Mutex
		_, err := all(ctx, boxes[side], func(ctx context.Context, a *attached) error {
			d, err := plugins[side].add(ctx, a)
			mu.Lock()
			defer mu.Unlock()
			if i >= 0 {
				took[side] = append(took[side], d.Seconds()*1000)
			}
			return err
		})
		if err != nil {
			return err
		}
		if side == ours {
			adds, err := log.adds()
			if err != nil {
				return err
			}
			if i >= 0 {
				inAgent = append(inAgent, adds...)
			}
		}
		if _, err := plugins[side].delAll(ctx, boxes[side]); err != nil || side != ours {
			return err
		}
		return b.devicesGone(ctx, standing)
	})
	return took, inAgent, err
}

// busyProcesses are the processes of a node that work for ADD and DEL.
var busyProcesses = [...]string{"agent", "ovs-vswitchd", "ovsdb-server"}

// processorTime is what n1's have used so far, ms.
func (b *bench) processorTime() (used [len(busyProcesses)]float64, err error) {
	for i, name := range busyProcesses {
		p, err := b.lab.Process("n1/" + name).Get()
		if err != nil {
			return used, err
		}
		if used[i], err = processorOf(p.PID); err != nil {
			return used, err
		}
	}
	return used, nil
}

// processorOf is what a process has used so far, ms: utime and stime of proc(5), whose unit
// is 10 ms on all of Linux.
func processorOf(pid int) (used float64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in brackets, may contain blanks.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	for _, f := range fields[11:13] {
		ticks, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, fmt.Errorf("times of process %d: %w", pid, err)
		}
		used += 10 * ticks
	}
	return used, nil
}

// hostEnd begins the names of pods' devices on the node.
const hostEnd = "kov"

// hostEnds are how many pods' devices n1 has.
func (b *bench) hostEnds() (count int, err error) {
	n, err := b.lab.Node("n1")
	if err != nil {
		return 0, err
	}
	host, err := link.Open(ns.Path(n.Netns))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	links, err := host.Links()
	for _, l := range links {
		if strings.HasPrefix(l.Name, hostEnd) {
			count++
		}
	}
	return count, err
}

// devicesGone waits until n1 has no more pods' devices than that: the agent removes those
// of a pod after it has answered DEL.
func (b *bench) devicesGone(ctx context.Context, standing int) error {
	return wait(ctx, "the devices of detached pods are gone", func() (bool, error) {
		n, err := b.hostEnds()
		return n <= standing, err
	})
}

// agentLog is what n1's agent logs from here on.
type agentLog struct{ file *os.File }

func (b *bench) agentLog() (*agentLog, error) {
	p, err := b.lab.Agent("n1").Get()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p.Log)
	if err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekEnd)
	return &agentLog{f}, err
}

// attachedLine is what the agent says of an ADD, and how long that took.
var attachedLine = regexp.MustCompile(`msg="pod attached".* took=(\S+)`)

// adds are how long the ADDs since the last call took, ms.
func (l *agentLog) adds() ([]float64, error) {
	var text bytes.Buffer
	if _, err := text.ReadFrom(l.file); err != nil {
		return nil, err
	}
	var out []float64
	for _, m := range attachedLine.FindAllStringSubmatch(text.String(), -1) {
		d, err := time.ParseDuration(m[1])
		if err != nil {
			return nil, fmt.Errorf("the agent's log: %w", err)
		}
		out = append(out, d.Seconds()*1000)
	}
	return out, nil
}
