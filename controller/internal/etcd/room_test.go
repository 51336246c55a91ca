package etcd

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// disk is one whose free room a test decides.
type disk struct {
	free  atomic.Uint64
	looks atomic.Int64 // that somebody had at it
}

func (d *disk) look(string) (uint64, error) {
	d.looks.Add(1)
	return d.free.Load(), nil
}

// await waits until ok says so.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in %s: %s", patience, what)
		}
	}
}

// TestDiskNearlyFull: an etcd whose disk is about to be full takes no changes, says so, and can be read. It takes
// them again when there is somewhat more room than it misses, and has its history.
func TestDiskNearlyFull(t *testing.T) {
	dir, log, d := shortDir(t), &safeBuffer{}, &disk{}
	d.free.Store(reserve)
	s, err := Start(t.Context(), Config{
		DataDir: dir, ListenClientURLs: []string{"http://" + freeport.Loopback(t).String()}, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(log, nil)), free: d.look,
	})
	must(t, "start", err)
	t.Cleanup(s.Close)
	root := dial(t, s.Endpoint(), nil)
	first, err := root.Put(t.Context(), "stays", "x")
	must(t, "put", err)
	lease, err := root.Grant(t.Context(), 60)
	must(t, "grant", err)

	d.free.Store(reserve - 1)
	await(t, "it takes no changes", func() bool {
		_, err := root.Put(t.Context(), "stays", "y")
		return errors.Is(err, rpctypes.ErrNoSpace)
	})
	if err := s.Full(); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "98 MB") {
		t.Errorf("it says: %v", err)
	}
	if r, err := root.Get(t.Context(), "stays"); err != nil || len(r.Kvs) != 1 {
		t.Errorf("get: %v, %v", r, err)
	}
	_, err = root.KeepAliveOnce(t.Context(), lease.ID)
	must(t, "keep a lease", err)

	d.free.Store(reserve + spare - 1)
	seen := d.looks.Load()
	await(t, "it looks again, twice", func() bool { return d.looks.Load() >= seen+2 })
	if s.Full() == nil {
		t.Error("it takes changes with less room than it asks for")
	}
	d.free.Store(reserve + spare)
	await(t, "it takes changes", func() bool {
		_, err := root.Put(t.Context(), "stays", "z")
		return err == nil
	})
	if err := s.Full(); err != nil {
		t.Errorf("with room it says: %v", err)
	}
	if r, err := root.Get(t.Context(), "stays", clientv3.WithRev(first.Header.Revision)); err != nil || string(r.Kvs[0].Value) != "x" {
		t.Errorf("its history: %v, %v", r, err)
	}
	if told := strings.Count(log.String(), "free some room there"); told != 1 {
		t.Errorf("the log says %d times what to do:\n%s", told, log)
	}
}

// TestRoomToStart: what etcd allocates at its start counts, and what one that was killed has left for that.
func TestRoomToStart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]int64 // in the folder of the log: sizes
		need  uint64
	}{
		{"new", nil, reserve + spare + 2*segment},
		{"stopped", map[string]int64{"0-0.wal": segment}, reserve + spare + segment},
		{"killed", map[string]int64{"0-0.wal": segment, "0.tmp": segment}, reserve + spare},
		{"killed as it had no room", map[string]int64{"0-0.wal": segment, "0.tmp": 0}, reserve + spare + segment},
		{"killed, and its next file is another one", map[string]int64{"0-0.wal": segment, "1.tmp": segment}, reserve + spare + segment},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		for name, size := range tt.files {
			logs := filepath.Join(dir, "member", "wal")
			must(t, "mkdir", os.MkdirAll(logs, 0o700))
			must(t, "write", os.WriteFile(filepath.Join(logs, name), nil, 0o600))
			must(t, "size", os.Truncate(filepath.Join(logs, name), size))
		}
		d := &disk{}
		d.free.Store(tt.need)
		if err := roomToStart(dir, d.look); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		d.free.Store(tt.need - 1)
		var full *NoRoomError
		if err := roomToStart(dir, d.look); !errors.As(err, &full) || full.Need != tt.need {
			t.Errorf("%s: with one byte less than %d: %v", tt.name, tt.need, err)
		}
	}
	if err := RoomToStart(filepath.Join(t.TempDir(), "not", "there")); err != nil {
		t.Errorf("on the disk of this machine: %v", err)
	}
}

// TestLastWords: where etcd ends the process or panics for want of room, the process ends, and the log says what to do.
func TestLastWords(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "/var/lib/db", Err: syscall.ENOSPC}
	for _, tt := range []struct {
		name string
		err  error
		end  string
		told bool
	}{{"full", full, "exit", true}, {"another error", syscall.EIO, "failed to commit tx", false}} {
		log := &safeBuffer{}
		text := slog.New(slog.NewTextHandler(log, nil))
		words := lastWords{"/var/lib", text, func() { panic("exit") }, func(message string) { panic(message) }}
		l := zap.New(bridge{text.Handler(), t.Context()}, zap.WithFatalHook(words), zap.WithPanicHook(words))
		for _, say := range []func(string, ...zap.Field){l.Fatal, l.Panic} {
			func() {
				defer func() {
					if got := recover(); got != tt.end {
						t.Errorf("%s: ended with %v, want %s", tt.name, got, tt.end)
					}
				}()
				say("failed to commit tx", zap.Error(tt.err))
			}()
		}
		if told := strings.Contains(log.String(), "free some room there"); told != tt.told {
			t.Errorf("%s: the log:\n%s", tt.name, log)
		}
	}
}
