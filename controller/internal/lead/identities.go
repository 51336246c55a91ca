package lead

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/cluster"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// compareEvery is how often it is asked whether somebody else changed users.
const compareEvery = 30 * time.Second

// Signer signs for clients of etcd.
type Signer interface {
	// Sign answers a node's certificate request, PEM, with a certificate for user.
	Sign(request []byte, user string) (certificate []byte, err error)
	// Trust are the CAs that etcd's certificate is checked against, PEM.
	Trust() []byte
}

// identities is what a term keeps of etcd's users and of what agents ask for.
type identities struct {
	// known is that it is known whether users are heeded; enforced is that they are, and
	// that this controller keeps them.
	known, enforced bool
	// applied is what they were made last, at revision.
	applied  store.Access
	revision uint64
	compared time.Time
	// requests are the newest; nil before there are any.
	requests *store.Requests
	refused  map[string]string
	// granted are the namespaces that each node has left to ask for.
	granted map[netip.Addr]*rate.Limiter
}

// A node has asked for a namespace once its first pod of it came. One that is stolen could ask for others
// without end, and all nodes would have to know them.
const (
	namespacesAtOnce    = 4 * topology.MaxRequestedNamespaces
	namespacesPerSecond = 1
)

// grant is [identity.Input.Grant].
func (i *identities) grant(node netip.Addr, n int) int {
	left := i.granted[node]
	if left == nil {
		left = rate.NewLimiter(namespacesPerSecond, namespacesAtOnce)
		if i.granted == nil {
			i.granted = map[netip.Addr]*rate.Limiter{}
		}
		i.granted[node] = left
	}
	now := time.Now()
	n = min(n, int(left.TokensAt(now)))
	left.AllowN(now, n)
	return n
}

// actIdentities sees to etcd's users and answers requests. What it writes the watch shows,
// and the rest builds on it.
func (t *term) actIdentities(ctx context.Context) error {
	if err := t.keepUsers(ctx); err != nil {
		return err
	}
	return t.actRequests(ctx)
}

// keepUsers makes the users of etcd those of the records. In an etcd that heeds none, or
// that does not let this controller keep them, it does nothing, and says so once.
func (t *term) keepUsers(ctx context.Context) error {
	i, now := &t.identities, t.c.cfg.Now()
	want := identity.Users(t.c.cfg.Store.Prefix(), t.writer.Name(), t.last.Nodes)
	if now.Sub(i.compared) >= compareEvery || !i.known {
		if err := t.compareUsers(ctx, now); err != nil {
			return err
		}
	}
	if !i.enforced || want.Equal(i.applied) {
		return nil
	}
	n, err := t.c.cfg.Store.Auth().SetAccess(ctx, i.applied, want, ours)
	if err != nil {
		i.known = false // how far it came is read back
		return fmt.Errorf("etcd's users: %w", err)
	}
	t.log.Info("etcd's users follow the records", "nodes", len(want.Users), "changes", n)
	i.applied = want
	state, err := t.c.cfg.Store.Auth().State(ctx)
	i.revision = state.Revision
	t.c.cfg.Metrics.users.Set(float64(len(want.Users)))
	return err
}

// ours are the names that nobody else has users or roles of.
func ours(name string) bool { return pki.IsNodeUser(name) }

// compareUsers reads users and roles as they are, where somebody changed them.
func (t *term) compareUsers(ctx context.Context, now time.Time) error {
	i := &t.identities
	state, err := t.c.cfg.Store.Auth().State(ctx)
	switch {
	case errors.Is(err, store.ErrNoUsers), errors.Is(err, store.ErrDenied):
		t.unenforced(err.Error())
		i.compared = now
		return nil
	case err != nil:
		return err
	case !state.Enabled:
		t.unenforced("etcd heeds no users")
		i.compared = now
		return nil
	}
	if !i.known || !i.enforced || state.Revision != i.revision {
		if i.applied, err = t.c.cfg.Store.Auth().Access(ctx); err != nil {
			return err
		}
		// What is not this controller's to keep does not count as a difference.
		maps.DeleteFunc(i.applied.Users, func(name string, _ []string) bool { return !ours(name) })
		common := store.CommonRoles(t.c.cfg.Store.Prefix(), t.writer.Name())
		maps.DeleteFunc(i.applied.Roles, func(name string, _ []store.Permission) bool { return !ours(name) && common[name] == nil })
		i.revision = state.Revision
	}
	i.known, i.enforced, i.compared = true, true, now
	return nil
}

