// Package link reads and changes network devices, addresses, routes, neighbours
// and the sysctls that belong to them, in the node's network namespace and in
// sandboxes. It and the packages below it, for traffic control (tc) and the connection
// table (conntrack), are the only users of netlink and of namespaces in the product.
//
// It decides nothing: names, addresses and MTUs come from the caller. It never
// executes a program.
package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var (
	// ErrNoSandbox: the path of a network namespace does not exist (any more), or
	// is not one.
	ErrNoSandbox = errors.New("no such network namespace")
	// ErrLinkExists: a network device of that name is there already, in the
	// node's namespace.
	ErrLinkExists = errors.New("network device exists")
	// ErrSandboxLinkExists: a network device of that name is there already, in
	// the sandbox.
	ErrSandboxLinkExists = errors.New("network device exists in the sandbox")
	// ErrNoLink: no network device has that name.
	ErrNoLink = errors.New("no such network device")
)

// NS is an open network namespace. It keeps the namespace alive until closed.
// Its methods may be called from several goroutines; they act inside the
// namespace through sockets that belong to it, so no thread changes namespace.
type NS struct {
	path string
	file *os.File
	// home is set for the one the process runs in.
	home bool
	nl   *netlink.Handle
	// ctl is a socket for ioctls on devices, in the namespace.
	ctl int
	// making lets one pair of devices at a time be made. Settings of a device that need
	// the kernel's lock of devices (disable_ipv6, forwarding) are not waited for with a
	// sleep: the write is begun anew until nobody has the lock (rtnl_trylock and
	// restart_syscall, net/ipv4/devinet.c), which keeps a processor busy as long as
	// others of us have it.
	making sync.Mutex
}

// Current is the namespace that the process runs in.
func Current() (*NS, error) {
	// Not /proc/self: that is the process's first thread, which the Go runtime
	// cannot end, and so leaves in a foreign namespace where it got stuck in one.
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("the node's network namespace: %w", err)
	}
	n := &NS{path: f.Name(), file: f, home: true}
	if err := n.sockets(); err != nil {
		f.Close()
		return nil, fmt.Errorf("the node's network namespace: %w", err)
	}
	return n, nil
}

// Open opens the namespace at path, such as /run/netns/x or /proc/7/ns/net. It
// returns [ErrNoSandbox] where nothing is there, or something else, or what may not be
// entered: the process of a path by number may by now be anybody's.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	for _, none := range []error{fs.ErrNotExist, fs.ErrPermission, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.ESRCH} {
		if errors.Is(err, none) {
			return nil, fmt.Errorf("%w: %w", err, ErrNoSandbox)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	// The file under a mount that is gone is a plain one. ioctl_ns(2).
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is not a network namespace: %w", path, ErrNoSandbox)
	}
	n := &NS{path: path, file: f}
	if err := n.Do(n.sockets); err != nil {
		f.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return n, nil
}

// sockets opens the namespace's sockets; it runs inside of it.
func (n *NS) sockets() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	ctl, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		nl.Close()
		return fmt.Errorf("control socket: %w", err)
	}
	n.nl, n.ctl = nl, ctl
	return nil
}

// Close releases the namespace.
func (n *NS) Close() error {
	n.nl.Close()
	return errors.Join(unix.Close(n.ctl), n.file.Close())
}

// Netlink is the namespace's routing socket, for packages below this one. It ends with n.
func (n *NS) Netlink() *netlink.Handle { return n.nl }

// Path of the namespace, as given.
func (n *NS) Path() string { return n.path }

// Same reports whether both are the same namespace.
func (n *NS) Same(o *NS) (bool, error) {
	a, err := n.file.Stat()
	if err != nil {
		return false, fmt.Errorf("network namespace %s: %w", n.path, err)
	}
	b, err := o.file.Stat()
	if err != nil {
		return false, fmt.Errorf("network namespace %s: %w", o.path, err)
	}
	return os.SameFile(a, b), nil
}

// Do runs fn on a thread that is inside the namespace, for what no socket can
// carry: /proc/sys/net, and programs that fn starts. Goroutines that fn starts are
// not inside.
func (n *NS) Do(fn func() error) error {
	if n.home {
		return fn()
	}
	done := make(chan error, 1)
	go func() { done <- n.doOnThread(fn) }()
	return <-done
}

// doOnThread enters the namespace and leaves it. Where it cannot leave, the thread
// stays locked, so that the runtime ends it with its goroutine.
func (n *NS) doOnThread(fn func() error) error {
	runtime.LockOSThread()
	home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("the thread's network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering network namespace %s: %w", n.path, err)
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// genericHeader is struct genlmsghdr (linux/genetlink.h): command, version, two bytes that
// are 0. The library's own, nl.Genlmsg, has the first two and sends what lies behind them.
type genericHeader [4]byte

// Len implements nl.NetlinkRequestData.
func (h genericHeader) Len() int { return len(h) }

// Serialize implements nl.NetlinkRequestData.
func (h genericHeader) Serialize() []byte { return h[:] }

// HasGenericFamily reports whether the kernel has that family of generic netlink.
// Asking makes it load the module that has it, where it may.
func (n *NS) HasGenericFamily(name string) (bool, error) {
	found := false
	err := n.Do(func() error {
		ask := nl.NewNetlinkRequest(nl.GENL_ID_CTRL, 0)
		ask.AddData(genericHeader{nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION})
		ask.AddData(nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(name)))
		_, err := ask.Execute(unix.NETLINK_GENERIC, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		found = err == nil
		return err
	})
	if err != nil {
		return false, fmt.Errorf("asking the kernel for generic netlink family %s: %w", name, err)
	}
	return found, nil
}
