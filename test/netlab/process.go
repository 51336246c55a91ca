package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// Process is a program that the lab runs. A process is known by its number
// together with its start time, so that a number that the kernel has given to
// someone else in the meantime is never signalled.
type Process struct {
	// Name says what it is: "controller", "n1/agent", "n1/ovs-vswitchd".
	Name string `json:"name"`
	PID  int    `json:"pid"`
	// StartTime in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)).
	StartTime uint64   `json:"startTime"`
	Args      []string `json:"args"`
	// Log has what it prints.
	Log string `json:"log"`
}

// marker is the environment variable by which every process of a lab, and what
// they start in turn, can be found.
const marker = "NETLAB_ID"

// command is what to start.
type command struct {
	name  string
	netns string // name of a namespace; empty for the lab tool's own
	args  []string
	env   []string
	log   string
	files []*os.File // from descriptor 3 on
}

// start runs a command in the background, detached from the terminal, in its
// namespace.
func (l *Lab) start(c command) (Process, error) {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return Process{}, fmt.Errorf("start %s: %w", c.name, err)
	}
	defer func() { _ = log.Close() }() // the child has its own
	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Env = append(append(Environ(), c.env...), marker+"="+l.id)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = c.files
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	run := cmd.Start
	if c.netns != "" {
		// The child is forked by the calling thread and inherits its namespace.
		run = func() error { return ns.Do(c.netns, cmd.Start) }
	}
	if err := run(); err != nil {
		return Process{}, fmt.Errorf("start %s: %w", c.name, err)
	}
	p := Process{Name: c.name, PID: cmd.Process.Pid, Args: c.args, Log: c.log}
	st, err := readStat(p.PID)
	if err != nil { // cannot be: not reaped yet
		return Process{}, fmt.Errorf("start %s: %w", c.name, err)
	}
	p.StartTime = st.start
	// Reaped here for as long as this program runs; by init after that.
	go func() { _ = cmd.Wait() }()
	return p, nil
}

// Environ is this program's environment without the settings of k8s-ovs: those that
// `eval $(netlab env)` left there are for people's netns, and not for what a lab starts.
func Environ() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, options.EnvPrefix) })
}

// Alive reports whether the process still runs.
func (p Process) Alive() bool {
	st, err := readStat(p.PID)
	return err == nil && st.start == p.StartTime && st.state != 'Z' && st.state != 'X'
}

// Signal sends sig; a process that is gone is fine.
func (p Process) Signal(sig syscall.Signal) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	// A number that only a thread has now, or only the session of a leader that has ended, is
	// no process's: pidfd_open says EINVAL to both before Linux 6.15, then ENOENT to the former.
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal %s (pid %d): %w", p.Name, p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.Alive() { // looked at while fd holds the number
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %s (pid %d): %w", p.Name, p.PID, err)
	}
	return nil
}

// WaitExit waits until the process has ended; it returns ctx's error if that ends first.
func (p Process) WaitExit(ctx context.Context) error {
	return waitFor(ctx, time.Millisecond, func() (bool, error) { return !p.Alive(), nil })
}

// Stop asks the process to end and kills it if it has not within grace.
func (p Process) Stop(grace time.Duration) error {
	if err := p.Signal(unix.SIGCONT); err != nil { // one that is suspended cannot end
		return err
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if p.WaitExit(ctx) == nil {
		return nil
	}
	return p.Kill()
}

// Kill ends the process at once (SIGKILL) and waits until it is gone.
func (p Process) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.WaitExit(ctx); err != nil {
		return fmt.Errorf("%s (pid %d) does not end after SIGKILL: %w", p.Name, p.PID, err)
	}
	return nil
}

type procStat struct {
	state  byte
	parent int
	start  uint64
}

// readStat reads what the lab needs from /proc/PID/stat.
func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return procStat{}, err
	}
	// The second field, the program's name, may hold anything; it ends at the
	// last parenthesis.
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(f) < 20 {
		return procStat{}, fmt.Errorf("/proc/%d/stat has %d fields after the name, want at least 20", pid, len(f))
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	parent, err := strconv.Atoi(string(f[1]))
	if err != nil {
		return procStat{}, fmt.Errorf("/proc/%d/stat: parent: %w", pid, err)
	}
	return procStat{state: f[0][0], parent: parent, start: start}, nil
}

// marked finds all processes that carry the lab's marker, also those
// that the state file does not know (a program killed in the middle of `up`,
// a server left running by `netlab exec`).
func (l *Lab) marked() []Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	want := []byte(marker + "=" + l.id)
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil {
			continue
		}
		for _, v := range bytes.Split(env, []byte{0}) {
			if !bytes.Equal(v, want) {
				continue
			}
			if st, err := readStat(pid); err == nil {
				found = append(found, Process{Name: "left-over", PID: pid, StartTime: st.start})
			}
		}
	}
	return found
}

// stopAll ends processes together: asks all, then kills those that stay.
func stopAll(procs []Process, grace time.Duration) error {
	var errs []error
	for _, p := range procs {
		errs = append(errs, p.Signal(unix.SIGCONT), p.Signal(unix.SIGTERM))
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	for _, p := range procs {
		_ = p.WaitExit(ctx) // who has not ended is killed
	}
	for _, p := range procs {
		errs = append(errs, p.Kill())
	}
	return errors.Join(errs...)
}

// waitFor calls ok every interval until it says yes, fails, or ctx ends.
func waitFor(ctx context.Context, interval time.Duration, ok func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// tail returns the last lines of a file, indented, for an error message.
func tail(path string, lines int) string {
	const most = 64 << 10
	f, err := os.Open(path)
	if err != nil {
		return fmt.Sprintf("  (no log: %v)", err)
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil && st.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd) // from the start it only takes longer
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return fmt.Sprintf("  (no log: %v)", err)
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "  " + strings.Join(all, "\n  ")
}
