package cniserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreUnexported(cniapi.Error{}),
}

func TestRequestsReachTheAttacher(t *testing.T) {
	a, m := &attacher{}, &observed{}
	s := serve(t, Config{Attacher: a, Metrics: m})
	var want []cniapi.Request
	var seen []observation
	for _, cmd := range []cniapi.Command{cniapi.Add, cniapi.Check, cniapi.Status, cniapi.GC, cniapi.Del} {
		req := request(cmd, "c1")
		res, e := s.call(req)
		if e != nil {
			t.Fatalf("%s: %v", cmd, e)
		}
		if cmd == cniapi.Add {
			if diff := cmp.Diff(result(req), res, compare); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		}
		if cmd != cniapi.Status {
			want = append(want, req)
		}
		seen = append(seen, observation{cmd, 0})
	}
	if diff := cmp.Diff(want, a.requests(), compare); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(seen, m.all()); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestErrors(t *testing.T) {
	full := cniapi.Errorf(cniapi.CodeTryAgain, "node subnet is full").WithDetails("remove pods")
	fail := func(err error) func(context.Context, cniapi.Request) error {
		return func(context.Context, cniapi.Request) error { return err }
	}
	for _, tc := range []struct {
		name     string
		attacher *attacher
		req      cniapi.Request
		want     *cniapi.Error
	}{
		{"with a code", &attacher{add: fail(full)}, request(cniapi.Add, "c"), full},
		{"with a code, wrapped", &attacher{del: fail(fmt.Errorf("detaching c: %w", full))}, request(cniapi.Del, "c"),
			&cniapi.Error{Code: 11, Msg: "detaching c: node subnet is full", Details: "remove pods"}},
		{"without code", &attacher{check: fail(errors.New("flow is missing"))}, request(cniapi.Check, "c"), &cniapi.Error{Code: 999, Msg: "flow is missing"}},
		{"status without code", &attacher{status: func(context.Context) error { return errors.New("no OVS") }}, request(cniapi.Status, ""), &cniapi.Error{Code: 50, Msg: "no OVS"}},
		{"status with code", &attacher{status: func(context.Context) error { return cniapi.Errorf(cniapi.CodeLimited, "no etcd") }}, request(cniapi.Status, ""), &cniapi.Error{Code: 51, Msg: "no etcd"}},
		{"deadline", &attacher{gc: func(ctx context.Context, _ cniapi.Request) error {
			<-ctx.Done()
			return fmt.Errorf("listing ports: %w", ctx.Err())
		}}, request(cniapi.GC, ""),
			&cniapi.Error{Code: 11, Msg: "GC of / took longer than 1s: listing ports: context deadline exceeded"}},
		{"panic", &attacher{add: func(context.Context, cniapi.Request) error { panic(errors.New("broken")) }}, request(cniapi.Add, "c"),
			&cniapi.Error{Code: 999, Msg: "the k8s-ovs agent failed on ADD of c/eth0: broken", Details: "this is a defect; the agent's log has the stack"}},
		{"panic in STATUS", &attacher{status: func(context.Context) error { panic("x") }}, request(cniapi.Status, ""),
			&cniapi.Error{Code: 999, Msg: "the k8s-ovs agent failed on STATUS of /: x", Details: "this is a defect; the agent's log has the stack"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &observed{}
			var log bytes.Buffer
			s := serve(t, Config{Attacher: tc.attacher, Metrics: m, RequestTimeout: time.Second,
				Log: slog.New(slog.NewTextHandler(&log, nil))})
			res, e := s.call(tc.req)
			if res != nil {
				t.Errorf("result %v with an error", res)
			}
			if diff := cmp.Diff(tc.want, e, compare); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]observation{{tc.req.Command, tc.want.Code}}, m.all()); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
			// The server lives on, and the attachment is free again.
			tc.attacher.add, tc.attacher.status = nil, nil
			if _, e := s.call(request(cniapi.Add, "c")); e != nil {
				t.Errorf("afterwards: %v", e)
			}
			s.stop()
			<-s.done
			if !strings.Contains(log.String(), strings.Fields(tc.want.Msg)[0]) || strings.HasPrefix(tc.name, "panic") && !strings.Contains(log.String(), "server_test.go") {
				t.Errorf("the log does not say it:\n%s", log.String())
			}
		})
	}
}

