package controller

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const patience = 60 * time.Second

func parse(t *testing.T, args ...string) (Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	c := Defaults()
	c.Register(fs)
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	return c, c.Complete()
}

func TestComplete(t *testing.T) {
	c, err := parse(t, "--network", "10.128.0.0/14", "--host-subnet-length=9", "--service-network=172.30.0.0/16", "--plugin-name=k8s-ovs-subnet", "--name=x", "--vxlan-port=8472", "--global-namespaces=a,b", "--metrics-address=")
	if err != nil {
		t.Fatal(err)
	}
	if c.Network.Network.String() != "10.128.0.0/14" || c.Network.HostSubnetLength != 9 || !c.Network.Single() || c.Network.Name != "x" || c.Network.VXLANPort != 8472 || len(c.GlobalNamespaces) != 2 {
		t.Errorf("%+v", c)
	}
	if len(c.explicit) != 6 || c.ID == "" {
		t.Errorf("explicit %v, ID %q", c.explicit, c.ID)
	}
	if c, err = parse(t); err != nil || !c.Network.Equal(topology.DefaultConfig()) || len(c.explicit) != 0 {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	for args, say := range map[string]string{
		"--network=10.0.0.0":                      "--network",
		"--service-network=x":                     "--service-network",
		"--network=10.96.0.0/16":                  "overlaps",
		"--host-subnet-length=40":                 "--host-subnet-length",
		"--plugin-name=calico":                    "calico",
		"--global-namespaces=Kube_System":         "--global-namespaces",
		"--vxlan-port=0":                          "--vxlan-port",
		"--vxlan-port=65536":                      "--vxlan-port",
		"--leader-ttl=1s":                         "--leader-ttl",
		"--etcd-endpoints=ftp://x:1":              "--etcd-endpoints",
		"--etcd-endpoints=x:1 --data-dir=/tmp/xx": "--data-dir is for the embedded etcd",
	} {
		if _, err := parse(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: error %v, want one with %q", args, err, say)
		}
	}
}

// running is a controller in this process.
type running struct {
	dir    string
	cancel context.CancelFunc
	done   chan error
	log    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func run(t *testing.T, dir string, args ...string) *running {
	t.Helper()
	c, err := parse(t, append([]string{"--metrics-address=unix://" + dir + "/m.sock"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{dir: dir, cancel: cancel, done: make(chan error, 1), log: &lockedBuffer{}}
	go func() { r.done <- Run(ctx, c, slog.New(slog.NewTextHandler(r.log, nil))) }()
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			t.Errorf("the controller ended with %v", err)
		}
		r.done <- nil
	case <-time.After(patience):
		t.Fatal("the controller does not end")
	}
}

// get asks the diagnostics.
func (r *running) get(path string) (int, string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.dir+"/m.sock")
	}}}
	resp, err := client.Get("http://x" + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func (r *running) leads(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if code, _ := r.get("/readyz"); code == http.StatusOK {
			if _, body := r.get("/metrics"); strings.Contains(body, "k8s_ovs_controller_leader 1") {
				return
			}
		}
	}
	t.Fatalf("the controller does not lead; log:\n%s", r.log)
}

func shortDir(t *testing.T) string {
	t.Helper()
	// Not t.TempDir: a unix socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// The embedded etcd: two clients' addresses, records that outlive the process,
// and an end that is quick although a client watches.
func TestEmbedded(t *testing.T) {
	dir := shortDir(t)
	args := []string{"--data-dir=" + dir + "/data", "--listen-client-urls=unix://" + dir + "/a.sock,unix://" + dir + "/b.sock"}
	r := run(t, dir, args...)
	r.leads(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	open := func(name string) *store.Store {
		s, err := store.Open(store.Config{Endpoints: []string{"unix://" + dir + "/" + name}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	a, b := open("a.sock"), open("b.sock")
	if err := a.EnsureNamespace(ctx, "ns"); err != nil {
		t.Fatal(err)
	}
	has := func(n topology.Namespace) bool { return n.Effective != nil }
	before := waitNamespace(t, b, "ns", has)
	watch := b.Watch(ctx)
	<-watch
	began := time.Now()
	r.stop(t)
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the end took %s: etcd waited for its clients", d)
	}
	for _, text := range []string{"level=ERROR", "panic"} {
		if strings.Contains(r.log.String(), text) {
			t.Errorf("%s in the log:\n%s", text, r.log)
		}
	}
	if info, err := os.Stat(dir + "/data"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory %v, %v; want mode 0700", info, err)
	}
	r = run(t, dir, args...)
	r.leads(t)
	if after := waitNamespace(t, a, "ns", has); *after.Effective != *before.Effective {
		t.Errorf("netID %d before and %d after", *before.Effective, *after.Effective)
	}
	if code, body := r.get("/debug/state"); code != http.StatusOK || !strings.Contains(body, `"leader": true`) {
		t.Errorf("state %d %s", code, body)
	}
	if code, _ := r.get("/healthz"); code != http.StatusOK {
		t.Errorf("healthz %d", code)
	}
}

// A data directory with a long name has its sockets elsewhere, and leaves none.
func TestEmbeddedLongPath(t *testing.T) {
	dir := shortDir(t)
	t.Setenv("TMPDIR", dir) // where no other process has its sockets
	data := filepath.Join(dir, strings.Repeat("a", 60), strings.Repeat("b", 60))
	r := run(t, dir, "--data-dir="+data, "--listen-client-urls=unix://"+dir+"/a.sock")
	r.leads(t)
	left := func() []string {
		m, err := filepath.Glob(filepath.Join(dir, "k8s-ovs-etcd-*", "client.sock"))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if len(left()) != 1 {
		t.Errorf("sockets in the temporary directory: %v", left())
	}
	r.stop(t)
	if len(left()) > 0 {
		t.Errorf("sockets left: %v", left())
	}
}

func TestEmbeddedRefuses(t *testing.T) {
	dir := shortDir(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for args, say := range map[string]string{
		"--listen-client-urls=http://example.com:2379":             "addresses, not on names",
		"--listen-client-urls=http://127.0.0.1":                    "an address and a port",
		"--listen-client-urls=127.0.0.1:2379":                      "--listen-client-urls",
		"--listen-client-urls=http://203.0.113.7:2379":             "--insecure-listen-http",
		"--listen-client-urls=unix://x.sock":                       "whole path",
		"--listen-client-urls=https://203.0.113.77:2379":           "must be addresses of this machine",
		"--listen-client-urls=http://" + busy.Addr().String():      "--etcd-endpoints",
		"--data-dir=" + file:                                       "--data-dir",
		"--metrics-address=" + busy.Addr().String():                busy.Addr().String(),
		"--listen-client-urls=unix:///" + strings.Repeat("x", 200): "at most 107 bytes",
	} {
		c, err := parse(t, append([]string{"--metrics-address=", "--data-dir=" + dir + "/data", "--listen-client-urls=unix://" + dir + "/c.sock"}, args)...)
		if err == nil {
			// SliceVar appends to what a former flag gave: only the last counts here.
			if strings.HasPrefix(args, "--listen") {
				c.Embedded.ListenClientURLs = c.Embedded.ListenClientURLs[1:]
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			err = Run(ctx, c, slog.New(slog.DiscardHandler))
			cancel()
		}
		if err == nil || !strings.Contains(err.Error(), say) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: error %v, want one with %q", args, err, say)
		}
	}
}
