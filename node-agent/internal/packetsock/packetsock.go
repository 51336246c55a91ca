// Package packetsock gives packets room while they wait for the userspace datapath.
//
// ovs-vswitchd takes the packets of a device from a packet socket (packet(7)), whose
// receive buffer has the machine's default size (net.core.rmem_default, 208 kB): it is
// full after 277 small packets or 92 of 1500 bytes, which is 1 ms at 1 Gbit/s. When
// ovs-vswitchd waits for a processor longer than that, packets are lost. It has no
// option for the size, and the default is of all sockets of the machine, so this
// package borrows each packet socket (pidfd_getfd(2)) and gives it a larger buffer.
package packetsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Found is what there was to do and to count.
type Found struct {
	// Deepened is how many sockets were given more room.
	Deepened int
	// Missed is how many packets found no room since the last call. The kernel begins
	// to count anew with each answer (PACKET_STATISTICS), and ovs-vswitchd asks for none.
	Missed int
}

// Tend gives each packet socket of a process that is bound to a device room for at
// least as many bytes as room says, where it has less. A packet takes up its buffer in
// the kernel: 768 bytes for a small one, 2304 for one of 1500. Tend needs
// CAP_SYS_PTRACE, CAP_NET_ADMIN and Linux 5.6. It ends at the first error.
func Tend(pid int, room func(ifindex int) int) (Found, error) {
	var found Found
	if pid <= 0 {
		return found, errors.New("ovs-vswitchd is in a PID namespace that the agent does not see: both have to be in the node's (hostPID)")
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return found, fmt.Errorf("process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(process) }()
	sockets, err := list(pid)
	if err != nil {
		return found, err
	}
	for _, number := range sockets {
		if err := found.tend(process, number, room); err != nil {
			return found, fmt.Errorf("process %d, descriptor %d: %w", pid, number, err)
		}
	}
	return found, nil
}

// tend looks after one descriptor of another process. It may have been closed by now,
// and need not be a packet socket.
func (f *Found) tend(process, number int, room func(ifindex int) int) error {
	fd, err := unix.PidfdGetfd(process, number, 0)
	if errors.Is(err, unix.EBADF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd_getfd: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if errors.Is(err, unix.ENOTSOCK) || err == nil && domain != unix.AF_PACKET {
		return nil
	}
	if err != nil {
		return err
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	at, ok := addr.(*unix.SockaddrLinklayer)
	if !ok || at.Ifindex == 0 {
		return nil // the one that it sends by
	}
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return err
	}
	f.Missed += int(stats.Drops)
	want := room(at.Ifindex)
	has, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil || has >= want {
		return err
	}
	// The kernel doubles what it is told, and tells what it made of it (socket(7)).
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, want/2); err != nil {
		return err
	}
	f.Deepened++
	return nil
}

// list returns the descriptors of a process that are sockets.
func list(pid int) ([]int, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var sockets []int
	for _, name := range names {
		number, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		target, err := os.Readlink(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed since
		}
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "socket:") {
			sockets = append(sockets, number)
		}
	}
	return sockets, nil
}
