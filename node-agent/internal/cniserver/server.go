// Package cniserver is the agent's side of the CNI: it owns the unix socket,
// takes requests of the plugin from it and gives them to an [Attacher], never
// two of them for the same attachment at once. It knows nothing about how a pod
// is attached, and decides nothing but the order.
package cniserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/peercred"
)

// Attacher does the work. Its errors become CNI errors through
// [cniapi.AsError]: those that are, or wrap, a *cniapi.Error keep their code. It
// must roll back what it began when its context ends, and return soon after.
type Attacher interface {
	// Add attaches the pod. Again for the same attachment: the same result.
	Add(context.Context, cniapi.Request) (*cniapi.Result, error)
	// Del detaches; what is already gone is no error.
	Del(context.Context, cniapi.Request) error
	// Check compares the attachment with what it should be.
	Check(context.Context, cniapi.Request) error
	// GC detaches everything of the request's network that the request does not
	// list. No other command but Status runs meanwhile.
	GC(context.Context, cniapi.Request) error
	// Status is nil when Add can be served. An error without a code of its own
	// becomes CodeNotAvailable.
	Status(context.Context) error
}

// Metrics is told about every request. Command is empty for one that could not
// be read or was not valid; code is 0 for success. The duration is the time from
// the connection's acceptance to the answer, waiting included.
type Metrics interface {
	ObserveRequest(command cniapi.Command, code uint, took time.Duration)
}

const (
	// defaultMaxConcurrent bounds the commands that run at once. It is above the
	// pods of a usual node, because an ADD may hold its place while it waits for
	// its namespace's netID, and must not hold up the others.
	defaultMaxConcurrent = 256
	// maxConnections bounds the connections held at once; more wait in the
	// kernel's queue.
	maxConnections = 1024
	// readTimeout bounds the wait for a request on a new connection. The plugin
	// writes at once.
	readTimeout = 5 * time.Second
	// acceptPause follows a connection that could not be accepted.
	acceptPause = 100 * time.Millisecond
	// writeTimeout bounds the wait for a plugin that does not read its answer.
	writeTimeout = 5 * time.Second
	// statusTimeout bounds STATUS, which a runtime calls for its own readiness.
	statusTimeout = 5 * time.Second
	// defaultShutdownGrace is how long running requests may go on after the end
	// of Serve's context.
	defaultShutdownGrace = 5 * time.Second
)

// Config of a Server. Socket and Attacher are required.
type Config struct {
	// Socket is the path to listen on. Its directory becomes root's alone (0700).
	Socket   string
	Attacher Attacher
	// Log is slog.Default() when nil, Metrics nothing when nil.
	Log     *slog.Logger
	Metrics Metrics
	// RequestTimeout bounds one request; cniapi.RequestTimeout when 0.
	RequestTimeout time.Duration
	// MaxConcurrent commands run at once, 256 when 0. STATUS does not count.
	MaxConcurrent int
	// ShutdownGrace is how long running requests may go on after the end of
	// Serve's context before theirs ends too; 5 s when 0.
	ShutdownGrace time.Duration
}

// Server takes requests on its socket from Listen to the end of Serve.
type Server struct {
	cfg      Config
	log      *slog.Logger
	listener *listener
	turns    *turns
}

// Listen takes the socket: its directory is made, or made root's alone, a
// socket that nobody listens on is removed. It is an error if another process
// listens there. Until Serve runs, plugins wait.
func Listen(cfg Config) (*Server, error) {
	if cfg.Attacher == nil {
		return nil, errors.New("CNI server: no attacher")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = cniapi.RequestTimeout
	}
	if cfg.MaxConcurrent == 0 {
		cfg.MaxConcurrent = defaultMaxConcurrent
	}
	if cfg.ShutdownGrace == 0 {
		cfg.ShutdownGrace = defaultShutdownGrace
	}
	l, err := listen(cfg.Socket, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("CNI server: %w", err)
	}
	return &Server{cfg: cfg, log: cfg.Log, listener: l, turns: newTurns(cfg.MaxConcurrent)}, nil
}

