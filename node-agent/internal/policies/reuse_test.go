package policies

import (
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// A freed address is given out when its removal was acknowledged and 10 s are over.
func TestReuse(t *testing.T) {
	record := func(addresses ...topology.NodePod) topology.NodePods { return topology.NodePods{Pods: addresses} }
	with := record(topology.NodePod{Address: web1})
	start := noon.Add(-time.Hour)
	ask := func(when string, f *addresses, after time.Duration, want bool) {
		t.Helper()
		if got := f.reusable(web1, start, noon.Add(after)); got != want {
			t.Errorf("%s, after %s: %v", when, after, got)
		}
	}
	f := newAddresses()
	f.published(with, 5)
	f.acknowledge(5)
	f.free(web1, noon)
	ask("its removal is not written", &f, time.Hour, false)
	f.published(with, 6) // under way when it was freed
	f.acknowledge(6)
	ask("a record with it is written", &f, time.Hour, false)
	f.published(record(), 7)
	ask("its removal is not acknowledged", &f, time.Hour, false)
	f.acknowledge(7)
	ask("its removal is acknowledged", &f, reuseAfter-time.Millisecond, false)
	ask("its removal is acknowledged", &f, reuseAfter, true)
	f.take(web1)
	f.free(web1, noon.Add(time.Minute))
	ask("it was used again", &f, time.Hour, false)

	// etcd goes back to older records: what was written then says nothing any more.
	lost := newAddresses()
	lost.published(with, 90)
	lost.free(web1, noon)
	lost.published(record(), 91)
	lost.acknowledge(40)
	lost.published(record(), 41)
	ask("its removal is written anew", &lost, time.Hour, false)
	lost.acknowledge(41)
	ask("that is acknowledged", &lost, time.Hour, true)

	// Of what was freed before the start nobody knows when.
	fresh := newAddresses()
	if fresh.reusable(web1, noon, noon.Add(time.Hour)) {
		t.Error("before the first record an address is given out")
	}
	fresh.published(record(), 9)
	fresh.acknowledge(8)
	if fresh.reusable(web1, noon, noon.Add(time.Hour)) {
		t.Error("before the first record is acknowledged an address is given out")
	}
	fresh.acknowledge(9)
	if fresh.reusable(web1, noon, noon.Add(reuseAfter-1)) || !fresh.reusable(web1, noon, noon.Add(reuseAfter)) {
		t.Error("10 s after the start are not what counts")
	}
}
