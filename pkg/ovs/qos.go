package ovs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// SetQoS makes q the QoS of the port, or takes it away where q is nil, and
// reports whether there was something to do. The rows belong to the port: they
// are made in the transaction that refers to them, and go with it, so that none is
// ever left over. (QoS and Queue are root tables: the server never collects them.)
func (c *Client) SetQoS(ctx context.Context, port string, q *QoS) (changed bool, err error) {
	s, err := c.session()
	if err != nil {
		return false, fmt.Errorf("QoS of port %s: %w", port, err)
	}
	row, err := s.portByName(port)
	if err != nil {
		return false, fmt.Errorf("QoS of port %s: %w", port, err)
	}
	if row == nil {
		return false, fmt.Errorf("QoS of port %s: %w", port, ErrNoPort)
	}
	have := s.qosOf(row)
	if sameQoS(have, q) {
		return false, nil
	}
	_, err = s.transact(ctx, "QoS of port "+port, s.changeQoS(row, have, q))
	return err == nil, err
}

// changeQoS mends the rows that are there where their shape allows it: a change
// of a rate then keeps the queue's state in the kernel.
func (s *session) changeQoS(port *rowPort, have, q *QoS) []ovsdb.Operation {
	if q == nil {
		// A QoS that others use stays, and is not this port's any more.
		return append(s.dropQoS(port), update(tablePort, port.UUID, ovsdb.Row{"qos": refs()}))
	}
	if have != nil && have.Type == q.Type && s.ownsQoS(port) && slices.Equal(queueNumbers(have), queueNumbers(q)) {
		row := byUUID[rowQoS](s, tableQoS, *port.QoS)
		ops := []ovsdb.Operation{update(tableQoS, row.UUID, ovsdb.Row{"other_config": ovsMap(q.OtherConfig)})}
		for n, config := range q.Queues {
			ops = append(ops, update(tableQueue, row.Queues[n], ovsdb.Row{"other_config": ovsMap(config)}))
		}
		return ops
	}
	ops := s.dropQoS(port)
	queues := map[int]ovsdb.UUID{}
	for _, n := range queueNumbers(q) {
		name := "queue" + strconv.Itoa(n)
		ops = append(ops, insert(tableQueue, name, ovsdb.Row{"other_config": ovsMap(q.Queues[n])}))
		queues[n] = ovsdb.UUID{GoUUID: name}
	}
	return append(ops,
		insert(tableQoS, "qos", ovsdb.Row{"type": q.Type, "other_config": ovsMap(q.OtherConfig), "queues": ovsMap(queues)}),
		update(tablePort, port.UUID, ovsdb.Row{"qos": refs("qos")}))
}

// dropQoS are the operations that take the port's QoS away and delete it, and its
// queues, where no other port or QoS uses them; none where it has none of its own.
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

func sameQoS(a, b *QoS) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Type == b.Type && maps.Equal(a.OtherConfig, b.OtherConfig) &&
		maps.EqualFunc(a.Queues, b.Queues, maps.Equal[map[string]string, map[string]string])
}

func queueNumbers(q *QoS) []int { return slices.Sorted(maps.Keys(q.Queues)) }
