package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/crashes"
)

const (
	// usualGrace is how long a daemon that is asked to end may take. One that hangs, which
	// is why kubelet ends it, never does.
	usualGrace = 5 * time.Second
	// usualOpen is how long what a daemon had printed may take to come when it is gone.
	usualOpen = 100 * time.Millisecond
	// lineAtMost is how many bytes of a line are kept.
	lineAtMost = 300
)

// supervisor runs a daemon, again and again.
type supervisor struct {
	daemon string
	// args is the command that becomes the daemon.
	args []string
	// dir is where the record of how it ended is.
	dir string
	// out gets what the daemon prints.
	out   io.Writer
	grace time.Duration
	// open is how long what a daemon had printed may take to come when it is gone.
	open time.Duration
	log  *slog.Logger

	row row
}

// run runs the daemon until a signal comes, which ends it, or until it cannot stay up. The
// latter is an exit status other than 0.
func (s *supervisor) run(stop <-chan os.Signal) int {
	record, err := crashes.Load(s.dir, s.daemon)
	if err != nil {
		s.log.Warn("the count of how often the daemon ended begins anew", "error", err)
	}
	for {
		began := time.Now()
		printed := &lastLine{out: s.out}
		status, ended := s.live(printed, stop)
		if !ended {
			return 0
		}
		now := time.Now()
		pause, again := s.row.ended(began, now)
		record.Add(crashes.End{Time: now, Cause: status.cause(), Lived: now.Sub(began), Line: printed.text(), GivenUp: !again})
		if err := record.Write(s.dir); err != nil {
			s.log.Warn("the daemon's end is only here", "error", err)
		}
		if !again {
			s.log.Error("the daemon cannot stay up: its container ends", "tries", s.row.lives, "for", now.Sub(s.row.began).Round(time.Second), "last", record.String())
			return status.code()
		}
		s.log.Error("the daemon ended: it is started again", "last", record.String(), "pause", pause)
		select {
		case <-stop:
			return 0
		case <-time.After(pause):
		}
	}
}

// live runs the daemon once; ended is false when it was asked to end.
func (s *supervisor) live(printed io.Writer, stop <-chan os.Signal) (how status, ended bool) {
	cmd := exec.Command(s.args[0], s.args[1:]...)
	cmd.Stdout, cmd.Stderr = printed, printed
	cmd.WaitDelay = s.open
	// A daemon without supervisor would keep its next one from starting.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		_, _ = io.WriteString(printed, err.Error()+"\n")
		return status{err: err}, true
	}
	// A daemon that is killed leaves its control socket behind (ovs-appctl(8)).
	defer func() { _ = os.Remove(filepath.Join(s.dir, fmt.Sprintf("%s.%d.ctl", s.daemon, cmd.Process.Pid))) }()
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	select {
	case err := <-gone:
		return status{state: cmd.ProcessState, err: err}, true
	case <-stop:
	}
	_ = cmd.Process.Signal(syscall.SIGTERM) // one that has just ended needs none
	select {
	case <-gone:
	case <-time.After(s.grace):
		s.log.Warn("the daemon does not end: it is killed", "daemon", s.daemon, "after", s.grace)
		_ = cmd.Process.Kill()
		<-gone
	}
	return status{}, false
}

// status is how a daemon ended.
type status struct {
	// state is nil when it did not start.
	state *os.ProcessState
	err   error
}

func (s status) wait() syscall.WaitStatus {
	if s.state == nil {
		return 127 << 8 // as shells have it
	}
	return s.state.Sys().(syscall.WaitStatus)
}

// cause names it in a few words.
func (s status) cause() string {
	switch w := s.wait(); {
	case s.state == nil:
		return "not started"
	case w.Signaled():
		return unix.SignalName(w.Signal())
	default:
		return s.state.String() // "exit status 1"
	}
}

// code is the exit status of a supervisor that gives up: it is never 0, and else as a
// shell's.
func (s status) code() int {
	switch w := s.wait(); {
	case w.Signaled():
		return 128 + int(w.Signal())
	case w.ExitStatus() == 0:
		return 1
	default:
		return w.ExitStatus()
	}
}

// lastLine passes on what it is given, and remembers the last line of it.
type lastLine struct {
	out io.Writer
	// done is the last line that ended, part what came after it.
	done, part []byte
}

// Write implements io.Writer. What cannot be passed on is lost: a daemon does not end
// because nobody reads its log.
func (l *lastLine) Write(p []byte) (int, error) {
	_, _ = l.out.Write(p)
	for rest := p; len(rest) > 0; {
		line, next, ended := bytes.Cut(rest, []byte("\n"))
		l.part = append(l.part, line[:min(len(line), max(0, lineAtMost-len(l.part)))]...)
		if rest = next; ended {
			if len(bytes.TrimSpace(l.part)) > 0 {
				l.done = append(l.done[:0], l.part...)
			}
			l.part = l.part[:0]
		}
	}
	return len(p), nil
}

// text is the last line that is not empty.
func (l *lastLine) text() string {
	line := l.done
	if len(bytes.TrimSpace(l.part)) > 0 {
		line = l.part
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(line), "?"))
}
