package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// etcd ends its process at the first write that finds its disk full, and at each start on one. So it takes no
// changes any more while there still is some room, and is not started before there is.
const (
	// segment is the size of a file of the write-ahead log (wal.SegmentSizeBytes), in bytes. etcd allocates the next
	// one before it needs it: also at its start.
	segment = 64 * 1000 * 1000
	// reserve is what has to be free for changes to be taken: for that, and for what the database grows by until
	// it is looked at again.
	reserve = segment + 16<<20
	// spare is what has to be free beyond that until changes are taken again, so that it does not go to and fro.
	spare = 16 << 20
)

// NoRoomError says that the disk of the data directory is full, or so nearly that etcd would end soon.
type NoRoomError struct {
	Dir string
	// Need is what has to be free there, in bytes.
	Need uint64
}

// Error has no number that changes by itself: who tells only what is news compares the text.
func (e *NoRoomError) Error() string {
	return fmt.Sprintf("the disk of --data-dir %s is full: etcd in it takes no changes before %d MB are free: free some room there (pods keep their network meanwhile)", e.Dir, (e.Need+999_999)/1_000_000)
}

// RoomToStart is nil where etcd can be started in a data directory, which need not be there yet; a *[NoRoomError]
// where its disk has too little room.
func RoomToStart(dir string) error { return roomToStart(dir, freeBytes) }

func roomToStart(dir string, look func(dir string) (uint64, error)) error {
	logs := filepath.Join(dir, "member", "wal")
	need := uint64(reserve + spare + segment)
	switch _, err := os.Stat(logs); {
	case errors.Is(err, fs.ErrNotExist):
		need += segment // the first one, which is in use
	case err != nil:
		return fmt.Errorf("--data-dir: %w", err)
	}
	// One that was killed left what it had allocated ahead, and the next one begins with that file.
	if left, err := os.Stat(filepath.Join(logs, "0.tmp")); err == nil {
		need -= uint64(min(left.Size(), segment))
	}
	free, err := look(dir)
	if err != nil {
		return err
	}
	if free < need {
		return &NoRoomError{Dir: dir, Need: need}
	}
	return nil
}

// freeBytes is what is free for this user on the disk of dir, or on that of the nearest folder above it that is there.
func freeBytes(dir string) (uint64, error) {
	at, err := filepath.Abs(dir)
	if err != nil {
		return 0, err
	}
	for {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		switch above := filepath.Dir(at); {
		case err == nil:
			return st.Bavail * uint64(st.Bsize), nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOENT) && above != at:
			at = above
		default:
			return 0, fmt.Errorf("--data-dir: free room on the disk of %s: %w", at, err)
		}
	}
}

// lastWords names the way out where etcd ends the process, or panics, as it cannot write.
type lastWords struct {
	dir string
	log *slog.Logger
	// exit ends the process; otherwise is what etcd asks for where the disk is not full.
	exit      func()
	otherwise func(message string)
}

// OnWrite implements zapcore.CheckWriteHook. What etcd itself says is written by then.
func (w lastWords) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && errors.Is(err, syscall.ENOSPC) {
			w.log.Error("the controller ends, as the disk of its etcd is full: free some room there; nothing that was confirmed is lost, pods keep their network, and started anew it waits until there is room", "dataDir", w.dir, "error", err)
			w.exit()
		}
	}
	w.otherwise(e.Message)
}
