package agent

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

const (
	// settles is how long another reason must stand before people are told: a node that
	// starts has many, each for a moment.
	settles = 3 * time.Second
	// tellEvery is how often at most people are told of one reason.
	tellEvery = time.Minute
)

// readiness is why pods cannot be attached, and what people were told of it. It is the one
// place that tells: the CNI by the attacher, the metric, the log and an Event. Its methods
// may be called at once.
type readiness struct {
	node  string
	gauge prometheus.Gauge
	// events is nil outside of Kubernetes.
	events eventSink
	log    *slog.Logger

	mu  sync.Mutex
	why error
	telling
	// subnet is the one that the node was set up with.
	subnet netip.Prefix
	// attacher is nil before there is one.
	attacher interface{ SetReady(why error) }
}

// eventSink takes Events; [kube.Client] is one.
type eventSink interface {
	Event(ref kube.ObjectRef, warning bool, reason kube.EventReason, message string)
}

// is nil when pods can be attached, else what is missing.
func (r *readiness) is() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why
}

// open tells a from now on.
func (r *readiness) open(a interface{ SetReady(why error) }) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attacher = a
	a.SetReady(r.why)
}

// startedAs notes the subnet, for the log.
func (r *readiness) startedAs(subnet netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subnet = subnet
}

// set makes why the reason; nil when pods can be attached.
func (r *readiness) set(why error) {
	r.mu.Lock()
	r.why = why
	said, attacher := r.next(why, time.Now()), r.attacher
	r.mu.Unlock()
	if attacher != nil {
		attacher.SetReady(why)
	}
	if why == nil {
		r.gauge.Set(1)
	} else {
		r.gauge.Set(0)
	}
	r.say(said, why)
}

// watch tells people of reasons that stand while the loop waits, until ctx ends.
func (r *readiness) watch(ctx context.Context) error {
	ticker := time.NewTicker(settles)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			said, why := r.still(now)
			r.say(said, why)
		}
	}
}

// still is what there is to tell of the reason that stands.
func (r *readiness) still(now time.Time) (said news, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next(r.why, now), r.why
}

// say tells people in the log and about the Node. Its UID in Events is its name, as
// kubelet has it.
func (r *readiness) say(said news, why error) {
	switch said {
	case noNews:
		return
	case isReady:
		r.mu.Lock()
		subnet := r.subnet
		r.mu.Unlock()
		r.log.Info("ready: pods can be attached", "node", r.node, "subnet", subnet)
	case isNotReady:
		r.log.Warn("not ready: pods cannot be attached", "node", r.node, "error", why)
	case otherReason:
		r.log.Warn("not ready for another reason: pods cannot be attached", "node", r.node, "error", why)
	}
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

// news is what people are told.
type news int

const (
	noNews news = iota
	isReady
	isNotReady
	// otherReason is that the node, which they know not to be ready, is not for another reason.
	otherReason
)

// telling decides when people are told. It has no clock.
type telling struct {
	// ready is what they know, reason why not; other is since when it is another one.
	ready  bool
	reason string
	other  time.Time
	// seen is when each reason came up, since the node was ready, told when they were told of
	// it last. Both forget after a minute.
	seen, told map[string]time.Time
}

// next is what there is to tell now. That the node is ready or no more is told at once. Another
// reason is told when it has stood for a while, and not twice in a minute: one that comes and
// goes is told when it is there again. Where they differ all the time one is told each minute.
func (t *telling) next(why error, now time.Time) news {
	if t.seen == nil {
		t.other, t.seen, t.told = now, map[string]time.Time{}, map[string]time.Time{}
	}
	if why == nil {
		if t.ready {
			return noNews
		}
		clear(t.seen)
		t.ready = true
		return isReady
	}
	reason := why.Error()
	t.forget(reason, now)
	if _, ok := t.seen[reason]; !ok {
		t.seen[reason] = now
	}
	switch _, lately := t.told[reason]; {
	case t.ready:
		t.tell(reason, now)
		return isNotReady
	case reason == t.reason:
		t.other = now
		return noNews
	case lately, now.Sub(t.seen[reason]) < settles && now.Sub(t.other) < tellEvery:
		return noNews
	}
	t.tell(reason, now)
	return otherReason
}

func (t *telling) tell(reason string, now time.Time) {
	t.ready, t.reason, t.other, t.told[reason] = false, reason, now, now
}

// forget drops what is older than a minute, but for when the reason that is came up.
func (t *telling) forget(reason string, now time.Time) {
	old := func(_ string, at time.Time) bool { return now.Sub(at) >= tellEvery }
	maps.DeleteFunc(t.told, old)
	maps.DeleteFunc(t.seen, func(text string, at time.Time) bool { return text != reason && old(text, at) })
}
