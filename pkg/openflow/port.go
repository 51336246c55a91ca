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
}

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
			LinkDown:  binary.BigEndian.Uint32(one[36:])&portStateDown != 0,
		})
		b = rest
	}
	return to, nil
}

// String is the port's number and name.
func (p PortDesc) String() string { return fmt.Sprintf("%s(%s)", portText(p.Port), p.Name) }
