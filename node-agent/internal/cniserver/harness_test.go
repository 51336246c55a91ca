package cniserver

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// attacher is an Attacher that does what a test says, and keeps what was asked.
type attacher struct {
	add, del, check, gc func(context.Context, cniapi.Request) error
	status              func(context.Context) error

	mu    sync.Mutex
	asked []cniapi.Request
}

func (a *attacher) note(ctx context.Context, req cniapi.Request, do func(context.Context, cniapi.Request) error) error {
	a.mu.Lock()
	a.asked = append(a.asked, req)
	a.mu.Unlock()
	if do == nil {
		return nil
	}
	return do(ctx, req)
}

func (a *attacher) requests() []cniapi.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	asked := a.asked
	a.asked = nil
	return asked
}

func (a *attacher) Add(ctx context.Context, req cniapi.Request) (*cniapi.Result, error) {
	if err := a.note(ctx, req, a.add); err != nil {
		return nil, err
	}
	return result(req), nil
}

func (a *attacher) Del(ctx context.Context, req cniapi.Request) error { return a.note(ctx, req, a.del) }
func (a *attacher) Check(ctx context.Context, req cniapi.Request) error {
	return a.note(ctx, req, a.check)
}
func (a *attacher) GC(ctx context.Context, req cniapi.Request) error { return a.note(ctx, req, a.gc) }
func (a *attacher) Status(ctx context.Context) error {
	if a.status == nil {
		return nil
	}
	return a.status(ctx)
}

func result(req cniapi.Request) *cniapi.Result {
	return &cniapi.Result{
		HostIfName: "veth0a1b", HostMAC: cniapi.MAC{2, 0, 0, 0, 0, 1},
		SandboxIfName: req.IfName, MAC: cniapi.MAC{0x0a, 0x58, 172, 11, 0, 5}, Sandbox: req.Netns,
		IPs: []cniapi.IP{{Address: netip.MustParsePrefix("172.11.0.5/32"), Gateway: netip.MustParseAddr("172.11.0.1")}}, MTU: 1450,
	}
}

// observed keeps what the metrics were told.
type observed struct {
	mu  sync.Mutex
	got []observation
}

type observation struct {
	Command cniapi.Command
	Code    uint
}

func (o *observed) ObserveRequest(cmd cniapi.Command, code uint, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if took <= 0 || took > time.Minute {
		panic("a request took " + took.String())
	}
	o.got = append(o.got, observation{cmd, code})
}

func (o *observed) all() []observation {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.got)
}

// served is a Server that runs.
type served struct {
	socket string
	server *Server
	stop   context.CancelFunc
	done   chan error
}

// serve runs a server until the test ends.
func serve(t *testing.T, cfg Config) *served {
	t.Helper()
	if cfg.Socket == "" {
		cfg.Socket = filepath.Join(t.TempDir(), "run", "cni.sock")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	sv := &served{socket: cfg.Socket, server: s, stop: cancel, done: make(chan error, 1)}
	go func() { sv.done <- s.Serve(ctx); close(sv.done) }()
	t.Cleanup(func() {
		cancel()
		if err := <-sv.done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return sv
}

func (s *served) call(req cniapi.Request) (*cniapi.Result, *cniapi.Error) {
	res, err := cniapi.Call(context.Background(), s.socket, req)
	return res, cniapi.AsError(err)
}

// request is a good one for the sandbox id.
func request(cmd cniapi.Command, id string) cniapi.Request {
	req := cniapi.Request{Version: cniapi.Version, Command: cmd}
	switch cmd {
	case cniapi.GC:
		req.NetworkName, req.ValidAttachments = "k8s-ovs", []cniapi.Attachment{}
	case cniapi.Status:
	default:
		req.NetworkName = "k8s-ovs"
		req.ContainerID, req.IfName, req.Netns = id, "eth0", "/var/run/netns/"+id
		req.PodNamespace, req.PodName = "helloworld1", "web-0"
	}
	if cmd == cniapi.Check {
		req.PrevResult = &cniapi.PrevResult{}
	}
	return req
}