// Keep sees to it that the socket is at its path, where plugins look for it, and binds it anew where it is not: somebody deleted it, or
// its directory. Who has connected already is served. The error is why plugins cannot reach the agent; it wraps [detached.Err] where only a new
// start of the agent helps. It may be called at any time.
func (s *Server) Keep() error {
	if err := s.listener.keep(); err != nil {
		return fmt.Errorf("the container runtime does not reach the agent: %w", err)
	}
	return nil
}

// Close gives the socket up without serving. After Serve it does nothing.
func (s *Server) Close() { s.listener.release() }

// Serve answers requests until ctx ends. Then it gives up the socket, refuses
// what has not begun with CodeTryAgain, lets what runs go on for ShutdownGrace,
// ends it, and returns when all of it has returned: nil, or why the socket failed.
func (s *Server) Serve(ctx context.Context) error {
	// Requests outlive ctx by the grace.
	work, endWork := context.WithCancel(context.WithoutCancel(ctx))
	defer endWork()
	stop := context.AfterFunc(ctx, func() {
		s.listener.close()
		s.turns.close()
	})
	defer stop()
	// Until the last request has returned no other agent may begin.
	defer s.listener.release()

	var running sync.WaitGroup
	slots := make(chan struct{}, maxConnections)
	err := s.accept(ctx, slots, func(conn *net.UnixConn) {
		running.Go(func() {
			defer func() { <-slots }()
			s.serveConn(work, conn)
		})
	})
	s.turns.close()
	s.listener.close()
	grace := time.AfterFunc(s.cfg.ShutdownGrace, endWork)
	defer grace.Stop()
	running.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("CNI server: %w", err)
}

