package ovs

import (
	"errors"
	"fmt"
	"net"
)

var (
	// ErrDisconnected: there is no connection to ovsdb-server now. The client
	// reconnects by itself; see [Client.WaitConnected]. Where a write returns it,
	// the write may or may not have been made: every write may be repeated.
	ErrDisconnected = errors.New("not connected to ovsdb-server")
	// ErrNoBridge: the bridge that an operation names is not there.
	ErrNoBridge = errors.New("no such bridge")
	// ErrNoPort: the port that an operation names is not there.
	ErrNoPort = errors.New("no such port")
)

// PortError is what Open vSwitch itself has to say about a port that it could
// not bring into the datapath (the error column of its Interface row).
type PortError struct {
	Port string
	// Text is Open vSwitch's own, empty where it gives none (ofport is -1).
	Text string
}

func (e *PortError) Error() string {
	text := e.Text
	if text == "" {
		text = "no reason given; see the log of ovs-vswitchd"
	}
	return fmt.Sprintf("Open vSwitch refuses port %s: %s", e.Port, text)
}

// StorageError says that ovsdb-server cannot write its database down: the disk is full, or
// read only. It passes when that does.
type StorageError struct {
	// Text is Open vSwitch's own, with the path of the file.
	Text string
}

func (e *StorageError) Error() string {
	return fmt.Sprintf("the database of Open vSwitch cannot be written (%s): free some space there", e.Text)
}

// Fail modes of a bridge: what it does without flows.
const (
	// FailSecure drops everything.
	FailSecure = "secure"
	// FailStandalone acts as a learning switch.
	FailStandalone = "standalone"
)

// Datapath types.
const (
	// DatapathSystem is the kernel module.
	DatapathSystem = "system"
	// DatapathNetdev is userspace.
	DatapathNetdev = "netdev"
)

// Info is the database's only Open_vSwitch row: the daemon as a whole.
type Info struct {
	// OVSVersion as ovs-vswitchd (or its start script) wrote it; may be empty.
	OVSVersion string
	// DBVersion of the schema, such as "8.3.1"; may be empty.
	DBVersion string
	// SystemID is external_ids:system-id; may be empty.
	SystemID string
	// DatapathTypes and IfaceTypes that ovs-vswitchd supports; empty until it
	// has started for the first time. Both are sorted.
	DatapathTypes, IfaceTypes []string
	// NextCfg counts requests to apply the configuration, CurCfg the last one
	// that ovs-vswitchd has applied. CurCfg stays behind while it is down.
	NextCfg, CurCfg int
	// ExternalIDs of the row.
	ExternalIDs map[string]string
}

// BridgeSpec says what a bridge should be. A zero field is left as it is.
// Maps are ensured key by key: keys that are not named stay.
type BridgeSpec struct {
	// Name of the bridge and of its local port, at most 15 characters.
	Name string
	// DatapathType is DatapathSystem or DatapathNetdev.
	DatapathType string
	// FailMode is FailSecure or FailStandalone.
	FailMode string
	// NoSpanningTree switches STP and RSTP off: they keep a new port from forwarding for
	// 30 s.
	NoSpanningTree bool
	// NoControllers takes away controllers that the bridge was given (ovs-vsctl set-controller):
	// they may change its flows. Its management socket stays.
	NoControllers bool
	// Keeps reports whether a port of that name is to have nothing but what flows give it: mirrors that put
	// copies of others' packets there are taken away, and those that put them into a VLAN, which are all
	// ports. nil leaves mirrors alone.
	Keeps func(port string) bool
	// MAC of the bridge and its local port (other_config:hwaddr).
	MAC net.HardwareAddr
	// LocalMTU, bytes, is asked for on the local port.
	LocalMTU int
	// Protocols are OpenFlow versions, such as "OpenFlow14", that are added where the bridge was told to speak
	// others only.
	Protocols []string
	// NoFlowLimits takes away limits of the bridge's flow tables (column flow_tables), by which flows are refused or
	// thrown out.
	NoFlowLimits bool
	// OtherConfig and ExternalIDs of the Bridge row.
	OtherConfig, ExternalIDs map[string]string
}

