// Package front answers the CNI from the agent's first moment on: by the attacher as soon as there is one,
// and before by what can be done without knowing the node.
package front

import (
	"context"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniserver"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// Front answers the CNI from the agent's first moment on. As long as the node has no
// address, no way to etcd or no database of Open vSwitch there is nobody who could attach
// pods; they can go nevertheless.
type Front struct {
	bare attach.Bare
	// why says what keeps pods from being attached.
	why func() error

	mu       sync.Mutex
	attacher cniserver.Attacher
}

// New returns one with nobody behind it; why says what keeps pods from being attached.
func New(bare attach.Bare, why func() error) *Front { return &Front{bare: bare, why: why} }

// Open gives all requests from now on to a.
func (f *Front) Open(a cniserver.Attacher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attacher = a
}

func (f *Front) behind() cniserver.Attacher {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attacher
}

// Add implements cniserver.Attacher.
func (f *Front) Add(ctx context.Context, req cniapi.Request) (*cniapi.Result, error) {
	if a := f.behind(); a != nil {
		return a.Add(ctx, req)
	}
	return nil, cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot attach pods yet: %w", f.why())
}

// Check implements cniserver.Attacher.
func (f *Front) Check(ctx context.Context, req cniapi.Request) error {
	if a := f.behind(); a != nil {
		return a.Check(ctx, req)
	}
	return cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot look at pods yet: %w", f.why())
}

// Del implements cniserver.Attacher.
func (f *Front) Del(ctx context.Context, req cniapi.Request) error {
	release := f.bare.Hold()
	if a := f.behind(); a != nil {
		release()
		return a.Del(ctx, req)
	}
	defer release()
	return f.bare.Del(ctx, req.Attachment())
}

// GC implements cniserver.Attacher.
func (f *Front) GC(ctx context.Context, req cniapi.Request) error {
	release := f.bare.Hold()
	if a := f.behind(); a != nil {
		release()
		return a.GC(ctx, req)
	}
	defer release()
	return f.bare.GC(ctx, req)
}

// Status implements cniserver.Attacher.
func (f *Front) Status(ctx context.Context) error {
	if a := f.behind(); a != nil {
		return a.Status(ctx)
	}
	return cniapi.Errorf(cniapi.CodeNotAvailable, "pods cannot be attached: %w", f.why())
}
