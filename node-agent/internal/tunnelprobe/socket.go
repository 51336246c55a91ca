package tunnelprobe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// socket sends IPv4 packets out of a device, and receives the datagrams for one port that come in by it, past the node's
// firewall both ways.
type socket struct {
	*os.File
	ns     *link.NS
	device link.Link
	// header is the frame's: from the device to what is behind it.
	header []byte
	// absorbs takes what the node's own stack gets of the same packets; nil before it does.
	absorbs *net.UDPConn
}

func open(ns *link.NS, device string, port uint16) (*socket, error) {
	l, ok, err := ns.Link(device)
	if err == nil && !ok {
		err = fmt.Errorf("there is no device %s yet", device)
	}
	if err != nil {
		return nil, err
	}
	filter, err := forPort(port)
	if err != nil {
		return nil, err
	}
	fd := -1
	err = ns.Do(func() (err error) {
		// Of no protocol, it receives nothing before the filter is there.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: l.Index})
		}
		if err != nil {
			_ = unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("packet socket at %s: %w", device, err)
	}
	header := slices.Concat([]byte(topology.MAC(topology.NextHop)), []byte(l.MAC), []byte{0x08, 0x00})
	return &socket{File: os.NewFile(uintptr(fd), "packets of "+device), ns: ns, device: l, header: header}, nil
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// current is nil as long as the device is the one that there is.
func (s *socket) current() error {
	l, ok, err := s.ns.Link(s.device.Name)
	switch {
	case err != nil:
		return err
	case !ok || l.Index != s.device.Index:
		return fmt.Errorf("the device %s is another one", s.device.Name)
	}
	return nil
}

func (s *socket) send(packet []byte) error {
	_, err := s.Write(slices.Concat(s.header, packet))
	return err
}

// absorb has the node's stack take in what is received here too, so that it answers nobody that nothing listens. Where it
// cannot, which is so as long as the device has not its address, that answer is all that goes wrong.
func (s *socket) absorb(at netip.Addr, port uint16) {
	if s.absorbs != nil {
		return
	}
	_ = s.ns.Do(func() (err error) {
		s.absorbs, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, port)))
		return err
	})
	if conn := s.absorbs; conn != nil {
		go func() {
			for buf := make([]byte, messageLen); ; {
				if _, _, err := conn.ReadFromUDPAddrPort(buf); err != nil {
					return // closed
				}
			}
		}()
	}
}

// Close ends both.
func (s *socket) Close() error {
	if s.absorbs != nil {
		_ = s.absorbs.Close()
	}
	return s.File.Close()
}

const ethernetSize, ipSize, udpSize = 14, 20, 8

// receive is the next datagram.
func (s *socket) receive() (from, to netip.Addr, carries []byte, err error) {
	buf := make([]byte, 256)
	for {
		n, err := s.Read(buf)
		switch {
		case errors.Is(err, unix.ENETDOWN): // the device is down, which is not its end
			continue
		case err != nil:
			return from, to, nil, err
		case n < ethernetSize+ipSize+udpSize:
			continue
		}
		packet := buf[ethernetSize:n]
		size := int(packet[0]&0x0f) * 4
		end := min(int(binary.BigEndian.Uint16(packet[2:])), len(packet))
		if size < ipSize || end < size+udpSize {
			continue
		}
		from, _ = netip.AddrFromSlice(packet[12:16])
		to, _ = netip.AddrFromSlice(packet[16:20])
		return from, to, packet[size+udpSize : end], nil
	}
}

// forPort takes whole UDP datagrams of IPv4 for a port, short ones.
func forPort(port uint16) ([]unix.SockFilter, error) {
	const udp = unix.IPPROTO_UDP
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: ethernetSize + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: udp, SkipTrue: 6},
		bpf.LoadAbsolute{Off: ethernetSize + 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4}, // a fragment
		bpf.LoadMemShift{Off: ethernetSize},
		bpf.LoadIndirect{Off: ethernetSize + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(port), SkipTrue: 1},
		bpf.RetConstant{Val: 256},
		bpf.RetConstant{Val: 0},
	})
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return filter, err
}
