package store

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
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
	for endpoint, want := range map[string]string{
		"http://" + gone.Addr().String():   "connection refused",
		"unix:///nonexistent/etcd.sock":    "no such file",
		"http://" + silent.Addr().String(): "etcd is unavailable",
	} {
		s, err := Open(Config{Endpoints: []string{endpoint}, DialTimeout: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
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
		s.Close()
	}
}
