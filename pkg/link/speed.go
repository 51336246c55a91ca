package link

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/vishvananda/netlink"

	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// ethtoolGetSettings is ETHTOOL_GSET of linux/ethtool.h.
const ethtoolGetSettings = 0x01

// ethtoolSettings is struct ethtool_cmd of linux/ethtool.h.
type ethtoolSettings struct {
	cmd       uint32
	_         [2]uint32
	speed     uint16
	_         [14]byte
	speedHigh uint16
	_         [14]byte
}

// maxNested is how deep the kernel lets devices stand on each other
// (MAX_NEST_DEV of linux/netdevice.h).
const maxNested = 8

// Speed of the hardware that a device sends by, bits per second: a VLAN has that
// of the device below, a bond or a bridge that of its ports. ok is false where that is
// not known, and where there is no hardware: what virtual devices say is made up
// (veth 10 Gbit/s, tap 10 Mbit/s).
func (n *NS) Speed(name string) (bits uint64, ok bool, err error) {
	raw, err := n.nl.LinkByName(name)
	if notFound(err) {
		return 0, false, nil
	}
	if err == nil {
		bits, err = n.speed(raw, maxNested)
	}
	if err != nil {
		return 0, false, fmt.Errorf("speed of %s: %w", name, err)
	}
	return bits, bits > 0, nil
}

// speed is 0 where it is not known.
func (n *NS) speed(raw netlink.Link, depth int) (uint64, error) {
	a := raw.Attrs()
	if depth == 0 {
		return 0, nil
	}
	switch raw.Type() {
	case "device": // no virtual kind
		return n.ownSpeed(a.Name), nil
	case "vlan", "macvlan", "ipvlan":
		if a.NetNsID >= 0 {
			return 0, nil // the device below is in another namespace
		}
		below, err := n.nl.LinkByIndex(a.ParentIndex)
		if notFound(err) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		return n.speed(below, depth-1)
	case "bond", "team", "bridge":
		best, err := n.portSpeed(a.Index, depth-1)
		if best > 0 && raw.Type() != "bridge" {
			best = n.ownSpeed(a.Name) // it knows which of its ports add up
		}
		return best, err
	}
	return 0, nil
}

// portSpeed is that of the fastest port.
func (n *NS) portSpeed(master, depth int) (best uint64, err error) {
	all, err := dump.Whole(n.nl.LinkList)
	if err != nil {
		return 0, err
	}
	for _, l := range all {
		if l.Attrs().MasterIndex != master {
			continue
		}
		bits, err := n.speed(l, depth)
		if err != nil {
			return 0, err
		}
		best = max(best, bits)
	}
	return best, nil
}

// ownSpeed is what the device itself says. Many cannot say (EOPNOTSUPP), nor one
// without carrier (SPEED_UNKNOWN).
func (n *NS) ownSpeed(name string) uint64 {
	s := ethtoolSettings{cmd: ethtoolGetSettings}
	if err := n.ethtool(name, (*ethtoolValue)(unsafe.Pointer(&s))); err != nil {
		return 0
	}
	mbits := uint32(s.speedHigh)<<16 | uint32(s.speed)
	if mbits >= math.MaxInt32 {
		return 0
	}
	return uint64(mbits) * 1_000_000
}