// unenforced notes that nodes have no identities of their own.
func (t *term) unenforced(why string) {
	if !t.identities.known || t.identities.enforced {
		t.log.Warn("nodes have no rights of their own in etcd: whoever has access may write all records", "error", why)
	}
	t.identities.known, t.identities.enforced = true, false
	t.c.cfg.Metrics.users.Set(0)
}

// actRequests answers what agents ask for.
func (t *term) actRequests(ctx context.Context) error {
	i := &t.identities
	if i.requests == nil || !i.known {
		return nil
	}
	in := identity.Input{
		Config: t.last.Config, Nodes: t.last.Nodes, Namespaces: t.last.Namespaces, Unreadable: t.last.Invalid, Requests: *i.requests, Enforced: i.enforced,
	}
	if t.c.cfg.Signer != nil {
		in.Trust = t.c.cfg.Signer.Trust()
	}
	in.Grant = i.grant
	plan := identity.Answer(in)
	t.tellRefused(plan.Refused)
	for _, key := range plan.Drop {
		if err := t.writer.DropRequest(ctx, key); err != nil {
			return err
		}
	}
	if err := t.certify(ctx, plan); err != nil {
		return err
	}
	var writes []cluster.Write
	for _, ns := range plan.Namespaces {
		writes = append(writes, cluster.Write{Key: ns, Namespace: &topology.Namespace{NetName: ns}, Why: "a node asked for it"})
	}
	if _, err := t.create(ctx, writes); err != nil {
		return err
	}
	for _, n := range plan.Nodes {
		rev, err := t.writer.PutNode(ctx, n.HostIP.String(), n, t.last.Revs.Nodes[n.HostIP].Mod)
		if err != nil {
			return err
		}
		t.lastWrite = max(t.lastWrite, rev)
		t.log.Info("a node asked for a subnet", "node", n.Host, "key", n.HostIP, "revision", rev)
	}
	return nil
}

// tellRefused says once why a request is not answered.
func (t *term) tellRefused(refused map[string]string) {
	for key, why := range refused {
		if t.identities.refused[key] != why {
			t.log.Warn("what a node asks for is refused", "key", key, "reason", why)
		}
	}
	t.identities.refused = refused
}

// certify signs what is to be signed, and tells of another CA.
func (t *term) certify(ctx context.Context, plan identity.Plan) error {
	i := &t.identities
	write := func(ip netip.Addr, c topology.Certificate) error {
		rev, err := t.writer.PutCertificate(ctx, ip, c, i.requests.Answers[ip].Revision)
		if err == nil {
			i.requests.Answers[ip] = store.Versioned[topology.Certificate]{Value: c, Revision: rev}
		}
		return err
	}
	trust := ""
	if t.c.cfg.Signer != nil {
		trust = string(t.c.cfg.Signer.Trust())
	}
	for _, s := range plan.Sign {
		cert, err := t.c.cfg.Signer.Sign([]byte(s.Request), s.User)
		if err != nil {
			t.log.Error("a node's certificate was not signed", "key", s.Key, "error", err)
			continue
		}
		if err := write(s.Key, topology.Certificate{Certificate: string(cert), CA: trust}); err != nil {
			return err
		}
		t.log.Info("signed a node's certificate", "key", s.Key, "user", s.User)
	}
	for _, ip := range plan.Trust {
		c := i.requests.Answers[ip].Value
		c.CA = trust
		if err := write(ip, c); err != nil {
			return err
		}
	}
	return nil
}

// takeRequests takes newer requests in. The answers' map is this term's to change.
func (t *term) takeRequests(r store.Requests) { t.identities.requests = &r }
