package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Requests are what agents ask the leader for, and its answers.
type Requests struct {
	All     map[netip.Addr]Versioned[topology.Request]
	Answers map[netip.Addr]Versioned[topology.Certificate]
	// Invalid says by key which requests do not parse, and why.
	Invalid map[string]string
}

// WatchRequests yields all requests and answers, on the same terms as
// [Store.WatchRecords]. It is for the leader: nodes watch none of them but their own answer.
func (s *Store) WatchRequests(ctx context.Context) <-chan Requests {
	return watch(ctx, s, func(out latest[Requests]) sink { return &requestSink{keys: s.keys, out: out} }, kindRequests, kindCerts)
}

type requestSink struct {
	keys keyspace
	name string
	now  Requests
	out  latest[Requests]
}

func (t *requestSink) reset(l listing) {
	t.name = l.config.Value.Name
	t.now = Requests{All: map[netip.Addr]Versioned[topology.Request]{}, Answers: map[netip.Addr]Versioned[topology.Certificate]{}, Invalid: map[string]string{}}
	for i, kind := range []string{kindRequests, kindCerts} {
		for _, k := range l.kinds[i] {
			t.put(kind, k)
		}
	}
}

func (t *requestSink) put(kind string, k kv) {
	t.remove(kind, k.key, 0)
	last := t.keys.last(k.key, t.name, kind)
	ip, err := netip.ParseAddr(last)
	if kind == kindCerts {
		var c topology.Certificate
		// One that does not parse still has a revision on which to write it anew.
		_ = json.Unmarshal(k.value, &c)
		if err == nil {
			t.now.Answers[ip] = Versioned[topology.Certificate]{Value: c, Revision: k.rev.Mod}
		}
		return
	}
	var r topology.Request
	if err == nil {
		r, err = topology.ParseRequest(last, k.value)
	}
	if err != nil {
		t.now.Invalid[last] = err.Error()
		return
	}
	t.now.All[ip] = Versioned[topology.Request]{Value: r, Revision: k.rev.Mod}
}

func (t *requestSink) remove(kind, key string, _ int64) {
	last := t.keys.last(key, t.name, kind)
	if kind == kindRequests {
		delete(t.now.Invalid, last)
	}
	ip, err := netip.ParseAddr(last)
	switch {
	case err != nil:
	case kind == kindRequests:
		delete(t.now.All, ip)
	default:
		delete(t.now.Answers, ip)
	}
}

func (t *requestSink) emit(int64) {
	t.out.send(Requests{All: maps.Clone(t.now.All), Answers: maps.Clone(t.now.Answers), Invalid: maps.Clone(t.now.Invalid)})
}

// PutRequest makes r what its node asks for; an empty one is taken away.
func (s *Store) PutRequest(ctx context.Context, r topology.Request) error {
	cfg, err := s.Config(ctx)
	if err != nil {
		return err
	}
	op, key := "ask as node "+r.Host, s.keys.ofNode(cfg.Value.Name, kindRequests, r.HostIP)
	_, err = retryConflict(ctx, op, func() (int64, error) {
		k, ok, _, err := s.get(ctx, op, key)
		switch {
		case err != nil:
			return 0, err
		case !r.Empty():
			return s.swap(ctx, op, key, k.rev.Mod, r)
		case !ok:
			return 0, nil
		}
		return s.transact(ctx, op, key, k.rev.Mod, clientv3.OpDelete(key))
	})
	return err
}

func parseCertificate(data []byte) (c topology.Certificate, err error) {
	err = json.Unmarshal(data, &c)
	return c, err
}

// WaitCertificate waits until cond is true of the answer to the node with address ip, and
// returns it. cond is asked after every change while there is an answer that parses. Errors:
// that of ctx, ErrDenied, ErrNoConfig; while etcd is away it keeps trying.
func (s *Store) WaitCertificate(ctx context.Context, ip netip.Addr, cond func(topology.Certificate) bool) (topology.Certificate, error) {
	k, err := s.waitKey(ctx, func(name string) string { return s.keys.ofNode(name, kindCerts, ip) }, func(k kv, ok bool) bool {
		c, err := parseCertificate(k.value)
		return ok && err == nil && cond(c)
	})
	if err != nil {
		return topology.Certificate{}, fmt.Errorf("wait for the certificate of node %s: %w", ip, err)
	}
	return parseCertificate(k.value)
}

// PutCertificate answers the node with address ip, if the answer still is at rev (0: there
// is none). ErrConflict, ErrDeposed.
func (l *Leadership) PutCertificate(ctx context.Context, ip netip.Addr, c topology.Certificate, rev int64) (int64, error) {
	return l.put(ctx, "write the certificate of node "+ip.String(), l.store.keys.ofNode(l.name, kindCerts, ip), rev, c)
}

// DropRequest takes the request below requests/ whose key ends in key away.
func (l *Leadership) DropRequest(ctx context.Context, key string) error {
	op, whole := "delete the request of "+key, l.store.keys.kind(l.name, kindRequests)+key
	k, ok, _, err := l.store.get(ctx, op, whole)
	if err != nil || !ok {
		return err
	}
	_, err = l.transact(ctx, op, whole, k.rev.Mod, clientv3.OpDelete(whole))
	return err
}

// waitKey waits until cond is true of a record, and returns it. key names it in the
// network that there is. Errors: that of ctx, ErrDenied, ErrNoConfig; while etcd is away
// it keeps trying.
func (s *Store) waitKey(ctx context.Context, key func(network string) string, cond func(k kv, ok bool) bool) (kv, error) {
	pauses := newPauses()
	for {
		k, done, err := s.waitOnce(ctx, key, cond)
		if done {
			return k, nil
		}
		if ctx.Err() != nil {
			return k, ctx.Err()
		}
		if err != nil && !errors.Is(err, ErrUnavailable) {
			return k, err
		}
		pauses.Wait(ctx)
	}
}
