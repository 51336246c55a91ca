package allot

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
)

// portsLimit is the limit of connections of a namespace to one destination.
const portsLimit = "node-ports"

// portsUse is what namespaces make of the ports by which pods leave the node.
type portsUse struct {
	fairness.Ports
	// last is what was refused when it was looked at last, said when a namespace was named in the log.
	last map[string]uint64
	said map[string]time.Time
}

// countPorts finds out who has its part of the ports to which destination, when it is time to.
func (a *Allotment) countPorts(t fairness.Table, asked map[string]fairness.Asked) error {
	a.tellCrowded(asked)
	began := time.Now()
	if !a.ports.Due(began, t, asked) {
		return nil
	}
	owners := map[netip.Addr]string{}
	for _, at := range a.cfg.Pods.List() {
		for _, address := range at.Addresses {
			owners[address] = at.Namespace
		}
	}
	counts := map[string]map[fairness.Destination]uint64{}
	err := a.cfg.Kernel.Outgoing(func(from netip.Addr, protocol uint8, to netip.AddrPort) {
		namespace, ours := owners[from]
		if !ours {
			return
		}
		if counts[namespace] == nil {
			counts[namespace] = map[fairness.Destination]uint64{}
		}
		counts[namespace][fairness.Destination{To: to, Protocol: protocol}]++
	})
	if err != nil {
		return err
	}
	now := time.Now()
	a.ports.Counted(now, now.Sub(began), t, asked, counts)
	return nil
}

// tellCrowded counts and logs what namespaces were refused that have their part of the ports.
func (a *Allotment) tellCrowded(asked map[string]fairness.Asked) {
	p, refusals := &a.ports, a.cfg.Metrics.refused
	for namespace, n := range asked {
		last := p.last[namespace]
		if last > n.Crowded {
			last = 0 // counted anew
		}
		p.last[namespace] = n.Crowded
		refused := n.Crowded - last
		refusals.WithLabelValues(namespace, portsLimit).Add(float64(refused))
		if refused == 0 || time.Since(p.said[namespace]) < sayAgain {
			continue
		}
		p.said[namespace] = time.Now()
		a.cfg.Logger.Warn("new connections of a namespace to a destination are refused: it has more than a quarter of the node's ports to there, and all namespaces more than two fifths; have its pods keep connections open, spread them over nodes, or use more addresses or ports of the destination",
			"limit", portsLimit, "flag", "--"+a.through.flag+"=off", "tenant", namespace, "refused", refused, "destinations", names(p.Taken(namespace)))
	}
	for namespace := range p.last {
		if _, there := asked[namespace]; !there {
			refusals.DeleteLabelValues(namespace, portsLimit)
			delete(p.last, namespace)
			delete(p.said, namespace)
		}
	}
}

func names(destinations []fairness.Destination) (out []string) {
	for _, d := range destinations {
		to := d.To.String()
		if d.To.Port() == 0 {
			to = d.To.Addr().String()
		}
		out = append(out, fmt.Sprintf("%s (IP protocol %d)", to, d.Protocol))
	}
	return out
}
