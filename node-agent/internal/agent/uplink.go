package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/uplink"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// sharing lets pods share the uplink fairly. It belongs to the loop's goroutine.
type sharing struct {
	uplink  *uplink.Uplink
	classes *hostnet.Classes
	// queues is that pods' flows name their queues.
	queues bool
	// failed is what was last said to be wrong.
	failed string
}

func newSharing(host *link.NS, rate uplink.Rate, log *slog.Logger) (*sharing, error) {
	classes, err := hostnet.NewClasses(host)
	if err != nil {
		return nil, err
	}
	return &sharing{uplink: uplink.New(host, rate, log), classes: classes}, nil
}

// shareUplink makes the uplink's classes those of the pods. A pod that is new is in
// the node's class until then, so nobody has to wait for it. That the node is ready
// does not depend on it either: it is worth a warning, not an outage.
func (n *node) shareUplink(ctx context.Context, u underlay.Underlay) {
	said := ""
	if err := n.tryShare(ctx, u.Link); err != nil {
		said = err.Error()
	}
	if said != "" && said != n.sharing.failed {
		n.log.Warn("pods may not share the uplink fairly", "link", u.Link, "error", said)
	}
	n.sharing.failed = said
}

func (n *node) tryShare(ctx context.Context, device string) error {
	s := n.sharing
	if n.datapath != ovs.DatapathSystem {
		s.uplink.Deny("the userspace datapath sends packets without their priority")
	}
	pods, priorities := n.uplinkPods()
	rate, err := s.uplink.Ensure(device, pods)
	shared := err == nil && rate > 0
	n.metrics.shares(rate, shared)
	switch {
	case err != nil:
	case !shared:
		err = s.classes.Remove(ctx)
	case pods != nil:
		err = s.classes.Set(ctx, bridge.GatewayPort, priorities)
	}
	if err != nil {
		return err
	}
	if shared == s.queues {
		return nil
	}
	queue := func(attach.Attachment) uint32 { return 0 }
	if shared {
		queue = func(at attach.Attachment) uint32 { return uplink.Queue(at.Port) }
	}
	if err := n.attacher.SetQueues(ctx, queue); err != nil {
		return fmt.Errorf("queues in the pods' flows: %w", err)
	}
	s.queues = shared
	return nil
}

// uplinkPods are the pods of tenants, and the priorities of what they send by
// address; nil while it is not known what is attached.
func (n *node) uplinkPods() ([]uplink.Pod, map[netip.Addr]uint32) {
	if !n.started.IsValid() {
		return nil, nil
	}
	pods, priorities := []uplink.Pod{}, map[netip.Addr]uint32{}
	for _, at := range n.attacher.List() {
		tenant, known := n.records.NetID(at.Namespace)
		if priority := uplink.Priority(at.Port); known && priority != 0 {
			pods = append(pods, uplink.Pod{Tenant: tenant, Port: at.Port})
			priorities[at.Address] = priority
		}
	}
	return pods, priorities
}

// remove takes away all that sharing made.
func (s *sharing) remove(ctx context.Context) error {
	return errors.Join(s.uplink.Remove(), s.classes.Remove(ctx))
}

func (m *metrics) shares(rate uint64, shared bool) {
	is := 0.0
	if shared {
		is = 1
	}
	m.uplinkRate.Set(float64(rate))
	m.uplinkShared.Set(is)
}
