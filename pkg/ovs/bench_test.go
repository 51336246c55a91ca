package ovs

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// BenchmarkAddPort measures what an ADD waits for: the transaction (commit-ms) and
// then the OpenFlow port number (ofport-ms), medians, of a veth on a bridge of
// the userspace datapath that has that many ports. Further: DeletePort, and reading
// all ports from the client's copy.
func BenchmarkAddPort(b *testing.B) {
	for _, ports := range []int{0, 200} {
		b.Run(fmt.Sprint("ports=", ports), func(b *testing.B) {
			c, _, space := start(b)
			ctx := within(b)
			bridge(b, c, "br0")
			var lines []string
			for i := range ports + 1 {
				lines = append(lines, fmt.Sprintf("link add v%d type veth peer name p%d", i, i), fmt.Sprintf("link set v%d up", i))
			}
			if err := ns.IP(ctx, space, lines...); err != nil {
				b.Fatal(err)
			}
			for i := range ports {
				if err := c.AddPort(ctx, "br0", PortSpec{Name: fmt.Sprint("v", i+1), SharedQoS: "linux-noop"}); err != nil {
					b.Fatal(err)
				}
			}
			if err := c.Sync(ctx); err != nil {
				b.Fatal(err)
			}
			var commit, ofport, remove, list []time.Duration
			spec := PortSpec{Name: "v0", SharedQoS: "linux-noop", ExternalIDs: map[string]string{"attachment": "0123456789abcdef/eth0", "ip": "172.11.0.5", "namespace": "default", "pod": "web-0"}}
			for b.Loop() {
				t0 := time.Now()
				if err := c.AddPort(ctx, "br0", spec); err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if _, err := c.WaitOfport(ctx, "v0"); err != nil {
					b.Fatal(err)
				}
				t2 := time.Now()
				if _, err := c.Ports("br0"); err != nil {
					b.Fatal(err)
				}
				t3 := time.Now()
				if err := c.DeletePort(ctx, "br0", "v0"); err != nil {
					b.Fatal(err)
				}
				commit, ofport, list, remove = append(commit, t1.Sub(t0)), append(ofport, t2.Sub(t1)), append(list, t3.Sub(t2)), append(remove, time.Since(t3))
				if err := c.Sync(ctx); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(0, "ns/op")
			for name, d := range map[string][]time.Duration{"commit-ms": commit, "ofport-ms": ofport, "list-ms": list, "delete-ms": remove} {
				slices.Sort(d)
				b.ReportMetric(float64(d[len(d)/2])/1e6, name)
			}
		})
	}
}
