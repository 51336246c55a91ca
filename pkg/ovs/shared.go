package ovs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// A QoS that all of a bridge's ports may share is one row for each type. It is
// made by the first port that asks for it and goes with the last: QoS is a root table,
// whose rows the server never collects.

// keyShared marks such a row in its external_ids; the value is the bridge.
const keyShared = "k8s-ovs"

// sharedTries bounds how often a transaction is made anew because another one made
// or removed the row in between.
const sharedTries = 10

// ShareQoS gives ports of the bridge the QoS of that type that its ports share,
// all in one transaction, and reports whether any had it not. Ports that are not
// there are left out.
func (c *Client) ShareQoS(ctx context.Context, bridge, kind string, ports []string) (changed bool, err error) {
	err = retryOvertaken(func() error {
		s, row, err := c.bridgeRow(bridge)
		if err != nil {
			return fmt.Errorf("QoS of pod ports: %w", err)
		}
		ref, ops := s.sharedQoS(bridge, kind, "shared")
		made := len(ops)
		for _, name := range ports {
			port, err := s.portByName(name)
			if err != nil {
				return fmt.Errorf("QoS of port %s: %w", name, err)
			}
			if port != nil && slices.Contains(row.Ports, port.UUID) && deref(port.QoS) != ref {
				ops = append(ops, s.dropQoS(port)...)
				ops = append(ops, update(tablePort, port.UUID, ovsdb.Row{"qos": refs(ref)}))
			}
		}
		if changed = len(ops) > made; !changed {
			return nil
		}
		_, err = s.transact(ctx, "sharing QoS "+kind+" among ports of bridge "+bridge, ops)
		return err
	})
	return changed && err == nil, err
}

// sharedQoS is the reference to the bridge's row of that type; where there is
// none, by name, that of the insert in ops, which fail where another has made it since.
func (s *session) sharedQoS(bridge, kind, name string) (ref string, ops []ovsdb.Operation) {
	for _, row := range s.sharedRows(bridge) {
		if row.Type == kind {
			return row.UUID, nil
		}
	}
	mark, now := ovsMap(map[string]string{keyShared: bridge}), 0
	return name, []ovsdb.Operation{
		{
			Op: ovsdb.OperationWait, Table: tableQoS, Timeout: &now, Until: string(ovsdb.WaitConditionNotEqual),
			Where: []ovsdb.Condition{
				ovsdb.NewCondition("external_ids", ovsdb.ConditionIncludes, mark), ovsdb.NewCondition("type", ovsdb.ConditionEqual, kind),
			},
			Columns: []string{"type"}, Rows: []ovsdb.Row{{"type": kind}},
		},
		insert(tableQoS, name, ovsdb.Row{"type": kind, "external_ids": mark}),
	}
}

// sharedRows are those of the bridge, in the same order for everybody.
func (s *session) sharedRows(bridge string) []*rowQoS {
	var rows []*rowQoS
	for _, m := range s.table(tableQoS).RowsShallow() {
		if row := m.(*rowQoS); row.ExternalIDs[keyShared] == bridge {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b *rowQoS) int { return cmp.Compare(a.UUID, b.UUID) })
	return rows
}

// collectShared deletes the bridge's shared rows that no port has any more. It is
// a transaction of its own: of two that each drop one of the last ports neither
// would see that it is the last.
func (s *session) collectShared(ctx context.Context, bridge string) error {
	used := map[string]bool{}
	for _, m := range s.table(tablePort).RowsShallow() {
		used[deref(m.(*rowPort).QoS)] = true
	}
	for _, row := range s.sharedRows(bridge) {
		if used[row.UUID] {
			continue
		}
		_, err := s.transact(ctx, "deleting the QoS of bridge "+bridge, []ovsdb.Operation{remove(tableQoS, row.UUID)})
		if err != nil && !overtaken(err) { // a port that has just come uses it
			return err
		}
	}
	return nil
}

// retryOvertaken repeats what another transaction overtook.
func retryOvertaken(attempt func() error) (err error) {
	for range sharedTries {
		if err = attempt(); !overtaken(err) {
			break
		}
	}
	return err
}

// overtaken reports whether a transaction failed because the row of a QoS was
// made, deleted or referred to since it was put together.
func overtaken(err error) bool {
	var made *ovsdb.TimedOut
	var gone *ovsdb.ReferentialIntegrityViolation
	return errors.As(err, &made) || errors.As(err, &gone)
}
