package tunnelprobe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/rawpacket"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// socket sends IPv4 packets out of a device, and receives the datagrams for one port that come in by it, past the node's
// firewall both ways. The node's own stack gets them too; package hostnet has it drop them.
type socket struct {
	*os.File
	ns     *link.NS
	device link.Link
	// at is the node's address in the overlay, with the port.
	at netip.AddrPort
	// header is the frame's: from the device to what is behind it.
	header []byte
}

func open(ns *link.NS, device string, port uint16, subnet netip.Prefix) (*socket, error) {
	l, ok, err := ns.Link(device)
	if err == nil && !ok {
		err = fmt.Errorf("there is no device %s yet", device)
	}
	if err != nil {
		return nil, err
	}
	filter, err := bpf.Assemble(ofNodes(port, subnet))
	if err != nil {
		return nil, err
	}
	program := make([]unix.SockFilter, len(filter))
	for i, in := range filter {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fd := -1
	err = ns.Do(func() (err error) {
		// Of no protocol, it receives nothing before the filter is there.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
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
	return &socket{File: os.NewFile(uintptr(fd), "packets of "+device), ns: ns, device: l, at: netip.AddrPortFrom(topology.GatewayOf(subnet), port), header: header}, nil
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

const (
	ethernetSize = 14
	// longest is how much of a frame is read, bytes.
	longest = 256
)

// receive is the next datagram.
func (s *socket) receive() (from, to netip.Addr, carries []byte, err error) {
	buf := make([]byte, longest)
	for {
		n, err := s.Read(buf)
		switch {
		case errors.Is(err, unix.ENETDOWN): // the device is down, which is not its end
			continue
		case err != nil:
			return from, to, nil, err
		case n < ethernetSize+rawpacket.IPSize+rawpacket.UDPSize:
			continue
		}
		packet := buf[ethernetSize:n]
		size := int(packet[0]&0x0f) * 4
		end := min(int(binary.BigEndian.Uint16(packet[2:])), len(packet))
		if size < rawpacket.IPSize || end < size+rawpacket.UDPSize {
			continue
		}
		from, _ = netip.AddrFromSlice(packet[12:16])
		to, _ = netip.AddrFromSlice(packet[16:20])
		return from, to, packet[size+rawpacket.UDPSize : end], nil
	}
}

// ofNodes takes whole UDP datagrams for a port from nodes' own addresses in the overlay, which are the first of subnets as long
// as this one: what pods send, however much that is, costs the agent nothing.
func ofNodes(port uint16, subnet netip.Prefix) []bpf.Instruction {
	hosts := uint32(1)<<(subnet.Addr().BitLen()-subnet.Bits()) - 1
	const fragment = 0x3fff
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: ethernetSize + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 9},
		bpf.LoadAbsolute{Off: ethernetSize + 12, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: hosts},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 1, SkipTrue: 6},
		bpf.LoadAbsolute{Off: ethernetSize + 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: fragment, SkipTrue: 4},
		bpf.LoadMemShift{Off: ethernetSize},
		bpf.LoadIndirect{Off: ethernetSize + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(port), SkipTrue: 1},
		bpf.RetConstant{Val: longest},
		bpf.RetConstant{Val: 0},
	}
}
