package etcd

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// TestNeverFull: records that change without end do not fill etcd, and an etcd that was full takes changes again by
// itself.
func TestNeverFull(t *testing.T) {
	const quota = 24 << 20
	log := &safeBuffer{}
	s, err := Start(t.Context(), Config{
		DataDir: shortDir(t), ListenClientURLs: []string{"http://" + freeport.Loopback(t).String()}, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(log, nil)), quotaBytes: quota,
	})
	must(t, "start", err)
	t.Cleanup(s.Close)
	root := dial(t, s.Endpoint(), nil)
	_, err = root.Put(t.Context(), "stays", "x")
	must(t, "put", err)

	// Faster than it is looked at: until it is full, and a good while after.
	value := strings.Repeat("x", 1<<20)
	written, again := 0, 0
	for deadline := time.Now().Add(patience); again < 8; {
		if time.Now().After(deadline) {
			t.Fatalf("%d MB were written, %d after it was full; the log:\n%s", written, again, log)
		}
		_, err := root.Put(t.Context(), "changes", value)
		switch {
		case err == nil && written > 2*quota>>20:
			again++
		case err == nil:
			written++
		default:
			time.Sleep(50 * time.Millisecond)
		}
	}
	r, err := root.Get(t.Context(), "stays")
	must(t, "get", err)
	if len(r.Kvs) != 1 {
		t.Error("a record is gone")
	}

	server := s.etcd.Server
	_, err = server.Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: uint64(server.MemberID()), Alarm: pb.AlarmType_NOSPACE})
	must(t, "raise the alarm", err)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if _, err := root.Put(t.Context(), "stays", "y"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it is still full; the log:\n%s", log)
		}
	}
	if !strings.Contains(log.String(), "history") || !strings.Contains(log.String(), "takes changes again") {
		t.Errorf("the log:\n%s", log)
	}
}
