package store

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The roles that several users have. docs/identities.md says what each may do.
const (
	ReaderRole     = "k8s-ovs-reader"
	OperatorRole   = "k8s-ovs-operator"
	ControllerRole = "k8s-ovs-controller"
	// RootRole is etcd's own: everything, users and roles too.
	RootRole = "root"
)

// ErrNoUsers: this etcd has no users and roles, or does not heed them.
var ErrNoUsers = errors.New("etcd heeds no users and roles")

// Permission is a right to read keys, and to write them too.
type Permission struct {
	// From is the first key, End the first one behind; empty for one key only.
	From, End string
	Write     bool
	// blind is a right to write without reading, which is none of ours.
	blind bool
}

// Access is who may do what: the permissions of roles, the roles of users.
type Access struct {
	Roles map[string][]Permission
	Users map[string][]string
}

// Equal reports whether both say the same.
func (a Access) Equal(b Access) bool {
	return maps.EqualFunc(a.Roles, b.Roles, slices.Equal[[]Permission]) && maps.EqualFunc(a.Users, b.Users, slices.Equal[[]string])
}

// CommonRoles are those that several users have, in the network called name whose records
// are below prefix.
func CommonRoles(prefix, name string) map[string][]Permission {
	k := keyspace{prefix}
	return map[string][]Permission{
		ReaderRole:     {below(prefix+"/", false)},
		OperatorRole:   {below(k.kind(name, kindNamespaces), true), below(k.kind(name, kindNodes), true)},
		ControllerRole: {below(prefix+"/", true)},
	}
}

func below(prefix string, write bool) Permission {
	return Permission{From: prefix, End: clientv3.GetPrefixRangeEnd(prefix), Write: write}
}

// Auth is the users and roles of the etcd that has the records.
type Auth struct{ s *Store }

// Auth returns those of this store's.
func (s *Store) Auth() Auth { return Auth{s} }

// AuthState is whether etcd heeds its users.
type AuthState struct {
	Enabled bool
	// Revision counts the changes of users and roles.
	Revision uint64
}

// State reads whether etcd heeds its users: ErrNoUsers where this etcd has none, ErrDenied where the caller has
// not the role root.
func (a Auth) State(ctx context.Context) (AuthState, error) {
	r, err := call(ctx, a.s, "ask whether etcd heeds users", func(ctx context.Context, c *clientv3.Client) (*clientv3.AuthStatusResponse, error) {
		return c.AuthStatus(ctx)
	})
	if err != nil {
		return AuthState{}, noUsers(err)
	}
	return AuthState{Enabled: r.Enabled, Revision: r.AuthRevision}, nil
}

// noUsers recognises a store that speaks etcd's API without users.
func noUsers(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Cause != nil && status.Code(e.Cause) == codes.Unimplemented {
		e.Kind, e.Endpoints = ErrNoUsers, nil
	}
	return err
}

// Access reads users and roles as they are. Errors as of [Auth.State].
func (a Auth) Access(ctx context.Context) (Access, error) {
	have := Access{Roles: map[string][]Permission{}, Users: map[string][]string{}}
	roles, err := call(ctx, a.s, "list etcd's roles", func(ctx context.Context, c *clientv3.Client) (*clientv3.AuthRoleListResponse, error) {
		return c.RoleList(ctx)
	})
	if err != nil {
		return have, noUsers(err)
	}
	for _, name := range roles.Roles {
		r, err := call(ctx, a.s, "read etcd's role "+name, func(ctx context.Context, c *clientv3.Client) (*clientv3.AuthRoleGetResponse, error) {
			return c.RoleGet(ctx, name)
		})
		if missing(err) {
			continue
		}
		if err != nil {
			return have, err
		}
		have.Roles[name] = permissions(r)
	}
	users, err := call(ctx, a.s, "list etcd's users", func(ctx context.Context, c *clientv3.Client) (*clientv3.AuthUserListResponse, error) {
		return c.UserList(ctx)
	})
	if err != nil {
		return have, err
	}
	for _, name := range users.Users {
		u, err := call(ctx, a.s, "read etcd's user "+name, func(ctx context.Context, c *clientv3.Client) (*clientv3.AuthUserGetResponse, error) {
			return c.UserGet(ctx, name)
		})
		if missing(err) {
			continue
		}
		if err != nil {
			return have, err
		}
		have.Users[name] = slices.Sorted(slices.Values(u.Roles))
	}
	return have, nil
}

func permissions(r *clientv3.AuthRoleGetResponse) []Permission {
	all := make([]Permission, 0, len(r.Perm))
	for _, p := range r.Perm {
		all = append(all, Permission{
			From: string(p.Key), End: string(p.RangeEnd), Write: p.PermType != clientv3.PermRead, blind: p.PermType == clientv3.PermWrite,
		})
	}
	slices.SortFunc(all, comparePermissions)
	return all
}

