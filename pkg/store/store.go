// Package store keeps the records of the network in etcd (v3 API): it reads,
// watches and writes them, publishes what nodes have applied, and elects the
// leading controller.
//
// It is the only package that knows etcd. It decides nothing: what a record
// should say is for its callers and for package topology. Every write is one
// transaction that compares the revision that was read; a leader's also
// compares its own election key, so that a deposed leader writes nothing.
//
// Apart from the leader's writes it needs no more than Get, Put, watches of a
// prefix, leases and compare-and-swap of one key, so that stores which speak
// etcd's API over something else work for nodes and operators too.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

const (
	// DefaultPrefix is where all records stand; the first k8s-ovs's.
	DefaultPrefix = "/k8s.ovs.com/ovs/network"
	// DefaultDialTimeout bounds one call.
	DefaultDialTimeout = 5 * time.Second

	// keepAliveTime is how often an idle connection is probed: gRPC allows no
	// less than 10 s, etcd servers refuse less than 5 s.
	keepAliveTime = 10 * time.Second
	// keepAliveTimeout is how long a probe, or anything else sent, may go
	// unacknowledged before the connection is given up.
	keepAliveTimeout = 3 * time.Second
	// untakenPause is how long a request waits that etcd has not taken for want of a leader: an
	// election lasts a second or two, a move of the leader a tenth of that.
	untakenPause = 50 * time.Millisecond
	// maxReconnectDelay bounds the pause between attempts to connect.
	maxReconnectDelay = 2 * time.Second
)

// Config says how to reach etcd.
type Config struct {
	// Endpoints are host:port, http(s)://host:port or unix:///path; at least one.
	Endpoints []string
	// Prefix is where all records stand; DefaultPrefix when empty.
	Prefix string
	// CAFile has the certificates that etcd's is checked against; those of the
	// machine when empty. CertFile and KeyFile are the client's own. All PEM.
	CAFile, CertFile, KeyFile string
	// CA, Cert and Key are the same as PEM themselves, in place of the files.
	CA, Cert, Key []byte
	// ServerName is the name that etcd's certificate must have, where it is not
	// the one in the endpoint.
	ServerName string
	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool
	// Username and Password are for etcd's own user database.
	Username, Password string
	// DialTimeout bounds one call; an attempt to connect has half of it.
	// DefaultDialTimeout when zero.
	DialTimeout time.Duration
	// By is who makes the requests that are written, such as "alice@host"; empty where
	// no person does.
	By string
	// Logger hears of lost and regained connections; slog.Default() when nil.
	Logger *slog.Logger
}

// Store is a connection to the records. Its methods may be called at once from
// several goroutines.
type Store struct {
	cfg    Config
	keys   keyspace
	log    *slog.Logger
	ccfg   clientv3.Config
	ctx    context.Context
	cancel context.CancelFunc
	health health

	mu     sync.Mutex // guards client and closed
	client *clientv3.Client
	closed bool
}

// Open checks cfg and returns a Store. It reads the TLS files but does not wait
// for etcd: an etcd that cannot be reached shows in the calls.
func Open(cfg Config) (*Store, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.Prefix = strings.TrimRight(cfg.Prefix, "/")
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{cfg: cfg, keys: keyspace{cfg.Prefix}, log: cfg.Logger, ctx: ctx, cancel: cancel}
	s.ccfg = clientv3.Config{
		Endpoints:            cfg.Endpoints,
		DialTimeout:          cfg.DialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		PermitWithoutStream:  true,
		TLS:                  tlsConfig,
		Username:             cfg.Username,
		Password:             cfg.Password,
		Context:              ctx,
		// The client's own log repeats every failed attempt; ours says what changed.
		Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxReconnectDelay},
				// Less than a call has, so that the call hears what became of it.
				MinConnectTimeout: cfg.DialTimeout / 2,
			}),
			grpc.WithChainUnaryInterceptor(recordAttempts),
		},
	}
	creds := insecure.NewCredentials()
	if tlsConfig != nil {
		// The library's own would keep the files as they are now.
		creds = handshakes{credentials.NewTLS(tlsConfig), cfg, &s.health}
	}
	s.ccfg.DialOptions = append(s.ccfg.DialOptions, grpc.WithTransportCredentials(attentive{creds}))
	if cfg.Username == "" {
		if _, err := s.connect(); err != nil {
			cancel()
			return nil, fmt.Errorf("etcd at %s: %w", s.endpoints(), err)
		}
	}
	return s, nil
}

