package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetConnections removes what the kernel's conntrack remembers of
// connections that ip began, so that answers still on their way do not reach
// whoever has the address next. A kernel without conntrack has nothing to forget.
func (n *NS) ForgetConnections(ip netip.Addr) error {
	var nf *netlink.Handle
	err := n.Do(func() (err error) {
		nf, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget the connections of %s: %w", ip, err)
	}
	defer nf.Close()
	filter := &netlink.ConntrackFilter{}
	if err := filter.AddIP(netlink.ConntrackOrigSrcIP, ip.AsSlice()); err != nil {
		return fmt.Errorf("forget the connections of %s: %w", ip, err)
	}
	_, err = nf.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("forget the connections of %s: %w", ip, err)
	}
	return nil
}
