package agent

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

const (
	// settles is how long another reason must stand before people are told: a node that
	// starts has many, each for a moment.
	settles = 3 * time.Second
	// tellEvery is how often at most people are told of one reason.
	tellEvery = time.Minute
)

// readiness is why pods cannot be attached, and what people were told of it.
type readiness struct {
	mu  sync.Mutex
	why error
	telling
}

// is nil when pods can be attached.
func (r *readiness) is() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why
}

// become makes why the reason, and says what there is to tell.
func (r *readiness) become(why error, now time.Time) news {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.why = why
	return r.next(why, now)
}

// still is become of the reason that stands.
func (r *readiness) still(now time.Time) (said news, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next(r.why, now), r.why
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

// Ready is nil when pods can be attached, else what is missing.
func (n *node) Ready() error { return n.readiness.is() }

func (n *node) setReady(why error) {
	said := n.readiness.become(why, time.Now())
	n.mu.Lock()
	attacher := n.attacher
	n.mu.Unlock()
	if attacher != nil {
		attacher.SetReady(why)
	}
	if why == nil {
		n.metrics.ready.Set(1)
	} else {
		n.metrics.ready.Set(0)
	}
	n.tellReady(said, why)
}

// watchReady tells people of reasons that stand while the loop waits, until ctx ends.
func (n *node) watchReady(ctx context.Context) error {
	ticker := time.NewTicker(settles)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			said, why := n.readiness.still(now)
			n.tellReady(said, why)
		}
	}
}

// tellReady tells people in the log and about the Node. Its UID in Events is its name, as
// kubelet has it.
func (n *node) tellReady(said news, why error) {
	switch said {
	case noNews:
		return
	case isReady:
		n.log.Info("ready: pods can be attached", "node", n.cfg.NodeName, "subnet", n.started)
	case isNotReady:
		n.log.Warn("not ready: pods cannot be attached", "node", n.cfg.NodeName, "error", why)
	case otherReason:
		n.log.Warn("not ready for another reason: pods cannot be attached", "node", n.cfg.NodeName, "error", why)
	}
	if n.api == nil {
		return
	}
	ref := kube.ObjectRef{Kind: "Node", Name: n.cfg.NodeName, UID: n.cfg.NodeName}
	if why != nil {
		n.api.Event(ref, true, "NetworkNotReady", why.Error())
		return
	}
	n.api.Event(ref, false, "NetworkReady", "pods can be attached")
}
