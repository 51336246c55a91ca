package ovs

import (
	"context"
	"fmt"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// ownersColumns are what the owner of a port may have set there, and nobody here monitors.
var ownersColumns = []string{"tag", "trunks", "vlan_mode", "cvlans", "other_config", "external_ids"}

// RemakePort has ovs-vswitchd close a port of the bridge and open it again, with its device made anew where that is
// internal; a port that is not there is made. What spec does not say stays: VLANs, other_config and external_ids. A
// mirror of the port loses it.
func (c *Client) RemakePort(ctx context.Context, bridge string, spec PortSpec) error {
	what := "making port " + spec.Name + " of bridge " + bridge + " anew"
	s, err := c.session()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	named := []ovsdb.Condition{ovsdb.NewCondition("name", ovsdb.ConditionEqual, spec.Name)}
	found, err := s.transact(ctx, what, []ovsdb.Operation{{Op: ovsdb.OperationSelect, Table: tablePort, Where: named, Columns: ownersColumns}})
	if err != nil {
		return err
	}
	if err := c.DeletePort(ctx, bridge, spec.Name); err != nil {
		return err
	}
	if err := c.Sync(ctx); err != nil {
		return err
	}
	if _, err := c.EnsurePort(ctx, bridge, spec); err != nil {
		return err
	}
	for _, row := range found[0].Rows {
		if _, err := s.transact(ctx, what, []ovsdb.Operation{{Op: ovsdb.OperationUpdate, Table: tablePort, Where: named, Row: row}}); err != nil {
			return err
		}
	}
	return nil
}
