package tenant

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// BenchmarkPlan is the making of one plan of 10,000 records, none or all of which ask for
// their first netID.
func BenchmarkPlan(b *testing.B) {
	for _, asking := range []bool{false, true} {
		b.Run(fmt.Sprintf("asking=%v", asking), func(b *testing.B) {
			records := make([]Record, 10000)
			for i := range records {
				n := topology.Namespace{NetName: fmt.Sprintf("ns%d", i)}
				if !asking {
					id := netid.Min + netid.ID(i)
					number := int64(id)
					n.NetID, n.Effective = &number, &id
				}
				records[i] = Record{Key: n.NetName, Namespace: n, Mod: int64(i + 1), Create: int64(i + 1)}
			}
			p := New(Config{Random: rand.Reader})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Plan(records, nil, time.Time{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
