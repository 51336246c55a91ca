package agent

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// behind counts what comes through.
type behind struct{ calls int }

func (b *behind) Add(context.Context, cniapi.Request) (*cniapi.Result, error) {
	b.calls++
	return &cniapi.Result{}, nil
}
func (b *behind) Del(context.Context, cniapi.Request) error   { b.calls++; return nil }
func (b *behind) Check(context.Context, cniapi.Request) error { b.calls++; return nil }
func (b *behind) GC(context.Context, cniapi.Request) error    { b.calls++; return nil }
func (b *behind) Status(context.Context) error                { b.calls++; return nil }

// bareDevice can be taken down, as onePort's row can.
type bareDevice struct{ oneDevice }

func (bareDevice) Leave(attach.Wire) error    { return nil }
func (bareDevice) Forget(...netip.Addr) error { return nil }
func (bareDevice) Delete(string) error        { return nil }
func (bareDevice) Unshape(string) error       { return nil }

type barePort struct{ onePort }

func (barePort) DeletePort(context.Context, string, string) error { return nil }

// Before there is a node pods can go, and the rest says why it cannot be.
func TestFront(t *testing.T) {
	ctx := t.Context()
	ports := &latePorts{}
	f := &front{bare: attach.NewBare(bareDevice{}, ports, "br0", quiet()), why: func() error { return errors.New("no address yet") }}
	codes := func(want map[string]uint) {
		t.Helper()
		_, add := f.Add(ctx, cniapi.Request{Command: cniapi.Add})
		for name, err := range map[string]error{
			"ADD": add, "CHECK": f.Check(ctx, cniapi.Request{}), "STATUS": f.Status(ctx), "DEL": f.Del(ctx, cniapi.Request{ContainerID: "c1", IfName: "eth0"}),
			"GC": f.GC(ctx, cniapi.Request{NetworkName: "net"}),
		} {
			var code uint
			if e := cniapi.AsError(err); e != nil {
				code = e.Code
			}
			if code != want[name] {
				t.Errorf("%s: %v (code %d), want code %d", name, err, code, want[name])
			}
		}
	}
	// What GC is to take down only the database says.
	codes(map[string]uint{"ADD": cniapi.CodeTryAgain, "CHECK": cniapi.CodeTryAgain, "STATUS": cniapi.CodeNotAvailable, "GC": cniapi.CodeTryAgain})
	ports.found(barePort{})
	codes(map[string]uint{"ADD": cniapi.CodeTryAgain, "CHECK": cniapi.CodeTryAgain, "STATUS": cniapi.CodeNotAvailable})
	b := &behind{}
	f.open(b)
	codes(map[string]uint{})
	if b.calls != 5 {
		t.Errorf("%d of 5 calls came through", b.calls)
	}
}