// PortSpec says what a port with one interface of the same name should be. A
// zero field is left as it is. Maps are ensured key by key, except Options,
// which are the whole configuration of a tunnel and replaced where they differ.
type PortSpec struct {
	// Name of port, interface and network device, at most 15 characters.
	Name string
	// Type is "" (a network device), "internal", "vxlan" or "patch".
	Type string
	// Options by type, such as remote_ip and key of a tunnel.
	Options map[string]string
	// OfportRequest is the OpenFlow port number wanted, 1 to 65279; 0 leaves the
	// choice to Open vSwitch, which also does not honour it when it is taken.
	OfportRequest uint32
	// MTURequest, bytes. Honoured on internal ports and on network devices.
	MTURequest int
	// MAC of an internal port.
	MAC net.HardwareAddr
	// NotPoliced takes away rates of what comes in by the port (columns ingress_policing_rate and
	// ingress_policing_kpkts_rate).
	NotPoliced bool
	// Plain takes away options, and an MTU that was asked for: the network device has the one that it has.
	Plain bool
	// NoQueue takes away a QoS of the port, and what Open vSwitch has put on its device for it.
	NoQueue bool
	// SharedQoS is the type, such as "linux-noop", of the QoS that the port is made
	// with and shares with other ports of the bridge; see [Client.ShareQoS] for a
	// port that is there.
	SharedQoS string
	// ExternalIDs and OtherConfig of the Interface row. Of a port that is there, a key of ExternalIDs with the
	// empty value is taken away.
	ExternalIDs, OtherConfig map[string]string
}

// Port is a port as the database has it: what was asked for and, from
// ovs-vswitchd, what became of it.
type Port struct {
	// Bridge that has the port.
	Bridge string
	Name   string
	// Type is as in [PortSpec].
	Type string
	// Ofport is the OpenFlow port number; 0 until ovs-vswitchd has given one
	// and where it could not.
	Ofport uint32
	// OfportRequest is the number asked for, 0 for none.
	OfportRequest uint32
	// Error is Open vSwitch's own text about what is wrong with a port that it has
	// not taken in; empty for one that it has.
	Error string
	// MTU in use and asked for, bytes; 0 where unknown or not asked for.
	MTU, MTURequest int
	// MAC in use; nil where unknown.
	MAC net.HardwareAddr
	// Up says whether the link has a carrier.
	Up bool
	// Ifindex of the network device, 0 where it has none.
	Ifindex                           int
	ExternalIDs, Options, OtherConfig map[string]string
	// Policed is that what comes in by the port is limited (column ingress_policing_rate or
	// ingress_policing_kpkts_rate).
	Policed bool
	// BFDStatus is what a tunnel's BFD session (RFC 5880) says; empty without.
	BFDStatus map[string]string
	// QoS of the port; nil without.
	QoS *QoS
}

// Bridge is a bridge as the database has it.
type Bridge struct {
	Name         string
	DatapathType string
	FailMode     string
	// DatapathID is 16 hexadecimal digits; empty until ovs-vswitchd has made the bridge.
	DatapathID string
	Protocols  []string // sorted
	// Controlled is that it has controllers, which give it its flows.
	Controlled  bool
	OtherConfig map[string]string
	ExternalIDs map[string]string
}

// QoS shapes what the switch sends out of a port.
type QoS struct {
	// Type is "linux-htb", "linux-hfsc", "linux-noop" and so on.
	Type string
	// OtherConfig by type, such as max-rate in bit/s.
	OtherConfig map[string]string
	// Queues by number, each with its other_config; queue 0 is the default.
	Queues map[int]map[string]string
}
