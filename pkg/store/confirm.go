package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Confirmation is what became of a [Store.ConfirmNode].
type Confirmation string

const (
	// ConfirmedNow: the address is the node's from now on, if it claims it.
	ConfirmedNow Confirmation = "confirmed"
	// ConfirmedBefore: it was so already; nothing was written.
	ConfirmedBefore Confirmation = "already confirmed"
	// HasAddress: the node's record stands there; nothing was written.
	HasAddress Confirmation = "has it already"
)

// ConfirmNode leaves an operator's word that ip is an address of the Kubernetes node
// called host: a record there that has the node's name, asks for nothing and follows
// no object. The controller gives the node its place there as soon as the Node claims
// the address. With force a record that stands there in another host's name is the
// node's from now on, with its subnet.
//
// ErrConflict: the record at ip is another's. ErrInvalid: ip cannot be a node's.
func (s *Store) ConfirmNode(ctx context.Context, host string, ip netip.Addr, force bool) (Confirmation, error) {
	op := fmt.Sprintf("confirm %s as the address of node %s", ip, host)
	cfg, err := s.Config(ctx)
	if err != nil {
		return "", err
	}
	if err := (topology.Node{Host: host, HostIP: ip}).Validate(cfg.Value); err != nil {
		return "", &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	var done Confirmation
	_, err = retryConflict(ctx, op, func() (int64, error) {
		n, err := s.node(ctx, cfg.Value.Name, ip)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return 0, err
		}
		there := err == nil
		switch {
		case there && n.Value.UID != "" && n.Value.Host == host:
			done = HasAddress
			return n.Revision, nil
		case there && n.Value.UID != "":
			return 0, fail(&Error{Op: op, Kind: ErrConflict, Cause: fmt.Errorf("it is the address of node %s; if that machine is gone, delete its Node first (kubectl delete node %s)", n.Value.Host, n.Value.Host)})
		case there && n.Value.Host == host:
			done = ConfirmedBefore
			return n.Revision, nil
		case there && !force:
			return 0, fail(&Error{Op: op, Kind: ErrConflict, Cause: fmt.Errorf("it is the address of host %q, whose record follows no Node; --force gives its place in the network to node %s", n.Value.Host, host)})
		}
		done = ConfirmedNow
		n.Value.Host, n.Value.HostIP = host, ip
		n.Value.Status = s.status(topology.Confirmed, "confirmed as an address of node "+host)
		return s.swap(ctx, op, s.keys.node(cfg.Value.Name, ip), n.Revision, n.Value)
	})
	return done, err
}

// WithdrawConfirmation takes back what [Store.ConfirmNode] left at ip for host, as long
// as the node has not claimed it; false when nothing of the kind stands there.
func (s *Store) WithdrawConfirmation(ctx context.Context, host string, ip netip.Addr) (bool, error) {
	op := fmt.Sprintf("withdraw %s as an address of node %s", ip, host)
	cfg, err := s.Config(ctx)
	if err != nil {
		return false, err
	}
	withdrawn := false
	_, err = retryConflict(ctx, op, func() (int64, error) {
		n, err := s.node(ctx, cfg.Value.Name, ip)
		v := n.Value
		switch {
		case errors.Is(err, ErrNotFound):
			return 0, nil
		case err != nil:
			return 0, err
		case v.UID != "" || v.Host != host || v.Ready() || v.Assign || !v.Status.Is(topology.Confirmed):
			return n.Revision, nil
		}
		key := s.keys.node(cfg.Value.Name, ip)
		rev, err := s.transact(ctx, op, key, n.Revision, clientv3.OpDelete(key))
		withdrawn = err == nil
		return rev, err
	})
	return withdrawn, err
}

// Identify gives the node with address ip another identity, in the record that it has, or
// in one that asks for a subnet. ErrConflict where the record is another node's, or
// follows a Node of Kubernetes.
func (s *Store) Identify(ctx context.Context, host string, ip netip.Addr, identity string) error {
	op := fmt.Sprintf("give node %s (%s) an identity", host, ip)
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	if err := (topology.Node{Host: host, HostIP: ip}).Validate(cfg.Value); err != nil {
		return &Error{Op: op, Kind: ErrInvalid, Cause: err}
	}
	_, err = retryConflict(ctx, op, func() (int64, error) {
		n, err := s.node(ctx, cfg.Value.Name, ip)
		switch {
		case errors.Is(err, ErrNotFound):
			n.Value = topology.Node{Host: host, HostIP: ip, Assign: true}
		case err != nil:
			return 0, err
		case n.Value.Host != host:
			return 0, fail(&Error{Op: op, Kind: ErrConflict, Cause: fmt.Errorf("address %s is node %s's in the records: delete that record first", ip, n.Value.Host)})
		case n.Value.UID != "":
			return 0, fail(&Error{Op: op, Kind: ErrConflict, Cause: errors.New("its record follows a Node of Kubernetes, where its agent gets its certificate by itself")})
		}
		n.Value.Identity = identity
		return s.swap(ctx, op, s.keys.node(cfg.Value.Name, ip), n.Revision, n.Value)
	})
	return err
}
