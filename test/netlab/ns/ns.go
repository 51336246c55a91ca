// Package ns makes, enters and removes named network namespaces, the same
// ones that `ip netns` shows: a file below /run/netns with the namespace
// mounted on it.
//
// It never touches a namespace that it was not told the name of, and never
// leaves a Go thread in a foreign namespace: one that cannot be brought home is
// given up.
package ns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is where iproute2 keeps named namespaces (ip-netns(8)).
const Dir = "/run/netns"

// ErrExists is returned by Create when the name is taken.
var ErrExists = errors.New("network namespace exists already")

// Path is the file of the namespace name.
func Path(name string) string { return filepath.Join(Dir, name) }

// Exists reports whether a namespace of that name is there.
func Exists(name string) bool {
	_, err := os.Lstat(Path(name))
	return err == nil
}

// Create makes the namespace name with its loopback up. It returns an error
// that wraps ErrExists when the name is taken, by whomever.
func Create(name string) error {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return fmt.Errorf("network namespace name %q cannot be a file name", name)
	}
	if err := prepareDir(); err != nil {
		return err
	}
	path := Path(name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: %s (remove it with `ip netns del %s` if nothing uses it)", ErrExists, path, name)
	}
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	_ = f.Close() // nothing was written
	if err := mountNew(path); err != nil {
		_ = os.Remove(path) // the first error is the one to tell
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	return nil
}

// mountNew makes a namespace on a thread of its own and mounts it on path.
func mountNew(path string) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine instead of
		// carrying the new namespace back to the scheduler.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := setLoopbackUp(); err != nil {
				return err
			}
			if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mount on %s: %w", path, err)
			}
			return nil
		}()
	}()
	return <-done
}

// setLoopbackUp brings lo up in the calling thread's namespace.
func setLoopbackUp() error {
	return withIfreq("lo", func(fd int, req *unix.Ifreq) error {
		req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
}

// Delete unmounts and removes the namespace name. One that is not there is fine.
// The kernel frees it when the last process and socket in it are gone.
func Delete(name string) error {
	path := Path(name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete network namespace %s: unmount: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

// List returns the names of all namespaces that begin with prefix.
func List(prefix string) []string {
	entries, err := os.ReadDir(Dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// prepareDir makes Dir a shared mount of its own, as ip-netns does, so that
// namespaces made here are seen by those who run in other mount namespaces and
// both tools can delete each other's.
func prepareDir() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	err := unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount yet
		if err := unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("network namespaces: mount %s: %w", Dir, err)
		}
		err = unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("network namespaces: share %s: %w", Dir, err)
	}
	return nil
}

// DirMounted reports whether Dir is a mount of its own, which the first
// `ip netns add` or Create on a machine makes it.
func DirMounted() bool {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for _, line := range strings.Split(string(info), "\n") {
		if f := strings.Fields(line); len(f) > 4 && f[4] == Dir {
			return true
		}
	}
	return false
}

// RemoveDir undoes what made Dir a mount, if no namespace is left in it. The
// kernel refuses while there is one, so others' are safe.
func RemoveDir() {
	if entries, err := os.ReadDir(Dir); err != nil || len(entries) > 0 {
		return
	}
	if unix.Unmount(Dir, 0) == nil {
		_ = os.Remove(Dir) // fails, rightly, when someone was quicker
	}
}

// Do runs fn with the calling goroutine's thread in the namespace name. fn must
// not start goroutines that count on it: they run on other threads.
func Do(name string, fn func() error) error { return DoPath(Path(name), fn) }

// DoPath is Do for a namespace given by its file.
func DoPath(path string, fn func() error) error {
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer func() { _ = target.Close() }()

	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	defer func() { _ = home.Close() }()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	err = fn()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked, so it dies with this goroutine.
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", path, back))
	}
	runtime.UnlockOSThread()
	return err
}

// DialTCP connects to addr ("1.2.3.4:80") from the namespace at path. Only the
// making of the socket needs the namespace, so no thread is held while
// the connection is set up.
func DialTCP(path, addr string, timeout time.Duration) (net.Conn, error) {
	to, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	sa := &unix.SockaddrInet4{Port: to.Port, Addr: to.AddrPort().Addr().As4()}
	fd := -1
	err = DoPath(path, func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	f := os.NewFile(uintptr(fd), "tcp "+addr)
	defer func() { _ = f.Close() }() // FileConn works on a duplicate
	if err := connect(f, sa, timeout); err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return net.FileConn(f)
}

// SetUserTimeout ends a connection of DialTCP whose other end acknowledges nothing for so long
// (TCP_USER_TIMEOUT, tcp(7)).
func SetUserTimeout(c net.Conn, d time.Duration) error {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
	return errors.Join(err, set)
}

// connect starts a connection on the non-blocking socket f and waits for it. At the
// deadline it is the kernel that says whether there is one: a process that has waited
// for a processor may see both at once.
func connect(f *os.File, sa unix.Sockaddr, timeout time.Duration) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) { result = unix.Connect(int(fd), sa) })
	if err != nil || !errors.Is(result, unix.EINPROGRESS) {
		return errors.Join(err, result)
	}
	if err := f.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	err = raw.Write(func(fd uintptr) bool {
		result = connected(int(fd))
		return !errors.Is(result, unix.EINPROGRESS)
	})
	if err != nil { // the deadline
		if control := raw.Control(func(fd uintptr) { result = connected(int(fd)) }); control != nil || errors.Is(result, unix.EINPROGRESS) {
			return err
		}
	}
	return result
}

// connected is what became of a connection that was started: EINPROGRESS while
// nothing has.
func connected(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return err
	case code != 0:
		return unix.Errno(code)
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return unix.EINPROGRESS
	}
	return nil
}

// ListenTCP listens in the namespace at path.
func ListenTCP(path, addr string) (net.Listener, error) {
	var l net.Listener
	err := DoPath(path, func() (err error) { l, err = net.Listen("tcp4", addr); return err })
	return l, err
}

// ListenUDP opens a UDP socket in the namespace at path.
func ListenUDP(path, addr string) (*net.UDPConn, error) {
	var c net.PacketConn
	err := DoPath(path, func() (err error) { c, err = net.ListenPacket("udp4", addr); return err })
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
