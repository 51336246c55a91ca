package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/auth"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// insecure says why clients of this etcd have no identities; nil where they do.
func (c Config) insecure() error {
	for _, u := range c.ListenClientURLs {
		switch {
		case strings.HasPrefix(u, "http://"):
			return fmt.Errorf("etcd serves without encryption at %s: whoever reaches it has all rights, and nodes have no identities of their own", u)
		case strings.HasPrefix(u, "https://") && c.Authority == nil && c.ClientCAFile == "":
			return fmt.Errorf("etcd at %s asks for no client certificate (--listen-client-cacert): whoever reaches it has all rights, and nodes have no identities of their own", u)
		}
	}
	return nil
}

// enforce puts etcd's users in force, or out of it. It runs before clients are let in.
func (s *Server) enforce(ctx context.Context) error {
	users := s.etcd.Server.AuthStore()
	ctx = asRoot(ctx)
	if s.insecure != nil {
		if !users.IsAuthEnabled() {
			return nil
		}
		// Without certificates of clients etcd knows root by a token only.
		_, err := s.etcd.Server.AuthDisable(users.WithRoot(ctx), &pb.AuthDisableRequest{})
		return err
	}
	if users.IsAuthEnabled() {
		return nil
	}
	server := s.etcd.Server
	if _, err := server.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: pki.RootUser}); err != nil && !errors.Is(err, auth.ErrRoleAlreadyExist) {
		return err
	}
	if _, err := server.UserAdd(ctx, &pb.AuthUserAddRequest{Name: pki.RootUser, Options: &authpb.UserAddOptions{NoPassword: true}}); err != nil && !errors.Is(err, auth.ErrUserAlreadyExist) {
		return err
	}
	if _, err := server.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: pki.RootUser, Role: pki.RootUser}); err != nil {
		return err
	}
	if s.shared {
		if err := s.admitShared(ctx); err != nil {
			return err
		}
	}
	_, err := server.AuthEnable(ctx, &pb.AuthEnableRequest{})
	return err
}
