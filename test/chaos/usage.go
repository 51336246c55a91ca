package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// usage is what a program takes of its machine.
type usage struct {
	program string
	// memory in bytes, as the kernel counts it (resident).
	memory uint64
	// goroutines is 0 for what is not written in Go.
	goroutines, descriptors int
}

// What a program may take more at the end than after the first round. It is for what grows with each action or
// fault; a heap that is larger for a moment is not.
const (
	moreMemory      = 64 << 20
	moreGoroutines  = 60
	moreDescriptors = 40
)

// measure notes what programs take, the first time and the last.
func (r *run) measure(ctx context.Context) error {
	var all []usage
	err := until(ctx, "metrics of programs", again, func() (err error) { // one that was killed may just have started
		all, err = r.c.usage(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if r.first == nil {
		r.first = all
	}
	r.last = all
	return nil
}

// usage asks all programs: those in Go by their metrics, Open vSwitch by the kernel.
func (c *cluster) usage(ctx context.Context) ([]usage, error) {
	var all []usage
	for name, program := range map[string]string{"controller": "controller with etcd", second: "second controller"} {
		text, err := c.ControllerMetrics(ctx, name)
		if err != nil {
			return nil, err
		}
		u, err := parseUsage(program, text)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	for _, n := range c.nodes {
		text, err := c.Agent(n).Metrics(ctx)
		if err != nil {
			return nil, err
		}
		u, err := parseUsage("agent of "+n, text)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
		for _, daemon := range []string{"ovs-vswitchd", "ovsdb-server"} {
			p, err := c.Process(n + "/" + daemon).Get()
			if err != nil {
				return nil, err
			}
			u, err := usageOf(daemon+" of "+n, p.PID)
			if err != nil {
				return nil, err
			}
			all = append(all, u)
		}
	}
	slices.SortFunc(all, func(a, b usage) int { return strings.Compare(a.program, b.program) })
	return all, nil
}

// parseUsage reads a program's metrics.
func parseUsage(program, metrics string) (usage, error) {
	values := map[string]float64{}
	for line := range strings.Lines(metrics) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(name, "#") {
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				values[name] = v
			}
		}
	}
	u := usage{program, uint64(values["process_resident_memory_bytes"]), int(values["go_goroutines"]), int(values["process_open_fds"])}
	if u.memory == 0 || u.goroutines == 0 || u.descriptors == 0 {
		return u, fmt.Errorf("the metrics of %s do not say what it takes", program)
	}
	return u, nil
}

// usageOf reads what the kernel says of a process (proc(5)).
func usageOf(program string, pid int) (usage, error) {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return usage{}, fmt.Errorf("%s: %w", program, err)
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return usage{}, fmt.Errorf("%s: /proc/%d/statm is %q", program, pid, statm)
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return usage{}, fmt.Errorf("%s: /proc/%d/statm: %w", program, pid, err)
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return usage{}, fmt.Errorf("%s: %w", program, err)
	}
	return usage{program: program, memory: pages * uint64(os.Getpagesize()), descriptors: len(open)}, nil
}

// flat says which program takes more at the end than it may.
func (r *run) flat() error {
	first := map[string]usage{}
	for _, u := range r.first {
		first[u.program] = u
	}
	var wrong []string
	for _, u := range r.last {
		was := first[u.program]
		grown := func(what string, was, is, more int) {
			if is > was+was/2+more {
				wrong = append(wrong, fmt.Sprintf("%s has %d %s, after the first round it had %d", u.program, is, what, was))
			}
		}
		grown("MiB of memory", int(was.memory>>20), int(u.memory>>20), moreMemory>>20)
		grown("goroutines", was.goroutines, u.goroutines, moreGoroutines)
		grown("descriptors", was.descriptors, u.descriptors, moreDescriptors)
	}
	return summary(wrong)
}