// TestBadRequests: nothing of what can be written into the socket does harm.
func TestBadRequests(t *testing.T) {
	a, m := &attacher{}, &observed{}
	s := serve(t, Config{Attacher: a, Metrics: m})
	for _, tc := range []struct {
		name, send string
		code       uint
		want       string
	}{
		{"not JSON", "GET / HTTP/1.1\r\n\r\n", 6, "not valid JSON"},
		{"another form", "[]\n", 6, "not valid JSON"},
		{"another release", `{"version":2,"command":"ADD"}`, 11, "version 2"},
		{"no version", `{"command":"STATUS"}`, 11, "version 0"},
		{"unknown command", `{"version":1,"command":"FROB"}`, 4, "CNI_COMMAND"},
		{"namespace is not a label", `{"version":1,"command":"ADD","containerID":"c","ifName":"eth0","netns":"/n","podNamespace":"A","podName":"b","networkName":"n"}`, 4, "K8S_POD_NAMESPACE"},
		{"GC without list", `{"version":1,"command":"GC","networkName":"n"}`, 7, "cni.dev/valid-attachments"},
		{"too large", `{"version":1,"podName":"` + strings.Repeat("a", cniapi.MaxMessage), 6, "larger than 1048576 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn, err := net.Dial("unix", s.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// Of what is too large the server does not read the end.
			_, _ = conn.Write([]byte(tc.send))
			resp, err := cniapi.ReadResponse(conn)
			if err != nil || resp.Error == nil {
				t.Fatalf("answer %+v, %v", resp, err)
			}
			if resp.Error.Code != tc.code || !strings.Contains(resp.Error.Msg, tc.want) {
				t.Errorf("code %d, %q; want %d and %q", resp.Error.Code, resp.Error.Msg, tc.code, tc.want)
			}
		})
	}
	// A connection that says nothing holds up nobody.
	silent, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if _, e := s.call(request(cniapi.Status, "")); e != nil {
		t.Error(e)
	}
	if got := a.requests(); len(got) != 0 {
		t.Errorf("the attacher was asked %+v", got)
	}
	for _, o := range m.all()[:len(m.all())-1] {
		if o.Command != "" || o.Code == 0 {
			t.Errorf("metrics were told %+v", o)
		}
	}
}

// TestOnlyRoot opens file and directory to all, and connects as someone else:
// the check of the peer is the last line.
func TestOnlyRoot(t *testing.T) {
	a := &attacher{}
	base, err := os.MkdirTemp("", "k8s-ovs-cniserver-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	s := serve(t, Config{Attacher: a, Socket: filepath.Join(base, "run", "cni.sock")})
	for _, path := range []string{base, filepath.Dir(s.socket), s.socket} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	type outcome struct {
		resp cniapi.Response
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		// The user is a property of the thread, which ends with this goroutine.
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			done <- outcome{err: errno}
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: s.socket})
		}
		if err != nil {
			done <- outcome{err: err}
			return
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		_ = cniapi.WriteRequest(f, request(cniapi.Add, "c1"))
		resp, err := cniapi.ReadResponse(f)
		done <- outcome{resp, err}
	}()
	got := <-done
	if got.err != nil || got.resp.Error == nil || !strings.Contains(got.resp.Error.Msg, "only root") {
		t.Errorf("answer %+v, %v; want a refusal", got.resp, got.err)
	}
	if asked := a.requests(); len(asked) != 0 {
		t.Errorf("the attacher was asked %+v", asked)
	}
}

