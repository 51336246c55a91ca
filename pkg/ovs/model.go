package ovs

import (
	"maps"
	"reflect"
	"slices"

	"github.com/ovn-org/libovsdb/model"
)

// The rows that are monitored, with the columns that are used and no others:
// statistics alone would wake the agent every few seconds for every port.
// Column meanings: ovs-vswitchd.conf.db(5).
//
// CloneModel keeps libovsdb's cache from copying rows through JSON.

const database = "Open_vSwitch"

const (
	tableOVS       = "Open_vSwitch"
	tableBridge    = "Bridge"
	tablePort      = "Port"
	tableInterface = "Interface"
	tableQoS       = "QoS"
	tableQueue     = "Queue"
	tableMirror    = "Mirror"
)

// packetRate is the column of interfaces by which schemas differ.
const packetRate = "ingress_policing_kpkts_rate"

type rowOVS struct {
	UUID          string            `ovsdb:"_uuid"`
	Bridges       []string          `ovsdb:"bridges"`
	NextCfg       int               `ovsdb:"next_cfg"`
	CurCfg        int               `ovsdb:"cur_cfg"`
	OVSVersion    *string           `ovsdb:"ovs_version"`
	DBVersion     *string           `ovsdb:"db_version"`
	DatapathTypes []string          `ovsdb:"datapath_types"`
	IfaceTypes    []string          `ovsdb:"iface_types"`
	ExternalIDs   map[string]string `ovsdb:"external_ids"`
	OtherConfig   map[string]string `ovsdb:"other_config"`
}

type rowBridge struct {
	UUID         string            `ovsdb:"_uuid"`
	Name         string            `ovsdb:"name"`
	DatapathType string            `ovsdb:"datapath_type"`
	DatapathID   *string           `ovsdb:"datapath_id"`
	FailMode     *string           `ovsdb:"fail_mode"`
	STP          bool              `ovsdb:"stp_enable"`
	RSTP         bool              `ovsdb:"rstp_enable"`
	Ports        []string          `ovsdb:"ports"`
	Protocols    []string          `ovsdb:"protocols"`
	Controller   []string          `ovsdb:"controller"`
	Mirrors      []string          `ovsdb:"mirrors"`
	FlowTables   map[int]string    `ovsdb:"flow_tables"`
	OtherConfig  map[string]string `ovsdb:"other_config"`
	ExternalIDs  map[string]string `ovsdb:"external_ids"`
}

type rowPort struct {
	UUID       string   `ovsdb:"_uuid"`
	Name       string   `ovsdb:"name"`
	Interfaces []string `ovsdb:"interfaces"`
	QoS        *string  `ovsdb:"qos"`
}

type rowInterface struct {
	UUID          string            `ovsdb:"_uuid"`
	Name          string            `ovsdb:"name"`
	Type          string            `ovsdb:"type"`
	Options       map[string]string `ovsdb:"options"`
	Ofport        *int              `ovsdb:"ofport"`
	OfportRequest *int              `ovsdb:"ofport_request"`
	MAC           *string           `ovsdb:"mac"`
	MACInUse      *string           `ovsdb:"mac_in_use"`
	MTU           *int              `ovsdb:"mtu"`
	MTURequest    *int              `ovsdb:"mtu_request"`
	Ifindex       *int              `ovsdb:"ifindex"`
	PolicingRate  int               `ovsdb:"ingress_policing_rate"`
	PacketRate    int               `ovsdb:"ingress_policing_kpkts_rate"`
	LinkState     *string           `ovsdb:"link_state"`
	Error         *string           `ovsdb:"error"`
	BFDStatus     map[string]string `ovsdb:"bfd_status"`
	ExternalIDs   map[string]string `ovsdb:"external_ids"`
	OtherConfig   map[string]string `ovsdb:"other_config"`
}

// rowInterfaceBefore is the row of a schema before 8.3.0 (Open vSwitch 2.16), which knows no rates of packets: a
// model with a column that the schema has not is refused whole. Its fields are those of rowInterface, so that
// the one can be taken for the other.
type rowInterfaceBefore struct {
	UUID          string            `ovsdb:"_uuid"`
	Name          string            `ovsdb:"name"`
	Type          string            `ovsdb:"type"`
	Options       map[string]string `ovsdb:"options"`
	Ofport        *int              `ovsdb:"ofport"`
	OfportRequest *int              `ovsdb:"ofport_request"`
	MAC           *string           `ovsdb:"mac"`
	MACInUse      *string           `ovsdb:"mac_in_use"`
	MTU           *int              `ovsdb:"mtu"`
	MTURequest    *int              `ovsdb:"mtu_request"`
	Ifindex       *int              `ovsdb:"ifindex"`
	PolicingRate  int               `ovsdb:"ingress_policing_rate"`
	PacketRate    int
	LinkState     *string           `ovsdb:"link_state"`
	Error         *string           `ovsdb:"error"`
	BFDStatus     map[string]string `ovsdb:"bfd_status"`
	ExternalIDs   map[string]string `ovsdb:"external_ids"`
	OtherConfig   map[string]string `ovsdb:"other_config"`
}