// accept hands every connection to serve until the listener is closed.
func (s *Server) accept(ctx context.Context, slots chan struct{}, serve func(*net.UnixConn)) error {
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		conn, err := s.listener.accept()
		if err == nil {
			serve(conn)
			continue
		}
		<-slots
		if !transient(err) {
			return err
		}
		s.log.Error("cannot accept a CNI connection", "error", err)
		select {
		case <-time.After(acceptPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// transient reports whether accepting may work again: the process or the
// machine is out of file descriptors or memory (accept(2)).
func transient(err error) bool {
	for _, e := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// serveConn answers the one request of a connection.
func (s *Server) serveConn(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	began := time.Now()
	if cred, err := peercred.Of(conn); err != nil || cred.Uid != 0 {
		s.log.Warn("refused a CNI connection: it is not root's", "uid", cred.Uid, "error", err)
		s.answer(conn, cniapi.Response{Error: cniapi.Errorf(cniapi.CodeIO, "only root may ask the k8s-ovs agent")})
		return
	}
	_ = conn.SetReadDeadline(began.Add(readTimeout))
	req, err := cniapi.ReadRequest(conn)
	if err == nil {
		err = req.Validate()
	}
	if err != nil {
		s.log.Warn("refused a CNI request", "command", req.Command, "sandbox", req.ContainerID, "error", err)
		e := cniapi.AsError(err)
		s.observe("", e, began)
		s.answer(conn, cniapi.Response{Error: e})
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout(req.Command))
	defer cancel()
	unwatch := watch(conn, req.Command, cancel)
	result, e := s.run(ctx, req)
	unwatch()
	s.observe(req.Command, e, began)
	s.logOutcome(req, result, e, time.Since(began))
	faultpoint.Here(string(req.Command), "done")
	s.answer(conn, cniapi.Response{Result: result, Error: e})
	faultpoint.Here(string(req.Command), "answered")
}

func (s *Server) timeout(cmd cniapi.Command) time.Duration {
	if cmd == cniapi.Status {
		return min(statusTimeout, s.cfg.RequestTimeout)
	}
	return s.cfg.RequestTimeout
}

// run waits for the request's turn and gives it to the attacher.
func (s *Server) run(ctx context.Context, req cniapi.Request) (*cniapi.Result, *cniapi.Error) {
	if req.Command == cniapi.Status {
		return nil, s.call(ctx, req, func() error { return s.cfg.Attacher.Status(ctx) })
	}
	adding, done, err := s.turns.take(ctx, req)
	if err != nil {
		return nil, cniapi.AsError(err)
	}
	defer done()
	var result *cniapi.Result
	e := s.call(ctx, req, func() (err error) {
		switch req.Command {
		case cniapi.Add:
			if result, err = s.cfg.Attacher.Add(ctx, req); err == nil && result == nil {
				return errors.New("the attacher returned neither a result nor an error")
			}
			return err
		case cniapi.Del:
			return s.cfg.Attacher.Del(ctx, req)
		case cniapi.Check:
			return s.cfg.Attacher.Check(ctx, req)
		case cniapi.GC:
			return s.cfg.Attacher.GC(ctx, req.Sparing(adding))
		}
		return cniapi.Errorf(cniapi.CodeInternal, "%s is a command that the agent's server does not carry out; nothing was changed", req.Command)
	})
	if e != nil {
		return nil, e
	}
	return result, nil
}

// call runs f and turns its error, or its panic, into a CNI error.
func (s *Server) call(ctx context.Context, req cniapi.Request, f func() error) (e *cniapi.Error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in a CNI request", "command", req.Command, "attachment", req.Attachment(),
				"panic", p, "stack", string(debug.Stack()))
			e = cniapi.Errorf(cniapi.CodeInternal, "the k8s-ovs agent failed on %s of %s: %v", req.Command, req.Attachment(), p).
				WithDetails("this is a defect; the agent's log has the stack")
		}
	}()
	err := f()
	if err == nil {
		return nil
	}
	e = cniapi.AsError(err)
	switch {
	case req.Command == cniapi.Status && !hasCode(err):
		e = cniapi.Errorf(cniapi.CodeNotAvailable, "%w", err)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == context.DeadlineExceeded && !hasCode(err):
		e = cniapi.Errorf(cniapi.CodeTryAgain, "%s of %s took longer than %s: %w", req.Command, req.Attachment(), s.timeout(req.Command), err)
	}
	return e
}

func hasCode(err error) bool {
	var e *cniapi.Error
	return errors.As(err, &e)
}

func (s *Server) observe(cmd cniapi.Command, e *cniapi.Error, began time.Time) {
	if s.cfg.Metrics == nil {
		return
	}
	var code uint
	if e != nil {
		code = e.Code
	}
	s.cfg.Metrics.ObserveRequest(cmd, code, time.Since(began))
}

func (s *Server) logOutcome(req cniapi.Request, result *cniapi.Result, e *cniapi.Error, took time.Duration) {
	log := s.log.With("command", req.Command, "took", took)
	if req.ContainerID != "" {
		log = log.With("sandbox", req.ContainerID, "ifName", req.IfName, "pod", req.PodNamespace+"/"+req.PodName)
	}
	switch {
	case e != nil:
		log.Error("CNI request failed", "code", e.Code, "error", e)
	case req.Command == cniapi.Add:
		log.Info("pod attached", "addresses", result.IPs, "hostIfName", result.HostIfName)
	case req.Command == cniapi.Del:
		log.Info("pod detached")
	default:
		log.Debug("CNI request done")
	}
}

// answer sends the response. That the plugin is gone is no news: a runtime
// follows a failed ADD with DEL.
func (s *Server) answer(conn *net.UnixConn, resp cniapi.Response) {
	_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := cniapi.WriteResponse(conn, resp); err != nil {
		s.log.Warn("cannot answer a CNI request", "error", err)
	}
}

// watch ends the request's context when the plugin goes away before its answer:
// the runtime killed it and will send DEL, which must not wait for an ADD that
// nobody wants. DEL and GC go on: what they tear down has to go anyway. The
// returned function ends the watch and waits for it.
func watch(conn *net.UnixConn, cmd cniapi.Command, cancel context.CancelFunc) (unwatch func()) {
	if cmd == cniapi.Del || cmd == cniapi.GC {
		return func() {}
	}
	ended := make(chan struct{})
	_ = conn.SetReadDeadline(time.Time{})
	go func() {
		defer close(ended)
		buf := make([]byte, 64)
		for {
			// What still comes is the request's final newline.
			if _, err := conn.Read(buf); err != nil {
				cancel()
				return
			}
		}
	}()
	return func() {
		// The context has served: cancelling it once more changes nothing.
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		<-ended
	}
}
