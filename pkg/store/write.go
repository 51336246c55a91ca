package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// casAttempts bounds how often a write is tried anew after someone else was
// quicker. Each attempt reads afresh, so only a storm of writers to one record
// exhausts it.
const casAttempts = 20

// swap writes value to key if its revision still is rev (0: it does not exist),
// and returns the new revision; ErrConflict if not.
func (s *Store) swap(ctx context.Context, op, key string, rev int64, value any, opts ...clientv3.OpOption) (int64, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return 0, fmt.Errorf("%s: encode: %w", op, err)
	}
	return s.transact(ctx, op, key, rev, clientv3.OpPut(key, string(data), opts...))
}

func (s *Store) transact(ctx context.Context, op, key string, rev int64, then clientv3.Op) (int64, error) {
	resp, err := call(ctx, s, op, func(ctx context.Context, c *clientv3.Client) (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).Then(then).Else(clientv3.OpGet(key)).Commit()
	})
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, &Error{Op: op, Kind: ErrConflict}
	}
	return resp.Header.Revision, nil
}

// PutConfig writes the network configuration if there is none: ErrConflict if
// there is, ErrInvalid if it is not valid.
func (s *Store) PutConfig(ctx context.Context, cfg topology.Config) (rev int64, err error) {
	op := "write network configuration " + s.keys.config()
	if err := cfg.Validate(); err != nil {
		return 0, &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	return s.swap(ctx, op, s.keys.config(), 0, cfg)
}

// RequestAction asks the controller to change the tenant of ns and returns the
// revision of the request, by which its answer is known. target is for
// [topology.Join] only. The same request, still pending, is not made twice.
//
// ErrNotFound: ns, or the target, has no record; nothing is created. ErrConflict:
// another request for ns is pending, or an annotation rules ns. ErrInvalid: the
// request is not well formed.
func (s *Store) RequestAction(ctx context.Context, ns string, action topology.Action, target string) (rev int64, err error) {
	return s.request(ctx, ns, action, target, false)
}

// ForceAction is [Store.RequestAction] also where an annotation rules ns: the
// change stands over it until the annotation changes.
func (s *Store) ForceAction(ctx context.Context, ns string, action topology.Action, target string) (rev int64, err error) {
	return s.request(ctx, ns, action, target, true)
}

func (s *Store) request(ctx context.Context, ns string, action topology.Action, target string, force bool) (rev int64, err error) {
	op := fmt.Sprintf("request %s of namespace %s", action, ns)
	ask := topology.Namespace{NetName: ns, Action: action, Namespace: target}
	if action == topology.None {
		return 0, &Error{Op: op, Kind: ErrInvalid, Cause: errors.New("no action is given")}
	}
	if err := ask.ValidateRequest(); err != nil {
		return 0, &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	for _, name := range []string{ns, target} {
		if name == "" && name != ns {
			continue
		}
		if err := topology.ValidateNamespaceName(name); err != nil {
			return 0, &Error{Op: op, Kind: ErrInvalid, Cause: err}
		}
	}
	cfg, err := s.Config(ctx)
	if err != nil {
		return 0, err
	}
	if action == topology.Join {
		if _, err := s.namespace(ctx, cfg.Value.Name, target); err != nil {
			return 0, fmt.Errorf("%s: target: %w", op, err)
		}
	}
	return s.updateNamespace(ctx, op, cfg.Value.Name, ns, func(n *topology.Namespace) (bool, error) {
		if n.Declared != "" && !n.Forced && !force {
			return false, &Error{Op: op, Kind: ErrConflict, Cause: fmt.Errorf("an annotation puts it on network %s", n.Declared)}
		}
		forced := n.Declared != "" && (n.Forced || force)
		if n.Action == action && n.Namespace == target && n.Forced == forced {
			return false, nil
		}
		if n.Action != topology.None && (n.Action != action || n.Namespace != target) {
			return false, &Error{Op: op, Kind: ErrConflict, Cause: fmt.Errorf("its request %q is still pending: no controller has taken it yet", n.Request())}
		}
		n.Action, n.Namespace, n.By, n.Status, n.Forced = action, target, s.cfg.By, nil, forced
		return true, nil
	})
}

// WithdrawAction takes back the request that stands at rev, so that it never
// fires later, and leaves in the record who did. It does nothing when the request is
// gone or another one.
func (s *Store) WithdrawAction(ctx context.Context, ns string, rev int64) error {
	op := "withdraw the request of namespace " + ns
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	n, err := s.namespace(ctx, cfg.Value.Name, ns)
	if err != nil || n.Revision != rev || n.Value.Action == topology.None {
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
	n.Value.Status = s.status(topology.Withdrawn, "withdrawn: "+n.Value.Request())
	n.Value.Action, n.Value.Namespace, n.Value.By = topology.None, "", ""
	_, err = s.swap(ctx, op, s.keys.namespace(cfg.Value.Name, ns), rev, n.Value)
	if errors.Is(err, ErrConflict) {
		return nil
	}
	return err
}

// status is what a person did to a record.
func (s *Store) status(o topology.Outcome, message string) *topology.Status {
	return &topology.Status{Outcome: o, Message: message, By: s.cfg.By, Time: time.Now().UTC().Truncate(time.Second)}
}

// updateNamespace reads, changes and writes one record until no one else was
// quicker. change says whether there is anything to write.
func (s *Store) updateNamespace(ctx context.Context, op, name, ns string, change func(*topology.Namespace) (bool, error)) (int64, error) {
	return retryConflict(ctx, op, func() (int64, error) {
		n, err := s.namespace(ctx, name, ns)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", op, err)
		}
		write, err := change(&n.Value)
		if err != nil {
			return 0, fail(err)
		}
		if !write {
			return n.Revision, nil
		}
		return s.swap(ctx, op, s.keys.namespace(name, ns), n.Revision, n.Value)
	})
}

// final marks an error that trying anew does not mend.
type final struct{ error }

func fail(err error) error { return final{err} }

func (f final) Unwrap() error { return f.error }

func retryConflict(ctx context.Context, op string, try func() (int64, error)) (int64, error) {
	var err error
	for range casAttempts {
		var rev int64
		rev, err = try()
		var f final
		if errors.As(err, &f) {
			return 0, f.error
		}
		if err == nil || !errors.Is(err, ErrConflict) || ctx.Err() != nil {
			return rev, err
		}
	}
	return 0, fmt.Errorf("%s: gave up after %d attempts: %w", op, casAttempts, err)
}

// EnsureNamespace asks for a netID for ns if it has no record. It does nothing
// where there is one, and says ErrInvalid where that does not parse.
func (s *Store) EnsureNamespace(ctx context.Context, ns string) error {
	op := "ask for a netID for namespace " + ns
	if err := topology.ValidateNamespaceName(ns); err != nil {
		return &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	if _, err = s.namespace(ctx, cfg.Value.Name, ns); !errors.Is(err, ErrNotFound) {
		return err
	}
	_, err = s.swap(ctx, op, s.keys.namespace(cfg.Value.Name, ns), 0, topology.Namespace{NetName: ns})
	if errors.Is(err, ErrConflict) {
		return nil // someone else asked: just as good
	}
	return err
}

// EnsureNode makes sure that node host with address ip has a record that asks
// for, or has, a subnet, and names it so. It never changes a subnet. ErrInvalid
// where ip cannot be a node's in this network, such as one inside the pod network.
func (s *Store) EnsureNode(ctx context.Context, host string, ip netip.Addr) error {
	op := fmt.Sprintf("register node %s (%s)", host, ip)
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	if host == "" {
		return &Error{Op: op, Kind: ErrInvalid, Cause: errors.New("the node has no name")}
	}
	if err := (topology.Node{Host: host, HostIP: ip}).Validate(cfg.Value); err != nil {
		return &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	key := s.keys.node(cfg.Value.Name, ip)
	_, err = retryConflict(ctx, op, func() (int64, error) {
		n, err := s.node(ctx, cfg.Value.Name, ip)
		switch {
		case errors.Is(err, ErrNotFound):
			n.Value = topology.Node{Host: host, HostIP: ip, Assign: true}
		case err != nil:
			return 0, err
		case n.Value.Host == host && (n.Value.Ready() || n.Value.Assign):
			return n.Revision, nil
		default:
			n.Value.Host = host
			if !n.Value.Ready() && !n.Value.Assign {
				n.Value.Assign, n.Value.Status = true, nil
			}
		}
		return s.swap(ctx, op, key, n.Revision, n.Value)
	})
	return err
}

// DeleteNamespace deletes the record of ns: its pods lose the network and its
// netID is freed. ErrNotFound where there is none.
func (s *Store) DeleteNamespace(ctx context.Context, ns string) error {
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	return s.remove(ctx, "delete namespace "+ns, s.keys.namespace(cfg.Value.Name, ns))
}

// DeleteNode deletes the record of the node with address ip: its peers forget
// it and its subnet is freed. ErrNotFound where there is none.
func (s *Store) DeleteNode(ctx context.Context, ip netip.Addr) error {
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	return s.remove(ctx, "delete node "+ip.String(), s.keys.node(cfg.Value.Name, ip))
}

// remove deletes a key at the revision it has now.
func (s *Store) remove(ctx context.Context, op, key string) error {
	_, err := retryConflict(ctx, op, func() (int64, error) {
		k, ok, _, err := s.get(ctx, op, key)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, &Error{Op: op, Kind: ErrNotFound, Cause: fmt.Errorf("there is no record %s", key)}
		}
		return s.transact(ctx, op, key, k.rev.Mod, clientv3.OpDelete(key))
	})
	return err
}
