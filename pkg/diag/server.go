package diag

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// shutdownTimeout bounds how long Run waits for requests under way.
	shutdownTimeout = 2 * time.Second
	// headerTimeout bounds how long a client may take to send its request.
	headerTimeout = 5 * time.Second
)

// Config is what a Server serves.
type Config struct {
	// Address is host:port, :port or unix:///path; empty serves nothing.
	Address string
	// Registry is what /metrics shows; see [NewRegistry].
	Registry *prometheus.Registry
	// Live checks make up /healthz: what only a restart can mend.
	Live []Check
	// Ready checks make up /readyz: what the program waits for.
	Ready []Check
	// State gives what /debug/state shows as JSON; nil where there is nothing.
	// It is called from several goroutines.
	State func() any
	// Profiling serves /debug/pprof/.
	Profiling bool
	// Logger gets what goes wrong while serving; nil for slog.Default().
	Logger *slog.Logger
}

// Server serves /metrics, /healthz, /readyz, /debug/state and, when asked,
// /debug/pprof/. It needs no protection by itself: it changes nothing, and
// the state that a program shows must hold no secret.
type Server struct {
	cfg   Config
	live  *checks
	ready *checks

	mu       sync.Mutex
	listener net.Listener
}

// NewServer does not listen yet: see [Server.Listen] and [Server.Run].
func NewServer(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	return &Server{cfg: cfg, live: newChecks(cfg.Live), ready: newChecks(cfg.Ready)}
}

// Listen takes the address, so that a program can fail at its start rather
// than later. With an empty address it does nothing. Errors name the address.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Address == "" || s.listener != nil {
		return nil
	}
	l, err := listen(s.cfg.Address)
	if err != nil {
		return fmt.Errorf("listen on metrics address %s: %w", s.cfg.Address, err)
	}
	s.listener = l
	return nil
}

// Run serves until ctx is done, then lets requests under way finish for up to
// two seconds and gives the address back. It returns nil then, and an error
// only if it could not listen or serve. With an empty address it just waits.
// It runs once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(); err != nil {
		return err
	}
	s.mu.Lock()
	l := s.listener
	s.mu.Unlock()
	if l == nil {
		<-ctx.Done()
		return nil
	}
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on metrics address %s: %w", s.cfg.Address, err)
	case <-ctx.Done():
	}
	// ctx is done; what is left gets its own time.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		// A client that does not finish (a long profile) is cut off.
		_ = srv.Close()
	}
	<-served
	return nil
}

// Handler is all that is served, for programs with a server of their own.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(s.cfg.Registry, promhttp.HandlerFor(s.cfg.Registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelWarn),
		// One collector that fails must not hide all others.
		ErrorHandling: promhttp.ContinueOnError,
	})))
	mux.Handle("GET /healthz", s.live)
	mux.Handle("GET /readyz", s.ready)
	mux.HandleFunc("GET /debug/state", s.state)
	mux.HandleFunc("GET /{$}", s.index)
	if s.cfg.Profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "/metrics\n/healthz\n/readyz\n")
	if s.cfg.State != nil {
		_, _ = io.WriteString(w, "/debug/state\n")
	}
	if s.cfg.Profiling {
		_, _ = io.WriteString(w, "/debug/pprof/\n")
	}
}

func (s *Server) state(w http.ResponseWriter, _ *http.Request) {
	if s.cfg.State == nil {
		http.Error(w, "this program shows no state", http.StatusNotFound)
		return
	}
	body, err := json.MarshalIndent(s.cfg.State(), "", "  ")
	if err != nil {
		http.Error(w, "encode state: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
}

// listen opens host:port, :port or unix:///path. A socket that nobody answers
// on, left by a program that was killed, is replaced; one in use is not.
func listen(address string) (net.Listener, error) {
	scheme, rest, ok := strings.Cut(address, "://")
	switch {
	case !ok:
		return net.Listen("tcp", address)
	case scheme == "http":
		return net.Listen("tcp", strings.TrimSuffix(rest, "/"))
	case scheme != "unix":
		return nil, fmt.Errorf("%s:// is not served here; write host:port or unix:///path", scheme)
	case !strings.HasPrefix(rest, "/"):
		return nil, errors.New("a unix socket is written with its whole path: unix:///run/k8s-ovs/metrics.sock")
	}
	l, err := net.Listen("unix", rest)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	info, statErr := os.Lstat(rest)
	if statErr != nil || info.Mode().Type() != fs.ModeSocket {
		return nil, err
	}
	conn, dialErr := net.DialTimeout("unix", rest, time.Second)
	if dialErr == nil {
		_ = conn.Close()
		return nil, err
	}
	if !errors.Is(dialErr, syscall.ECONNREFUSED) {
		return nil, err
	}
	if err := os.Remove(rest); err != nil {
		return nil, err
	}
	return net.Listen("unix", rest)
}
