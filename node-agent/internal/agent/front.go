package agent

import (
	"context"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniserver"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// front answers the CNI from the agent's first moment on. As long as the node has no
// address, no way to etcd or no database of Open vSwitch there is nobody who could attach
// pods; they can go nevertheless.
type front struct {
	bare attach.Bare
	// why says what keeps pods from being attached.
	why func() error

	mu       sync.Mutex
	attacher cniserver.Attacher
}

// open gives all requests from now on to a.
func (f *front) open(a cniserver.Attacher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attacher = a
}

func (f *front) behind() cniserver.Attacher {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attacher
}

// Add implements cniserver.Attacher.
func (f *front) Add(ctx context.Context, req cniapi.Request) (*cniapi.Result, error) {
	if a := f.behind(); a != nil {
		return a.Add(ctx, req)
	}
	return nil, cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot attach pods yet: %w", f.why())
}

// Check implements cniserver.Attacher.
func (f *front) Check(ctx context.Context, req cniapi.Request) error {
	if a := f.behind(); a != nil {
		return a.Check(ctx, req)
	}
	return cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot look at pods yet: %w", f.why())
}

// Del implements cniserver.Attacher.
func (f *front) Del(ctx context.Context, req cniapi.Request) error {
	release := f.bare.Hold()
	if a := f.behind(); a != nil {
		release()
		return a.Del(ctx, req)
	}
	defer release()
	return f.bare.Del(ctx, req.Attachment())
}

// GC implements cniserver.Attacher.
func (f *front) GC(ctx context.Context, req cniapi.Request) error {
	release := f.bare.Hold()
	if a := f.behind(); a != nil {
		release()
		return a.GC(ctx, req)
	}
	defer release()
	return f.bare.GC(ctx, req)
}

// Status implements cniserver.Attacher.
func (f *front) Status(ctx context.Context) error {
	if a := f.behind(); a != nil {
		return a.Status(ctx)
	}
	return cniapi.Errorf(cniapi.CodeNotAvailable, "pods cannot be attached: %w", f.why())
}
