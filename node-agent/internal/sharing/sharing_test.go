package sharing

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/uplink"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// node is an uplink, a firewall and a pod of each of two namespaces. It keeps what it is told.
type node struct {
	rate   uint64
	err    error
	denied string
	pods   []uplink.Pod
	marks  map[netip.Addr]uint32
	queues []uint32
	told   int // times that queues were set
}

func (n *node) Deny(why string) { n.denied = why }

func (n *node) Ensure(_ string, pods []uplink.Pod) (uint64, error) {
	n.pods = pods
	if n.denied != "" {
		return 0, n.err
	}
	return n.rate, n.err
}

func (n *node) Remove() error { n.pods = nil; return nil }

// firewall is the node's.
type firewall struct{ *node }

func (f firewall) Set(_ context.Context, _ string, want map[netip.Addr]uint32) error {
	f.marks = want
	return nil
}

func (f firewall) Remove(context.Context) error { f.marks = nil; return nil }

func (n *node) List() []attach.Attachment {
	return []attach.Attachment{
		{Namespace: "red", Addresses: []netip.Addr{netip.MustParseAddr("172.11.0.2")}, Port: 12}, {Namespace: "unknown", Addresses: []netip.Addr{netip.MustParseAddr("172.11.0.3")}, Port: 13},
	}
}

func (n *node) SetQueues(_ context.Context, queue func(attach.Attachment) uint32) error {
	n.told++
	n.queues = nil
	for _, at := range n.List() {
		n.queues = append(n.queues, queue(at))
	}
	return nil
}

func netIDOf(namespace string) (netid.ID, bool) { return 10, namespace == "red" }

// Classes, marks and queues come and go together, and a pod of an unknown tenant has none of its own.
func TestEnsure(t *testing.T) {
	var said bytes.Buffer
	n := &node{rate: 1e9}
	s := &Sharing{uplink: n, classes: firewall{n}, m: NewMetrics(prometheus.NewRegistry()), log: slog.New(slog.NewTextHandler(&said, nil))}
	ensure := func(known bool) { s.Ensure(t.Context(), ovs.DatapathSystem, "eth0", n, known, netIDOf) }
	ensure(false)
	if n.pods != nil || n.marks != nil {
		t.Errorf("before it is known what is attached: classes %v, marks %v", n.pods, n.marks)
	}
	for range 2 {
		ensure(true)
	}
	red := netip.MustParseAddr("172.11.0.2")
	if diff := cmp.Diff([]uplink.Pod{{Tenant: 10, Port: 12}}, n.pods); diff != "" || n.marks[red] != uplink.Priority(12) || len(n.marks) != 1 {
		t.Errorf("marks %v, classes (-want +got):\n%s", n.marks, diff)
	}
	if n.told != 1 || !cmp.Equal(n.queues, []uint32{uplink.Queue(12), uplink.Queue(13)}) {
		t.Errorf("queues %v, set %d times; want each pod's, once", n.queues, n.told)
	}
	// What fails is said once, and changes nothing in the flows.
	n.err = errors.New("tc: no such device")
	for range 3 {
		ensure(true)
	}
	if text := said.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "no such device") {
		t.Errorf("said %q", text)
	}
	n.err, n.rate = nil, 0
	ensure(true)
	if n.marks != nil || !cmp.Equal(n.queues, []uint32{0, 0}) {
		t.Errorf("not shared any more: marks %v, queues %v", n.marks, n.queues)
	}
	s.Ensure(t.Context(), ovs.DatapathNetdev, "eth0", n, true, netIDOf)
	if !strings.Contains(n.denied, "userspace") {
		t.Errorf("the userspace datapath shares: %q", n.denied)
	}
}
