package store

import (
	"fmt"
	"maps"
	"slices"
)

// verb is what is done to a user or a role.
type verb string

const (
	addRole    verb = "add role"
	grant      verb = "grant a permission to role"
	addUser    verb = "add user"
	grantRole  verb = "grant a role to user"
	revokeRole verb = "revoke a role of user"
	deleteUser verb = "delete user"
	revoke     verb = "revoke a permission of role"
	deleteRole verb = "delete role"
)

// step is one change; role and perm are there where the verb takes them.
type step struct {
	verb verb
	name string
	role string
	perm Permission
}

// difference is what makes want of have, in an order in which nobody loses for a moment
// what he keeps.
func difference(have, want Access, ours func(string) bool) []step {
	var addRoles, addUsers, dropUsers, dropRoles []step
	for _, role := range slices.Sorted(maps.Keys(want.Roles)) {
		had, there := have.Roles[role]
		if !there {
			addRoles = append(addRoles, step{verb: addRole, name: role})
		}
		for _, p := range want.Roles[role] {
			if !slices.Contains(had, p) {
				addRoles = append(addRoles, step{verb: grant, name: role, perm: p})
			}
		}
		for _, p := range had {
			// A range that is granted otherwise was replaced by that grant; revoking it takes both.
			if !slices.ContainsFunc(want.Roles[role], func(w Permission) bool { return comparePermissions(p, w) == 0 }) {
				dropRoles = append(dropRoles, step{verb: revoke, name: role, perm: p})
			}
		}
	}
	for _, user := range slices.Sorted(maps.Keys(want.Users)) {
		had, there := have.Users[user]
		if !there {
			addUsers = append(addUsers, step{verb: addUser, name: user})
		}
		for _, role := range want.Users[user] {
			if !slices.Contains(had, role) {
				addUsers = append(addUsers, step{verb: grantRole, name: user, role: role})
			}
		}
		for _, role := range had {
			if !slices.Contains(want.Users[user], role) {
				dropUsers = append(dropUsers, step{verb: revokeRole, name: user, role: role})
			}
		}
	}
	for _, user := range slices.Sorted(maps.Keys(have.Users)) {
		if _, wanted := want.Users[user]; !wanted && ours(user) {
			dropUsers = append(dropUsers, step{verb: deleteUser, name: user})
		}
	}
	for _, role := range slices.Sorted(maps.Keys(have.Roles)) {
		if _, wanted := want.Roles[role]; !wanted && ours(role) {
			dropRoles = append(dropRoles, step{verb: deleteRole, name: role})
		}
	}
	return slices.Concat(addRoles, addUsers, dropUsers, dropRoles)
}

// Commands are what etcdctl would be told to make want of have: see [Auth.SetAccess].
func Commands(have, want Access, ours func(name string) bool) []string {
	var lines []string
	for _, st := range difference(have, want, ours) {
		lines = append(lines, "etcdctl "+st.command())
	}
	return lines
}

func (st step) command() string {
	span := func() string {
		if st.perm.End == "" {
			return fmt.Sprintf("'%s'", st.perm.From)
		}
		return fmt.Sprintf("'%s' '%s'", st.perm.From, st.perm.End)
	}
	switch st.verb {
	case addRole:
		return "role add " + st.name
	case grant:
		kind := "read"
		if st.perm.Write {
			kind = "readwrite"
		}
		return fmt.Sprintf("role grant-permission %s %s %s", st.name, kind, span())
	case addUser:
		return "user add --no-password " + st.name
	case grantRole:
		return fmt.Sprintf("user grant-role %s %s", st.name, st.role)
	case revokeRole:
		return fmt.Sprintf("user revoke-role %s %s", st.name, st.role)
	case deleteUser:
		return "user delete " + st.name
	case revoke:
		return fmt.Sprintf("role revoke-permission %s %s", st.name, span())
	}
	return "role delete " + st.name
}
