package packetsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

const room = 1 << 20

// setup makes a namespace with loopback up, and a packet socket of this process there.
func setup(t *testing.T) (fd, ifindex int, netns string) {
	t.Helper()
	netns = nstest.New(t)
	err := ns.Do(netns, func() error {
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		ifindex = lo.Index
		fd, err = open(ifindex)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd, ifindex, netns
}

func open(ifindex int) (int, error) {
	all := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	// Small, whatever the machine's default is.
	return fd, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room/8), unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifindex}))
}

func size(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tend(t *testing.T, room func(int) int) Found {
	t.Helper()
	found, err := Tend(os.Getpid(), room)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestTend(t *testing.T) {
	fd, ifindex, netns := setup(t)
	// One that is bound to no device, as that which ovs-vswitchd sends by, stays.
	unbound, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(unbound) }()
	unboundSize := size(t, unbound)
	give := func(index int) int {
		if index != ifindex {
			t.Errorf("asked for device %d, of which there is no socket", index)
		}
		return room
	}
	if found := tend(t, give); found.Deepened != 1 {
		t.Errorf("deepened %d, want the one", found.Deepened)
	}
	if got := size(t, fd); got != room {
		t.Errorf("%d bytes, want %d", got, room)
	}
	if got := size(t, unbound); got != unboundSize {
		t.Errorf("the socket without a device has %d bytes now, %d before", got, unboundSize)
	}
	// What has enough is left as it is.
	if found := tend(t, func(int) int { return room / 2 }); found.Deepened != 0 || size(t, fd) != room {
		t.Errorf("%+v, %d bytes", found, size(t, fd))
	}
	// A socket that came since is found.
	var later int
	if err := ns.Do(netns, func() (err error) { later, err = open(ifindex); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(later) }()
	if found := tend(t, give); found.Deepened != 1 || size(t, later) != room {
		t.Errorf("%+v, %d bytes", found, size(t, later))
	}
}

func TestMissed(t *testing.T) {
	_, _, netns := setup(t)
	leave := func(int) int { return 0 }
	if found := tend(t, leave); found.Missed != 0 {
		t.Errorf("%d missed before there was any", found.Missed)
	}
	const sent = 2000
	err := ns.Do(netns, func() error {
		c, err := net.Dial("udp4", "127.0.0.1:9")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for range sent {
			_, _ = c.Write(make([]byte, 1400)) // nobody listens: refused by then
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	missed := tend(t, leave).Missed
	for end := time.Now().Add(5 * time.Second); missed == 0 && time.Now().Before(end); missed = tend(t, leave).Missed {
		time.Sleep(10 * time.Millisecond)
	}
	if missed == 0 {
		t.Errorf("none of %d packets was missed by a socket that nobody reads", sent)
	}
	if again := tend(t, leave).Missed; again != 0 {
		t.Errorf("%d counted twice", again)
	}
}

func TestWrongProcess(t *testing.T) {
	_, err := Tend(0, nil)
	if err == nil || !strings.Contains(err.Error(), "hostPID") {
		t.Errorf("process of another PID namespace: %v", err)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Tend(cmd.Process.Pid, nil); err == nil || !strings.Contains(err.Error(), fmt.Sprint(cmd.Process.Pid)) {
		t.Errorf("process that has ended: %v", err)
	}
}
