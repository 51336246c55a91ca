package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// users prints or makes users and roles of an etcd that is not embedded: of the
// controller, and of the nodes in the records.
func (c *command) users(ctx context.Context, args []string) error {
	if len(args) > 0 || c.print == c.apply {
		return usage{errors.New("etcd-users takes one of --print and --apply, and the flags that say where etcd is")}
	}
	if err := c.etcd.Complete(); err != nil {
		return usage{err}
	}
	if len(c.etcd.Endpoints) == 0 {
		return usage{errors.New("--etcd-endpoints or --etcd-bundle is missing: which etcd?")}
	}
	s, err := store.Open(c.etcd.Config(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer s.Close()
	records, _, err := s.Snapshot(ctx)
	if err != nil {
		return err
	}
	want := identity.Users(s.Prefix(), records.Config.Name, records.Nodes)
	want.Users[pki.ControllerUser] = []string{store.ControllerRole}
	have, err := s.Auth().Access(ctx)
	switch {
	case c.print && errors.Is(err, store.ErrDenied):
		have = store.Access{} // all of it, then
	case err != nil:
		return err
	}
	// A controller that may keep the others' users itself stays so.
	if roles, there := have.Users[pki.ControllerUser]; there {
		want.Users = maps.Clone(want.Users)
		want.Users[pki.ControllerUser] = roles
	}
	if c.print {
		for _, line := range store.Commands(have, want, pki.IsNodeUser) {
			if _, err := fmt.Fprintln(c.io.Out, line); err != nil {
				return err
			}
		}
		return nil
	}
	n, err := s.Auth().SetAccess(ctx, have, want, pki.IsNodeUser)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.io.Out, "%d changes; users of %d nodes\n", n, len(want.Users)-1)
	return err
}
