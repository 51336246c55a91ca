package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// withPorts are the protocols of which a connection's destination has a port.
var withPorts = []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE}

// reusing is the kernel version since which a connection's port goes to another where it is closed
// (nf_nat_used_tuple_harder in net/netfilter/nf_nat_core.c). Before, closed ones keep theirs for two minutes.
var reusing = [2]int{6, 5}

// Outgoing calls each for every IPv4 connection of the namespace whose source is translated, with
// who began it and where it goes once all is translated: to port 0 where the protocol has none.
// Connections of TCP that are closed count only where the kernel does not give their ports to others, and then
// every second one: those who open and close many do no harm before they have half of the ports. It
// reads the whole table, a message at a time.
func (t Table) Outgoing(each func(from netip.Addr, protocol uint8, to netip.AddrPort)) error {
	counts, closed := !reuses(), 0
	err := t.ns.Do(func() error {
		req := nl.NewNetlinkRequest(netlink.ConntrackTable<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		return req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(m []byte) bool {
			var asked, answers direction
			over := false
			for kind, value := range attributes(m[min(len(m), nl.SizeofNfgenmsg):]) {
				switch kind {
				case nl.CTA_TUPLE_ORIG:
					asked = readDirection(value)
				case nl.CTA_TUPLE_REPLY:
					answers = readDirection(value)
				case nl.CTA_PROTOINFO:
					over = isClosed(value)
				}
			}
			if over {
				if closed++; !counts || closed%2 == 0 {
					return true
				}
			}
			if asked.from.IsValid() && answers.from.IsValid() && asked.from != answers.to {
				if !slices.Contains(withPorts, answers.protocol) {
					answers.port = 0
				}
				each(asked.from, answers.protocol, netip.AddrPortFrom(answers.from, answers.port))
			}
			return true
		})
	})
	if err != nil {
		return fmt.Errorf("list tracked connections: %w", err)
	}
	return nil
}

// reuses reports whether this kernel gives the port of a closed connection to another. One that does not
// tell its version, or has it from a newer one, counts as one that does not.
func reuses() bool {
	var u unix.Utsname
	var v [2]int
	if unix.Uname(&u) != nil {
		return false
	}
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &v[0], &v[1]); n < 2 {
		return false
	}
	return slices.Compare(v[:], reusing[:]) >= 0
}

// isClosed reports whether protocol information is that of a connection of TCP that is closed.
func isClosed(b []byte) bool {
	const timeWait, reset = 7, 8 // TCP_CONNTRACK_TIME_WAIT, TCP_CONNTRACK_CLOSE
	for kind, value := range attributes(b) {
		for inner, v := range attributes(value) {
			if kind == nl.CTA_PROTOINFO_TCP && inner == nl.CTA_PROTOINFO_TCP_STATE && len(v) == 1 {
				return v[0] == timeWait || v[0] == reset
			}
		}
	}
	return false
}

// direction is what the packets of one direction of a connection have; port is that which they come from.
type direction struct {
	from, to netip.Addr
	protocol uint8
	port     uint16
}

func readDirection(b []byte) (d direction) {
	for kind, value := range attributes(b) {
		for inner, v := range attributes(value) {
			switch {
			case kind == nl.CTA_TUPLE_IP && inner == nl.CTA_IP_V4_SRC:
				d.from, _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_IP && inner == nl.CTA_IP_V4_DST:
				d.to, _ = netip.AddrFromSlice(v)
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_NUM && len(v) == 1:
				d.protocol = v[0]
			case kind == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
				d.port = binary.BigEndian.Uint16(v)
			}
		}
	}
	return d
}

// attributes are those in b, by their kind: of tens of thousands of connections none is copied.
func attributes(b []byte) func(yield func(kind uint16, value []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofRtAttr || size > len(b) || !yield(kind, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}
