package agent

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

// tenants is the part of the applied records that ADD waits for.
type tenants struct {
	ask Asker
	log *slog.Logger

	mu      sync.Mutex
	records *topology.Snapshot
	changed chan struct{}
}

func newTenants(ask Asker, log *slog.Logger) *tenants {
	return &tenants{ask: ask, log: log, changed: make(chan struct{})}
}

// applied says that s is in the flows.
func (t *tenants) applied(s topology.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = &s
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *tenants) known(namespace string) (ok bool, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records != nil {
		_, ok = t.records.NetID(namespace)
	}
	return ok, t.changed
}

// WaitKnown returns when the namespace has a confirmed netID that flows can be
// made with. It asks for one where there is no record.
func (t *tenants) WaitKnown(ctx context.Context, namespace string) error {
	ok, changed := t.known(namespace)
	if ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tenantWait)
	defer cancel()
	asked := make(chan error, 1)
	go func() { asked <- t.ask.EnsureNamespace(ctx, namespace) }()
	var askErr error
	for {
		select {
		case <-changed:
			if ok, changed = t.known(namespace); ok {
				return nil
			}
		case askErr = <-asked:
			if askErr != nil && !errors.Is(askErr, context.Canceled) {
				return cniapi.Errorf(cniapi.CodeTryAgain, "namespace %s has no netID yet, and none could be asked for: %w", namespace, askErr)
			}
			asked = nil
		case <-ctx.Done():
			return cniapi.Errorf(cniapi.CodeTryAgain, "namespace %s has no netID after %s", namespace, tenantWait).
				WithDetails("is a k8s-ovs-controller running, and does it lead?")
		}
	}
}
