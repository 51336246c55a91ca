package store

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func TestLimits(t *testing.T) {
	e, s := network(t)
	ctx := ctxOf(t)
	l := topology.NodeLimits{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Pods: []topology.PodLimits{
		{Namespace: "a", Pod: "p", Egress: &topology.LimitUsed{Rate: 1_000_000, Burst: 65536, Bytes: 1, Delayed: 2, Dropped: 3}},
	}}
	p := s.LimitsPublisher("k8ssdn", 2*time.Second)
	p.Set(l)
	// What others leave there is no record.
	for _, key := range []string{"198.18.0.2", "nonsense"} {
		if _, err := e.Client().Put(ctx, DefaultPrefix+"/k8ssdn/limits/"+key, `{"HostIP":"198.18.0.3"}`); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(want ...topology.NodeLimits) func() bool {
		all := map[netip.Addr]topology.NodeLimits{}
		for _, l := range want {
			all[l.HostIP] = l
		}
		return func() bool {
			got, err := s.Limits(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return cmp.Equal(all, got, byValue)
		}
	}
	eventually(t, "the record", shows(l))
	p.Close()
	eventually(t, "it goes with its agent", shows())
}
