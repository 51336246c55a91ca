package etcd

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errStopping tells a client to try again; it has the text of etcd's own.
var errStopping = status.Error(codes.Unavailable, "etcdserver: server stopped")

// endStreams ends watches and the like when closing ends. etcd itself waits for
// its clients to end them, for 7 s, before it stops.
func endStreams(closing context.Context) grpc.ServerOption {
	return grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, cancel := context.WithCancel(ss.Context())
		defer cancel()
		defer context.AfterFunc(closing, cancel)()
		err := handler(srv, &stream{ss, ctx})
		if closing.Err() != nil {
			return errStopping
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
