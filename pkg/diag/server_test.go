package diag

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// run starts a server and returns a client for it, and a function that stops
// it and gives what Run returned.
func run(t *testing.T, cfg Config) (get func(path string) (int, string), stop func() error) {
	t.Helper()
	s := NewServer(cfg)
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = func() error {
		cancel()
		select {
		case err := <-done:
			done <- err
			return err
		case <-time.After(10 * time.Second):
			t.Fatal("Run did not return")
			return nil
		}
	}
	t.Cleanup(func() { _ = stop() })
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, s.Addr().Network(), s.Addr().String())
	}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	return func(path string) (int, string) {
		t.Helper()
		resp, err := client.Get("http://program" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}, stop
}

func TestMetrics(t *testing.T) {
	r := NewRegistry("k8s-ovs-test")
	pods := prometheus.NewGauge(prometheus.GaugeOpts{Name: "k8s_ovs_pods", Help: "Pods."})
	pods.Set(7)
	r.MustRegister(pods)
	get, stop := run(t, Config{Address: "127.0.0.1:0", Registry: r})
	status, body := get("/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	for _, want := range []string{"k8s_ovs_pods 7\n", `program="k8s-ovs-test"`, "go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestHealth(t *testing.T) {
	var etcd atomic.Pointer[error]
	get, _ := run(t, Config{
		Address: "127.0.0.1:0",
		Live:    []Check{{"loop", func(context.Context) error { return nil }}},
		Ready: []Check{
			{"bridge", func(context.Context) error { return nil }},
			{"etcd", func(context.Context) error {
				if err := etcd.Load(); err != nil {
					return *err
				}
				return nil
			}},
		},
	})
	expect := func(path string, status int, body string) {
		t.Helper()
		gotStatus, gotBody := get(path)
		if gotStatus != status || gotBody != body {
			t.Errorf("%s: %d %q, want %d %q", path, gotStatus, gotBody, status, body)
		}
	}
	expect("/healthz", 200, "ok\n")
	expect("/readyz", 200, "ok\n")
	expect("/readyz?verbose", 200, "bridge: ok\netcd: ok\n")
	down := errors.New("no answer from 192.0.2.1:2379\nsince 12:00")
	etcd.Store(&down)
	expect("/readyz", 503, "etcd: no answer from 192.0.2.1:2379 since 12:00\n")
	expect("/readyz?verbose", 503, "bridge: ok\netcd: no answer from 192.0.2.1:2379 since 12:00\n")
	expect("/healthz", 200, "ok\n")
	etcd.Store(nil)
	expect("/readyz", 200, "ok\n")
}

// TestHungCheck: it is named, the others are heard, and asking again starts no
// second run.
func TestHungCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		release := make(chan struct{})
		c := newChecks([]Check{
			{"switch", func(context.Context) error { runs.Add(1); <-release; return nil }},
			{"etcd", func(context.Context) error { return errors.New("away") }},
		})
		ask := func() (int, string) {
			w := newRecorder()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil)
			if err != nil {
				t.Fatal(err)
			}
			c.ServeHTTP(w, r)
			return w.status, w.body.String()
		}
		for i, after := range []string{"800ms", "1.6s", "2.4s"} {
			status, body := ask()
			if want := "switch: no answer for " + after + "\netcd: away\n"; status != 503 || body != want {
				t.Errorf("time %d: %d %q, want 503 %q", i+1, status, body, want)
			}
		}
		if n := runs.Load(); n != 1 {
			t.Errorf("the hung check was started %d times, want once", n)
		}
		close(release)
		synctest.Wait()
		if _, body := ask(); body != "etcd: away\n" {
			t.Errorf("the check does not recover: %q", body)
		}
	})
}

type recorder struct {
	status int
	header http.Header
	body   strings.Builder
}

func newRecorder() *recorder                          { return &recorder{header: http.Header{}} }
func (r *recorder) Header() http.Header               { return r.header }
func (r *recorder) WriteHeader(status int)            { r.status = status }
func (r *recorder) Write(b []byte) (n int, err error) { return r.body.Write(b) }

func TestState(t *testing.T) {
	get, _ := run(t, Config{Address: "127.0.0.1:0", State: func() any { return map[string]int{"revision": 42} }})
	if status, body := get("/debug/state"); status != 200 || body != "{\n  \"revision\": 42\n}\n" {
		t.Errorf("%d %q", status, body)
	}
	get, _ = run(t, Config{Address: "127.0.0.1:0", State: func() any { return func() {} }})
	if status, body := get("/debug/state"); status != 500 || !strings.Contains(body, "encode state") {
		t.Errorf("%d %q", status, body)
	}
	get, _ = run(t, Config{Address: "127.0.0.1:0"})
	if status, _ := get("/debug/state"); status != 404 {
		t.Errorf("status %d, want 404", status)
	}
}

func TestProfilingOnlyWhenAsked(t *testing.T) {
	for path, want := range map[string][2]int{
		"/debug/pprof/":                  {404, 200},
		"/debug/pprof/goroutine?debug=1": {404, 200},
		"/debug/pprof/cmdline":           {404, 200},
		"/nothing":                       {404, 404},
		"/":                              {200, 200},
	} {
		for i, profiling := range []bool{false, true} {
			get, _ := run(t, Config{Address: "127.0.0.1:0", Profiling: profiling})
			if status, _ := get(path); status != want[i] {
				t.Errorf("%s with profiling %t: %d, want %d", path, profiling, status, want[i])
			}
		}
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	address := "unix://" + path
	// A socket left behind by a program that was killed.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()

	get, stop := run(t, Config{Address: address})
	if status, body := get("/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("%d %q", status, body)
	}
	// One in use is not taken away.
	err = NewServer(Config{Address: address}).Listen()
	if err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("second server: error %v, want one that names %s", err, address)
	}
	if status, _ := get("/healthz"); status != 200 {
		t.Errorf("the first server no longer answers: %d", status)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestListenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, address := range []string{
		taken.Addr().String(), "127.0.0.1", "https://127.0.0.1:0", "unix://relative.sock",
		"unix://" + file, "unix:///nonexistent/metrics.sock",
	} {
		if err := NewServer(Config{Address: address}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "listen on metrics address "+address) {
			t.Errorf("%s: error %v does not name the address", address, err)
		}
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Error("a file in the place of the socket was touched")
	}
}

func TestDisabled(t *testing.T) {
	s := NewServer(Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case err := <-done:
		t.Fatalf("Run returned %v before its context was done", err)
	default:
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s.Addr() != nil {
		t.Errorf("listens on %s", s.Addr())
	}
}

// TestStopFinishesRequests: one under way gets its answer.
func TestStopFinishesRequests(t *testing.T) {
	inside, release := make(chan struct{}), make(chan struct{})
	get, stop := run(t, Config{Address: "127.0.0.1:0", State: func() any { close(inside); <-release; return 1 }})
	answered := make(chan int, 1)
	go func() {
		status, _ := get("/debug/state")
		answered <- status
	}()
	<-inside
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	close(release)
	if status := <-answered; status != 200 {
		t.Errorf("status %d, want 200", status)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// Addr is where the server listens, with the port that the kernel chose for
// port 0; nil where it does not.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}
