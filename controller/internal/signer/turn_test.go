package signer

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// crowd is an API server with many requests. It notes in which order they are answered, and refuses a second answer to one, as an API
// server does: the request has changed since it was told of.
type crowd struct {
	requests map[string]kube.SigningRequest
	tell     chan map[string]kube.SigningRequest
	// denied is called with each denial.
	denied func(n int)

	mu      sync.Mutex
	answers []string
}

func (c *crowd) WatchSigningRequests(ctx context.Context, _ string) <-chan map[string]kube.SigningRequest {
	context.AfterFunc(ctx, func() { close(c.tell) })
	return c.tell
}

func (c *crowd) Sign(_ context.Context, r kube.SigningRequest, _ []byte, _ kube.EventReason, _ string) error {
	_, err := c.answer("signed ", r.Name)
	return err
}

func (c *crowd) Deny(_ context.Context, r kube.SigningRequest, _ kube.EventReason, _ string) error {
	n, err := c.answer("denied ", r.Name)
	if err == nil {
		c.denied(n)
	}
	return err
}

// answer notes an answer, and says how many there are.
func (c *crowd) answer(what, name string) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.answers {
		if a[len(what):] == name {
			return 0, kube.ErrChanged
		}
	}
	c.answers = append(c.answers, what+name)
	return len(c.answers), nil
}

func (c *crowd) Event(kube.ObjectRef, bool, kube.EventReason, string) {}

func (c *crowd) sofar() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.answers...)
}

// TestCrowdMakesNobodyWait: an agent's request is signed before a thousand that cannot be, whoever made them and whatever their names;
// one that comes meanwhile after a few of them; and each is answered.
func TestCrowdMakesNobodyWait(t *testing.T) {
	for name, bad := range map[string]func(*kube.SigningRequest){
		"of a kubelet": func(r *kube.SigningRequest) { r.Username = "system:node:n2" },
		"of another's agent": func(r *kube.SigningRequest) {
			r.Extra = map[string][]string{extraNodeName: {"n2"}, extraNodeUID: {"u2"}, extraPodUID: {"p2"}}
		},
		"of no pod": func(r *kube.SigningRequest) { r.Extra = nil },
	} {
		t.Run(name, func(t *testing.T) {
			ca, err := pki.NewCA("test", time.Now())
			if err != nil {
				t.Fatal(err)
			}
			good := asks(t)
			c := &crowd{requests: map[string]kube.SigningRequest{}, tell: make(chan map[string]kube.SigningRequest, 1)}
			for i := range 1000 {
				r := good
				r.Name = fmt.Sprintf("a-%03d", i)
				bad(&r)
				c.requests[r.Name] = r
			}
			first, late := good, good
			first.Name, late.Name = "z-first", "z-late"
			c.requests[first.Name] = first
			c.denied = func(n int) {
				if n != 100 {
					return
				}
				// The watch tells of what was answered, and of a new one.
				fresh := maps.Clone(c.requests)
				for _, name := range c.sofar() {
					r := fresh[name[len("denied "):]]
					r.Finished = true
					fresh[r.Name] = r
				}
				fresh[late.Name] = late
				c.tell <- fresh
			}
			records := make(told, 1)
			s := New(Config{
				API: c, Records: records, Account: account, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler),
				CA: func() (*pki.Pair, error) { return ca, nil },
			})
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { s.Run(ctx) })
			defer running.Wait()
			defer cancel()
			c.tell <- c.requests
			records.tell(topology.Node{Host: "n1", UID: "u1"}, topology.Node{Host: "n2", UID: "u2"})

			for end := time.Now().Add(30 * time.Second); len(c.sofar()) < 1002; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d of 1002 are answered", len(c.sofar()))
				}
			}
			at := map[string]int{}
			for i, a := range c.sofar() {
				at[a] = i
			}
			if i, signed := at["signed z-first"]; !signed || i != 0 {
				t.Errorf("the first is signed: %t, after %d others", signed, i)
			}
			if n, signed := at["signed z-late"]; !signed || n < 100 || n > 100+2*mostDenied {
				t.Errorf("one that comes after 100 is signed: %t, after %d", signed, n)
			}
		})
	}
}