type rowQoS struct {
	UUID        string            `ovsdb:"_uuid"`
	Type        string            `ovsdb:"type"`
	Queues      map[int]string    `ovsdb:"queues"`
	OtherConfig map[string]string `ovsdb:"other_config"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type rowQueue struct {
	UUID        string            `ovsdb:"_uuid"`
	OtherConfig map[string]string `ovsdb:"other_config"`
}

type rowMirror struct {
	UUID       string  `ovsdb:"_uuid"`
	Name       string  `ovsdb:"name"`
	OutputPort *string `ovsdb:"output_port"`
	OutputVLAN *int    `ovsdb:"output_vlan"`
}

// rows has a row of each monitored table, that of interfaces as given.
func rows(iface model.Model) map[string]model.Model {
	return map[string]model.Model{
		tableOVS:       &rowOVS{},
		tableBridge:    &rowBridge{},
		tablePort:      &rowPort{},
		tableInterface: iface,
		tableQoS:       &rowQoS{},
		tableQueue:     &rowQueue{},
		tableMirror:    &rowMirror{},
	}
}

func clientModel(iface model.Model) (model.ClientDBModel, error) {
	return model.NewClientDBModel(database, rows(iface))
}

// columns are the columns of a row, without _uuid, which always comes, and fields that are none.
func columns(row model.Model) []string {
	t := reflect.TypeOf(row).Elem()
	var names []string
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("ovsdb"); name != "_uuid" && name != "" {
			names = append(names, name)
		}
	}
	return names
}

func (r *rowOVS) CloneModelInto(m model.Model) {
	c := m.(*rowOVS)
	*c = *r
	c.Bridges = slices.Clone(r.Bridges)
	c.OVSVersion = clonePtr(r.OVSVersion)
	c.DBVersion = clonePtr(r.DBVersion)
	c.DatapathTypes = slices.Clone(r.DatapathTypes)
	c.IfaceTypes = slices.Clone(r.IfaceTypes)
	c.ExternalIDs = maps.Clone(r.ExternalIDs)
	c.OtherConfig = maps.Clone(r.OtherConfig)
}

func (r *rowBridge) CloneModelInto(m model.Model) {
	c := m.(*rowBridge)
	*c = *r
	c.DatapathID = clonePtr(r.DatapathID)
	c.FailMode = clonePtr(r.FailMode)
	c.Ports = slices.Clone(r.Ports)
	c.Protocols = slices.Clone(r.Protocols)
	c.Controller = slices.Clone(r.Controller)
	c.Mirrors = slices.Clone(r.Mirrors)
	c.FlowTables = maps.Clone(r.FlowTables)
	c.OtherConfig = maps.Clone(r.OtherConfig)
	c.ExternalIDs = maps.Clone(r.ExternalIDs)
}

func (r *rowPort) CloneModelInto(m model.Model) {
	c := m.(*rowPort)
	*c = *r
	c.Interfaces = slices.Clone(r.Interfaces)
	c.QoS = clonePtr(r.QoS)
}

func (r *rowInterface) CloneModelInto(m model.Model) {
	c := m.(*rowInterface)
	*c = *r
	c.Options = maps.Clone(r.Options)
	c.Ofport = clonePtr(r.Ofport)
	c.OfportRequest = clonePtr(r.OfportRequest)
	c.MAC = clonePtr(r.MAC)
	c.MACInUse = clonePtr(r.MACInUse)
	c.MTU = clonePtr(r.MTU)
	c.MTURequest = clonePtr(r.MTURequest)
	c.Ifindex = clonePtr(r.Ifindex)
	c.LinkState = clonePtr(r.LinkState)
	c.Error = clonePtr(r.Error)
	c.BFDStatus = maps.Clone(r.BFDStatus)
	c.ExternalIDs = maps.Clone(r.ExternalIDs)
	c.OtherConfig = maps.Clone(r.OtherConfig)
}

func (r *rowInterfaceBefore) CloneModelInto(m model.Model) {
	(*rowInterface)(r).CloneModelInto((*rowInterface)(m.(*rowInterfaceBefore)))
}

func (r *rowQoS) CloneModelInto(m model.Model) {
	c := m.(*rowQoS)
	*c = *r
	c.Queues = maps.Clone(r.Queues)
	c.OtherConfig = maps.Clone(r.OtherConfig)
	c.ExternalIDs = maps.Clone(r.ExternalIDs)
}

func (r *rowQueue) CloneModelInto(m model.Model) {
	c := m.(*rowQueue)
	*c = *r
	c.OtherConfig = maps.Clone(r.OtherConfig)
}

func (r *rowMirror) CloneModelInto(m model.Model) {
	c := m.(*rowMirror)
	*c = *r
	c.OutputPort = clonePtr(r.OutputPort)
	c.OutputVLAN = clonePtr(r.OutputVLAN)
}

// CloneModel: see [model.CloneableModel].
func (r *rowOVS) CloneModel() model.Model             { return cloneRow(r) }
func (r *rowBridge) CloneModel() model.Model          { return cloneRow(r) }
func (r *rowPort) CloneModel() model.Model            { return cloneRow(r) }
func (r *rowInterface) CloneModel() model.Model       { return cloneRow(r) }
func (r *rowInterfaceBefore) CloneModel() model.Model { return cloneRow(r) }
func (r *rowQoS) CloneModel() model.Model             { return cloneRow(r) }
func (r *rowQueue) CloneModel() model.Model           { return cloneRow(r) }
func (r *rowMirror) CloneModel() model.Model          { return cloneRow(r) }

func cloneRow[T any, P interface {
	*T
	CloneModelInto(model.Model)
}](r P) P {
	c := P(new(T))
	r.CloneModelInto(c)
	return c
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
