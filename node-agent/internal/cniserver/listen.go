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

	"golang.org/x/sys/unix"
)

const (
	dirMode    = 0o700
	socketMode = 0o600
	// maxSocketPath is sun_path less its final NUL (unix(7)).
	maxSocketPath = 107
)

// listener is the socket and the lock that says whose it is.
type listener struct {
	*net.UnixListener
	lock       *os.File
	socketOnce sync.Once
	lockOnce   sync.Once
}

// listen takes the socket at path. The lock file beside it is held as long as
// the listener lives: of two agents that start at once, both finding a dead
// socket, only one may remove it.
func listen(path string, log *slog.Logger) (*listener, error) {
	if !filepath.IsAbs(path) || len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %q: not an absolute path of at most %d bytes", path, maxSocketPath)
	}
	path = filepath.Clean(path)
	if err := ensureDir(path, log); err != nil {
		return nil, err
	}
	lock, err := takeLock(path)
	if err != nil {
		return nil, err
	}
	l, err := bind(path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &listener{UnixListener: l, lock: lock}, nil
}

// close removes the socket: nobody else connects. The lock stays.
func (l *listener) close() { l.socketOnce.Do(func() { _ = l.UnixListener.Close() }) }

// release also lets the lock go: the next agent may begin.
func (l *listener) release() {
	l.close()
	l.lockOnce.Do(func() { _ = l.lock.Close() })
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
func bind(path string) (*net.UnixListener, error) {
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
	// The directory is closed to others, so there is no gap before this.
	if err := os.Chmod(path, socketMode); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}
