package conntrack

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

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
func (t Table) Track(c Translated, lasts time.Duration) error {
	err := t.ns.Do(func() error {
		req := nl.NewNetlinkRequest(netlink.ConntrackTable<<8|nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
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
