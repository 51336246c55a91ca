package store

import (
	"fmt"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// BenchmarkWatch is the time from the start of a write to its snapshot, with
// records of 1,000 namespaces in it.
func BenchmarkWatch(b *testing.B) {
	e := etcdtest.Start(b)
	s, err := Open(Config{Endpoints: e.Endpoints})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx := b.Context()
	if _, err := s.PutConfig(ctx, topology.DefaultConfig()); err != nil {
		b.Fatal(err)
	}
	c := e.Client()
	for n := range 1000 {
		ns := fmt.Sprintf("ns%d", n)
		if _, err := c.Put(ctx, DefaultPrefix+"/k8ssdn/netnamespaces/"+ns, nsRecord(ns, 100+n)); err != nil {
			b.Fatal(err)
		}
	}
	ch := s.Watch(ctx)
	<-ch
	for b.Loop() {
		r, err := c.Put(ctx, DefaultPrefix+"/k8ssdn/netnamespaces/ns7", nsRecord("ns7", 100))
		if err != nil {
			b.Fatal(err)
		}
		for snapshot := range ch {
			if snapshot.Revision >= r.Header.Revision {
				break
			}
		}
	}
}
