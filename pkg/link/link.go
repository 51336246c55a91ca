package link

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// Link is a network device.
type Link struct {
	Name  string
	Index int
	// Type is the kernel's: "veth", "bridge", "openvswitch", "tuntap", "device", ...
	Type string
	// MTU, bytes.
	MTU int
	MAC net.HardwareAddr
	// Up is whether it was set up; Carrier whether it can send.
	Up, Carrier bool
	Loopback    bool
	// Deaf is that the device should look up its neighbours' hardware addresses, and was told not to (IFF_NOARP).
	Deaf bool
	// Master is the index of the device it is a port of, 0 for none.
	Master int
	// TxQueue is how many packets may wait for it (IFLA_TXQLEN).
	TxQueue int
	// Addresses are its IPv4 addresses, each with the length of its network.
	// Only [NS.Describe] and [NS.AddressOwner] fill it in.
	Addresses []netip.Prefix
}

// Link is the device of that name; ok is false where there is none.
func (n *NS) Link(name string) (l Link, ok bool, err error) {
	raw, err := n.nl.LinkByName(name)
	if notFound(err) {
		return Link{}, false, nil
	}
	if err != nil {
		return Link{}, false, fmt.Errorf("network device %s: %w", name, err)
	}
	return linkOf(raw), true, nil
}

// Describe is [NS.Link] with the device's addresses.
func (n *NS) Describe(name string) (l Link, ok bool, err error) {
	l, ok, err = n.Link(name)
	if err != nil || !ok {
		return l, ok, err
	}
	l.Addresses, err = n.addresses(l.Index)
	return l, err == nil, err
}

// LinkExists reports whether there is a device of that name.
func (n *NS) LinkExists(name string) (bool, error) {
	_, ok, err := n.Link(name)
	return ok, err
}

// LinkByIndex is the device with that index; ok is false where there is none.
func (n *NS) LinkByIndex(index int) (l Link, ok bool, err error) {
	raw, err := n.nl.LinkByIndex(index)
	if notFound(err) {
		return Link{}, false, nil
	}
	if err != nil {
		return Link{}, false, fmt.Errorf("network device %d: %w", index, err)
	}
	return linkOf(raw), true, nil
}

// Existing is the device of that name, or [ErrNoLink].
func (n *NS) Existing(name string) (Link, error) {
	l, ok, err := n.Link(name)
	if err == nil && !ok {
		err = fmt.Errorf("network device %s: %w", name, ErrNoLink)
	}
	return l, err
}

// asking are the types of devices that look up neighbours unless somebody has told them not to; others have none, or no
// hardware addresses.
var asking = []string{"device", "veth", "bond", "team", "bridge", "vlan", "macvlan", "openvswitch", "tuntap"}

func linkOf(raw netlink.Link) Link {
	a := raw.Attrs()
	return Link{
		Name:     a.Name,
		Index:    a.Index,
		Type:     raw.Type(),
		MTU:      a.MTU,
		MAC:      a.HardwareAddr,
		Up:       a.Flags&net.FlagUp != 0,
		Carrier:  a.RawFlags&unix.IFF_LOWER_UP != 0,
		Loopback: a.Flags&net.FlagLoopback != 0,
		Deaf:     a.RawFlags&unix.IFF_NOARP != 0 && a.EncapType == "ether" && slices.Contains(asking, raw.Type()),
		Master:   a.MasterIndex,
		TxQueue:  a.TxQLen,
	}
}

// byIndex is the least that netlink needs to name a device.
func byIndex(l Link) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Index, attrs.Name = l.Index, l.Name
	return &netlink.Device{LinkAttrs: attrs}
}

// SetUp sets the device up and reports whether it was down.
func (n *NS) SetUp(name string) (changed bool, err error) {
	l, err := n.Existing(name)
	if err != nil || l.Up {
		return false, err
	}
	if err := n.nl.LinkSetUp(byIndex(l)); err != nil {
		return false, fmt.Errorf("setting %s up: %w", name, err)
	}
	return true, nil
}

// SetMTU sets the device's MTU, bytes, and reports whether it was another.
func (n *NS) SetMTU(name string, mtu int) (changed bool, err error) {
	l, err := n.Existing(name)
	if err != nil || l.MTU == mtu {
		return false, err
	}
	if err := n.nl.LinkSetMTU(byIndex(l), mtu); err != nil {
		return false, fmt.Errorf("setting the MTU of %s to %d: %w", name, mtu, err)
	}
	return true, nil
}

// DefaultTxQueue is how many packets may wait for a device of Ethernet that is made without a word about
// it (DEFAULT_TX_QUEUE_LEN of the kernel).
const DefaultTxQueue = 1000

// SetTxQueue sets how many packets may wait for the device, and reports whether it was another number.
func (n *NS) SetTxQueue(name string, length int) (changed bool, err error) {
	l, err := n.Existing(name)
	if err != nil || l.TxQueue == length {
		return false, err
	}
	if err := n.nl.LinkSetTxQLen(byIndex(l), length); err != nil {
		return false, fmt.Errorf("setting the queue length of %s to %d: %w", name, length, err)
	}
	return true, nil
}

// SetMAC sets the device's hardware address and reports whether it was another.
func (n *NS) SetMAC(name string, mac net.HardwareAddr) (changed bool, err error) {
	l, err := n.Existing(name)
	if err != nil || bytes.Equal(l.MAC, mac) {
		return false, err
	}
	if err := n.nl.LinkSetHardwareAddr(byIndex(l), mac); err != nil {
		return false, fmt.Errorf("setting the hardware address of %s to %s: %w", name, mac, err)
	}
	return true, nil
}

