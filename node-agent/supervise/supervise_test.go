package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/crashes"
)

// TestRow: the policy, on a clock of its own.
func TestRow(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	var r row
	// end lets a daemon live so long; then it pauses as it is told.
	end := func(lived time.Duration) (time.Duration, bool) {
		began := now
		now = now.Add(lived)
		pause, again := r.ended(began, now)
		now = now.Add(pause)
		return pause, again
	}
	t.Run("a daemon that ran is back at once, however often it ends", func(t *testing.T) {
		for range 10_000 {
			if pause, again := end(settled); pause != 0 || !again {
				t.Fatalf("pause %s, again %t", pause, again)
			}
		}
	})
	t.Run("pauses grow to their bound", func(t *testing.T) {
		var pauses []time.Duration
		for range 8 {
			pause, again := end(time.Millisecond)
			if !again {
				t.Fatal("given up")
			}
			pauses = append(pauses, pause/time.Millisecond)
		}
		if diff := cmp.Diff([]time.Duration{10, 20, 40, 80, 160, 250, 250, 250}, pauses); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("one life that lasts ends the row", func(t *testing.T) {
		end(settled)
		if pause, _ := end(time.Millisecond); pause != firstPause {
			t.Errorf("pause %s", pause)
		}
	})
	t.Run("one that cannot stay up is given up when it was tried for long", func(t *testing.T) {
		end(settled)
		began, lives := now, 0
		for again := true; again; lives++ {
			_, again = end(300 * time.Millisecond)
		}
		if took := now.Sub(began); took < patience || took > patience+time.Second || lives < leastLives {
			t.Errorf("given up after %s and %d lives", took, lives)
		}
	})
	t.Run("one that is slow to fail is tried often enough", func(t *testing.T) {
		end(settled)
		r.ended(now, now)
		now = now.Add(time.Hour) // it was suspended
		for n := range leastLives - 2 {
			if _, again := end(0); !again {
				t.Fatalf("given up after %d lives", n+2)
			}
		}
		if _, again := end(0); again {
			t.Error("not given up")
		}
	})
}

// world is a supervisor of a shell script.
type world struct {
	*supervisor
	t    *testing.T
	stop chan os.Signal
	out  bytes.Buffer
	log  bytes.Buffer
}

// supervise makes one. In the script $dir is a folder of its own.
func supervise(t *testing.T, script string) *world {
	t.Helper()
	runtime.LockOSThread() // as main
	t.Cleanup(runtime.UnlockOSThread)
	dir := t.TempDir()
	t.Setenv("dir", dir)
	w := &world{t: t, stop: make(chan os.Signal, 1)}
	w.supervisor = &supervisor{
		daemon: "d", args: []string{"sh", "-c", script}, dir: dir, out: &w.out, grace: 200 * time.Millisecond, open: 10 * time.Second,
		log: slog.New(slog.NewTextHandler(&w.log, nil)),
	}
	return w
}

// stopWhenUp asks the supervisor to end when the script has made $dir/up.
func (w *world) stopWhenUp() {
	go func() {
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(w.dir, "up")); err == nil {
				break
			}
		}
		w.stop <- syscall.SIGTERM
	}()
}

