package ovs

import (
	"maps"
	"slices"

	"github.com/ovn-org/libovsdb/ovsdb"
)

// Operations are written out by hand rather than made by libovsdb's mapper:
// they name exactly the columns that are to change.

func insert(table, name string, row ovsdb.Row) ovsdb.Operation {
	return ovsdb.Operation{Op: ovsdb.OperationInsert, Table: table, UUIDName: name, Row: row}
}

func update(table, uuid string, row ovsdb.Row) ovsdb.Operation {
	return ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: table, Where: isRow(uuid), Row: row}
}

func remove(table, uuid string) ovsdb.Operation {
	return ovsdb.Operation{Op: ovsdb.OperationDelete, Table: table, Where: isRow(uuid)}
}

func mutate(table, uuid string, m ...ovsdb.Mutation) ovsdb.Operation {
	return ovsdb.Operation{Op: ovsdb.OperationMutate, Table: table, Where: isRow(uuid), Mutations: m}
}

func isRow(uuid string) []ovsdb.Condition {
	return []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: uuid})}
}

// addRef and delRef change a column of references by the elements named. The column is
// never written whole: another writer's element would be lost.
func addRef(column string, uuids ...string) ovsdb.Mutation {
	return *ovsdb.NewMutation(column, ovsdb.MutateOperationInsert, refs(uuids...))
}

func delRef(column, uuid string) ovsdb.Mutation {
	return *ovsdb.NewMutation(column, ovsdb.MutateOperationDelete, refs(uuid))
}

// refs is a set of rows, by UUID or by the name of an insert in the same transaction.
func refs(uuids ...string) ovsdb.OvsSet {
	set := ovsdb.OvsSet{GoSet: []any{}}
	for _, u := range uuids {
		set.GoSet = append(set.GoSet, ovsdb.UUID{GoUUID: u})
	}
	return set
}

func ovsSet[T any](values ...T) ovsdb.OvsSet {
	set := ovsdb.OvsSet{GoSet: []any{}}
	for _, v := range values {
		set.GoSet = append(set.GoSet, v)
	}
	return set
}

func ovsMap[K comparable, V any](m map[K]V) ovsdb.OvsMap {
	out := ovsdb.OvsMap{GoMap: map[any]any{}}
	for k, v := range m {
		out.GoMap[k] = v
	}
	return out
}

// ensureKeys are the mutations that make the map column hold want, leaving other
// keys as they are; none where have already does.
func ensureKeys(column string, have, want map[string]string) []ovsdb.Mutation {
	add := map[string]string{}
	var stale []string
	for _, k := range slices.Sorted(maps.Keys(want)) {
		v, ok := have[k]
		if ok && v == want[k] {
			continue
		}
		if ok {
			stale = append(stale, k)
		}
		add[k] = want[k]
	}
	if len(add) == 0 {
		return nil
	}
	var ms []ovsdb.Mutation
	// "insert" does not replace the value of a key that is there (RFC 7047, 5.1).
	if len(stale) > 0 {
		ms = append(ms, *ovsdb.NewMutation(column, ovsdb.MutateOperationDelete, ovsSet(stale...)))
	}
	return append(ms, *ovsdb.NewMutation(column, ovsdb.MutateOperationInsert, ovsMap(add)))
}

// setKeys is ensureKeys, which also takes away the keys that want gives the empty value.
func setKeys(column string, have, want map[string]string) []ovsdb.Mutation {
	keep, gone := map[string]string{}, []string{}
	for k, v := range want {
		if v != "" {
			keep[k] = v
		} else if _, ok := have[k]; ok {
			gone = append(gone, k)
		}
	}
	ms := ensureKeys(column, have, keep)
	if len(gone) > 0 {
		ms = append(ms, deleteKeys(column, gone))
	}
	return ms
}

// deleteKeys is the mutation that takes keys out of a map column.
func deleteKeys(column string, keys []string) ovsdb.Mutation {
	return *ovsdb.NewMutation(column, ovsdb.MutateOperationDelete, ovsSet(keys...))
}
