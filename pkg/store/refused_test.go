package store

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// refusing is an etcd that stops: it refuses each watch as it takes it.
type refusing struct {
	pb.UnimplementedWatchServer
	refused func()
}

func (r *refusing) Watch(stream pb.Watch_WatchServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if req.GetCreateRequest() == nil {
			continue
		}
		if err := stream.Send(&pb.WatchResponse{Header: &pb.ResponseHeader{}, WatchId: -1, Created: true, Canceled: true, CancelReason: "stopped"}); err != nil {
			return err
		}
		r.refused()
	}
}

// TestRefusedWatches: whoever watches is not held up by watches that etcd refuses at the
// moment when they are given up.
func TestRefusedWatches(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "etcd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{}, 1)
	server := grpc.NewServer()
	pb.RegisterWatchServer(server, &refusing{refused: func() {
		select {
		case refused <- struct{}{}:
		default:
		}
	}})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	s, err := Open(Config{Endpoints: []string{"unix://" + listener.Addr().String()}, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	conn := s.connectOrDie(t).ActiveConnection()
	conn.Connect()
	eventually(t, "connected", func() bool { return conn.GetState() == connectivity.Ready })
	for round := range 300 {
		ctx, cancel := context.WithCancel(ctxOf(t))
		ended := make(chan error, 1)
		go func() { ended <- s.waitConfig(ctx, 1) }()
		<-refused
		time.Sleep(time.Duration(round) * time.Microsecond)
		cancel()
		select {
		case err := <-ended:
			if err == nil {
				t.Fatalf("round %d: a configuration", round)
			}
		case <-time.After(patience):
			t.Fatalf("round %d: still waiting after %s", round, patience)
		}
	}
}
