// Package leftout tells people which endpoints of services no pod is sent to: every node in its log, one of
// them in an Event. Which those are package services decides.
package leftout

import (
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// endpointsLeftOut is the reason of the Event.
const endpointsLeftOut = "EndpointsLeftOut"

// Sayer says which endpoints of services no pod is sent to.
type Sayer struct {
	Events Events
	// Self is the node's tunnel address, Peers the other nodes.
	Self   netip.Addr
	Peers  func() []pipeline.Peer
	Logger *slog.Logger
}

// Events takes Events; [kube.Client] does.
type Events interface {
	Event(ref kube.ObjectRef, warning bool, reason kube.EventReason, message string)
}

// Say implements services.Config.LeftOut.
func (l Sayer) Say(s service.Service, left []service.LeftOut) {
	if len(left) == 0 {
		l.Logger.Info("all endpoints of a service are used again", "tenant", s.Namespace, "service", s.Name)
		return
	}
	message := fmt.Sprintf("endpoint %v is left out: no pod is sent there", left[0])
	if left[0].Reason == service.TooMany {
		message = fmt.Sprintf("all endpoints of port %v are left out: no pod is sent there", left[0])
	}
	if more := len(left) - 1; more > 0 {
		message += fmt.Sprintf(", nor to %d more", more)
	}
	if slices.ContainsFunc(left, func(o service.LeftOut) bool { return o.Reason == service.TooMany }) {
		message += fmt.Sprintf("; on each node one service may come to %d flows, and those of a namespace to %d: give it fewer ports or endpoints", service.MostFlows, service.MostFlowsOfNamespace)
	}
	l.Logger.Warn("endpoints of a service are left out", "tenant", s.Namespace, "service", s.Name, "endpoints", len(left), "first", left[0].String())
	if l.elected(s) {
		l.Events.Event(kube.ObjectRef{Kind: "Service", Namespace: s.Namespace, Name: s.Name, UID: s.UID}, true, endpointsLeftOut, message)
	}
}

// elected reports whether this is the node that tells the users of a service: of
// thousands of equal Events none would be read. All nodes agree who it is, as long as
// they have the same records.
func (l Sayer) elected(s service.Service) bool {
	weight := func(node netip.Addr) uint64 {
		h := fnv.New64a()
		fmt.Fprint(h, s.Key, s.UID, node)
		return h.Sum64()
	}
	own := weight(l.Self)
	for _, p := range l.Peers() {
		if w := weight(p.VTEP); w > own {
			return false
		}
	}
	return true
}
