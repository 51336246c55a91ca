package ovs

import (
	"maps"
	"slices"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// dropQoS are the operations that take the port's QoS away and delete it, and its
// queues, where no other port or QoS uses them; none where it has none of its own. (They are root
// tables: the server never collects their rows.)
func (s *session) dropQoS(port *rowPort) []ovsdb.Operation {
	if !s.ownsQoS(port) {
		return nil
	}
	row := byUUID[rowQoS](s, tableQoS, *port.QoS)
	if row == nil {
		return nil
	}
	shared := map[string]bool{}
	for uuid, m := range s.table(tableQoS).RowsShallow() {
		if uuid != row.UUID {
			for _, q := range m.(*rowQoS).Queues {
				shared[q] = true
			}
		}
	}
	// The server refuses to delete a row that a Port row refers to, also where
	// the transaction leaves that row to be collected.
	ops := []ovsdb.Operation{
		update(tablePort, port.UUID, ovsdb.Row{"qos": refs()}),
		remove(tableQoS, row.UUID),
	}
	for _, n := range slices.Sorted(maps.Keys(row.Queues)) {
		if uuid := row.Queues[n]; !shared[uuid] {
			ops = append(ops, remove(tableQueue, uuid))
			shared[uuid] = true
		}
	}
	return ops
}

// ownsQoS reports whether the port has a QoS that no other port has, or may get
// (see [Client.ShareQoS]).
func (s *session) ownsQoS(port *rowPort) bool {
	if port.QoS == nil {
		return false
	}
	if row := byUUID[rowQoS](s, tableQoS, *port.QoS); row != nil && row.ExternalIDs[keyShared] != "" {
		return false
	}
	for uuid, m := range s.table(tablePort).RowsShallow() {
		if other := m.(*rowPort); uuid != port.UUID && other.QoS != nil && *other.QoS == *port.QoS {
			return false
		}
	}
	return true
}

func (s *session) qosOf(port *rowPort) *QoS {
	if port.QoS == nil {
		return nil
	}
	row := byUUID[rowQoS](s, tableQoS, *port.QoS)
	if row == nil {
		return nil
	}
	q := &QoS{Type: row.Type, OtherConfig: row.OtherConfig, Queues: map[int]map[string]string{}}
	for n, uuid := range row.Queues {
		if queue := byUUID[rowQueue](s, tableQueue, uuid); queue != nil {
			q.Queues[n] = queue.OtherConfig
		}
	}
	return q
}
