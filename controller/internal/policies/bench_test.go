package policies

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// The size of what is simulated: 10,000 pods on 100 nodes in 100 namespaces, 1,000 policies,
// each pod in 5 sets.
const (
	benchNodes, benchPodsOnEach = 100, 100
	benchNamespaces             = 100
	benchPolicies               = 10 // of each namespace
)

// cluster is the simulated one.
type benchCluster struct {
	k       *Keeper
	rev     int64
	pods    [benchNodes][]topology.NodePod
	records map[netip.Addr]store.Versioned[topology.NodePods]
	serial  int
}

func nodeIP(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}) }

func newBenchCluster(b *testing.B, w Writer) *benchCluster {
	b.Helper()
	c := &benchCluster{records: map[netip.Addr]store.Versioned[topology.NodePods]{}}
	c.k = New(Config{Writer: w, Now: time.Now, Counted: func(Counts) {}, Logger: slog.New(slog.DiscardHandler)})
	c.k.known = inputs{true, true, true, true, true, true, true, true}
	nodes := map[netip.Addr]topology.Node{}
	for n := range benchNodes {
		nodes[nodeIP(n)] = topology.Node{Host: nodeIP(n).String(), HostIP: nodeIP(n), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 6), byte(n << 2), 0}), 22)}
	}
	c.k.state.setSubnets(nodes)
	for i := range benchNamespaces {
		ns := fmt.Sprintf("ns%d", i)
		c.k.state.setNamespace(ns, &map[string]string{"team": fmt.Sprintf("t%d", i%10), "kubernetes.io/metadata.name": ns})
		for j := range benchPolicies {
			// From its own namespace by two labels, from a team, and to a namespace by its name.
			sets := []policy.Set{
				{Namespace: ns, Pods: policy.Selector(fmt.Sprintf("app=a%d", j))}, {Namespace: ns, Pods: "tier=front"},
				{Namespaces: policy.Selector(fmt.Sprintf("team=t%d", j))}, {Namespaces: policy.Selector(fmt.Sprintf("kubernetes.io/metadata.name=ns%d", (i+j)%benchNamespaces))},
				{Namespaces: policy.Selector(fmt.Sprintf("team=t%d", j)), Pods: policy.Selector(fmt.Sprintf("app=a%d", j))},
			}
			p := policy.Policy{Key: policy.Key{Namespace: ns, Name: fmt.Sprintf("p%d", j)}, Subject: policy.Selector(fmt.Sprintf("app=a%d", j)), Ingress: policy.Side{Isolates: true}}
			for _, set := range sets {
				p.Ingress.Rules = append(p.Ingress.Rules, policy.Rule{Peers: []policy.Peer{{Set: &set}}, Ports: []policy.Port{{Protocol: 6, First: 80, Last: 80}}})
			}
			c.k.state.setPolicy(p.Key, &kube.NetworkPolicy{Policy: p}, time.Now())
		}
	}
	for range benchPodsOnEach {
		for n := range benchNodes {
			c.comes(b, n)
		}
	}
	c.tell()
	settle(b, c.k)
	return c
}

// comes has a pod come to a node, and what was the oldest of many go.
func (c *benchCluster) comes(b *testing.B, n int) {
	c.serial++
	c.rev++
	name := fmt.Sprintf("web-5d9c7b6f5-%05d", c.serial)
	ns := fmt.Sprintf("ns%d", c.serial%benchNamespaces)
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", c.serial)
	c.k.state.setLabels(kube.PodKey{Namespace: ns, Name: name}, &kube.PodLabels{UID: uid, Node: nodeIP(n).String(), Labels: map[string]string{
		"app": fmt.Sprintf("a%d", c.serial%10), "tier": "front", "pod-template-hash": "5d9c7b6f5",
	}})
	if len(c.pods[n]) >= benchPodsOnEach {
		old := c.pods[n][0]
		c.k.state.setLabels(kube.PodKey{Namespace: old.Namespace, Name: old.Name}, nil)
		c.pods[n] = c.pods[n][1:]
	}
	subnet := c.k.state.places[nodeIP(n)].subnets[0]
	at := topology.WithLow32(netip.IPv4Unspecified(), topology.Low32(subnet.Addr())+2+uint32(c.serial/benchNodes%1000))
	c.pods[n] = append(c.pods[n], topology.NodePod{Namespace: ns, Name: name, UID: uid, Address: at})
	// As the watch reads it: the whole record of the node.
	data, err := json.Marshal(topology.NodePods{HostIP: nodeIP(n), Pods: c.pods[n]})
	if err != nil {
		b.Fatal(err)
	}
	record, err := topology.ParseNodePods(nodeIP(n).String(), data)
	if err != nil {
		b.Fatal(err)
	}
	c.records[nodeIP(n)] = store.Versioned[topology.NodePods]{Value: record, Revision: c.rev}
}

func (c *benchCluster) tell() { c.k.state.setPods(store.NodePods{Nodes: c.records}) }

// BenchmarkPod is a pod that comes and another that goes, of 10,000: what the leader works
// (reading the node's record of pods among it), and what it writes for that.
func BenchmarkPod(b *testing.B) {
	m := newMemory()
	c := newBenchCluster(b, m)
	m.transactions, m.changes, m.bytes = 0, 0, 0
	n := 0
	for b.Loop() {
		c.comes(b, n%benchNodes)
		c.tell()
		if _, err := c.k.write(context.Background()); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(m.transactions)/float64(n), "txns/op")
	b.ReportMetric(float64(m.changes)/float64(n), "records/op")
	b.ReportMetric(float64(m.bytes)/float64(n), "B-written/op")
}

// BenchmarkSecond is a hundred such changes within a second, written to a real etcd as far
// apart as the leader writes.
func BenchmarkSecond(b *testing.B) {
	e := etcdtest.Start(b)
	s, err := store.Open(store.Config{Endpoints: e.Endpoints, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx := b.Context()
	if _, err := s.PutConfig(ctx, topology.DefaultConfig()); err != nil {
		b.Fatal(err)
	}
	l, err := s.Campaign(ctx, "k8ssdn", "bench", 0)
	if err != nil {
		b.Fatal(err)
	}
	counted := &counting{Writer: l}
	c := newBenchCluster(b, counted)
	*counted = counting{Writer: l}
	n, busy := 0, time.Duration(0)
	for b.Loop() {
		for range time.Second / writeEvery {
			began := time.Now()
			for range 100 * writeEvery / time.Second {
				c.comes(b, n%benchNodes)
				n++
			}
			c.tell()
			settle(b, c.k)
			busy += time.Since(began)
		}
	}
	seconds := float64(n) / 100
	b.ReportMetric(float64(counted.transactions)/seconds, "txns/s")
	b.ReportMetric(float64(counted.changes)/seconds, "records/s")
	b.ReportMetric(float64(counted.bytes)/seconds/1000, "kB-written/s")
	b.ReportMetric(busy.Seconds()/seconds*1000, "ms-busy/s")
}

// counting counts what goes to etcd.
type counting struct {
	Writer
	transactions, changes, bytes int
}

func (c *counting) PutPolicies(ctx context.Context, changes []store.PolicyChange) (int64, error) {
	c.transactions++
	c.changes += len(changes)
	for _, change := range changes {
		c.bytes += len(change.Key) + len(change.Value)
	}
	return c.Writer.PutPolicies(ctx, changes)
}
