package agent

import (
	"log/slog"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// readiness is whether pods can be attached, and why not. It is the one place that
// tells: the CNI by the attacher, the metric, the log and an Event. Its methods may be
// called at once.
type readiness struct {
	node  string
	gauge prometheus.Gauge
	// events is nil outside of Kubernetes.
	events eventSink
	log    *slog.Logger

	mu       sync.Mutex
	notReady error
	// subnet is the one that the node was set up with.
	subnet netip.Prefix
	// attacher is nil before there is one.
	attacher interface{ SetReady(why error) }
}

// eventSink takes Events; [kube.Client] is one.
type eventSink interface {
	Event(ref kube.ObjectRef, warning bool, reason, message string)
}

// why is nil when pods can be attached, else what is missing.
func (r *readiness) why() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.notReady
}

// open tells a from now on.
func (r *readiness) open(a interface{ SetReady(why error) }) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attacher = a
	a.SetReady(r.notReady)
}

// startedAs notes the subnet, for the log.
func (r *readiness) startedAs(subnet netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subnet = subnet
}

// set takes in why pods cannot be attached; nil when they can.
func (r *readiness) set(why error) {
	r.mu.Lock()
	was, subnet := r.notReady, r.subnet
	r.notReady = why
	attacher := r.attacher
	r.mu.Unlock()
	if attacher != nil {
		attacher.SetReady(why)
	}
	if why == nil {
		r.gauge.Set(1)
	} else {
		r.gauge.Set(0)
	}
	if (was == nil) != (why == nil) {
		if why == nil {
			r.log.Info("ready: pods can be attached", "node", r.node, "subnet", subnet)
		} else {
			r.log.Warn("not ready: pods cannot be attached", "node", r.node, "error", why)
		}
		r.tell(why)
	}
}

// tell tells people about the Node. Its UID in Events is its name, as kubelet has it.
func (r *readiness) tell(why error) {
	if r.events == nil {
		return
	}
	ref := kube.ObjectRef{Kind: "Node", Name: r.node, UID: r.node}
	if why != nil {
		r.events.Event(ref, true, "NetworkNotReady", why.Error())
		return
	}
	r.events.Event(ref, false, "NetworkReady", "pods can be attached")
}
