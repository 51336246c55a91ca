package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/auth"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
)

var (
	// errStopping tells a client to try again; it has the text of etcd's own.
	errStopping = status.Error(codes.Unavailable, "etcdserver: server stopped")
	// errStarting too: users are not in force yet.
	errStarting = status.Error(codes.Unavailable, "etcdserver: it is starting")
	errNobody   = status.Error(codes.Unauthenticated, "etcdserver: no client certificate says who is asking")
	errOldCA    = status.Error(codes.Unauthenticated, "etcdserver: the CA of the client certificate is trusted no more: get a new bundle")
)

// open are the methods that users without the role root may call. etcd judges by key what
// they do with them; some of the others it lets anybody call, such as LeaseLeases.
var open = map[string]bool{
	"/etcdserverpb.KV/Range": true, "/etcdserverpb.KV/Put": true, "/etcdserverpb.KV/DeleteRange": true, "/etcdserverpb.KV/Txn": true,
	"/etcdserverpb.Watch/Watch":      true,
	"/etcdserverpb.Lease/LeaseGrant": true, "/etcdserverpb.Lease/LeaseRevoke": true, "/etcdserverpb.Lease/LeaseKeepAlive": true, "/etcdserverpb.Lease/LeaseTimeToLive": true,
	"/etcdserverpb.Maintenance/Status": true,
}

// keyed are those of them that etcd judges by key, each time.
func keyed(method string) bool { return strings.HasPrefix(method, "/etcdserverpb.KV/") }

// guard stands before etcd: it says who calls, keeps those who are not root from what is
// root's, and ends the streams of users that went. Users are etcd's own.
type guard struct {
	// closing ends all streams.
	closing context.Context
	// trusted has the public keys of the CAs that are trusted now; nil: those that etcd
	// was started with.
	trusted atomic.Pointer[map[string]bool]
	budgets budgets

	mu      sync.Mutex // guards what follows
	users   auth.AuthStore
	streams map[*stream]struct{}
}

// admit lets clients in; users are those of the running etcd.
func (g *guard) admit(users auth.AuthStore) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.users = users
}

func (g *guard) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(g.unary), grpc.ChainStreamInterceptor(g.stream)}
}

// trust says which CAs are trusted from now on; those that etcd was not started with must
// be vouched for by one that it was.
func (g *guard) trust(pem []byte) {
	keys := trustedKeys(pem)
	g.trusted.Store(&keys)
}

// asRoot gives a context the identity of root.
func asRoot(ctx context.Context) context.Context {
	root := &x509.Certificate{Subject: pkix.Name{CommonName: pki.RootUser}}
	who := &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{root}}}}}
	if p, ok := peer.FromContext(ctx); ok {
		who.Addr, who.LocalAddr = p.Addr, p.LocalAddr
	}
	if _, ok := metadata.FromIncomingContext(ctx); !ok {
		ctx = metadata.NewIncomingContext(ctx, metadata.MD{}) // etcd looks for tokens in it
	}
	return peer.NewContext(ctx, who)
}

// identify says which user calls: root through a unix socket, which only its owner may
// open; else whom the certificate names. Without users all are nobody.
func (g *guard) identify(ctx context.Context) (who context.Context, user string, err error) {
	p, ok := peer.FromContext(ctx)
	if ok && p.Addr != nil && p.Addr.Network() == "unix" {
		return asRoot(ctx), pki.RootUser, nil
	}
	g.mu.Lock()
	users := g.users
	g.mu.Unlock()
	switch {
	case users == nil:
		return nil, "", errStarting
	case !users.IsAuthEnabled():
		return ctx, "", nil
	case !ok:
		return nil, "", errNobody
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 || info.State.VerifiedChains[0][0].Subject.CommonName == "" {
		return nil, "", errNobody
	}
	if !g.fresh(info.State.VerifiedChains) {
		return nil, "", errOldCA
	}
	return ctx, info.State.VerifiedChains[0][0].Subject.CommonName, nil
}

// fresh reports whether a CA signed that is trusted now: TLS asks for those that were
// when etcd started.
func (g *guard) fresh(chains [][]*x509.Certificate) bool {
	keys := g.trusted.Load()
	if keys == nil {
		return true
	}
	for _, chain := range chains {
		if len(chain) > 1 && (*keys)[string(chain[1].RawSubjectPublicKeyInfo)] {
			return true
		}
	}
	return false
}

// may says whether user may call method at all.
func (g *guard) may(user, method string) error {
	if user == pki.RootUser || user == "" {
		return nil
	}
	g.mu.Lock()
	users := g.users
	g.mu.Unlock()
	if !open[method] && !users.HasRole(user, pki.RootUser) {
		return status.Errorf(codes.PermissionDenied, "etcdserver: permission denied: %s is root's", method)
	}
	if keyed(method) {
		return nil
	}
	if _, err := users.UserGet(&pb.AuthUserGetRequest{Name: user}); err != nil {
		return errGone(user)
	}
	return nil
}

func errGone(user string) error {
	return status.Errorf(codes.PermissionDenied, "etcdserver: permission denied: there is no user %s", user)
}

func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, user, err := g.identify(ctx)
	if err == nil {
		err = g.may(user, info.FullMethod)
	}
	if err != nil {
		return nil, err
	}
	left := g.budgets.of(user)
	if err := g.budgets.tell(user, left, left.spend(req)); err != nil {
		return nil, err
	}
	done, err := left.begin(ctx)
	if err := g.budgets.tell(user, left, err); err != nil {
		return nil, err
	}
	defer done()
	lose := g.losers(req)
	resp, err := handler(ctx, req)
	if err == nil && lose != nil {
		g.cut(lose)
	}
	if gone, ok := req.(*pb.AuthUserDeleteRequest); ok && err == nil {
		g.budgets.forget(gone.Name)
	}
	left.spent(resp)
	return resp, err
}

