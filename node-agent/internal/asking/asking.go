// Package asking asks the leading controller for what a node outside of Kubernetes lacks: its record
// with a subnet, records of namespaces, a certificate.
//
// It owns one record, which only this node writes, and never writes what the leader answers with.
package asking

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// firstPause and lastPause bound the pause after a write that failed.
const firstPause, lastPause = 20 * time.Millisecond, 2 * time.Second

// Asking is what this node asks the leading controller for: one record, which only this
// node writes. Outside of Kubernetes only.
type Asking struct {
	put func(context.Context, topology.Request) error
	log *slog.Logger

	mu     sync.Mutex // guards what follows
	want   topology.Request
	spaces map[string]bool
	// wake is that there may be something to write. changes counts what was asked and
	// taken back; told is how many of them etcd was told of, or not told because of err.
	// Whenever it is seen to, news is closed.
	wake          chan struct{}
	changes, told int
	err           error
	news          chan struct{}
}

// New returns what asks for host by put, once [Asking.SetSelf] has said which address it has.
func New(host string, put func(context.Context, topology.Request) error, log *slog.Logger) *Asking {
	return &Asking{
		put: put, log: log, want: topology.Request{Host: host}, spaces: map[string]bool{}, wake: make(chan struct{}, 1), news: make(chan struct{}),
	}
}

// change returns its number among the changes.
func (a *Asking) change(fn func()) int {
	a.mu.Lock()
	fn()
	a.changes++
	n := a.changes
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return n
}

// SetSelf fixes the node's address, without which nothing is asked for.
func (a *Asking) SetSelf(ip netip.Addr) { a.change(func() { a.want.HostIP = ip }) }

// Subnet asks for a node record with a subnet, or no longer does.
func (a *Asking) Subnet(yes bool) { a.change(func() { a.want.Subnet = yes }) }

// Certificate asks for one, with a PEM request; empty: no longer.
func (a *Asking) Certificate(csr string) { a.change(func() { a.want.CSR = csr }) }

// Namespace asks for the record of a namespace, until there is one.
func (a *Asking) Namespace(name string) int { return a.change(func() { a.spaces[name] = true }) }

// Applied takes out what is there.
func (a *Asking) Applied(s topology.Snapshot) {
	a.mu.Lock()
	held := slices.ContainsFunc(slices.Collect(maps.Keys(a.spaces)), func(ns string) bool { _, ok := s.Namespaces[ns]; return ok })
	a.mu.Unlock()
	if held {
		a.change(func() {
			maps.DeleteFunc(a.spaces, func(ns string, _ bool) bool { _, ok := s.Namespaces[ns]; return ok })
		})
	}
}

// EnsureNamespace implements tenants.Asker: it returns when the question stands, or could not
// be put.
func (a *Asking) EnsureNamespace(ctx context.Context, namespace string) error {
	n := a.Namespace(namespace)
	for {
		a.mu.Lock()
		told, err, news := a.told, a.err, a.news
		a.mu.Unlock()
		if told >= n {
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// now is the request to be written, with all changes up to that number.
func (a *Asking) now() (topology.Request, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.want
	r.Namespaces = slices.Sorted(maps.Keys(a.spaces))
	// The rest follows when these are there.
	r.Namespaces = r.Namespaces[:min(len(r.Namespaces), topology.MaxRequestedNamespaces)]
	return r, a.changes
}

// Run writes what is asked for until ctx ends, at first also where that is nothing: an
// agent before this one may have asked.
func (a *Asking) Run(ctx context.Context) error {
	var written *topology.Request
	var retry <-chan time.Time
	pause := backoff.Pauses{First: firstPause, Last: lastPause}
	var failed backoff.Trouble
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.wake:
		case <-retry:
		}
		retry = nil
		r, n := a.now()
		if !r.HostIP.IsValid() {
			continue
		}
		var err error
		if written == nil || !same(*written, r) {
			err = a.put(ctx, r)
		}
		if err == nil {
			written = &r
			pause.Reset()
			failed.Over()
		} else {
			if ctx.Err() == nil && failed.News(err) {
				a.log.Warn("the controller cannot be asked for what this node lacks; trying again", "error", err)
			}
			retry = time.After(pause.Next())
		}
		a.mu.Lock()
		a.told, a.err = n, err
		close(a.news)
		a.news = make(chan struct{})
		a.mu.Unlock()
	}
}

func same(a, b topology.Request) bool {
	return a.Host == b.Host && a.HostIP == b.HostIP && a.Subnet == b.Subnet && a.CSR == b.CSR && slices.Equal(a.Namespaces, b.Namespaces)
}
