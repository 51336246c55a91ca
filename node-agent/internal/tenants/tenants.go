// Package tenants knows which namespaces have a netID in the flows, and lets ADD wait for one.
//
// It is told what was applied, and has a record asked for where none comes by itself. It never reads or
// writes records.
package tenants

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// tenantWait bounds how long one ADD waits for its namespace's netID. Other
// ADDs do not wait for it.
const tenantWait = 15 * time.Second

// Asker asks the controller for a namespace's record.
type Asker interface {
	EnsureNamespace(ctx context.Context, namespace string) error
}

// Tenants is the part of the applied records that ADD waits for.
type Tenants struct {
	// ask is nil where records come by themselves: in Kubernetes the controller
	// makes one for every Namespace.
	ask Asker
	log *slog.Logger

	mu      sync.Mutex
	records *topology.Snapshot
	changed chan struct{}
}

// New returns tenants of which none is known. ask may be nil.
func New(ask Asker, log *slog.Logger) *Tenants {
	return &Tenants{ask: ask, log: log, changed: make(chan struct{})}
}

// Applied says that s is in the flows.
func (t *Tenants) Applied(s topology.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = &s
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *Tenants) known(namespace string) (uid string, ok bool, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records != nil {
		_, ok = t.records.NetID(namespace)
		uid = t.records.Namespaces[namespace].UID
	}
	return uid, ok, t.changed
}

// WaitKnown returns when the namespace has a confirmed netID that flows can be
// made with, and the UID of the Kubernetes Namespace whose it is, which is empty where
// there is none. It asks for a netID where there is no record and records do not come by
// themselves.
func (t *Tenants) WaitKnown(ctx context.Context, namespace string) (uid string, err error) {
	uid, ok, changed := t.known(namespace)
	if ok {
		return uid, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tenantWait)
	defer cancel()
	asked := make(chan error, 1)
	if t.ask != nil {
		go func() { asked <- t.ask.EnsureNamespace(ctx, namespace) }()
	}
	for {
		select {
		case <-changed:
			if uid, ok, changed = t.known(namespace); ok {
				return uid, nil
			}
		case err := <-asked:
			if err != nil && !errors.Is(err, context.Canceled) {
				return "", cniapi.Errorf(cniapi.CodeTryAgain, "namespace %s has no netID yet, and none could be asked for: %w", namespace, err)
			}
			asked = nil
		case <-ctx.Done():
			return "", t.unknown(namespace)
		}
	}
}

// unknown is the error for a namespace that has no netID after [tenantWait].
func (t *Tenants) unknown(namespace string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := cniapi.Errorf(cniapi.CodeTryAgain, "namespace %s has no netID after %s", namespace, tenantWait)
	if t.records != nil {
		if status := t.records.Namespaces[namespace].Status; status != nil {
			return err.WithDetails("its record says: %s", status.Message)
		}
	}
	if t.ask == nil {
		return err.WithDetails("the k8s-ovs-controller gives it one when the Namespace appears: is it running, and does it lead?")
	}
	return err.WithDetails("is a k8s-ovs-controller running, and does it lead?")
}
