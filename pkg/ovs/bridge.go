package ovs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// Info is the state of Open vSwitch as a whole. It is zero while disconnected:
// see [Client.Connected].
func (c *Client) Info() Info {
	s, err := c.session()
	if err != nil {
		return Info{}
	}
	row := s.ovs()
	if row == nil {
		return Info{}
	}
	return Info{
		OVSVersion:    deref(row.OVSVersion),
		DBVersion:     deref(row.DBVersion),
		SystemID:      row.ExternalIDs["system-id"],
		DatapathTypes: sorted(row.DatapathTypes),
		IfaceTypes:    sorted(row.IfaceTypes),
		NextCfg:       row.NextCfg,
		CurCfg:        row.CurCfg,
		ExternalIDs:   row.ExternalIDs,
	}
}

// Init makes the row that all configuration hangs on where there is none, as `ovs-vsctl init`
// does: Open vSwitch's start scripts have it done, but not for a database that is lost later.
func (c *Client) Init(ctx context.Context) error {
	s, err := c.session()
	if err != nil || s.ovs() != nil {
		return err
	}
	// An operation without any column lacks its row.
	_, err = s.transact(ctx, "making the Open_vSwitch row of an empty database", []ovsdb.Operation{insert(tableOVS, "root", ovsdb.Row{"next_cfg": 0})})
	return err
}

// Bridge is the bridge of that name, as last heard; ok is false where there is
// none, and while disconnected.
func (c *Client) Bridge(name string) (b Bridge, ok bool) {
	s, err := c.session()
	if err != nil {
		return Bridge{}, false
	}
	row, err := s.bridgeByName(name)
	if err != nil || row == nil {
		return Bridge{}, false
	}
	return bridgeOf(row), true
}

