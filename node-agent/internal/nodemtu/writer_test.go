package nodemtu

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// slowStore answers each write when the test says so.
type slowStore struct {
	called  chan topology.NodeMTU
	answers chan error
}

func (s slowStore) put(ctx context.Context, m topology.NodeMTU) (int64, error) {
	select {
	case s.called <- m:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case err := <-s.answers:
		return int64(m.Carries), err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func TestMTUWriterConfirmsOnlyTheNewest(t *testing.T) {
	s := slowStore{make(chan topology.NodeMTU), make(chan error)}
	w := newWriter(s.put, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); w.run(ctx) }()
	defer func() { cancel(); <-ended }()
	record := func(size int) topology.NodeMTU { return topology.NodeMTU{Carries: size} }

	if w.confirmed(1 << 40) {
		t.Error("confirmed before the first write")
	}
	w.write(record(1400))
	<-s.called
	w.write(record(1300))
	w.write(record(1500)) // in place of 1300
	s.answers <- nil
	w.take(<-w.done)
	if w.confirmed(1 << 40) {
		t.Error("confirmed though a newer write is under way")
	}
	if m := <-s.called; m != record(1500) {
		t.Errorf("wrote %+v", m)
	}
	s.answers <- errors.New("etcd is away")
	if m := <-s.called; m != record(1500) {
		t.Errorf("tried %+v again", m)
	}
	s.answers <- nil
	w.take(<-w.done)
	if w.confirmed(1499) || !w.confirmed(1500) {
		t.Error("confirmed by views before the write, or not by one after it")
	}
	w.forget()
	if w.confirmed(1 << 40) {
		t.Error("confirmed though the write counts for nothing")
	}
}
