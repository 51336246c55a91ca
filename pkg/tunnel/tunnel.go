// Package tunnel says what packets of pods travel in between nodes: the kinds of
// tunnels, the UDP port that nodes take them at, what they add to a packet, and how
// many bits of a tenant's number they carry.
//
// It is pure.
package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// Type is a kind of tunnel, by the name that Open vSwitch has for it (column type of
// table Interface, ovs-vswitchd.conf.db(5)).
type Type string

// VXLAN is RFC 7348.
const VXLAN Type = "vxlan"

// Sizes of headers, bytes.
const (
	ipv4Header     = 20 // RFC 791, section 3.1, without options
	ipv6Header     = 40 // RFC 8200, section 3
	udpHeader      = 8  // RFC 768
	ethernetHeader = 14 // IEEE 802.3, untagged and without the check sequence, which VXLAN leaves out (RFC 7348, section 5)
)

// kind is what a type of tunnel puts between the outer IP header and the pod's packet.
type kind struct {
	// transport is what carries it over IP, header its own header behind that, inner what
	// it keeps of the pod's link, bytes each.
	transport, header, inner int
	// keyBits is how wide the number of a tenant may be.
	keyBits int
	port    Port
	// device is how the names of the devices begin that the kernel datapath takes its packets with.
	device string
}

// kinds has a line for each type. A type whose header varies (options of Geneve), or an
// underlay that encrypts and does not say so by a smaller MTU of its device, adds to it here.
var kinds = map[Type]kind{
	// RFC 7348, section 5: outer UDP, 8 bytes with a VNI of 24 bits, the inner frame.
	VXLAN: {transport: udpHeader, header: 8, inner: ethernetHeader, keyBits: 24, port: VXLANPort, device: "vxlan_sys"},
}

// Overhead is how much larger the IP packet of a tunnel over an underlay of family f is
// than the pod's that is in it, bytes: 50 for VXLAN over IPv4, 70 over IPv6.
func (t Type) Overhead(f Family) int {
	k := kinds[t]
	outer := ipv4Header
	if f == IPv6 {
		outer = ipv6Header
	}
	return outer + k.transport + k.header + k.inner
}

// KeyBits is how many bits a tenant's number has on the wire.
func (t Type) KeyBits() int { return kinds[t].keyBits }

// Known reports whether this release knows the type.
func (t Type) Known() bool { return kinds[t].port != 0 }

// Port is the UDP port that is assigned to the type.
func (t Type) Port() Port { return kinds[t].port }

// Family is the version of IP that an underlay has.
type Family int

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf is the family of a VTEP address.
func FamilyOf(vtep netip.Addr) Family {
	if vtep.Is4() {
		return IPv4
	}
	return IPv6
}

// CheckVTEP says why an address cannot be a node's end of tunnels; nil where it can. It is the
// only place that says that underlays are IPv4.
func CheckVTEP(a netip.Addr) error {
	if !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return fmt.Errorf("%s is not an IPv4 unicast address that peers can reach", a)
	}
	return nil
}

// ParseVTEP reads the address of a node's end of tunnels.
func ParseVTEP(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an address", s)
	}
	return a, CheckVTEP(a)
}

// Tunnel is a tunnel port of a bridge. A bridge may have several: for peers that are
// reached another way than the rest.
type Tunnel struct {
	// Name is the port's on the bridge.
	Name string
	Type Type
	// Port is the UDP port that packets are taken at, here and at the other end.
	Port Port
	// Family is that of the addresses at its ends.
	Family Family
}

// Encap is what two ends must agree on to reach each other: how packets are encapsulated, and the UDP port that
// they are taken at. The zero value is none.
type Encap struct {
	Type Type
	Port Port
}

// String is such as "vxlan at UDP port 4789".
func (e Encap) String() string { return fmt.Sprintf("%s at UDP port %d", e.Type, e.Port) }

// KernelDevice is the name of the device that the kernel datapath takes the tunnel's packets with, and
// sends them by: one for all of a type at a UDP port (netdev_vport_get_dpif_port, lib/netdev-vport.c of
// Open vSwitch).
func (t Tunnel) KernelDevice() string { return kinds[t.Type].device + "_" + t.Port.String() }

// KernelDeviceMTU is what Open vSwitch makes these devices with, bytes (dpif_netlink_rtnl_create,
// lib/dpif-netlink-rtnl.c): they are to let everything through that a way between nodes does.
const KernelDeviceMTU = 65000

// Overhead is how much larger the tunnel's IP packets are than the pods' in them, bytes.
func (t Tunnel) Overhead() int { return t.Type.Overhead(t.Family) }

// Port is a UDP port that nodes take tunnel packets at, the same on every node. 0 is none.
type Port uint16

// VXLANPort is assigned by IANA (RFC 7348, sections 5 and 8).
const VXLANPort Port = 4789

// ParsePort reads a port from 1 to 65535.
func ParsePort(s string) (Port, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("a UDP port is a number from 1 to 65535")
	}
	return Port(n), nil
}

// String is the number; empty for no port.
func (p Port) String() string {
	if p == 0 {
		return ""
	}
	return strconv.Itoa(int(p))
}

// Set implements [pflag.Value].
func (p *Port) Set(s string) (err error) {
	*p, err = ParsePort(s)
	return err
}

// Type implements [pflag.Value].
func (p *Port) Type() string { return "port" }
