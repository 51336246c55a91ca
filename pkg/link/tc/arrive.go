package tc

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// arrivalMAC is the sender of packets that [Control.Arrive] makes; locally administered
// (IEEE 802), and no device has it.
var arrivalMAC = net.HardwareAddr{0x02, 0x6b, 0x38, 0x73, 0x00, 0x01}

// Arrive has IPv4 packets come in by the device as if somebody on its link had sent them:
// all of the node that looks at received packets looks at these. They take the way
// through an ifb that is called by and is made where it is not there; nothing is added to
// the device itself. [link.ErrNoLink] where there is no device.
func (n Control) Arrive(by, device string, packets ...[]byte) error {
	to, err := n.ns.Existing(device)
	if err != nil {
		return err
	}
	from, err := n.ensureArrivals(by, to)
	if err != nil {
		return err
	}
	destination := to.MAC
	if len(destination) != len(arrivalMAC) {
		destination = arrivalMAC // the device knows no hardware addresses, and nobody looks
	}
	header := binary.BigEndian.AppendUint16(slices.Concat(destination, arrivalMAC), unix.ETH_P_IP)
	err = n.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: it receives nothing
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range packets {
			err := unix.Sendto(fd, slices.Concat(header, p), unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: from.Index, Protocol: networkOrder(unix.ETH_P_IP)})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("having packets arrive at %s by %s: %w", device, by, err)
	}
	return nil
}

// networkOrder is v as the kernel expects it in memory.
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}

// ensureArrivals makes the ifb, whose gate redirects what has arrivalMAC to where packets
// that the device receives begin.
func (n Control) ensureArrivals(by string, device link.Link) (link.Link, error) {
	if err := n.EnsureIFB(by); err != nil {
		return link.Link{}, err
	}
	from, err := n.ns.Existing(by)
	if err != nil {
		return link.Link{}, err
	}
	if _, err := n.ns.SetUp(by); err != nil {
		return link.Link{}, err
	}
	if _, err := n.EnsureGate(by); err != nil {
		return link.Link{}, err
	}
	filters, err := n.redirects(from)
	if err != nil {
		return link.Link{}, err
	}
	if len(filters) == 1 && arrivesAt(filters[0], device.Index) {
		return from, nil
	}
	if err := n.deleteFilters(from, filters); err != nil {
		return link.Link{}, err
	}
	redirect := netlink.NewMirredAction(device.Index)
	redirect.MirredAction = netlink.TCA_INGRESS_REDIR
	err = n.ns.Netlink().FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Index, Parent: rootQdisc, Priority: 1, Protocol: unix.ETH_P_IP},
		// Offsets count from the network header: the sender's address begins 8 bytes before.
		Sel: &nl.TcU32Sel{Nkeys: 1, Flags: nl.TC_U32_TERMINAL, Keys: []nl.TcU32Key{
			{Mask: 0xffffffff, Val: binary.BigEndian.Uint32(arrivalMAC), Off: -8},
		}},
		Actions: []netlink.Action{redirect},
	})
	if err != nil {
		return link.Link{}, fmt.Errorf("redirecting %s to what %s receives: %w", by, device.Name, classify(err))
	}
	return from, nil
}

func arrivesAt(filter *netlink.U32, index int) bool {
	for _, a := range filter.Actions {
		if m, ok := a.(*netlink.MirredAction); ok && m.MirredAction == netlink.TCA_INGRESS_REDIR && m.Ifindex == index {
			return true
		}
	}
	return false
}