// losers says who loses rights by a request: all that they hold open they must ask for
// anew. Nil where nobody does.
func (g *guard) losers(req any) func(user string) bool {
	g.mu.Lock()
	users := g.users
	g.mu.Unlock()
	switch r := req.(type) {
	case *pb.AuthUserDeleteRequest:
		return func(user string) bool { return user == r.Name }
	case *pb.AuthUserRevokeRoleRequest:
		return func(user string) bool { return user == r.Name }
	case *pb.AuthEnableRequest:
		return func(string) bool { return true }
	case *pb.AuthRoleRevokePermissionRequest:
		return func(user string) bool { return users != nil && users.HasRole(user, r.Role) }
	case *pb.AuthRoleDeleteRequest:
		had := map[string]bool{}
		for _, user := range g.streamers() {
			had[user] = users != nil && users.HasRole(user, r.Role)
		}
		return func(user string) bool { return had[user] }
	}
	return nil
}

// stream is a server stream with another context, which is paid for.
type stream struct {
	grpc.ServerStream
	ctx     context.Context
	user    string
	end     context.CancelCauseFunc
	budgets *budgets
	budget  *budget // nil for none
	// watches are those that it has, left that it is at its end. The budget's lock guards both.
	watches int
	left    bool
}

func (s *stream) Context() context.Context { return s.ctx }

// RecvMsg ends the stream where its user asks too much.
func (s *stream) RecvMsg(message any) error {
	if err := s.ServerStream.RecvMsg(message); err != nil {
		return err
	}
	err := s.budget.spend(message)
	if err == nil {
		err = s.budget.watch(s, message)
	}
	return s.budgets.tell(s.user, s.budget, err)
}

// SendMsg ends the stream of a client that leaves what it is told: etcd keeps all of it
// meanwhile.
func (s *stream) SendMsg(message any) error {
	if s.budget == nil {
		return s.ServerStream.SendMsg(message)
	}
	late := time.AfterFunc(stalled, func() {
		s.end(busy("nothing of a stream was taken for %s", stalled))
	})
	defer late.Stop()
	err := s.ServerStream.SendMsg(message)
	s.budget.answered(s, message)
	return err
}

func (g *guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, user, err := g.identify(ss.Context())
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	// etcd itself waits for its clients to end their streams, for 7 s, before it stops.
	defer context.AfterFunc(g.closing, func() { end(errStopping) })()
	s := &stream{ServerStream: ss, ctx: ctx, user: user, end: end, budgets: &g.budgets, budget: g.budgets.of(user)}
	// First among those that can be cut, then the question whether it may: a user that
	// goes meanwhile is met by one or the other.
	g.enter(s)
	defer g.leave(s)
	if err := g.may(user, info.FullMethod); err != nil {
		return err
	}
	defer s.budget.leave(s)
	if err := g.budgets.tell(user, s.budget, s.budget.enter()); err != nil {
		return err
	}
	err = handler(srv, s)
	if cause := context.Cause(ctx); cause != nil {
		if _, ours := status.FromError(cause); ours {
			return cause
		}
	}
	return err
}

func (g *guard) enter(s *stream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.streams == nil {
		g.streams = map[*stream]struct{}{}
	}
	g.streams[s] = struct{}{}
}

func (g *guard) leave(s *stream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.streams, s)
}

func (g *guard) streamers() (users []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.streams {
		users = append(users, s.user)
	}
	return users
}

// cut ends the streams of the users that lose, but for root's.
func (g *guard) cut(lose func(user string) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.streams {
		if s.user != pki.RootUser && lose(s.user) {
			s.end(errGone(s.user))
		}
	}
}