// TestPluginGone: a runtime that gave up on an ADD is not kept waiting by it.
func TestPluginGone(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	a := &attacher{add: func(ctx context.Context, _ cniapi.Request) error {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}}
	s := serve(t, Config{Attacher: a})
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() { _, err := cniapi.Call(ctx, s.socket, request(cniapi.Add, "c1")); failed <- err }()
	<-begun
	cancel()
	if err := <-failed; err == nil {
		t.Error("the call succeeded")
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ADD's context ended with %v", err)
	}
	if _, e := s.call(request(cniapi.Del, "c1")); e != nil {
		t.Error(e)
	}
}

// TestDelOutlivesPlugin: what is being torn down is torn down.
func TestDelOutlivesPlugin(t *testing.T) {
	begun, finish, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	a := &attacher{del: func(ctx context.Context, _ cniapi.Request) error {
		close(begun)
		<-finish
		ended <- ctx.Err()
		return nil
	}}
	s := serve(t, Config{Attacher: a})
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() { _, err := cniapi.Call(ctx, s.socket, request(cniapi.Del, "c1")); failed <- err }()
	<-begun
	cancel()
	<-failed
	// Another connection is served in between, so the server has seen the end of this one.
	if _, e := s.call(request(cniapi.Status, "")); e != nil {
		t.Error(e)
	}
	close(finish)
	if err := <-ended; err != nil {
		t.Errorf("DEL's context ended with %v", err)
	}
}

func TestShutdown(t *testing.T) {
	begun, finish := make(chan string, 2), make(chan struct{})
	a := &attacher{
		add: func(ctx context.Context, req cniapi.Request) error {
			begun <- req.ContainerID
			if req.ContainerID == "stuck" {
				<-ctx.Done()
				return ctx.Err()
			}
			<-finish
			return nil
		},
	}
	s := serve(t, Config{Attacher: a, ShutdownGrace: 500 * time.Millisecond})
	results := map[string]chan *cniapi.Error{}
	start := func(name string, req cniapi.Request) {
		results[name] = make(chan *cniapi.Error, 1)
		go func() { _, e := s.call(req); results[name] <- e }()
	}
	start("good", request(cniapi.Add, "good"))
	start("stuck", request(cniapi.Add, "stuck"))
	<-begun
	<-begun
	start("waiting", request(cniapi.Del, "good"))
	queued(t, s.server.turns, cniapi.Del, "good")
	s.stop()
	if e := <-results["waiting"]; e == nil || e.Code != cniapi.CodeTryAgain {
		t.Errorf("the waiting request: %v", e)
	}
	if _, e := s.call(request(cniapi.Status, "")); e == nil || e.Code != cniapi.CodeNotAvailable {
		t.Errorf("a new request: %v", e)
	}
	select {
	case err := <-s.done:
		t.Fatalf("Serve returned %v with requests running", err)
	default:
	}
	if _, err := Listen(Config{Attacher: a, Socket: s.socket, Log: discard}); err == nil || !strings.Contains(err.Error(), "another k8s-ovs-agent") {
		t.Errorf("the next agent began beside running requests: %v", err)
	}
	close(finish)
	if e := <-results["good"]; e != nil {
		t.Errorf("the running request: %v", e)
	}
	// Ended by the grace, not by its own deadline.
	if e := <-results["stuck"]; e == nil || e.Code != cniapi.CodeTryAgain || e.Msg != context.Canceled.Error() {
		t.Errorf("the stuck request: %v", e)
	}
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	for _, req := range a.requests() {
		if req.Command == cniapi.Del {
			t.Error("the refused request ran")
		}
	}
}