// connect returns the client. With a user name it is made on first use, as the
// library logs in when it makes one, and again after an attempt that failed.
func (s *Store) connect() (*clientv3.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	if s.client == nil {
		if err := s.reach(); err != nil {
			return nil, err
		}
		c, err := clientv3.New(s.ccfg)
		if err != nil {
			return nil, err
		}
		s.client = c
	}
	return s.client, nil
}

// reach finds out, before logging in, why etcd cannot be reached: a login only
// says that its time is up.
func (s *Store) reach() error {
	if s.cfg.Username == "" {
		return nil
	}
	cfg := s.ccfg
	cfg.Username, cfg.Password = "", ""
	c, err := clientv3.New(cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	tried := &attempts{}
	ctx, cancel := context.WithTimeout(context.WithValue(s.ctx, attemptsKey{}, tried), s.cfg.DialTimeout)
	defer cancel()
	// Refused for want of a user name is reached.
	if _, err := c.Get(ctx, s.keys.config()); err != nil && !denied(err) {
		return tried.explain(err, s.cfg.DialTimeout)
	}
	return nil
}

// Close ends the connection and every watch.
func (s *Store) Close() error {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.client == nil {
		return nil
	}
	closed := make(chan error, 1)
	go func(c *clientv3.Client) { closed <- c.Close() }(s.client)
	s.client = nil
	select {
	case err := <-closed:
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	case <-time.After(s.cfg.DialTimeout):
		// An election's watch was refused just now: see newWatcher.
		return nil
	}
}

// Endpoints are those of etcd, as configured.
func (s *Store) Endpoints() []string { return append([]string(nil), s.cfg.Endpoints...) }

// ClientURLs are where etcd says that clients reach it.
func (s *Store) ClientURLs(ctx context.Context) (urls []string, err error) {
	r, err := call(ctx, s, "ask etcd where it is", func(ctx context.Context, c *clientv3.Client) (*clientv3.MemberListResponse, error) {
		return c.MemberList(ctx)
	})
	if err != nil {
		return nil, err
	}
	for _, m := range r.Members {
		urls = append(urls, m.ClientURLs...)
	}
	return urls, nil
}

// Prefix is where all records stand, without a slash at its end.
func (s *Store) Prefix() string { return s.keys.prefix }

func (s *Store) endpoints() string { return strings.Join(s.cfg.Endpoints, ", ") }

// call runs one request within DialTimeout and classifies its error. op says
// what is being done to which object.
func call[T any](ctx context.Context, s *Store, op string, f func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	var zero T
	c, err := s.connect()
	if err != nil {
		return zero, s.classify(ctx, op, err)
	}
	tried := &attempts{}
	cctx, cancel := context.WithTimeout(context.WithValue(ctx, attemptsKey{}, tried), s.cfg.DialTimeout)
	defer cancel()
	// A member that has no leader must say so rather than be silent.
	cctx = clientv3.WithRequireLeader(cctx)
	// What etcd refuses only because users were changed meanwhile the library tries again.
	v, err := f(cctx, c)
	for pauses := (backoff.Pauses{First: untakenPause, Last: 4 * untakenPause}); untaken(err) && pauses.Wait(cctx); {
		v, err = f(cctx, c)
	}
	if err != nil {
		return zero, s.classify(ctx, op, tried.explain(err, s.cfg.DialTimeout))
	}
	s.health.contact()
	return v, nil
}
