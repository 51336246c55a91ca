package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is what the numbers were measured on.
type machine struct {
	cpu    string
	cores  int
	memory uint64 // bytes
	kernel string
	ovs    string
	golang string
	// load is the load average of the last minute before the run, of all processes.
	load string
	// stolen is the part of the CPUs' time that the hypervisor kept during the
	// run, 0 to 1.
	stolen float64
	date   string
	commit string
	// short says that this was a -short run.
	short bool
}

// describeMachine reads the machine's description. What cannot be read is "unknown".
func describeMachine(ctx context.Context, short bool) machine {
	m := machine{
		cpu: field("/proc/cpuinfo", "model name"), cores: runtime.NumCPU(), golang: runtime.Version(), load: "unknown",
		date: time.Now().UTC().Format(time.DateOnly), kernel: "unknown", short: short,
	}
	if kb, err := strconv.ParseUint(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"), 10, 64); err == nil {
		m.memory = kb << 10
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.load, _, _ = strings.Cut(string(data), " ")
	}
	line, _, _ := strings.Cut(output(ctx, "ovs-vswitchd", "--version"), "\n")
	m.ovs = line[strings.LastIndex(line, " ")+1:]
	m.commit = output(ctx, "git", "describe", "--always", "--dirty", "--exclude=*")
	return m
}

// cpuTimes are the ticks that the CPUs' time has had in all, and those that the
// hypervisor kept ("steal"): the first line of /proc/stat (proc(5)).
func cpuTimes() (all, stolen uint64) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	for i, f := range strings.Fields(line) {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil || i > 8 { // the rest is part of the others
			continue
		}
		all += n
		if i == 8 {
			stolen = n
		}
	}
	return all, stolen
}

// sinceStart notes how much of the CPUs' time was stolen since the readings.
func (m *machine) sinceStart(all, stolen uint64) {
	if nowAll, nowStolen := cpuTimes(); nowAll > all {
		m.stolen = float64(nowStolen-stolen) / float64(nowAll-all)
	}
}

// field is the value of the first line "key : value" of a file in /proc.
func field(path, key string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// output is what a program prints, "unknown" when it cannot be run.
func output(ctx context.Context, program string, args ...string) string {
	out, err := exec.CommandContext(ctx, program, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func (m machine) lines() []string {
	lines := []string{
		fmt.Sprintf("CPU: %s, %d cores; memory: %.0f GiB", m.cpu, m.cores, float64(m.memory)/(1<<30)),
		fmt.Sprintf("kernel %s; Open vSwitch %s, userspace datapath (netdev); %s", m.kernel, m.ovs, m.golang),
		fmt.Sprintf("%s, commit %s; load average before the run: %s; CPU time taken by the hypervisor during it: %.1f %%", m.date, m.commit, m.load, 100*m.stolen),
	}
	if m.short {
		lines = append(lines, "a short run: few repetitions, numbers for orientation only")
	}
	return lines
}