// TestGCSparesWhatIsBeingMade: an ADD that runs when GC comes is not in the
// runtime's list, and is no garbage.
func TestGCSparesWhatIsBeingMade(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	a := &attacher{add: func(context.Context, cniapi.Request) error { close(begun); <-finish; return nil }}
	s := serve(t, Config{Attacher: a})
	added, collected := make(chan *cniapi.Error, 1), make(chan *cniapi.Error, 1)
	go func() { _, e := s.call(request(cniapi.Add, "new")); added <- e }()
	<-begun
	gc := request(cniapi.GC, "")
	gc.ValidAttachments = []cniapi.Attachment{{ContainerID: "old", IfName: "eth0"}}
	go func() { _, e := s.call(gc); collected <- e }()
	until(t, func() bool { // it waits
		if s.server.turns.slots.TryAcquire(1) {
			s.server.turns.slots.Release(1)
			return false
		}
		return true
	})
	close(finish)
	if e := errors.Join(asError(<-added), asError(<-collected)); e != nil {
		t.Fatal(e)
	}
	want := gc
	want.ValidAttachments = append(want.ValidAttachments, cniapi.Attachment{ContainerID: "new", IfName: "eth0"})
	if diff := cmp.Diff([]cniapi.Request{request(cniapi.Add, "new"), want}, a.requests(), compare); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestUnknownCommand: a command that Validate lets through and the server does not know asks for nothing.
func TestUnknownCommand(t *testing.T) {
	a := &attacher{}
	s := serve(t, Config{Attacher: a})
	for _, cmd := range []cniapi.Command{"FREEZE", "", "gc"} {
		res, e := s.server.run(t.Context(), cniapi.Request{Version: cniapi.Version, Command: cmd, NetworkName: "k8s-ovs"})
		if res != nil || e == nil || e.Code != cniapi.CodeInternal {
			t.Errorf("%q: result %v, error %v; want an error with code %d", cmd, res, e, cniapi.CodeInternal)
		}
	}
	if got := a.requests(); len(got) != 0 {
		t.Errorf("the attacher was asked for %v", got)
	}
}

// asError avoids the error that holds a nil *cniapi.Error.
func asError(e *cniapi.Error) error {
	if e == nil {
		return nil
	}
	return e
}

// TestRealPlugin has the two programs' halves meet: libcni, the plugin as a
// process, this server.
func TestRealPlugin(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "k8s-ovs"), "github.com/k8s-ovs/k8s-ovs/cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the plugin: %v\n%s", err, out)
	}
	name := fmt.Sprintf("k8s-ovs-cniserver-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })

	var serving atomic.Bool
	serving.Store(true)
	a := &attacher{status: func(context.Context) error {
		if !serving.Load() {
			return errors.New("OVS does not answer")
		}
		return nil
	}}
	s := serve(t, Config{Attacher: a})
	// Given no exec, libcni makes one at first use, and races with itself.
	run := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	cni := libcni.NewCNIConfigWithCacheDir([]string{dir}, t.TempDir(), run)
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"k8s-ovs","plugins":[{"type":"k8s-ovs","socket":%q}]}`, s.socket))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	rt := func(i int) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{ContainerID: fmt.Sprint("c", i), NetNS: "/var/run/netns/" + name, IfName: "eth0",
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", fmt.Sprint("p", i)}}}
	}
	const pods = 16
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			if _, err := cni.AddNetworkList(ctx, list, rt(i)); err != nil {
				t.Error(err)
			}
			if err := cni.CheckNetworkList(ctx, list, rt(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := len(a.requests()); got != 2*pods {
		t.Errorf("the attacher was asked %d times, want %d", got, 2*pods)
	}
	if err := cni.GetStatusNetworkList(ctx, list); err != nil {
		t.Error(err)
	}
	serving.Store(false)
	var e *types.Error
	if err := cni.GetStatusNetworkList(ctx, list); !errors.As(err, &e) || e.Code != 50 || e.Msg != "OVS does not answer" {
		t.Errorf("STATUS: %#v", err)
	}
	s.stop()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	if err := cni.DelNetworkList(ctx, list, rt(0)); !errors.As(err, &e) || e.Code != 11 {
		t.Errorf("DEL without agent: %#v", err)
	}
	serve(t, Config{Attacher: a, Socket: s.socket})
	if err := cni.DelNetworkList(ctx, list, rt(0)); err != nil {
		t.Errorf("DEL with the next agent: %v", err)
	}
}
