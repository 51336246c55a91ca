package store

import (
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestNothingBehind: a proxy that takes connections and has nobody to hand them to, as
// a port-forward does while the controller is down.
func TestNothingBehind(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	var cases sync.WaitGroup
	for _, scheme := range []string{"http://", "https://"} {
		cases.Go(func() { nothingBehind(t, scheme+l.Addr().String()) })
	}
	cases.Wait()
}

func nothingBehind(t *testing.T, endpoint string) {
	t.Helper()
	s, err := Open(Config{Endpoints: []string{endpoint}, InsecureSkipVerify: strings.HasPrefix(endpoint, "https"), DialTimeout: 3 * time.Second})
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	_, _, err = s.Snapshot(t.Context())
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "k8s-ovs-controller with etcd in it, running behind that address") {
		t.Errorf("error %v", err)
	}
}
