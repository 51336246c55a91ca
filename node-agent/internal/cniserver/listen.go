package cniserver

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
)

const (
	dirMode    = 0o700
	socketMode = 0o600
	// maxSocketPath is sun_path less its final NUL (unix(7)).
	maxSocketPath = 107
)

// drainTime is how long a socket whose path is gone is accepted from before the new one is: who connected to it
// has done so before.
const drainTime = 100 * time.Millisecond

// listener is the socket and the lock that says whose it is.
type listener struct {
	path string
	log  *slog.Logger

	mu sync.Mutex
	// line are the sockets to accept from: the last is the one at path, those before it are drained, in their order.
	line   []*bound
	lock   *os.File
	closed bool
}

// bound is a socket, and which file it is.
type bound struct {
	*net.UnixListener
	file os.FileInfo
}

// listen takes the socket at path. The lock file beside it is held as long as
// the listener lives: of two agents that start at once, both finding a dead
// socket, only one may remove it.
func listen(path string, log *slog.Logger) (*listener, error) {
	if !filepath.IsAbs(path) || len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %q: not an absolute path of at most %d bytes", path, maxSocketPath)
	}
	l := &listener{path: filepath.Clean(path), log: log}
	if err := l.take(); err != nil {
		return nil, err
	}
	return l, nil
}

// take makes what is not there of the directory, the lock and the socket.
func (l *listener) take() error {
	if err := ensureDir(l.path, l.log); err != nil {
		return err
	}
	if !isAt(lockPath(l.path), stat(l.lock)) {
		lock, err := takeLock(l.path)
		if err != nil {
			return err
		}
		l.lock.Close() // nil before the first
		l.lock = lock
	}
	if l.bound() {
		return nil
	}
	b, err := bind(l.path)
	if err != nil {
		if l.line == nil {
			l.lock.Close()
		}
		return err
	}
	l.line = append(l.line, b)
	return nil
}

// bound reports whether the socket is at its path.
func (l *listener) bound() bool {
	return l.line != nil && isAt(l.path, l.line[len(l.line)-1].file)
}

// keep binds the socket anew where its path is no longer it. Who connected to the one before is served.
func (l *listener) keep() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.bound() && isAt(lockPath(l.path), stat(l.lock)) {
		return nil
	}
	if err := l.take(); err != nil {
		return detached.Explain(filepath.Dir(l.path), err)
	}
	l.log.Warn("the CNI socket, or its lock, was gone from its place: it is back", "path", l.path)
	l.drain()
	return nil
}

// drain has who waits for the first in line go on to the next, if there is one.
func (l *listener) drain() {
	if len(l.line) > 1 {
		_ = l.line[0].SetDeadline(time.Now().Add(drainTime))
	}
}

// accept waits for a connection.
func (l *listener) accept() (*net.UnixConn, error) {
	for {
		first := l.first()
		conn, err := first.AcceptUnix()
		if err == nil || transient(err) || !l.next(first) {
			return conn, err
		}
	}
}

func (l *listener) first() *bound {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.line[0]
}

// next gives the first in line up, and reports whether there is another.
func (l *listener) next(first *bound) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.line) == 1 {
		return false
	}
	first.Close()
	l.line = l.line[1:]
	l.drain()
	return true
}

// close removes the socket: nobody else connects. The lock stays.
func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut()
}

func (l *listener) shut() {
	if l.closed {
		return
	}
	l.closed = true
	if l.bound() {
		_ = os.Remove(l.path)
	}
	for _, b := range l.line {
		_ = b.Close()
	}
}

// release also lets the lock go: the next agent may begin.
func (l *listener) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut()
	_ = l.lock.Close()
}

// isAt reports whether that file is what stands at path.
func isAt(path string, file os.FileInfo) bool {
	info, err := os.Lstat(path)
	return err == nil && file != nil && os.SameFile(info, file)
}

// stat is nil for no file.
func stat(f *os.File) os.FileInfo {
	if f == nil {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	return info
}

func lockPath(socket string) string { return socket + ".lock" }

// ensureDir makes the socket's directory root's alone. One that someone else
// could write to is taken over: what stands in the socket's place is removed
// first, so that nothing in it was made by others. It is not removed itself: it
// may be a mount point, as a DaemonSet's host path is.
func ensureDir(socket string, log *slog.Logger) error {
	dir := filepath.Dir(socket)
	if parent := filepath.Dir(dir); parent == "/" {
		return fmt.Errorf("socket %s: %s is the system's; give the socket a directory of its own, such as /run/k8s-ovs", socket, dir)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	if err := os.Mkdir(dir, dirMode); err == nil {
		return os.Chmod(dir, dirMode) // whatever the umask
	} else if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("socket %s: %s is not a directory; remove it or choose another socket", socket, dir)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && st.Uid == 0 && st.Gid == 0 && info.Mode() == fs.ModeDir|dirMode {
		return nil
	}
	log.Warn("directory of the CNI socket was not root's alone: taking it over", "dir", dir, "mode", info.Mode())
	// Ownership first: from then on nobody else can bring anything back.
	if err := errors.Join(os.Lchown(dir, 0, 0), os.Chmod(dir, dirMode)); err != nil {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	for _, path := range []string{socket, lockPath(socket)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("socket %s: %s cannot be removed: %w", socket, path, err)
		}
	}
	return nil
}

func takeLock(socket string) (*os.File, error) {
	f, err := os.OpenFile(lockPath(socket), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, socketMode)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("socket %s: another k8s-ovs-agent serves it; stop that one or choose another socket", socket)
		}
		return nil, fmt.Errorf("socket %s: locking %s: %w", socket, f.Name(), err)
	}
	return f, nil
}

// bind replaces a dead socket by a new one. Whatever else stands there stays.
func bind(path string) (*bound, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("socket %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("socket %s: there is something that is not a socket; remove it or choose another path", path)
	default:
		// The lock keeps other agents away; this is about any other program.
		if conn, err := net.Dial("unix", path); err == nil {
			conn.Close()
			return nil, fmt.Errorf("socket %s: another process listens on it; stop it or choose another socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("socket %s: removing the old one: %w", path, err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // what stands there then may be another
	// The directory is closed to others, so there is no gap before this.
	err = os.Chmod(path, socketMode)
	if err == nil {
		info, err = os.Lstat(path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return &bound{UnixListener: l, file: info}, nil
}
