package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/auth"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// sharedFiles are the certificate that all nodes and operators shared in a release before,
// and its key. The key last: as long as it is there, it may be in use.
var sharedFiles = []string{"client.crt", "client.key"}

// HasShared reports whether a release before made a certificate that all nodes share.
func (a *Authority) HasShared() bool {
	_, err := os.Stat(filepath.Join(a.dir, "client.key"))
	return err == nil
}

// ForgetShared takes it away.
func (a *Authority) ForgetShared() error {
	for _, name := range sharedFiles {
		if err := os.Remove(filepath.Join(a.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the certificate that all nodes shared: %w", err)
		}
	}
	return nil
}

// admitShared makes the user whose certificate all nodes shared, with all rights to the
// records, as it had before there were users. It is made where users come into force for the first time,
// and never after that.
func (s *Server) admitShared(ctx context.Context) error {
	server := s.etcd.Server
	if _, err := server.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: pki.SharedUser}); err != nil && !errors.Is(err, auth.ErrRoleAlreadyExist) {
		return err
	}
	all := &authpb.Permission{PermType: authpb.READWRITE, Key: []byte{0}, RangeEnd: []byte{0}}
	if _, err := server.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: pki.SharedUser, Perm: all}); err != nil {
		return err
	}
	if _, err := server.UserAdd(ctx, &pb.AuthUserAddRequest{Name: pki.SharedUser, Options: &authpb.UserAddOptions{NoPassword: true}}); err != nil && !errors.Is(err, auth.ErrUserAlreadyExist) {
		return err
	}
	_, err := server.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: pki.SharedUser, Role: pki.SharedUser})
	return err
}
