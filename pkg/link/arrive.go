package link

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// arrivalMAC is the sender of packets that [NS.Arrive] makes; locally administered
// (IEEE 802), and no device has it.
var arrivalMAC = net.HardwareAddr{0x02, 0x6b, 0x38, 0x73, 0x00, 0x01}

// Arrive has IPv4 packets come in by the device as if somebody on its link had sent them:
// all of the node that looks at received packets looks at these. They take the way
// through an ifb that is called by and is made where it is not there; nothing is added to
// the device itself. [ErrNoLink] where there is no device.
func (n *NS) Arrive(by, device string, packets ...[]byte) error {
	to, err := n.must(device)
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
	err = n.Do(func() error {
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
func (n *NS) ensureArrivals(by string, device Link) (Link, error) {
	if err := n.EnsureIFB(by); err != nil {
		return Link{}, err
	}
	from, err := n.must(by)
	if err != nil {
		return Link{}, err
	}
	if _, err := n.SetUp(by); err != nil {
		return Link{}, err
	}
	if _, err := n.EnsureGate(by); err != nil {
		return Link{}, err
	}
	filters, err := n.redirects(from)
	if err != nil {
		return Link{}, err
	}
	if len(filters) == 1 && arrivesAt(filters[0], device.Index) {
		return from, nil
	}
	if err := n.deleteFilters(from, filters); err != nil {
		return Link{}, err
	}
	redirect := netlink.NewMirredAction(device.Index)
	redirect.MirredAction = netlink.TCA_INGRESS_REDIR
	err = n.nl.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Index, Parent: rootQdisc, Priority: 1, Protocol: unix.ETH_P_IP},
		// Offsets count from the network header: the sender's address begins 8 bytes before.
		Sel: &nl.TcU32Sel{Nkeys: 1, Flags: nl.TC_U32_TERMINAL, Keys: []nl.TcU32Key{
			{Mask: 0xffffffff, Val: binary.BigEndian.Uint32(arrivalMAC), Off: -8},
		}},
		Actions: []netlink.Action{redirect},
	})
	if err != nil {
		return Link{}, fmt.Errorf("redirecting %s to what %s receives: %w", by, device.Name, qdiscError(err))
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

// Translated is a connection whose source the node translates: To sees As in place of
// From. It is one of UDP, or of TCP, established.
type Translated struct {
	From, To, As netip.AddrPort
	TCP          bool
}

// Numbers of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h that the
// library lacks.
const (
	ctaNATSrc     = 6
	ctaNATv4Min   = 1
	ctaNATv4Max   = 2
	ctaNATProto   = 3
	ctaPortMin    = 1
	ctaPortMax    = 2
	statusFixed   = 1 << 10 // IPS_FIXED_TIMEOUT: no packet makes it live longer
	statusBelongs = 1 << 3  // IPS_CONFIRMED, of all that the table has

	ctaTCP            = 1
	ctaTCPState       = 1
	ctaTCPFlagsAsked  = 4
	ctaTCPFlagsAnswer = 5
	tcpEstablished    = 3      // TCP_CONNTRACK_ESTABLISHED
	tcpLiberal        = 1 << 3 // IP_CT_TCP_FLAG_BE_LIBERAL: any sequence number will do
)

// Track makes conntrack know the connection, in zone 0, for a while: answers to it are
// translated back then. One of the same addresses and ports is an error.
func (n *NS) Track(c Translated, lasts time.Duration) error {
	err := n.Do(func() error {
		req := nl.NewNetlinkRequest(netlink.ConntrackTable<<8|nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
		req.AddData(c.tuple(nl.CTA_TUPLE_ORIG, c.From, c.To))
		req.AddData(c.tuple(nl.CTA_TUPLE_REPLY, c.To, c.From))
		nat := nl.NewRtAttr(unix.NLA_F_NESTED|ctaNATSrc, nil)
		as := c.As.Addr().AsSlice()
		nat.AddRtAttr(ctaNATv4Min, as)
		nat.AddRtAttr(ctaNATv4Max, as)
		ports := nat.AddRtAttr(unix.NLA_F_NESTED|ctaNATProto, nil)
		ports.AddRtAttr(ctaPortMin, nl.BEUint16Attr(c.As.Port()))
		ports.AddRtAttr(ctaPortMax, nl.BEUint16Attr(c.As.Port()))
		req.AddData(nat)
		if c.TCP {
			info := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_PROTOINFO, nil)
			tcp := info.AddRtAttr(unix.NLA_F_NESTED|ctaTCP, nil)
			tcp.AddRtAttr(ctaTCPState, []byte{tcpEstablished})
			for _, direction := range []int{ctaTCPFlagsAsked, ctaTCPFlagsAnswer} {
				tcp.AddRtAttr(direction, []byte{tcpLiberal, tcpLiberal}) // the flags, and which of them are said
			}
			req.AddData(info)
		}
		req.AddData(nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(statusFixed|statusBelongs)))
		req.AddData(nl.NewRtAttr(nl.CTA_TIMEOUT, nl.BEUint32Attr(uint32(max(lasts, time.Second)/time.Second))))
		_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("having conntrack know a connection from %s to %s: %w", c.From.Addr(), c.To, err)
	}
	return nil
}

func (c Translated) tuple(kind int, from, to netip.AddrPort) *nl.RtAttr {
	protocol := byte(unix.IPPROTO_UDP)
	if c.TCP {
		protocol = unix.IPPROTO_TCP
	}
	t := nl.NewRtAttr(unix.NLA_F_NESTED|kind, nil)
	ip := t.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(nl.CTA_IP_V4_SRC, from.Addr().AsSlice())
	ip.AddRtAttr(nl.CTA_IP_V4_DST, to.Addr().AsSlice())
	proto := t.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{protocol})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(from.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(to.Port()))
	return t
}
