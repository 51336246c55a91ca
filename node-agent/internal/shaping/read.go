package shaping

import (
	"errors"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
)

// Differences says how what the kernel has differs from the limits l; nothing
// where [Shaper.Apply] would change no limit. [link.ErrNoLink] or [link.ErrNoSandbox]
// where the pod is gone, or its own device: with what differs on the host's end.
func (s *Shaper) Differences(w Wire, l limits.Limits) ([]string, error) {
	diff, err := s.ingressDifferences(w, l.Ingress)
	if err != nil {
		return nil, fmt.Errorf("limits of %s: %w", w.HostIf, err)
	}
	err = in(w, func(sandbox *link.NS) error {
		q, err := tc.In(sandbox).Qdisc(w.IfName)
		switch {
		case err != nil:
			return err
		case l.Egress.Rate != 0 && !q.Shapes(shape(l.Egress, w.MTU)):
			diff = append(diff, fmt.Sprintf("%s does not hold the pod to the %d bit/s that it may send", w.IfName, l.Egress.Rate))
		case l.Egress.Rate == 0 && q.Kind == "tbf" && !q.Shapes(unlimited):
			diff = append(diff, fmt.Sprintf("%s limits what the pod sends, and it has no limit", w.IfName))
		}
		return nil
	})
	if err != nil {
		return diff, fmt.Errorf("limits of %s: %w", w.HostIf, err)
	}
	return diff, nil
}

func (s *Shaper) ingressDifferences(w Wire, l limits.Limit) ([]string, error) {
	ifb := ifbOf(w.HostIf)
	dev, there, err := s.host.Link(ifb)
	if err != nil {
		return nil, err
	}
	redirected, err := s.tc.Redirects(w.HostIf, ifb)
	switch {
	case err != nil:
		return nil, err
	case l.Rate == 0 && there:
		return []string{fmt.Sprintf("%s is left of a limit of what the pod receives, and it has none", ifb)}, nil
	case l.Rate == 0:
		return nil, nil
	case !redirected || !dev.Up:
		return []string{fmt.Sprintf("what the pod receives does not pass through %s, which has its limit of %d bit/s", ifb, l.Rate)}, nil
	}
	q, err := s.tc.Qdisc(ifb)
	if err != nil {
		return nil, err
	}
	if !q.Shapes(shape(l, w.MTU)) {
		return []string{fmt.Sprintf("%s does not hold the pod to the %d bit/s that it may receive", ifb, l.Rate)}, nil
	}
	return nil, nil
}

// Counters reads what went through the pod's limits. What is gone, or not there
// yet, counts nothing.
func (s *Shaper) Counters(w Wire, l limits.Limits) (Counters, error) {
	var c Counters
	var err error
	if l.Ingress.Rate != 0 {
		c.Ingress, err = counted(s.tc, ifbOf(w.HostIf))
	}
	if err == nil && l.Egress.Rate != 0 {
		err = in(w, func(sandbox *link.NS) (err error) {
			c.Egress, err = counted(tc.In(sandbox), w.IfName)
			return err
		})
	}
	if err != nil && !errors.Is(err, link.ErrNoSandbox) {
		return Counters{}, fmt.Errorf("counters of %s: %w", w.HostIf, err)
	}
	return c, nil
}

func counted(n tc.Control, name string) (Direction, error) {
	q, err := n.Qdisc(name)
	if errors.Is(err, link.ErrNoLink) {
		return Direction{}, nil
	}
	if err != nil || q.Kind != "tbf" {
		return Direction{}, err
	}
	return Direction{Bytes: q.Bytes, Packets: q.Packets, Dropped: q.Dropped, Delayed: q.Delayed, Backlog: q.Backlog}, nil
}
