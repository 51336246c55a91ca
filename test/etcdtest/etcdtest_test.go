package etcdtest

import (
	"context"
	"testing"
	"time"
)

// get reads a key; "" where there is none.
func get(t *testing.T, s *Server, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := s.Client().Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

func TestServer(t *testing.T) {
	s := Start(t)
	s.Put("/a", "1")
	s.Stop()
	restore := s.Save()
	s.Restart()
	if got := get(t, s, "/a"); got != "1" {
		t.Errorf("after Stop and Restart /a = %q, want 1", got)
	}
	s.Put("/a", "2")
	s.Stop()
	restore()
	s.Restart()
	if got := get(t, s, "/a"); got != "1" {
		t.Errorf("after restore /a = %q, want 1", got)
	}
	s.Stop()
	s.Wipe()
	s.Restart()
	if got := get(t, s, "/a"); got != "" {
		t.Errorf("after Wipe /a = %q, want none", got)
	}
}

func TestSecured(t *testing.T) {
	s := StartSecured(t)
	s.Put("/a", "1")
	s.Stop()
	s.Restart()
	if got := get(t, s, "/a"); got != "1" {
		t.Errorf("after Stop and Restart /a = %q, want 1", got)
	}
}
