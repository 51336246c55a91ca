package store

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestUnavailableSaysWhy: that the time was up is not what people need to know.
func TestUnavailableSaysWhy(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	var cases sync.WaitGroup
	for endpoint, want := range map[string]string{
		"http://" + gone.Addr().String():   "connection refused",
		"unix:///nonexistent/etcd.sock":    "no such file",
		"http://" + silent.Addr().String(): "etcd is unavailable",
	} {
		cases.Go(func() {
			s, err := Open(Config{Endpoints: []string{endpoint}, DialTimeout: 3 * time.Second})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			_, err = s.Config(t.Context())
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), endpoint) {
				t.Errorf("%s: error %v, want one that says %q", endpoint, err, want)
			}
			// The caller's own end of the call stays what it is.
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := s.Config(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: error %v, want context.Canceled", endpoint, err)
			}
		})
	}
	cases.Wait()
}

// TestUntaken: a request that etcd has not taken, for want of a leader, is made again while there is time; one that it
// refuses, or that it may have carried out, is not.
func TestUntaken(t *testing.T) {
	s, err := Open(Config{Endpoints: []string{"unix:///nonexistent/etcd.sock"}, DialTimeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ask := func(answers ...error) (asked int, err error) {
		_, err = call(t.Context(), s, "write", func(context.Context, *clientv3.Client) (struct{}, error) {
			answer := answers[min(asked, len(answers)-1)]
			asked++
			return struct{}{}, answer
		})
		return asked, err
	}
	noLeader := rpctypes.ErrGRPCNoLeader
	if asked, err := ask(noLeader, rpctypes.ErrNoLeader, rpctypes.ErrLeaderChanged, status.Error(codes.Unknown, "raft proposal dropped"), nil); asked != 5 || err != nil {
		t.Errorf("asked %d times: %v", asked, err)
	}
	for _, tt := range []struct {
		answer  error
		once    bool
		says    string
		passing bool
	}{
		{noLeader, false, "etcd has no leader", true},
		{rpctypes.ErrNoLeader, false, "etcd has no leader", true},
		{rpctypes.ErrGRPCNoSpace, true, "database space exceeded", false},
		{rpctypes.ErrNoSpace, true, "database space exceeded", false},
		{rpctypes.ErrGRPCTimeoutDueToLeaderFail, true, "previous leader failure", true},
		{rpctypes.ErrTimeoutDueToLeaderFail, true, "previous leader failure", true},
		{context.DeadlineExceeded, true, "are most of its members there?", true},
		{rpctypes.ErrPermissionDenied, true, "permission denied", false},
	} {
		asked, err := ask(tt.answer)
		if (asked == 1) != tt.once || err == nil || !strings.Contains(err.Error(), tt.says) || Passing(err) != tt.passing {
			t.Errorf("%v: asked %d times; %v (passing: %t)", tt.answer, asked, err, Passing(err))
		}
	}
}
