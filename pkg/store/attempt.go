package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// attempts keeps what gRPC said about a call's last attempt. The etcd library
// waits for a connection and tries again until the call's time is up, and then
// says only that: why it failed (refused, no route, a certificate) is what
// people need.
type attempts struct {
	mu  sync.Mutex
	err error
}

type attemptsKey struct{}

// recordAttempts is a gRPC interceptor below the library's retries.
func recordAttempts(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	if a, ok := ctx.Value(attemptsKey{}).(*attempts); ok && err != nil && tells(err) {
		a.mu.Lock()
		a.err = err
		a.mu.Unlock()
	}
	return err
}

// explain puts the last attempt's error in the place of one that only says
// that the time, limit, was up.
func (a *attempts) explain(err error, limit time.Duration) error {
	if !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.DeadlineExceeded {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	return &silence{limit}
}

// silence is the end of a call that nothing was heard of: neither an answer nor
// why there is no connection. A server that turns down a client's certificate
// often just hangs up.
type silence struct{ limit time.Duration }

// nobodyBehind asks what may be wrong where connections are taken and nothing is said on them.
const nobodyBehind = "is etcd, or k8s-ovs-controller with etcd in it, running behind that address, and does it take this kind of connection and client certificate?"

func (s *silence) Error() string {
	return fmt.Sprintf("no answer within %s: %s And are most of its members there?", s.limit, nobodyBehind)
}

func (*silence) Unwrap() error { return context.DeadlineExceeded }

// tells reports whether err says more than that the time was up. gRPC adds to
// that why it has no connection, where it knows; in the text, for it has no code of its own.
func tells(err error) bool {
	switch status.Code(err) {
	case codes.DeadlineExceeded, codes.Canceled:
		return strings.Contains(status.Convert(err).Message(), "connection error")
	}
	return true
}
