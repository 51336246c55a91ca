package etcd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/test/freeport"
)

// safeBuffer is a log that several write.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// refused reports whether err is that its user asks too much.
func refused(err error) bool {
	var said rpctypes.EtcdError
	if errors.As(err, &said) {
		return said.Code() == codes.ResourceExhausted
	}
	return status.Code(err) == codes.ResourceExhausted
}

// TestNodesBudget: a node that asks more than agents do is refused, and said so once; others
// go on, and it does when it has stopped.
func TestNodesBudget(t *testing.T) {
	dir, address := shortDir(t), freeport.Loopback(t).String()
	a, _ := authority(t, dir, time.Now())
	log := &safeBuffer{}
	s, err := Start(t.Context(), Config{DataDir: dir, ListenClientURLs: []string{"https://" + address}, Authority: a, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(log, nil))})
	must(t, "start", err)
	t.Cleanup(s.Close)
	root := dial(t, s.Endpoint(), nil)
	client := func(name string) *clientv3.Client {
		addUser(t, root, name)
		return dial(t, "https://"+address, user(t, a, a.CA, name, time.Hour))
	}
	stolen, other, operator := pki.NodeUser("stolen", "1"), pki.NodeUser("other", "1"), pki.OperatorUser("one")
	writer, bystander, person := client(stolen), client(other), client(operator)

	write := func(c *clientv3.Client, key string, size int) error {
		_, err := c.Put(t.Context(), key, strings.Repeat("x", size))
		return err
	}
	if err := write(writer, stolen, maxRequest); !refused(err) {
		t.Errorf("a record that no node has: %v", err)
	}
	if err := write(person, operator, maxRequest); err != nil {
		t.Errorf("an operator's: %v", err)
	}
	sent, began := 0, time.Now()
	for err = nil; err == nil && sent < 4*writeBurst; sent += maxRequest / 2 {
		err = write(writer, stolen, maxRequest/2)
	}
	if allowed := writeBurst + int(time.Since(began).Seconds()+1)*writeRate; !refused(err) || sent > allowed {
		t.Errorf("after %d bytes: %v", sent, err)
	}
	must(t, "another node", write(bystander, other, maxRequest/2))
	if n := strings.Count(log.String(), stolen); n == 0 || strings.Contains(log.String(), other) {
		t.Errorf("the log:\n%s", log)
	}
	for deadline := time.Now().Add(patience); write(writer, stolen, 10) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is still refused")
		}
	}

	if _, err := bystander.Grant(t.Context(), maxLeaseTTL+1); !refused(err) {
		t.Errorf("a lease for ever: %v", err)
	}
	granted := 0
	for err = nil; err == nil && granted < 2*leaseBurst; granted++ {
		_, err = bystander.Grant(t.Context(), 10)
	}
	if !refused(err) {
		t.Errorf("%d leases: %v", granted, err)
	}
}

// TestNodesStreams: streams and watches are bounded, and count no longer when they are closed.
func TestNodesStreams(t *testing.T) {
	dir, address := shortDir(t), freeport.Loopback(t).String()
	s, a := serve(t, dir, "https://"+address)
	root := dial(t, s.Endpoint(), nil)
	node := pki.NodeUser("n1", "1")
	addUser(t, root, node)
	client := dial(t, "https://"+address, user(t, a, a.CA, node, time.Hour))

	// Watches whose contexts have other metadata go by other streams.
	open := func(i int) (end func(), err error) {
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "stream", strconv.Itoa(i)))
		r := <-client.Watch(ctx, node, clientv3.WithCreatedNotify())
		return cancel, r.Err()
	}
	var ends []func()
	var err error
	for i := 0; err == nil && i < 2*maxStreams; i++ {
		var end func()
		if end, err = open(i); err == nil {
			ends = append(ends, end)
		}
	}
	if len(ends) != maxStreams || !refused(err) {
		t.Errorf("%d streams: %v", len(ends), err)
	}
	for _, end := range ends {
		end()
	}
	left := s.guard.budgets.of(node)
	counted := func() (streams, watches int) {
		left.mu.Lock()
		defer left.mu.Unlock()
		return left.streams, left.watches
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		streams, watches := counted()
		if streams == 0 && watches == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d streams and %d watches are counted after all were closed", streams, watches)
		}
	}
	_, err = open(-1)
	must(t, "one more", err)
	if streams, watches := counted(); streams != 1 || watches != 1 {
		t.Errorf("%d streams and %d watches are counted", streams, watches)
	}
}
