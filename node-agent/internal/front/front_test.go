package front

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/switchports"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
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

// bareDevice can be taken down.
type bareDevice struct{ attach.Kernel }

func (bareDevice) Leave(attach.Wire) error    { return nil }
func (bareDevice) Forget(...netip.Addr) error { return nil }
func (bareDevice) Delete(string) error        { return nil }
func (bareDevice) Unshape(string) error       { return nil }

type (
	ports    = attach.Ports // the embedded field is not called as the method
	barePort struct{ ports }
)

func (barePort) Ports(string) ([]ovs.Port, error) {
	return []ovs.Port{{Name: "kov1", Ofport: 12, ExternalIDs: map[string]string{
		"k8s-ovs-container": "c", "k8s-ovs-ifname": "eth0", "k8s-ovs-address": "172.11.0.2",
	}}}, nil
}

func (barePort) DeletePort(context.Context, string, string) error { return nil }

// Before there is a node pods can go, and the rest says why it cannot be.
func TestFront(t *testing.T) {
	ctx := t.Context()
	ports := &switchports.Late{}
	f := &Front{bare: attach.NewBare(bareDevice{}, ports, "br0", t.TempDir(), slog.New(slog.DiscardHandler)), why: func() error { return errors.New("no address yet") }}
	codes := func(want map[string]uint) {
		t.Helper()
		_, add := f.Add(ctx, cniapi.Request{Command: cniapi.Add})
		for name, err := range map[string]error{
			"ADD": add, "CHECK": f.Check(ctx, cniapi.Request{}), "STATUS": f.Status(ctx), "DEL": f.Del(ctx, cniapi.Request{ContainerID: "c1", IfName: "eth0"}),
			"GC": f.GC(ctx, cniapi.Request{NetworkName: "net", ValidAttachments: []cniapi.Attachment{}}),
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
	ports.Found(barePort{})
	codes(map[string]uint{"ADD": cniapi.CodeTryAgain, "CHECK": cniapi.CodeTryAgain, "STATUS": cniapi.CodeNotAvailable})
	b := &behind{}
	f.Open(b)
	codes(map[string]uint{})
	if b.calls != 5 {
		t.Errorf("%d of 5 calls came through", b.calls)
	}
}
