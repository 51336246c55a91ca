// Package etcd runs etcd inside the controller's process: the default where no
// etcd cluster is given. It is a cluster of one; what it holds is in its data
// directory, and lives as long as that.
//
// It is the only package that knows etcd's server.
package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/k8s-ovs/k8s-ovs/pkg/options"
)

const (
	// DefaultDataDir is where the records are kept.
	DefaultDataDir = options.DefaultDataDir
	// DefaultServePort is where it serves the nodes of a Kubernetes cluster, whose
	// own etcd often has 2379 and 2380 on the same address.
	DefaultServePort = 2389
	// DefaultListenClientURL is reached from this machine only.
	DefaultListenClientURL = "https://127.0.0.1:2379"

	// memberName is that of the one member. It is part of the data: never change it.
	memberName = "k8s-ovs-controller"
	// quotaBytes bounds the database; etcd's own default. A network of 1,000
	// nodes and 10,000 tenants has about 5 MB of records.
	quotaBytes = 2 << 30
	// compactAfter is how long history is kept for watches that were cut off; those that were for longer
	// read everything anew.
	compactAfter = "5m"
	// snapshotCount bounds the requests that are kept in memory and in the write-ahead log, which may be of
	// maxRequest each; nobody has to catch up.
	snapshotCount, catchUp = 1000, 100
	// startTimeout bounds the start; reading a large write-ahead log takes seconds.
	startTimeout = 60 * time.Second
	// maxSocketPath is the longest path of a unix socket (unix(7): 108 bytes with
	// the zero at the end).
	maxSocketPath = 107
)

// Config of the embedded etcd.
type Config struct {
	// DataDir holds the records; made if it is not there.
	DataDir string
	// ListenClientURLs are http(s)://address:port or unix:///path; at least one.
	ListenClientURLs []string
	// Authority has the certificates of https:// URLs, and signs for clients; nil where
	// CertFile and KeyFile have them, and ClientCAFile, if given, the certificates that a
	// client's own is checked against. PEM.
	Authority                       *Authority
	CertFile, KeyFile, ClientCAFile string
	// InsecureHTTP allows http:// URLs beyond this machine.
	InsecureHTTP bool
	// Logger gets etcd's warnings and errors.
	Logger *slog.Logger
	// Metrics may not be nil.
	Metrics *Metrics

	// quotaBytes is another quota in tests; 0 is quotaBytes.
	quotaBytes int64
	// free is another look at the disk in tests; nil is freeBytes.
	free func(dir string) (uint64, error)
}

func (c Config) quota() int64 { return cmp.Or(c.quotaBytes, quotaBytes) }

// Server is a running etcd.
type Server struct {
	etcd   *embed.Etcd
	guard  *guard
	stop   context.CancelFunc // ends the clients' streams
	keeper *housekeeper
	own    string // URL of the socket for this process
	ownDir string // to be deleted; empty when it is the data directory
	// background is what Close waits for.
	background sync.WaitGroup
	// insecure says why clients have no identities; nil where they do.
	insecure error
	// shared: a release before made a certificate that all nodes have.
	shared bool
}

// Start starts etcd and waits until it serves. The error names what to mend.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	closing, stop := context.WithCancel(context.WithoutCancel(ctx))
	ec, err := cfg.embed(closing)
	if err != nil {
		stop()
		return nil, err
	}
	s := &Server{stop: stop, guard: &guard{closing: closing, budgets: budgets{log: cfg.Logger, metrics: cfg.Metrics}}, insecure: cfg.insecure()}
	if cfg.Authority != nil {
		s.shared = cfg.Authority.HasShared()
		s.guard.trust(cfg.Authority.Trust)
	}
	ec.GRPCAdditionalServerOptions = append(ec.GRPCAdditionalServerOptions, s.guard.options()...)
	dir, err := s.socketDir(cfg.DataDir)
	if err != nil {
		stop()
		return nil, err
	}
	own := url.URL{Scheme: "unix", Path: filepath.Join(dir, options.EtcdSocket)}
	s.own = own.String()
	ec.ListenPeerUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(dir, "peer.sock")}}
	ec.ListenClientUrls = append(ec.ListenClientUrls, own)
	e, err := embed.StartEtcd(ec)
	if err != nil {
		stop()
		s.removeSockets()
		return nil, fmt.Errorf("start the embedded etcd in %s: %w", cfg.DataDir, explain(err))
	}
	s.etcd = e
	if err := s.ready(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("start the embedded etcd in %s: %w", cfg.DataDir, err)
	}
	s.keeper = &housekeeper{server: e.Server, dir: cfg.DataDir, free: freeBytes, quota: cfg.quota(), metrics: cfg.Metrics, log: cfg.Logger}
	if cfg.free != nil {
		s.keeper.free = cfg.free
	}
	s.background.Go(func() { s.keeper.run(closing) })
	return s, nil
}

// ready waits until etcd serves, and puts its users in force.
func (s *Server) ready(ctx context.Context) error {
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case <-s.etcd.Server.ReadyNotify():
	case err := <-s.etcd.Err():
		return err
	case <-s.etcd.Server.StopNotify():
		return errors.New("it stopped at once")
	case <-timeout.C:
		return fmt.Errorf("it is not ready after %s", startTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.enforce(ctx); err != nil {
		return fmt.Errorf("its users: %w", err)
	}
	s.guard.admit(s.etcd.Server.AuthStore())
	return nil
}

// explain adds the way out to errors that people meet.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: another etcd is there: give its address as --etcd-endpoints, or choose another --listen-client-urls", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: --listen-client-urls must be addresses of this machine", err)
	}
	return err
}

