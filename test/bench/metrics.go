package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// meter is the sum and the number of one of the agent's histograms.
type meter struct {
	seconds float64
	count   float64
}

// agentTimes are n1's histograms by their name with labels:
// `k8s_ovs_cni_seconds{code="0",command="ADD"}`.
func (b *bench) agentTimes(ctx context.Context) (map[string]meter, error) {
	text, err := b.lab.Agent("n1").Metrics(ctx)
	if err != nil {
		return nil, fmt.Errorf("metrics of n1's agent: %w", err)
	}
	return parseHistograms(text), nil
}

// parseHistograms reads the sums and counts of all histograms in the
// Prometheus text format.
func parseHistograms(text string) map[string]meter {
	out := map[string]meter{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if ok {
			key += "}"
		} else if key, value, ok = strings.Cut(strings.TrimSpace(line), " "); !ok {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil || strings.HasPrefix(key, "#") {
			continue
		}
		name, labels, _ := strings.Cut(key, "{")
		if labels != "" {
			labels = "{" + labels
		}
		if base, ok := strings.CutSuffix(name, "_sum"); ok {
			m := out[base+labels]
			m.seconds = v
			out[base+labels] = m
		} else if base, ok := strings.CutSuffix(name, "_count"); ok {
			m := out[base+labels]
			m.count = v
			out[base+labels] = m
		}
	}
	return out
}

// between is the mean time of what was observed between two readings; ok is
// false where nothing was.
func between(before, after map[string]meter, key string) (mean time.Duration, ok bool) {
	n := after[key].count - before[key].count
	if n <= 0 {
		return 0, false
	}
	return time.Duration((after[key].seconds - before[key].seconds) / n * float64(time.Second)), true
}

const (
	addKey         = `k8s_ovs_cni_seconds{code="0",command="ADD"}`
	commitKey      = `k8s_ovs_flow_commit_seconds`
	programmingKey = `k8s_ovs_service_programming_seconds`
	stepName       = `k8s_ovs_attach_step_seconds{step="`
)

// breakdown writes a table of parts and their times.
type breakdown struct{ strings.Builder }

func newBreakdown(format string, args ...any) *breakdown {
	b := &breakdown{}
	fmt.Fprintf(b, format+"\n\n| part | ms |\n|---|---:|\n", args...)
	return b
}

func (b *breakdown) line(part string, d time.Duration) {
	fmt.Fprintf(b, "| %s | %.2f |\n", part, d.Seconds()*1000)
}

func mean(ds []time.Duration) time.Duration {
	var sum time.Duration
	for _, d := range ds {
		sum += d
	}
	return sum / time.Duration(max(len(ds), 1))
}

// addBreakdown says where the time of the ADDs between two readings went: means,
// because only means add up.
func addBreakdown(before, after map[string]meter, took, port []time.Duration) string {
	b := newBreakdown("Means of %d ADDs.", len(took))
	b.line("whole ADD, as the runtime sees it", mean(took))
	agent, ok := between(before, after, addKey)
	if !ok {
		return b.String()
	}
	b.line("outside of the agent: libcni, the plugin's process, the socket", mean(took)-agent)
	b.line("in the agent", agent)
	var steps []string
	for key := range after {
		if strings.HasPrefix(key, stepName) {
			steps = append(steps, key)
		}
	}
	slices.Sort(steps)
	for _, key := range steps {
		if d, ok := between(before, after, key); ok {
			b.line("– of it "+strings.TrimSuffix(strings.TrimPrefix(key, stepName), `"}`), d)
		}
	}
	if d, ok := between(before, after, commitKey); ok {
		b.line("– one bundle of flows (ADD's and DEL's)", d)
	}
	b.line("for comparison: a veth made and taken up by Open vSwitch, nothing else", mean(port))
	return b.String()
}

// changeBreakdown does the same for tenant changes.
func changeBreakdown(before, after map[string]meter, fromEvent, fromRequest []time.Duration) string {
	b := newBreakdown("Means of %d changes of a namespace with %d pods on the node.", len(fromEvent), movingPods)
	b.line("whole change, from the request to the flows", mean(fromRequest))
	b.line("controller and etcd, until the record's event", mean(fromRequest)-mean(fromEvent))
	b.line("agent and switch, from the event to the flows", mean(fromEvent))
	if d, ok := between(before, after, commitKey); ok {
		b.line("– of it the bundle, as the agent sees it", d)
	}
	return b.String()
}
