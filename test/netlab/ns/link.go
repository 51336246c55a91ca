package ns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// IP runs iproute2's commands in the namespace name, one a line without the
// leading "ip", and stops at the first that fails.
func IP(ctx context.Context, name string, lines ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-n", name, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ip -n %s: %w: %s (commands: %s)", name, err, strings.TrimSpace(out.String()), strings.Join(lines, "; "))
	}
	return nil
}

// Output runs an iproute2 query in the namespace name and returns what it prints.
func Output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"-n", name}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("ip -n %s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), nil
}

// WaitRunning waits until a link in the namespace name carries packets. The
// kernel tells of a carrier some time after both ends of a veth are up, and drops
// what is sent before.
func WaitRunning(ctx context.Context, name, link string) error {
	for {
		running := false
		err := Do(name, func() error {
			i, err := net.InterfaceByName(link)
			running = err == nil && i.Flags&net.FlagRunning != 0
			return err
		})
		if err != nil || running {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("link %s in %s has no carrier: %w", link, name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct{ Cmd, Data uint32 }

// ethtoolRequest is struct ifreq of linux/if.h with its ifr_data in use.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data *ethtoolValue
	_    [16]byte // the rest of the union; longer than needed does no harm
}

// TxChecksumOff makes the kernel compute checksums itself before it gives a
// packet to the link, as a network card does before it puts it on a wire. It
// acts in the calling thread's namespace (see [Do]). Segmentation offload goes
// with it: the kernel refuses that without checksum offload.
func TxChecksumOff(link string) error {
	if len(link) >= unix.IFNAMSIZ {
		return fmt.Errorf("link name %q is longer than %d bytes", link, unix.IFNAMSIZ-1)
	}
	return withSocket(func(fd int) error {
		req := ethtoolRequest{data: &ethtoolValue{Cmd: unix.ETHTOOL_STXCSUM}}
		copy(req.name[:], link)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			return fmt.Errorf("turn off TX checksum offload of %s: %w", link, errno)
		}
		return nil
	})
}

// withIfreq runs an ioctl on the named link of the calling thread's namespace.
func withIfreq(link string, do func(fd int, req *unix.Ifreq) error) error {
	return withSocket(func(fd int) error {
		req, err := unix.NewIfreq(link)
		if err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		if err := do(fd, req); err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
		return nil
	})
}

func withSocket(do func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return do(fd)
}