// Links are all devices, by index, without their addresses.
func (n *NS) Links() ([]Link, error) {
	raw, err := dump.Whole(n.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing network devices: %w", err)
	}
	out := make([]Link, 0, len(raw))
	for _, l := range raw {
		out = append(out, linkOf(l))
	}
	return out, nil
}

// ExternalVXLAN is the device that takes VXLAN packets of every number at a UDP port, whatever it is called: a namespace has one at
// most (drivers/net/vxlan, vxlan_vni_in_use).
func (n *NS) ExternalVXLAN(port uint16) (l Link, ok bool, err error) {
	all, err := dump.Whole(n.nl.LinkList)
	if err != nil {
		return Link{}, false, fmt.Errorf("listing network devices: %w", err)
	}
	for _, raw := range all {
		if v, is := raw.(*netlink.Vxlan); is && v.FlowBased && v.Port == int(port) {
			return linkOf(raw), true, nil
		}
	}
	return Link{}, false, nil
}

// AddressOwner is the device that has the address ip; ok is false where none has.
func (n *NS) AddressOwner(ip netip.Addr) (l Link, ok bool, err error) {
	addrs, err := n.allAddresses(familyOf(ip))
	if err != nil {
		return Link{}, false, err
	}
	for _, a := range addrs {
		if p, valid := prefixOf(a.IPNet); valid && p.Addr() == ip {
			l, ok, err = n.LinkByIndex(a.LinkIndex)
			if ok {
				l.Addresses, err = n.addresses(l.Index)
			}
			return l, ok && err == nil, err
		}
	}
	return Link{}, false, nil
}

// EnsureAddress gives the device the address, with the length of its network, and
// reports whether it had it not. An IPv6 address is usable at once: it was, or is to
// be, the node's own, so nobody is asked whether it is taken.
func (n *NS) EnsureAddress(name string, p netip.Prefix) (changed bool, err error) {
	l, err := n.Existing(name)
	if err != nil {
		return false, err
	}
	have, err := n.addressesOf(l.Index, familyOf(p.Addr()))
	if err != nil || slices.Contains(have, p) {
		return false, err
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	err = n.nl.AddrAdd(byIndex(l), addr)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("adding address %s to %s: %w", p, name, err)
	}
	return err == nil, nil
}

// DeleteAddress takes the address from the device; one that is not there is no error.
func (n *NS) DeleteAddress(name string, p netip.Prefix) error {
	l, ok, err := n.Link(name)
	if err != nil || !ok {
		return err
	}
	err = n.nl.AddrDel(byIndex(l), &netlink.Addr{IPNet: ipNet(p)})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing address %s from %s: %w", p, name, err)
	}
	return nil
}

// EnsureNeighbour makes ip's neighbour entry on the device permanent with that
// MAC and reports whether it was not.
func (n *NS) EnsureNeighbour(name string, ip netip.Addr, mac net.HardwareAddr) (changed bool, err error) {
	l, err := n.Existing(name)
	if err != nil {
		return false, err
	}
	have, err := n.neighbour(l.Index, ip)
	if err != nil || bytes.Equal(have, mac) {
		return false, err
	}
	if err := n.setNeighbour(l.Index, ip, mac); err != nil {
		return false, fmt.Errorf("neighbour %s of %s: %w", ip, name, err)
	}
	return true, nil
}

// neighbour is the MAC of a permanent entry; nil without one.
func (n *NS) neighbour(index int, ip netip.Addr) (net.HardwareAddr, error) {
	list := func() ([]netlink.Neigh, error) { return n.neighboursInSandbox(index, familyOf(ip)) }
	if n.home {
		list = func() ([]netlink.Neigh, error) { return n.nl.NeighList(index, familyOf(ip)) }
	}
	all, err := dump.Whole(list)
	if err != nil {
		return nil, fmt.Errorf("listing neighbours: %w", err)
	}
	for _, e := range all {
		if a, ok := netip.AddrFromSlice(e.IP); ok && a.Unmap() == ip && e.State == unix.NUD_PERMANENT {
			return e.HardwareAddr, nil
		}
	}
	return nil, nil
}

func (n *NS) setNeighbour(index int, ip netip.Addr, mac net.HardwareAddr) error {
	return n.nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: familyOf(ip), State: unix.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac,
	})
}

// addresses are the IPv4 ones of one device.
func (n *NS) addresses(index int) ([]netip.Prefix, error) {
	return n.addressesOf(index, podFamily)
}

func (n *NS) addressesOf(index, family int) ([]netip.Prefix, error) {
	if !n.home {
		out, err := dump.Whole(func() ([]netip.Prefix, error) { return n.addressesInSandbox(index, family) })
		if err != nil {
			return nil, fmt.Errorf("listing addresses: %w", err)
		}
		return out, nil
	}
	addrs, err := n.allAddresses(family)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && a.LinkIndex == index {
			out = append(out, p)
		}
	}
	return out, nil
}

func (n *NS) allAddresses(family int) ([]netlink.Addr, error) {
	addrs, err := dump.Whole(func() ([]netlink.Addr, error) { return n.nl.AddrList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	return addrs, nil
}

// podFamily is the family of what is looked up as a whole, of devices and for pods: their
// addresses, and the routes of a pod that stand apart.
const podFamily = unix.AF_INET

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
