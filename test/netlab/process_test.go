package netlab

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSignalNobody: a number that is no process's any more is one of a process that has
// ended, also where the kernel still has use for it.
func TestSignalNobody(t *testing.T) {
	leader := exec.Command("sh", "-c", "sleep 60 >&- 2>&- & echo $!") // sleep stays in the session
	leader.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := leader.Output()
	if err != nil {
		t.Fatal(err)
	}
	left, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(left, unix.SIGKILL) })
	if sid, err := unix.Getsid(left); err != nil || sid != leader.Process.Pid {
		t.Fatalf("session of sleep: %d, %v; want %d", sid, err, leader.Process.Pid)
	}
	for _, tt := range []struct {
		name string
		pid  int
	}{
		{"a session's leader", leader.Process.Pid},
		{"a thread", aThread(t)},
	} {
		if err := (Process{Name: tt.name, PID: tt.pid}).Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
	}
}

// aThread is the number of one of this process that does not lead it.
func aThread(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil && id != os.Getpid() {
			return id
		}
	}
	t.Fatal("this process has one thread")
	return 0
}
