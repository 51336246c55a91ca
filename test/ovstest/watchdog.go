package ovstest

import (
	"fmt"
	"io"
	"os/exec"
	"syscall"
)

// watchdogScript reads process ids until its input ends, which happens also when
// the test is killed or times out and cannot clean up. Then it kills those that
// still run in the directory and removes it.
const watchdogScript = `
while read pid; do pids="$pids $pid"; done
for pid in $pids; do
	[ "$(readlink /proc/$pid/cwd)" = "$1" ] && kill -9 $pid
done
rm -rf "$1"
`

// watchdog outlives the test by a moment.
type watchdog struct {
	cmd  *exec.Cmd
	pids io.WriteCloser
}

func startWatchdog(dir string) (*watchdog, error) {
	w := &watchdog{cmd: exec.Command("sh", "-c", watchdogScript, "ovstest-watchdog", dir)}
	// Ctrl-C is for the test only.
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if w.pids, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return w, w.cmd.Start()
}

func (w *watchdog) add(pid int) error {
	_, err := fmt.Fprintln(w.pids, pid)
	return err
}

// stop lets it do its work and waits for it.
func (w *watchdog) stop() error {
	_ = w.pids.Close()
	return w.cmd.Wait()
}
