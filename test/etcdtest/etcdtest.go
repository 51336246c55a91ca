// Package etcdtest runs a real etcd inside a test, on a unix socket: quick to
// start, private to the test, stopped and started again at will.
package etcdtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

// startTimeout bounds how long etcd may take to elect itself.
const startTimeout = 30 * time.Second

// Server is one etcd of one member.
type Server struct {
	// Endpoints are for clients: unix:///path, unless an Option says otherwise.
	Endpoints []string
	// CA signs for a secured one; nil for others.
	CA *pki.Pair

	tb      testing.TB
	dir     string
	options []Option

	mu   sync.Mutex // guards etcd and stop
	etcd *embed.Etcd
	stop context.CancelFunc
}

// Option changes the configuration of etcd before it starts. Client URLs that
// it sets need a fixed port, or they change with [Server.Restart].
type Option func(*embed.Config)

// Start runs etcd until the test ends. Its data starts empty.
func Start(tb testing.TB, options ...Option) *Server {
	tb.Helper()
	return start(tb, nil, options...)
}

func start(tb testing.TB, ca *pki.Pair, options ...Option) *Server {
	tb.Helper()
	// Not tb.TempDir: a unix socket's path has at most 107 bytes (unix(7)).
	dir, err := os.MkdirTemp("", "etcdtest")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{CA: ca, tb: tb, dir: dir, options: options}
	tb.Cleanup(func() {
		s.Stop()
		os.RemoveAll(dir)
	})
	s.Restart()
	return s
}

// Restart starts etcd again after Stop, on the same data and endpoints.
func (s *Server) Restart() {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.etcd != nil {
		return
	}
	cfg := s.config()
	closing, stop := context.WithCancel(context.Background())
	cfg.GRPCAdditionalServerOptions = append(cfg.GRPCAdditionalServerOptions, endStreams(closing))
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		stop()
		s.tb.Fatalf("start etcd: %v", err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(startTimeout):
		stop()
		e.Close()
		s.tb.Fatalf("etcd is not ready after %s", startTimeout)
	}
	s.etcd, s.stop = e, stop
	s.Endpoints = nil
	for _, u := range cfg.ListenClientUrls {
		s.Endpoints = append(s.Endpoints, u.String())
	}
	if s.CA != nil {
		s.enableAuth()
	}
}

func (s *Server) config() *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = "test"
	cfg.Dir = filepath.Join(s.dir, "data")
	// The advertised URLs stay etcd's defaults: it wants host:port there, and a
	// cluster of one never uses them.
	cfg.ListenPeerUrls = []url.URL{socket(s.dir, "peer.sock")}
	cfg.ListenClientUrls = []url.URL{socket(s.dir, "client.sock")}
	cfg.InitialCluster = fmt.Sprintf("%s=%s", cfg.Name, cfg.AdvertisePeerUrls[0].String())
	// Tests lose nothing in a power cut.
	cfg.UnsafeNoFsync = true
	cfg.BcryptCost = 4 // of users' passwords: the least there is
	cfg.TickMs, cfg.ElectionMs = 20, 200
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	for _, o := range s.options {
		o(cfg)
	}
	return cfg
}

func socket(dir, name string) url.URL {
	return url.URL{Scheme: "unix", Path: filepath.Join(dir, name)}
}

// Stop ends etcd; its data stay for Restart.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.etcd == nil {
		return
	}
	s.stop()
	s.etcd.Close()
	s.etcd = nil
}

// endStreams ends watches and the like when closing ends: etcd would wait for
// its clients to end them, for some seconds, before it stops.
func endStreams(closing context.Context) grpc.ServerOption {
	return grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, cancel := context.WithCancel(ss.Context())
		defer cancel()
		defer context.AfterFunc(closing, cancel)()
		err := handler(srv, &stream{ss, ctx})
		if closing.Err() != nil {
			return status.Error(codes.Unavailable, "etcdserver: server stopped")
		}
		return err
	})
}

// stream is a server stream with another context.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *stream) Context() context.Context { return s.ctx }

// Wipe deletes the data of a stopped etcd: the next Restart is another etcd at
// the same address.
func (s *Server) Wipe() {
	s.tb.Helper()
	if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
		s.tb.Fatal(err)
	}
}

// Save copies the data of a stopped etcd aside; the function it returns puts
// them back, into an etcd that is stopped again: a restored backup.
func (s *Server) Save() (restore func()) {
	s.tb.Helper()
	data, saved := filepath.Join(s.dir, "data"), filepath.Join(s.dir, "saved")
	if err := os.CopyFS(saved, os.DirFS(data)); err != nil {
		s.tb.Fatal(err)
	}
	return func() {
		s.tb.Helper()
		s.Wipe()
		if err := os.Rename(saved, data); err != nil {
			s.tb.Fatal(err)
		}
	}
}

// Client is a new client of this etcd, closed when the test ends.
func (s *Server) Client() *clientv3.Client {
	s.tb.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints, DialTimeout: 5 * time.Second, TLS: s.rootTLS(), Logger: zap.NewNop()})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(func() { c.Close() })
	return c
}

// Put writes a key as a person with etcdctl would.
func (s *Server) Put(key, value string) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := s.Client()
	defer c.Close()
	if _, err := c.Put(ctx, key, value); err != nil {
		s.tb.Fatalf("put %s: %v", key, err)
	}
}
