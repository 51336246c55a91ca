package openflow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
)

// PortDesc is a port of the bridge.
type PortDesc struct {
	// Port is its OpenFlow number (ofport).
	Port uint32
	Name string
	MAC  net.HardwareAddr
	// AdminDown is set when it is switched off, LinkDown when it has no link.
	AdminDown, LinkDown bool
	// Config is what keeps the port from some packets.
	Config PortConfig
}

// PortConfig are bits of ofp_port_config (OpenFlow 1.4, section 7.2.1).
type PortConfig uint32

// What a port can be told not to do.
const (
	PortNoReceive  PortConfig = 1 << 2 // take packets
	PortNoForward  PortConfig = 1 << 5 // send packets
	PortNoPacketIn PortConfig = 1 << 6 // have packets sent to the controller

	// PortBlocked are all of them.
	PortBlocked = PortNoReceive | PortNoForward | PortNoPacketIn
)

// Length of ofp_port before its properties, and the bits of its config and
// state that are read here (OpenFlow 1.4, section 7.2.1).
const (
	portFixed      = 40
	portConfigDown = 1 << 0
	portStateDown  = 1 << 0
)

// decodePortDesc reads the body of a reply of type OFPMP_PORT_DESC.
func decodePortDesc(b []byte, to []PortDesc) ([]PortDesc, error) {
	for len(b) > 0 {
		one, rest, err := cutRecord(b, "port description", 4, portFixed)
		if err != nil {
			return nil, err
		}
		name, _, _ := bytes.Cut(one[16:32], []byte{0})
		to = append(to, PortDesc{
			Port: binary.BigEndian.Uint32(one), Name: string(name), MAC: bytes.Clone(one[8:14]),
			AdminDown: binary.BigEndian.Uint32(one[32:])&portConfigDown != 0,
			Config:    PortConfig(binary.BigEndian.Uint32(one[32:])) & PortBlocked,
			LinkDown:  binary.BigEndian.Uint32(one[36:])&portStateDown != 0,
		})
		b = rest
	}
	return to, nil
}

// appendPortMod writes an OFPT_PORT_MOD that makes the bits in mask of the port's
// configuration what config says (OpenFlow 1.4, section 7.3.4.3).
func appendPortMod(b []byte, xid uint32, p PortDesc, config, mask PortConfig) []byte {
	start := len(b)
	b = appendMessageHeader(b, msgPortMod, xid)
	b = binary.BigEndian.AppendUint32(b, p.Port)
	b = append(b, 0, 0, 0, 0)
	b = append(b, p.MAC...)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(config))
	b = binary.BigEndian.AppendUint32(b, uint32(mask))
	return finishMessage(b, start)
}

// String is the port's number and name.
func (p PortDesc) String() string { return fmt.Sprintf("%s(%s)", portText(p.Port), p.Name) }
