// Package sharing lets pods share the uplink fairly: it makes its classes, the firewall's marks and the
// queues in pods' flows one whole.
//
// It never decides what a class gets: package uplink does. Where it cannot share it says so and keeps
// nobody from being attached.
package sharing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/uplink"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Sharing lets pods share the uplink fairly. It belongs to one goroutine.
type Sharing struct {
	uplink  classes
	classes marks
	// queues is that pods' flows name their queues.
	queues bool
	failed backoff.Trouble
	log    *slog.Logger
	m      *Metrics
}

// classes are those of the uplink; [uplink.Uplink] has them.
type classes interface {
	// Deny is why there can be none.
	Deny(why string)
	// Ensure returns the rate that pods share, bits per second; 0 where they do not.
	Ensure(device string, pods []uplink.Pod) (rate uint64, err error)
	Remove() error
}

// marks give packets their class; [hostnet.Classes] does, in the firewall.
type marks interface {
	Set(ctx context.Context, device string, priorities map[netip.Addr]uint32) error
	Remove(ctx context.Context) error
}

// Metrics are what is shown of it.
type Metrics struct{ rate, shared prometheus.Gauge }

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	register := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return register.NewGauge(prometheus.GaugeOpts{Namespace: "k8s_ovs", Name: name, Help: help})
	}
	m := &Metrics{
		rate:   gauge("uplink_rate_bits_per_second", "Rate that pods share on the uplink; 0 where they do not."),
		shared: gauge("uplink_shared", "1 when pods share the uplink by tenant."),
	}
	return m
}

// Attached are the pods of the node; [attach.Attacher] is them.
type Attached interface {
	List() []attach.Attachment
	SetQueues(ctx context.Context, queues func(attach.Attachment) uint32) error
}

// New returns the sharing of pods that have rate, bits per second, of the uplink.
func New(host *link.NS, rate uplink.Rate, m *Metrics, log *slog.Logger) (*Sharing, error) {
	firewall, err := hostnet.NewClasses(host)
	if err != nil {
		return nil, err
	}
	devices := struct {
		*link.NS
		tc.Control
	}{host, tc.In(host)}
	return &Sharing{uplink: uplink.New(devices, rate, log), classes: firewall, log: log, m: m}, nil
}

// Ensure makes the classes of the uplink, by device, those of the pods of tenants, which netID tells; known
// is that attached is what is there. A pod that is new is in
// the node's class until then, so nobody has to wait for it. That the node is ready
// does not depend on it either: it is worth a warning, not an outage.
func (s *Sharing) Ensure(ctx context.Context, datapath, device string, attached Attached, known bool, netID func(namespace string) (netid.ID, bool)) {
	if err := s.tryShare(ctx, datapath, device, attached, known, netID); s.failed.News(err) {
		s.log.Warn("pods may not share the uplink fairly", "link", device, "error", err)
	}
}

func (s *Sharing) tryShare(ctx context.Context, datapath, device string, attached Attached, known bool, netID func(namespace string) (netid.ID, bool)) error {
	if datapath != ovs.DatapathSystem {
		s.uplink.Deny("the userspace datapath sends packets without their priority")
	}
	var pods []uplink.Pod
	var priorities map[netip.Addr]uint32
	if known {
		pods, priorities = uplinkPods(attached.List(), netID)
	}
	rate, err := s.uplink.Ensure(device, pods)
	shared := err == nil && rate > 0
	s.m.show(rate, shared)
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
	if err := attached.SetQueues(ctx, queue); err != nil {
		return fmt.Errorf("queues in the pods' flows: %w", err)
	}
	s.queues = shared
	return nil
}

// uplinkPods are the pods of tenants, and the priorities of what they send by address.
func uplinkPods(list []attach.Attachment, netID func(namespace string) (netid.ID, bool)) ([]uplink.Pod, map[netip.Addr]uint32) {
	pods, priorities := []uplink.Pod{}, map[netip.Addr]uint32{}
	for _, at := range list {
		tenant, known := netID(at.Namespace)
		if priority := uplink.Priority(at.Port); known && priority != 0 {
			pods = append(pods, uplink.Pod{Tenant: tenant, Port: at.Port})
			for _, address := range at.Addresses {
				priorities[address] = priority
			}
		}
	}
	return pods, priorities
}

// Remove takes away all that sharing made.
func (s *Sharing) Remove(ctx context.Context) error {
	return errors.Join(s.uplink.Remove(), s.classes.Remove(ctx))
}

func (m *Metrics) show(rate uint64, shared bool) {
	is := 0.0
	if shared {
		is = 1
	}
	m.rate.Set(float64(rate))
	m.shared.Set(is)
}
