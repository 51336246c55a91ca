package main

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/chaos/rows"
)

// The parts of RESULTS.md, by their headings. Each is written by a run of its own, which leaves the other as it is.
const (
	randomPart = "A random run"
	faultsPart = "Single faults"
)

// title is what RESULTS.md begins with.
const title = "# Chaos\n\nWritten by `make chaos` and `make faults`; do not edit. [docs/chaos.md](../../docs/chaos.md) says what is done and how to read this.\n"

// replacePart makes text what stands below a heading of results.
func replacePart(results, part, text string) string {
	parts := map[string]string{}
	for _, p := range strings.Split(results, "\n## ")[1:] {
		heading, body, _ := strings.Cut(p, "\n")
		parts[heading] = strings.TrimSpace(body)
	}
	parts[part] = strings.TrimSpace(text)
	var b strings.Builder
	b.WriteString(title)
	for _, p := range []string{randomPart, faultsPart} {
		if body, there := parts[p]; there {
			fmt.Fprintf(&b, "\n## %s\n\n%s\n", p, body)
		}
	}
	return b.String()
}

// writePart does so with a file, which it makes where there is none.
func writePart(path, part, text string) error {
	was, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.WriteFile(path, []byte(replacePart(string(was), part, text)), 0o644)
}

// machine is what a run was made on.
func machine() string {
	text := fmt.Sprintf("%d processors", runtime.NumCPU())
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		text += fmt.Sprintf(", %d GiB", (info.Totalram*uint64(info.Unit)+1<<29)>>30)
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		text += ", kernel " + unix.ByteSliceToString(uts.Release[:])
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		text += ", load average " + strings.Fields(string(load))[0] + " at the end"
	}
	return text
}

// report is the text of a run, and what it ended with.
func (r *run) report(version, on string, failed error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Version %s, seed %d, %s of the time asked for, %d rounds on %d nodes, %s. %s.\n\n", version, r.seed, r.took.Round(time.Second), r.rounds, len(r.c.nodes), r.began.UTC().Format(time.DateOnly), on)
	if failed != nil {
		fmt.Fprintf(&b, "**Failed**: %s\n\n", firstLine(failed))
	} else {
		b.WriteString("Model and world were the same after each round. Of what no fault accounts for 0 packets were lost, and 0 were delivered that may not be.\n\n")
	}
	fmt.Fprintf(&b, "%d datagrams were sent between pods, and %d arrived; who may not talk is sent to all the same.\n\n", r.sent, r.arrivedAll)
	b.WriteString(r.actions())
	b.WriteString("\n")
	b.WriteString(r.faultTable())
	b.WriteString("\n")
	b.WriteString(r.usageTable())
	return b.String()
}

// actions is how often what was done.
func (r *run) actions() string {
	var done []string
	for _, k := range slices.Sorted(maps.Keys(r.counts)) {
		if !k.isFault() {
			done = append(done, fmt.Sprintf("%s %d", k, r.counts[k]))
		}
	}
	return "Actions: " + strings.Join(done, ", ") + ".\n"
}

func (r *run) faultTable() string {
	var b strings.Builder
	b.WriteString("| fault | times | delivered meanwhile | lost | longest gap | last lost, after it was mended | all works again after |\n|---|---:|---:|---:|---:|---:|---:|\n")
	for _, k := range slices.Sorted(maps.Keys(r.tally)) {
		t := r.tally[k]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %s | %s | %s |\n", k, t.times, t.arrived, t.lost, rows.Round(t.gap), rows.Round(t.after), rows.Round(t.took))
	}
	return b.String()
}

func (r *run) usageTable() string {
	var b strings.Builder
	b.WriteString("| program | memory, first and last | goroutines | descriptors |\n|---|---:|---:|---:|\n")
	for i, u := range r.last {
		first := r.first[i]
		goroutines := fmt.Sprintf("%d, %d", first.goroutines, u.goroutines)
		if u.goroutines == 0 {
			goroutines = ""
		}
		fmt.Fprintf(&b, "| %s | %s, %s | %s | %d, %d |\n", u.program, mebibytes(first.memory), mebibytes(u.memory), goroutines, first.descriptors, u.descriptors)
	}
	return b.String()
}

func mebibytes(n uint64) string { return strconv.FormatFloat(float64(n)/(1<<20), 'f', 0, 64) + " MiB" }