// Bridges are all bridges, by name, as last heard.
func (c *Client) Bridges() ([]Bridge, error) {
	s, err := c.session()
	if err != nil {
		return nil, err
	}
	var out []Bridge
	for _, m := range s.table(tableBridge).Rows() {
		out = append(out, bridgeOf(m.(*rowBridge)))
	}
	slices.SortFunc(out, func(a, b Bridge) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func bridgeOf(row *rowBridge) Bridge {
	return Bridge{
		Name:         row.Name,
		DatapathType: row.DatapathType,
		FailMode:     deref(row.FailMode),
		DatapathID:   deref(row.DatapathID),
		Protocols:    sorted(row.Protocols),
		Controlled:   len(row.Controller) > 0,
		OtherConfig:  row.OtherConfig,
		ExternalIDs:  row.ExternalIDs,
	}
}

// EnsureBridge creates the bridge or mends what differs from spec, and reports
// whether there was something to do. It returns when the change is committed:
// ovs-vswitchd takes it up afterwards, see [Client.Sync].
func (c *Client) EnsureBridge(ctx context.Context, spec BridgeSpec) (changed bool, err error) {
	if err := validName("bridge", spec.Name); err != nil {
		return false, err
	}
	s, err := c.session()
	if err != nil {
		return false, fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	row, err := s.bridgeByName(spec.Name)
	if err != nil {
		return false, fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	var ops []ovsdb.Operation
	if row == nil {
		root := s.ovs()
		if root == nil {
			return false, fmt.Errorf("bridge %s: the database has no Open_vSwitch row; start Open vSwitch with its own scripts (ovs-vsctl --no-wait init) first", spec.Name)
		}
		ops = append(s.endRestoreWait(), createBridge(root.UUID, spec)...)
	} else if ops, err = c.mendBridge(s, row, spec); err != nil {
		return false, err
	}
	if len(ops) == 0 {
		return false, nil
	}
	_, err = s.transact(ctx, "bridge "+spec.Name, ops)
	return err == nil, err
}

// otherConfig is what spec asks of the bridge's other_config.
func (b BridgeSpec) otherConfig() map[string]string {
	oc := map[string]string{}
	maps.Copy(oc, b.OtherConfig)
	if b.MAC != nil {
		oc["hwaddr"] = b.MAC.String()
	}
	return oc
}

func createBridge(root string, spec BridgeSpec) []ovsdb.Operation {
	iface := ovsdb.Row{"name": spec.Name, "type": "internal"}
	if spec.LocalMTU != 0 {
		iface["mtu_request"] = spec.LocalMTU
	}
	bridge := ovsdb.Row{
		"name":         spec.Name,
		"ports":        refs("port"),
		"other_config": ovsMap(spec.otherConfig()),
		"external_ids": ovsMap(spec.ExternalIDs),
	}
	if spec.DatapathType != "" {
		bridge["datapath_type"] = spec.DatapathType
	}
	if spec.FailMode != "" {
		bridge["fail_mode"] = spec.FailMode
	}
	return []ovsdb.Operation{
		insert(tableInterface, "iface", iface),
		insert(tablePort, "port", ovsdb.Row{"name": spec.Name, "interfaces": refs("iface")}),
		insert(tableBridge, "bridge", bridge),
		mutate(tableOVS, root, addRef("bridges", "bridge")),
	}
}

func (c *Client) mendBridge(s *session, row *rowBridge, spec BridgeSpec) ([]ovsdb.Operation, error) {
	set := ovsdb.Row{}
	if spec.DatapathType != "" && row.DatapathType != spec.DatapathType {
		set["datapath_type"] = spec.DatapathType
	}
	if spec.FailMode != "" && deref(row.FailMode) != spec.FailMode {
		set["fail_mode"] = spec.FailMode
	}
	if spec.NoSpanningTree && row.STP {
		set["stp_enable"] = false
	}
	if spec.NoSpanningTree && row.RSTP {
		set["rstp_enable"] = false
	}
	lacks := slices.DeleteFunc(slices.Clone(spec.Protocols), func(p string) bool { return slices.Contains(row.Protocols, p) })
	if len(row.Protocols) > 0 && len(lacks) > 0 { // none named is all
		set["protocols"] = ovsSet(append(lacks, row.Protocols...)...)
	}
	if spec.NoFlowLimits && len(row.FlowTables) > 0 {
		set["flow_tables"] = ovsMap(map[int]string{})
	}
	if spec.NoControllers && len(row.Controller) > 0 {
		set["controller"] = refs()
	}
	var ops []ovsdb.Operation
	if len(set) > 0 {
		ops = append(ops, update(tableBridge, row.UUID, set))
	}
	ms := ensureKeys("other_config", row.OtherConfig, spec.otherConfig())
	for _, uuid := range row.Mirrors {
		if s.mirrorsInto(uuid, spec.Keeps) {
			ms = append(ms, delRef("mirrors", uuid))
		}
	}
	ms = append(ms, ensureKeys("external_ids", row.ExternalIDs, spec.ExternalIDs)...)
	if len(ms) > 0 {
		ops = append(ops, mutate(tableBridge, row.UUID, ms...))
	}
	local, err := s.interfaceByName(spec.Name)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", spec.Name, err)
	}
	if len(ops) > 0 {
		c.log.Warn("a bridge's settings differ from what they should be: putting them right", "bridge", spec.Name, "columns", columnsOf(set, ms))
	}
	if spec.LocalMTU != 0 && local != nil && deref(local.MTURequest) != spec.LocalMTU {
		ops = append(ops, update(tableInterface, local.UUID, ovsdb.Row{"mtu_request": spec.LocalMTU}))
	}
	return ops, nil
}

// columnsOf are those that set and ms write.
func columnsOf(set ovsdb.Row, ms []ovsdb.Mutation) []string {
	names := slices.Collect(maps.Keys(set))
	for _, m := range ms {
		names = append(names, m.Column)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// mirrorsInto reports whether the mirror puts copies into a port that keeps names, or into a VLAN.
func (s *session) mirrorsInto(uuid string, keeps func(port string) bool) bool {
	m := byUUID[rowMirror](s, tableMirror, uuid)
	if keeps == nil || m == nil {
		return false
	}
	port := byUUID[rowPort](s, tablePort, deref(m.OutputPort))
	return m.OutputVLAN != nil || port != nil && keeps(port.Name)
}

// SetExternalIDs ensures keys of the bridge's external_ids; a key with the
// empty value is removed. Other keys stay. It writes only what differs.
func (c *Client) SetExternalIDs(ctx context.Context, bridge string, ids map[string]string) error {
	s, row, err := c.bridgeRow(bridge)
	if err != nil {
		return err
	}
	ms := setKeys("external_ids", row.ExternalIDs, ids)
	if len(ms) == 0 {
		return nil
	}
	_, err = s.transact(ctx, "external_ids of bridge "+bridge, []ovsdb.Operation{mutate(tableBridge, row.UUID, ms...)})
	return err
}

// DeleteBridge removes the bridge with all its ports, and their QoS, if it is
// there. It is for uninstalling and for tests: the product never recreates a bridge.
func (c *Client) DeleteBridge(ctx context.Context, name string) error {
	s, err := c.session()
	if err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	row, err := s.bridgeByName(name)
	if err != nil || row == nil {
		return err
	}
	root := s.ovs()
	ops := []ovsdb.Operation{mutate(tableOVS, root.UUID, delRef("bridges", row.UUID))}
	for _, uuid := range row.Ports {
		if port := byUUID[rowPort](s, tablePort, uuid); port != nil {
			ops = append(ops, s.dropQoS(port)...)
		}
	}
	if _, err = s.transact(ctx, "deleting bridge "+name, ops); err != nil {
		return err
	}
	return s.collectShared(ctx, name)
}

// ConfigNumber is a state of the configuration: next_cfg and cur_cfg of
// ovs-vswitchd.conf.db(5) count them. 0 is one that needs no waiting for.
type ConfigNumber int

// Sync asks ovs-vswitchd to apply the configuration as it is now and waits until
// it has: all ports that the bridges have are then in their datapaths, or have an
// error. It returns ctx's error when ctx ends first: ovs-vswitchd is down or busy.
func (c *Client) Sync(ctx context.Context) error {
	s, err := c.session()
	if err != nil {
		return fmt.Errorf("waiting for ovs-vswitchd: %w", err)
	}
	config, err := s.applied(ctx, "waiting for ovs-vswitchd", nil)
	if err != nil {
		return err
	}
	return c.WaitApplied(ctx, config)
}

// Writable is nil when ovsdb-server writes down what it is told: else a [*StorageError]. It
// writes only where the last attempt failed, and nothing that matters.
func (c *Client) Writable(ctx context.Context) error {
	s, err := c.session()
	if err != nil || !s.unsaved.Load() {
		return err
	}
	// A small one may find room in the last page of the file, and the next pod's would not.
	blanks := strings.Repeat(" ", roomForMore)
	_, err = s.applied(ctx, "looking whether there is room", []ovsdb.Operation{{Op: ovsdb.OperationComment, Comment: &blanks}})
	if err == nil {
		s.unsaved.Store(false)
	}
	return err
}

// roomForMore is how large the transaction is, in bytes, that looks whether there is room: that
// of a pod's port has less than a quarter of it.
const roomForMore = 4096

// applied commits ops, and asks ovs-vswitchd to say when it has applied them.
func (s *session) applied(ctx context.Context, what string, ops []ovsdb.Operation) (ConfigNumber, error) {
	root := s.ovs()
	if root == nil {
		return 0, fmt.Errorf("%s: the database has no Open_vSwitch row", what)
	}
	ops = append(slices.Clip(ops),
		mutate(tableOVS, root.UUID, *ovsdb.NewMutation("next_cfg", ovsdb.MutateOperationAdd, 1)),
		ovsdb.Operation{Op: ovsdb.OperationSelect, Table: tableOVS, Where: isRow(root.UUID), Columns: []string{"next_cfg"}},
	)
	results, err := s.transact(ctx, what, ops)
	if err != nil {
		return 0, err
	}
	config, ok := selectedInt(results[len(ops)-1], "next_cfg")
	if !ok {
		return 0, fmt.Errorf("%s: unexpected answer from ovsdb-server: %v", what, results[len(ops)-1])
	}
	return ConfigNumber(config), nil
}

// WaitApplied waits until ovs-vswitchd has applied that configuration. It returns ctx's
// error when ctx ends first.
func (c *Client) WaitApplied(ctx context.Context, config ConfigNumber) error {
	ch, done := c.waiters.add(syncWaiter)
	defer done()
	for config > 0 {
		if s, err := c.session(); err == nil {
			if root := s.ovs(); root != nil && root.CurCfg >= int(config) {
				return nil
			}
		}
		select {
		case <-ch:
		case <-c.done:
			return fmt.Errorf("waiting for ovs-vswitchd: client is closed: %w", ErrDisconnected)
		case <-ctx.Done():
			return fmt.Errorf("waiting for ovs-vswitchd to apply configuration %d: %w; is it running?", config, ctx.Err())
		}
	}
	return nil
}

func selectedInt(r ovsdb.OperationResult, column string) (int, bool) {
	if len(r.Rows) != 1 {
		return 0, false
	}
	f, ok := r.Rows[0][column].(float64) // JSON's only kind of number
	return int(f), ok
}

// bridgeRow is the row of a bridge that must be there.
func (c *Client) bridgeRow(name string) (*session, *rowBridge, error) {
	s, err := c.session()
	if err != nil {
		return nil, nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	row, err := s.bridgeByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	if row == nil {
		return nil, nil, fmt.Errorf("bridge %s: %w", name, ErrNoBridge)
	}
	return s, row, nil
}
