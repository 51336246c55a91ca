package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// Port is a link in a namespace. It sends any frame and keeps all that the
// link receives, whomever it is addressed to; not what is sent on it.
type Port struct {
	file *os.File
	done chan struct{}

	mu      sync.Mutex
	frames  [][]byte
	arrived chan struct{} // closed and replaced when a frame comes in
}

// keptFrames bounds what a port remembers; the oldest go first.
const keptFrames = 10000

// Open takes part in the traffic of a link in the namespace at path. Close it.
func Open(path, link string) (*Port, error) {
	fd := -1
	err := ns.DoPath(path, func() (err error) { fd, err = packetSocket(link); return err })
	if err != nil {
		return nil, fmt.Errorf("frames of %s in %s: %w", link, path, err)
	}
	p := &Port{file: os.NewFile(uintptr(fd), "packet "+link), done: make(chan struct{}), arrived: make(chan struct{})}
	go p.receive()
	return p, nil
}

// packetSocket is bound to link in the calling thread's namespace.
func packetSocket(link string) (int, error) {
	iface, err := net.InterfaceByName(link)
	if err != nil {
		return -1, err
	}
	// Protocol 0 until it is bound: nothing of other links gets in before.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: iface.Index}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

func (p *Port) receive() {
	defer close(p.done)
	buf := make([]byte, 1<<16)
	for {
		n, err := p.file.Read(buf)
		if errors.Is(err, unix.ENETDOWN) {
			continue // told once when the link goes down
		}
		if err != nil {
			return
		}
		p.mu.Lock()
		if len(p.frames) == keptFrames {
			p.frames = slices.Delete(p.frames, 0, keptFrames/10)
		}
		p.frames = append(p.frames, bytes.Clone(buf[:n]))
		close(p.arrived)
		p.arrived = make(chan struct{})
		p.mu.Unlock()
	}
}

// Close ends sending and seeing.
func (p *Port) Close() error {
	err := p.file.Close()
	<-p.done
	return err
}

// Send puts a frame on the link.
func (p *Port) Send(frame []byte) error {
	if _, err := p.file.Write(frame); err != nil {
		return fmt.Errorf("%s: send: %w", p.file.Name(), err)
	}
	return nil
}

// Frames returns what has arrived so far, oldest first.
func (p *Port) Frames() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.frames)
}

// Saw reports whether a frame that contains mark has arrived.
func (p *Port) Saw(mark string) bool {
	return slices.ContainsFunc(p.Frames(), func(f []byte) bool { return bytes.Contains(f, []byte(mark)) })
}

// WaitFor waits until a frame that contains mark has arrived and returns it.
func (p *Port) WaitFor(mark string, timeout time.Duration) ([]byte, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		p.mu.Lock()
		i := slices.IndexFunc(p.frames, func(f []byte) bool { return bytes.Contains(f, []byte(mark)) })
		arrived, n := p.arrived, len(p.frames)
		var found []byte
		if i >= 0 {
			found = p.frames[i]
		}
		p.mu.Unlock()
		if found != nil {
			return found, nil
		}
		select {
		case <-arrived:
		case <-p.done:
			return nil, fmt.Errorf("%s: closed", p.file.Name())
		case <-timer.C:
			return nil, fmt.Errorf("%s: no frame with %q in %s (%d others)", p.file.Name(), mark, timeout, n)
		}
	}
}
