package exits

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/rawpacket"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/conntrack"
)

// Call sends an empty datagram, or begins a connection of TCP, as any program of the node would that says no address of
// its own; from is what it has. It waits for nobody, and does not tell what the node's firewall refuses to send.
func (n Node) Call(to netip.AddrPort, tcp bool) (from netip.AddrPort, err error) {
	kind := unix.SOCK_DGRAM
	if tcp {
		kind = unix.SOCK_STREAM
	}
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if !tcp {
			if err != nil { // there is no route
				return err
			}
			_ = unix.Send(fd, nil, 0)
		}
		own, err := unix.Getsockname(fd)
		if in, ok := own.(*unix.SockaddrInet4); ok {
			from = netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
		}
		return err
	})
	return from, err
}

// call has the node send to an address of its subnet that no pod has, by UDP and by TCP, and returns what a pod would
// answer. Only answers are tried: what pods begin themselves may be kept from the node on purpose. It reports false where
// there can be none.
func (c *Check) call(gw Gateway) (answers [][]byte, ok bool, err error) {
	to := netip.AddrPortFrom(gw.way().Probe, hostnet.Discard)
	for _, tcp := range []bool{false, true} {
		from, err := c.host.Call(to, tcp)
		if err != nil {
			return nil, false, fmt.Errorf("what the node sends to its pods does not get to them: %w (ip route get %s)", err, to.Addr())
		}
		as := netip.AddrPortFrom(gw.Address, from.Port()) // whatever address it has else
		// It is known already where it got further than to its end, as somebody flushed the table.
		if err := c.host.Track(conntrack.Translated{From: from, To: to, As: as, TCP: tcp}, tracked); err != nil && !errors.Is(err, fs.ErrExist) {
			c.once("it is not known whether what pods answer the node gets to it: conntrack cannot be told of connections", err)
			return nil, false, nil
		}
		if tcp {
			answers = append(answers, gw.frame(rawpacket.Acknowledgment(to, as, hostnet.Sequence)))
		} else {
			answers = append(answers, gw.frame(rawpacket.Datagram(to, as)))
		}
	}
	return answers, true, nil
}