// embed is the configuration in etcd's terms, but for the sockets.
func (c Config) embed(closing context.Context) (*embed.Config, error) {
	ec := embed.NewConfig()
	ec.Name, ec.Dir = memberName, c.DataDir
	ec.QuotaBackendBytes = c.quota()
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = snapshotCount, catchUp
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, compactAfter
	// etcd's flag sets this, its NewConfig does not: every request would be told.
	ec.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration
	exit := func() { os.Exit(1) }
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(bridge{c.Logger.Handler(), closing},
		zap.WithFatalHook(lastWords{c.DataDir, c.Logger, exit, func(string) { exit() }}),
		zap.WithPanicHook(lastWords{c.DataDir, c.Logger, exit, func(message string) { panic(message) }})))
	ec.ListenClientUrls, ec.AdvertiseClientUrls = nil, nil
	tls := false
	for _, text := range c.ListenClientURLs {
		u, err := c.listenURL(text)
		if err != nil {
			return nil, fmt.Errorf("--listen-client-urls: %q: %w", text, err)
		}
		ec.ListenClientUrls = append(ec.ListenClientUrls, *u)
		if u.Scheme != "unix" {
			ec.AdvertiseClientUrls = append(ec.AdvertiseClientUrls, *u)
		}
		tls = tls || u.Scheme == "https"
	}
	if len(ec.ListenClientUrls) == 0 {
		return nil, errors.New("--listen-client-urls: at least one URL is needed")
	}
	if len(ec.AdvertiseClientUrls) == 0 {
		// etcd wants one with a port; a cluster of one never uses it.
		ec.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2379"}}
	}
	if tls {
		ec.ClientTLSInfo.CertFile, ec.ClientTLSInfo.KeyFile, ec.ClientTLSInfo.TrustedCAFile = c.CertFile, c.KeyFile, c.ClientCAFile
		if a := c.Authority; a != nil {
			ec.ClientTLSInfo.CertFile, ec.ClientTLSInfo.KeyFile, ec.ClientTLSInfo.TrustedCAFile = a.ServerFile(), a.ServerFile(), a.CAFile()
		}
	}
	// Users are told by certificates; that of root at the unix socket too: see guard.
	ec.ClientTLSInfo.ClientCertAuth = ec.ClientTLSInfo.TrustedCAFile != "" || !tls
	// Its requests have no client certificate.
	ec.EnableGRPCGateway = false
	ec.InitialCluster = memberName + "=" + ec.AdvertisePeerUrls[0].String()
	return ec, nil
}

func (c Config) listenURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("it is not a URL")
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || len(u.Path) < 2 {
			return nil, errors.New("a unix socket is written with its whole path: unix:///run/etcd.sock")
		}
		if len(u.Path) > maxSocketPath {
			return nil, fmt.Errorf("the path of a unix socket has at most %d bytes", maxSocketPath)
		}
		return u, nil
	case "https":
		if c.Authority == nil && (c.CertFile == "" || c.KeyFile == "") {
			return nil, errors.New("https:// needs --listen-client-cert and --listen-client-key, or neither, for certificates of the controller's own making")
		}
	case "http":
	default:
		return nil, errors.New("it must begin with http://, https:// or unix://")
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || host == "" || port == "" || strings.Trim(u.Path, "/") != "" {
		return nil, errors.New("it needs an address and a port, such as " + DefaultListenClientURL)
	}
	if host != "localhost" && net.ParseIP(host) == nil {
		return nil, errors.New("etcd listens on addresses, not on names")
	}
	if u.Scheme == "http" && !c.InsecureHTTP && !loopback(host) {
		return nil, errors.New("http:// beyond this machine lets whoever reaches it rule the network: write https://; --insecure-listen-http allows it all the same")
	}
	u.Path = ""
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// socketDir is where this process reaches its etcd, and etcd's unused peer
// port is: the data directory, which only its owner may enter, or a temporary
// one where that has too long a name.
func (s *Server) socketDir(dataDir string) (string, error) {
	if dataDir == "" {
		return "", errors.New("--data-dir is empty: the embedded etcd keeps its records there")
	}
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("--data-dir: %w", err)
	}
	if len(filepath.Join(dir, options.EtcdSocket)) <= maxSocketPath {
		return dir, nil
	}
	if s.ownDir, err = os.MkdirTemp("", "k8s-ovs-etcd-"); err != nil {
		return "", err
	}
	return s.ownDir, nil
}

// Endpoint is where this process reaches etcd: always a unix socket of its own.
func (s *Server) Endpoint() string { return s.own }

// Insecure says why clients have no identities, and all of them all rights; nil where
// each has its own.
func (s *Server) Insecure() error { return s.insecure }

// Trust says which CAs are trusted from now on: see [Authority].
func (s *Server) Trust(trust []byte) { s.guard.trust(trust) }

// Full says why no changes are taken; nil where they are. What was written can be read.
func (s *Server) Full() error {
	if why := s.keeper.why.Load(); why != nil {
		return why
	}
	return nil
}

// Failed yields an error if etcd ends by itself.
func (s *Server) Failed() <-chan error { return s.etcd.Err() }

// Close stops etcd and waits for it.
func (s *Server) Close() {
	s.stop()
	s.background.Wait()
	s.etcd.Close()
	s.removeSockets()
}

func (s *Server) removeSockets() {
	if s.ownDir != "" {
		os.RemoveAll(s.ownDir)
	}
}
