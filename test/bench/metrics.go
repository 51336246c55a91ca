package main

import (
	"context"
	"fmt"
	"maps"
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

// meanBetween is between, and 0 for nothing.
func meanBetween(before, after map[string]meter, key string) time.Duration {
	d, _ := between(before, after, key)
	return d
}

const (
	cniKey         = `k8s_ovs_cni_seconds{code="0",command="%s"}`
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
	b := newBreakdown("Means of %d ADDs. Flows are made beside all else, and the sandbox is set up while the switch takes the port in.", len(took))
	b.cni(before, after, "ADD", took)
	if d, ok := between(before, after, commitKey); ok {
		b.line("for comparison: one bundle of flows (ADD's and DEL's)", d)
	}
	b.line("for comparison: a veth made and taken up by Open vSwitch, nothing else", mean(port))
	return b.String()
}

// burstBreakdown does the same for ADDs, and the DELs after them, that came many at once.
func burstBreakdown(before, after map[string]meter, took []float64) string {
	b := newBreakdown("Means of %d ADDs that came %d at once, and of the DELs after them. Most of it is waiting for one another.", len(took), podsAtOnce)
	b.line("in the agent: ADD", meanBetween(before, after, fmt.Sprintf(cniKey, "ADD")))
	b.steps(before, after, "ADD: ")
	b.line("in the agent: DEL", meanBetween(before, after, fmt.Sprintf(cniKey, "DEL")))
	b.steps(before, after, "DEL: ")
	b.steps(before, after, "after DEL: ")
	return b.String()
}

// delBreakdown does the same for DELs. What is done later is not in them.
func delBreakdown(before, after map[string]meter, took []time.Duration) string {
	b := newBreakdown("Means of %d DELs; of what is done after the answer, means of a turn, which may be of several pods.", len(took))
	b.cni(before, after, "DEL", took)
	b.steps(before, after, "after DEL: ")
	return b.String()
}

// cni are the lines of one command: what the runtime sees, the agent's part, its steps.
func (b *breakdown) cni(before, after map[string]meter, command string, took []time.Duration) {
	b.line("whole "+command+", as the runtime sees it", mean(took))
	agent, ok := between(before, after, fmt.Sprintf(cniKey, command))
	if !ok {
		return
	}
	b.line("outside of the agent: libcni, the plugin's process, the socket", mean(took)-agent)
	b.line("in the agent", agent)
	b.steps(before, after, command+": ")
}

// steps are the lines of the agent's steps whose names begin so.
func (b *breakdown) steps(before, after map[string]meter, prefix string) {
	for _, key := range slices.Sorted(maps.Keys(after)) {
		step, ok := strings.CutPrefix(key, stepName+prefix)
		if d, observed := between(before, after, key); ok && observed {
			b.line("– "+prefix+strings.TrimSuffix(step, `"}`), d)
		}
	}
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