func (w *world) record() crashes.Record {
	w.t.Helper()
	r, err := crashes.Load(w.dir, "d")
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// TestEveryEnd: whatever ends a daemon, it is started again, and why stands in the record,
// also for the next supervisor.
func TestEveryEnd(t *testing.T) {
	const script = `echo x >> $dir/lives
n=$(wc -l < $dir/lives)
echo "life $n" >&2
case $n in
1) kill -SEGV $$;;
2) kill -ABRT $$;;
3) kill -KILL $$;;
4) kill -TERM $$;;
5) exit 3;;
6) exit 0;;
7) kill -BUS $$;;
esac
echo "last words"
touch $dir/up
exec sleep 60`
	w := supervise(t, script)
	w.stopWhenUp()
	earlier := crashes.Record{Daemon: "d"}
	earlier.Add(crashes.End{Cause: "SIGSEGV"})
	if err := earlier.Write(w.dir); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if code := w.run(w.stop); code != 0 {
		t.Errorf("exit status %d of one that was asked to end", code)
	}
	t.Logf("8 lives in %s", time.Since(began))
	r := w.record()
	want := map[string]int{"SIGSEGV": 2, "SIGABRT": 1, "SIGKILL": 1, "SIGTERM": 1, "exit status 3": 1, "exit status 0": 1, "SIGBUS": 1}
	if diff := cmp.Diff(want, r.Ends); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r.Last.Cause != "SIGBUS" || r.Last.Line != "life 7" || r.Last.GivenUp || time.Since(r.Last.Time) > time.Minute {
		t.Errorf("last end %+v", *r.Last)
	}
	if got := w.out.String(); !strings.Contains(got, "life 1\nlife 2\n") || !strings.HasSuffix(got, "life 8\nlast words\n") {
		t.Errorf("the log of the daemon is %q", got)
	}
}

// TestGivenUp: a daemon that ends at once again and again is kubelet's, with its exit status
// and the reason.
func TestGivenUp(t *testing.T) {
	for _, tt := range []struct {
		script, cause, line string
		code                int
	}{
		{"echo no such file; exit 7", "exit status 7", "no such file", 7},
		{"printf 'half a line'; exit 0", "exit status 0", "half a line", 1},
		{"kill -SEGV $$", "SIGSEGV", "", 139},
	} {
		t.Run(tt.cause, func(t *testing.T) {
			w := supervise(t, tt.script)
			w.row = row{began: time.Now().Add(-patience), lives: leastLives - 1}
			if code := w.run(w.stop); code != tt.code {
				t.Errorf("exit status %d, want %d", code, tt.code)
			}
			if last := w.record().Last; last.Cause != tt.cause || last.Line != tt.line || !last.GivenUp {
				t.Errorf("%+v", *last)
			}
			if !strings.Contains(w.log.String(), "cannot stay up") || !strings.Contains(w.log.String(), tt.cause) {
				t.Errorf("log: %s", &w.log)
			}
		})
	}
	t.Run("not started", func(t *testing.T) {
		w := supervise(t, "")
		w.args = []string{"/no/such/program"}
		w.row = row{began: time.Now().Add(-patience), lives: leastLives - 1}
		if code := w.run(w.stop); code != 127 {
			t.Errorf("exit status %d", code)
		}
		if last := w.record().Last; last.Cause != "not started" || !strings.Contains(last.Line, "/no/such/program") {
			t.Errorf("%+v", *last)
		}
	})
}

// TestStop: a supervisor that is asked to end takes its daemon along, also one that hangs,
// and counts no end.
func TestStop(t *testing.T) {
	for name, script := range map[string]string{
		"it ends":  "touch $dir/up; exec sleep 60",
		"it hangs": "trap '' TERM; touch $dir/up; while :; do sleep 1; done",
	} {
		t.Run(name, func(t *testing.T) {
			w := supervise(t, "echo $$ > $dir/pid; "+script)
			w.stopWhenUp()
			if code := w.run(w.stop); code != 0 {
				t.Errorf("exit status %d", code)
			}
			pid, err := os.ReadFile(filepath.Join(w.dir, "pid"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); err == nil {
				t.Errorf("the daemon, pid %s, is still there", pid)
			}
			if r := w.record(); r.Count() != 0 {
				t.Errorf("it counts %+v", r)
			}
		})
	}
	t.Run("between two lives", func(t *testing.T) {
		w := supervise(t, "exit 1")
		w.stop <- syscall.SIGTERM
		if code := w.run(w.stop); code != 0 {
			t.Errorf("exit status %d", code)
		}
	})
}

func TestLastLine(t *testing.T) {
	long := strings.Repeat("y", 2*lineAtMost)
	for _, tt := range []struct {
		writes []string
		want   string
	}{
		{nil, ""},
		{[]string{"one\ntwo\n"}, "two"},
		{[]string{"one\nt", "w", "o"}, "two"},
		{[]string{"one\n", "\n", "  \n"}, "one"},
		{[]string{long + "\n"}, long[:lineAtMost]},
		{[]string{"bad \xff byte\n"}, "bad ? byte"},
	} {
		var out bytes.Buffer
		l := &lastLine{out: &out}
		for _, w := range tt.writes {
			fmt.Fprint(l, w)
		}
		if l.text() != tt.want || out.String() != strings.Join(tt.writes, "") {
			t.Errorf("of %q it keeps %q and passes on %q", tt.writes, l.text(), &out)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"name"}, {"--no-such-flag", "a", "b"}} {
		if code := run(args); code != 2 {
			t.Errorf("%q: exit status %d", args, code)
		}
	}
	if code := run([]string{"--version"}); code != 0 {
		t.Errorf("--version: exit status %d", code)
	}
}
