package controller

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/etcd"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// TestClock: with a clock two hours back the controller says so and waits; when the clock
// is right it goes on, with the CA that there was.
func TestClock(t *testing.T) {
	dir := shortDir(t)
	before, err := etcd.EnsureAuthority(dir+"/data", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := parse(t, "--metrics-address=unix://"+dir+"/m.sock", "--data-dir="+dir+"/data", "--listen-client-urls=https://"+freeport.Loopback(t).String())
	if err != nil {
		t.Fatal(err)
	}
	var back atomic.Int64
	back.Store(int64(2 * time.Hour))
	c.now = func() time.Time { return time.Now().Add(-time.Duration(back.Load())) }
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{dir: dir, cancel: cancel, done: make(chan error, 1), log: &lockedBuffer{}}
	go func() { r.done <- runWith(ctx, c, nil, slog.New(slog.NewTextHandler(r.log, nil))) }()
	t.Cleanup(func() { r.stop(t) })
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if code, body := r.get("/readyz"); code == 503 && strings.Contains(body, etcd.ErrClock.Error()) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it does not say what is wrong; log:\n%s", r.log)
		}
	}
	back.Store(0)
	r.leads(t)
	after, err := etcd.EnsureAuthority(dir+"/data", time.Now())
	if err != nil || string(after.Trust) != string(before.Trust) {
		t.Errorf("another CA, %v", err)
	}
}

// TestInsecureSaysSo: an etcd without identities is told of in the log, the metrics and
// the state.
func TestInsecureSaysSo(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		dir := shortDir(t)
		r := run(t, dir, "--data-dir="+dir+"/data", "--listen-client-urls="+scheme+"://"+freeport.Loopback(t).String())
		r.leads(t)
		insecure := scheme == "http"
		_, state := r.get("/debug/state")
		_, metrics := r.get("/metrics")
		if strings.Contains(state, "insecure") != insecure || strings.Contains(r.log.String(), "NOT SECURED") != insecure ||
			strings.Contains(metrics, "\nk8s_ovs_controller_identities_enforced 0") != insecure || strings.Contains(metrics, "\nk8s_ovs_controller_identities_enforced 1") == insecure {
			t.Errorf("%s: state %s\nlog:\n%s", scheme, state, r.log)
		}
	}
}
