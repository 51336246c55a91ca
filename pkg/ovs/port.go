package ovs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// maxName is the longest name of a network device: IFNAMSIZ of linux/if.h less
// the final zero.
const maxName = 15

// Ports are the ports of a bridge by name, its local port included, as last heard.
func (c *Client) Ports(bridge string) ([]Port, error) {
	s, row, err := c.bridgeRow(bridge)
	if err != nil {
		return nil, err
	}
	out := make([]Port, 0, len(row.Ports))
	for _, uuid := range row.Ports {
		// A row may be gone between the two reads: it is then deleted, too.
		if port := byUUID[rowPort](s, tablePort, uuid); port != nil {
			if p, ok := s.port(row.Name, port); ok {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// PortsOfType are the ports of all bridges with an interface of that type and of the port's name, as last heard, by name.
func (c *Client) PortsOfType(kind string) ([]Port, error) {
	s, err := c.session()
	if err != nil {
		return nil, err
	}
	var out []Port
	for _, m := range s.table(tableInterface).RowsShallow() {
		row, ok := m.(*rowInterface)
		if before, is := m.(*rowInterfaceBefore); is {
			row, ok = (*rowInterface)(before), true
		}
		if ok && row.Type == kind {
			if p, ok := c.Port(row.Name); ok {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Port is the port of that name on whatever bridge, as last heard; ok is false
// where there is none, and while disconnected.
func (c *Client) Port(name string) (p Port, ok bool) {
	s, err := c.session()
	if err != nil {
		return Port{}, false
	}
	row, err := s.portByName(name)
	if err != nil || row == nil {
		return Port{}, false
	}
	bridge := s.bridgeOfPort(row.UUID)
	if bridge == nil {
		return Port{}, false
	}
	return s.port(bridge.Name, row)
}

func (s *session) port(bridge string, row *rowPort) (Port, bool) {
	if len(row.Interfaces) == 0 {
		return Port{}, false
	}
	i := s.interfaceByUUID(row.Interfaces[0])
	if i == nil {
		return Port{}, false
	}
	p := Port{
		Bridge:        bridge,
		Name:          row.Name,
		Type:          kindOf(i.Type),
		Ofport:        uint32(max(0, deref(i.Ofport))),
		OfportRequest: uint32(deref(i.OfportRequest)),
		MTU:           deref(i.MTU),
		MTURequest:    deref(i.MTURequest),
		Up:            deref(i.LinkState) == "up",
		Ifindex:       deref(i.Ifindex),
		ExternalIDs:   i.ExternalIDs,
		Options:       i.Options,
		OtherConfig:   i.OtherConfig,
		Policed:       i.PolicingRate != 0 || i.PacketRate != 0,
		BFDStatus:     i.BFDStatus,
		QoS:           s.qosOf(row),
	}
	if p.Ofport == 0 {
		// The column says why the number is -1 (ovs-vswitchd.conf.db(5)). Once there is a
		// number, the text of an attempt before it may still be there for a second.
		p.Error = deref(i.Error)
	}
	if mac, err := net.ParseMAC(deref(i.MACInUse)); err == nil {
		p.MAC = mac
	}
	return p, true
}

// AddPort puts a port on the bridge. A port of that name that is there already, on
// whatever bridge, is replaced by it, QoS and all: nothing of the old one stays. It
// returns when the change is committed; the OpenFlow port number comes with
// [Client.WaitOfport]. Calls that come at once share a transaction, so that
// ovs-vswitchd looks at its ports once for all of them; one that ovsdb-server refuses
// keeps no other from being made.
func (c *Client) AddPort(ctx context.Context, bridge string, spec PortSpec) error {
	if err := validName("port", spec.Name); err != nil {
		return err
	}
	result, err := c.adding.Do(ctx, newPort{bridge, spec})
	if err != nil {
		return fmt.Errorf("adding port %s to bridge %s: %w", spec.Name, bridge, err)
	}
	return result
}

// addAtOnce is how many ports one transaction makes: what it is refused for is found by
// making each alone, which should not take long.
const addAtOnce = 64

type newPort struct {
	bridge string
	spec   PortSpec
}

// addPorts makes ports, in one transaction for each bridge; where that fails, each alone.
func (c *Client) addPorts(ctx context.Context, ports []newPort) []error {
	errs := make([]error, len(ports))
	for _, group := range byBridge(ports) {
		err := c.addTogether(ctx, ports, group)
		for _, i := range group {
			errs[i] = err
			if err != nil && len(group) > 1 && !errors.Is(err, ErrDisconnected) && ctx.Err() == nil {
				errs[i] = c.addTogether(ctx, ports, []int{i})
			}
		}
	}
	return errs
}

// byBridge groups ports, by index. Two of one name are in two groups, in their order.
func byBridge(ports []newPort) [][]int {
	var groups [][]int
next:
	for i, p := range ports {
		for g := len(groups) - 1; g >= 0; g-- {
			named := slices.ContainsFunc(groups[g], func(j int) bool { return ports[j].spec.Name == p.spec.Name })
			if named {
				break
			}
			if ports[groups[g][0]].bridge == p.bridge {
				groups[g] = append(groups[g], i)
				continue next
			}
		}
		groups = append(groups, []int{i})
	}
	return groups
}

func (c *Client) addTogether(ctx context.Context, ports []newPort, group []int) error {
	specs := make([]PortSpec, len(group))
	for k, i := range group {
		specs[k] = ports[i].spec
	}
	return retryOvertaken(func() error { return c.addGroup(ctx, ports[group[0]].bridge, specs) })
}

func (c *Client) addGroup(ctx context.Context, bridge string, specs []PortSpec) error {
	what := "adding port " + specs[0].Name + " to bridge " + bridge
	if len(specs) > 1 {
		what = fmt.Sprintf("adding ports %s and %d others to bridge %s", specs[0].Name, len(specs)-1, bridge)
	}
	s, row, err := c.bridgeRow(bridge)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var ops []ovsdb.Operation
	for _, spec := range specs {
		old, err := s.portByName(spec.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		ops = append(ops, s.dropPort(old)...)
	}
	return s.commitPort(ctx, bridge, what, append(ops, s.insertPorts(row, specs)...))
}

// commitPort commits ops that add ports, the last of which changes the bridge's row.
func (s *session) commitPort(ctx context.Context, bridge, what string, ops []ovsdb.Operation) error {
	ops = append(s.endRestoreWait(), ops...)
	results, err := s.transact(ctx, what, ops)
	if err != nil {
		return err
	}
	// Rows that nothing refers to are dropped by the server: nothing is left over.
	if results[len(ops)-1].Count == 0 {
		return fmt.Errorf("%s: bridge %s was deleted meanwhile: %w", what, bridge, ErrNoBridge)
	}
	return nil
}

// insertPorts makes the rows of ports that are not there, of one bridge.
func (s *session) insertPorts(bridge *rowBridge, specs []PortSpec) []ovsdb.Operation {
	var ops []ovsdb.Operation
	shared := map[string]string{} // the QoS of each type, by its reference
	var added []string
	for i, spec := range specs {
		iface, name := "iface"+strconv.Itoa(i), "port"+strconv.Itoa(i)
		port := ovsdb.Row{"name": spec.Name, "interfaces": refs(iface)}
		if kind := spec.SharedQoS; kind != "" {
			if shared[kind] == "" {
				ref, made := s.sharedQoS(bridge.Name, kind, "shared"+strconv.Itoa(len(shared)))
				shared[kind], ops = ref, append(ops, made...)
			}
			port["qos"] = refs(shared[kind])
		}
		ops = append(ops, insert(tableInterface, iface, interfaceRow(spec)), insert(tablePort, name, port))
		added = append(added, name)
	}
	return append(ops, mutate(tableBridge, bridge.UUID, addRef("ports", added...)))
}

func interfaceRow(spec PortSpec) ovsdb.Row {
	row := ovsdb.Row{
		"name":         spec.Name,
		"type":         spec.Type,
		"options":      ovsMap(spec.Options),
		"external_ids": ovsMap(spec.ExternalIDs),
		"other_config": ovsMap(spec.OtherConfig),
	}
	if spec.OfportRequest != 0 {
		row["ofport_request"] = int(spec.OfportRequest)
	}
	if spec.MTURequest != 0 {
		row["mtu_request"] = spec.MTURequest
	}
	if spec.MAC != nil {
		row["mac"] = spec.MAC.String()
	}
	return row
}

// EnsurePort adds the port, or mends what differs from spec, and reports whether
// there was something to do. A port of that name on another bridge is an error.
func (c *Client) EnsurePort(ctx context.Context, bridge string, spec PortSpec) (changed bool, err error) {
	if err := validName("port", spec.Name); err != nil {
		return false, err
	}
	s, row, err := c.bridgeRow(bridge)
	if err != nil {
		return false, fmt.Errorf("port %s: %w", spec.Name, err)
	}
	port, err := s.portByName(spec.Name)
	if err != nil {
		return false, fmt.Errorf("port %s: %w", spec.Name, err)
	}
	if port == nil {
		err := s.commitPort(ctx, bridge, "adding port "+spec.Name+" to bridge "+bridge, s.insertPorts(row, []PortSpec{spec}))
		return err == nil, err
	}
	if !slices.Contains(row.Ports, port.UUID) {
		other := "another bridge"
		if b := s.bridgeOfPort(port.UUID); b != nil {
			other = "bridge " + b.Name
		}
		return false, fmt.Errorf("port %s is on %s, not on %s; remove it there (ovs-vsctl del-port %s) or choose another name", spec.Name, other, bridge, spec.Name)
	}
	iface, err := s.interfaceByName(spec.Name)
	if err != nil {
		return false, fmt.Errorf("port %s: %w", spec.Name, err)
	}
	if iface == nil {
		return false, fmt.Errorf("port %s of bridge %s has no interface of its own name (is it a bond?); choose another name", spec.Name, bridge)
	}
	ops := mendInterface(iface, spec)
	if spec.NoQueue && port.QoS != nil {
		ops = append(ops, s.dropQoS(port)...)
		ops = append(ops, update(tablePort, port.UUID, ovsdb.Row{"qos": refs()}))
	}
	if len(ops) == 0 {
		return false, nil
	}
	_, err = s.transact(ctx, "changing port "+spec.Name+" of bridge "+bridge, ops)
	return err == nil, err
}

// MendPorts mends what differs from specs of ports of the bridge that are there, all in one transaction.
func (c *Client) MendPorts(ctx context.Context, bridge string, specs []PortSpec) error {
	s, row, err := c.bridgeRow(bridge)
	if err != nil {
		return fmt.Errorf("ports of pods: %w", err)
	}
	var ops []ovsdb.Operation
	for _, spec := range specs {
		port, err := s.portByName(spec.Name)
		if err != nil {
			return fmt.Errorf("port %s: %w", spec.Name, err)
		}
		iface, err := s.interfaceByName(spec.Name)
		if err != nil {
			return fmt.Errorf("port %s: %w", spec.Name, err)
		}
		if port != nil && iface != nil && slices.Contains(row.Ports, port.UUID) {
			ops = append(ops, mendInterface(iface, spec)...)
		}
	}
	if len(ops) == 0 {
		return nil
	}
	_, err = s.transact(ctx, "changing ports of bridge "+bridge, ops)
	return err
}

// kindOf is the type of a port; a network device is said in two ways.
func kindOf(kind string) string {
	if kind == "system" {
		return ""
	}
	return kind
}

func mendInterface(row *rowInterface, spec PortSpec) []ovsdb.Operation {
	set := ovsdb.Row{}
	if kindOf(row.Type) != kindOf(spec.Type) {
		set["type"] = spec.Type
	}
	if spec.Options != nil && !maps.Equal(row.Options, spec.Options) {
		set["options"] = ovsMap(spec.Options)
	}
	if spec.OfportRequest != 0 && deref(row.OfportRequest) != int(spec.OfportRequest) {
		set["ofport_request"] = int(spec.OfportRequest)
	}
	if spec.MTURequest != 0 && deref(row.MTURequest) != spec.MTURequest {
		set["mtu_request"] = spec.MTURequest
	}
	if spec.MAC != nil && !strings.EqualFold(deref(row.MAC), spec.MAC.String()) {
		set["mac"] = spec.MAC.String()
	}
	if spec.NotPoliced && row.PolicingRate != 0 {
		set["ingress_policing_rate"] = 0
	}
	if spec.NotPoliced && row.PacketRate != 0 {
		set[packetRate] = 0
	}
	if spec.Plain && row.MTURequest != nil {
		set["mtu_request"] = ovsSet[int]()
	}
	if spec.Plain && len(row.Options) > 0 {
		set["options"] = ovsMap(map[string]string{})
	}
	var ops []ovsdb.Operation
	if len(set) > 0 {
		ops = append(ops, update(tableInterface, row.UUID, set))
	}
	ms := setKeys("external_ids", row.ExternalIDs, spec.ExternalIDs)
	ms = append(ms, ensureKeys("other_config", row.OtherConfig, spec.OtherConfig)...)
	if len(ms) > 0 {
		ops = append(ops, mutate(tableInterface, row.UUID, ms...))
	}
	return ops
}

// DeletePort removes the port from the bridge, with the QoS and queue rows that
// no other port uses. A port, or a bridge, that is not there is no error; a port
// on another bridge is left alone.
func (c *Client) DeletePort(ctx context.Context, bridge, name string) error {
	_, err := c.DeletePorts(ctx, bridge, []string{name})
	return err
}

// DeletePorts is [Client.DeletePort] of several in one transaction, which ovs-vswitchd
// follows in one go. It returns when that is committed, and what to tell
// [Client.WaitApplied] to wait for the switch to have closed them.
func (c *Client) DeletePorts(ctx context.Context, bridge string, names []string) (ConfigNumber, error) {
	what := "deleting port " + strings.Join(names[:min(len(names), 1)], "") + " of bridge " + bridge
	if len(names) > 1 {
		what = fmt.Sprintf("deleting ports %s and %d others of bridge %s", names[0], len(names)-1, bridge)
	}
	s, err := c.session()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	row, err := s.bridgeByName(bridge)
	if err != nil || row == nil {
		return 0, err
	}
	var ops []ovsdb.Operation
	for _, name := range names {
		port, err := s.portByName(name)
		if err != nil {
			return 0, err
		}
		if port != nil && slices.Contains(row.Ports, port.UUID) {
			ops = append(ops, s.dropPort(port)...)
		}
	}
	var config ConfigNumber
	if len(ops) > 0 {
		if config, err = s.applied(ctx, what, ops); err != nil {
			return 0, err
		}
	}
	return config, s.collectShared(ctx, bridge)
}

// SetPortExternalIDs ensures keys of the external_ids of the port's interface; a
// key with the empty value is removed. Other keys stay.
func (c *Client) SetPortExternalIDs(ctx context.Context, name string, ids map[string]string) error {
	s, err := c.session()
	if err != nil {
		return fmt.Errorf("external_ids of port %s: %w", name, err)
	}
	row, err := s.interfaceByName(name)
	if err != nil {
		return fmt.Errorf("external_ids of port %s: %w", name, err)
	}
	if row == nil {
		return fmt.Errorf("external_ids of port %s: %w", name, ErrNoPort)
	}
	ms := setKeys("external_ids", row.ExternalIDs, ids)
	if len(ms) == 0 {
		return nil
	}
	_, err = s.transact(ctx, "external_ids of port "+name, []ovsdb.Operation{mutate(tableInterface, row.UUID, ms...)})
	return err
}

// dropPort are the operations that take a port off its bridge; none for nil. The
// server drops Port and Interface rows that no bridge refers to.
func (s *session) dropPort(port *rowPort) []ovsdb.Operation {
	if port == nil {
		return nil
	}
	var ops []ovsdb.Operation
	if bridge := s.bridgeOfPort(port.UUID); bridge != nil {
		ops = append(ops, mutate(tableBridge, bridge.UUID, delRef("ports", port.UUID)))
	}
	return append(ops, s.dropQoS(port)...)
}

func (s *session) bridgeOfPort(uuid string) *rowBridge {
	for _, m := range s.table(tableBridge).RowsShallow() {
		if row := m.(*rowBridge); slices.Contains(row.Ports, uuid) {
			return row
		}
	}
	return nil
}

func validName(what, name string) error {
	if name == "" {
		return fmt.Errorf("%s: its name is empty", what)
	}
	if len(name) > maxName || strings.ContainsAny(name, "/ \t\n") {
		return fmt.Errorf("%s %q: a network device's name has at most %d characters, no slash and no blank", what, name, maxName)
	}
	return nil
}

// sorted gives a set of the database, which has no order of its own, one.
func sorted(set []string) []string { return slices.Sorted(slices.Values(set)) }