func comparePermissions(a, b Permission) int {
	return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.End, b.End))
}

func missing(err error) bool {
	return errors.Is(err, rpctypes.ErrUserNotFound) || errors.Is(err, rpctypes.ErrRoleNotFound) || reason(err, rpctypes.ErrUserNotFound, rpctypes.ErrRoleNotFound)
}

// reason reports whether etcd's word on err is one of those.
func reason(err error, those ...error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Cause == nil {
		return false
	}
	for _, t := range those {
		if errors.Is(rpctypes.Error(e.Cause), t) {
			return true
		}
	}
	return false
}

// SetAccess makes users and roles what want says, where have is how they are: see
// [Auth.Access]. Of what want does not name it takes away only what ours names. It makes
// before it breaks. The error is that of the first step that fails; what was done stands.
func (a Auth) SetAccess(ctx context.Context, have, want Access, ours func(name string) bool) (changed int, err error) {
	for _, st := range difference(have, want, ours) {
		began := time.Now()
		if err := a.change(ctx, st); err != nil {
			return changed, err
		}
		changed++
		// etcd refuses the requests that a change overtakes, and one change after the
		// other would overtake their repetitions too. A pause as long as the change took
		// lets them pass.
		select {
		case <-ctx.Done():
		case <-time.After(time.Since(began)):
		}
	}
	return changed, nil
}

// change carries out one step. One that somebody else was quicker with is done.
func (a Auth) change(ctx context.Context, st step) error {
	kind := clientv3.PermissionType(clientv3.PermRead)
	if st.perm.Write {
		kind = clientv3.PermissionType(clientv3.PermReadWrite)
	}
	_, err := call(ctx, a.s, "etcd: "+string(st.verb)+" "+st.name, func(ctx context.Context, c *clientv3.Client) (_ struct{}, err error) {
		switch st.verb {
		case addRole:
			_, err = c.RoleAdd(ctx, st.name)
		case grant:
			_, err = c.RoleGrantPermission(ctx, st.name, st.perm.From, st.perm.End, kind)
		case addUser:
			_, err = c.UserAddWithOptions(ctx, st.name, "", &clientv3.UserAddOptions{NoPassword: true})
		case grantRole:
			_, err = c.UserGrantRole(ctx, st.name, st.role)
		case revokeRole:
			_, err = c.UserRevokeRole(ctx, st.name, st.role)
		case deleteUser:
			_, err = c.UserDelete(ctx, st.name)
		case revoke:
			_, err = c.RoleRevokePermission(ctx, st.name, st.perm.From, st.perm.End)
		case deleteRole:
			_, err = c.RoleDelete(ctx, st.name)
		}
		return struct{}{}, err
	})
	switch {
	case (st.verb == addRole || st.verb == addUser) && reason(err, rpctypes.ErrRoleAlreadyExist, rpctypes.ErrUserAlreadyExist),
		(st.verb == deleteRole || st.verb == deleteUser) && missing(err),
		st.verb == revokeRole && (missing(err) || reason(err, rpctypes.ErrRoleNotGranted)),
		st.verb == revoke && (missing(err) || reason(err, rpctypes.ErrPermissionNotGranted)):
		return nil
	}
	return err
}

// EnsureUser makes a user with those roles, and the roles that several users have. A user
// that is there has no other roles then.
func (a Auth) EnsureUser(ctx context.Context, network, user string, roles ...string) error {
	have, err := a.Access(ctx)
	if err != nil {
		return err
	}
	want := Access{Roles: CommonRoles(a.s.keys.prefix, network), Users: map[string][]string{user: roles}}
	_, err = a.SetAccess(ctx, have, want, nobody)
	return err
}

// DropShared takes that user and its role away again.
func (a Auth) DropShared(ctx context.Context, user string) error {
	have, err := a.Access(ctx)
	if err != nil {
		return err
	}
	_, err = a.SetAccess(ctx, have, Access{}, func(name string) bool { return name == user })
	return err
}

func nobody(string) bool { return false }

// HasUser reports whether etcd has that user, with those roles.
func (a Auth) HasUser(ctx context.Context, user string, roles ...string) (bool, error) {
	r, err := call(ctx, a.s, "read etcd's user "+user, func(ctx context.Context, c *clientv3.Client) (*clientv3.AuthUserGetResponse, error) {
		return c.UserGet(ctx, user)
	})
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, noUsers(err)
	}
	return !slices.ContainsFunc(roles, func(role string) bool { return !slices.Contains(r.Roles, role) }), nil
}

// DropUser takes a user away; one that is not there is no error.
func (a Auth) DropUser(ctx context.Context, user string) error {
	return a.change(ctx, step{verb: deleteUser, name: user})
}
