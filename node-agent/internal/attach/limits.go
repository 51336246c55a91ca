package attach

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Limiter knows which limits a pod is to have.
type Limiter interface {
	// Limits of the pod that is being attached; an error refuses it.
	Limits(ctx context.Context, req cniapi.Request) (limits.Limits, error)
}

// Shaping is the part of the kernel that holds pods to their limits.
type Shaping interface {
	// Shape makes the limits what w says, without loss.
	Shape(w Wire) error
	// Unshape removes what is left of limits when the pair is gone; nothing is no error.
	Unshape(hostIf string) error
	// Sweep is Unshape for all pairs that are not in keep. It returns how many had
	// something left.
	Sweep(keep map[string]bool) (int, error)
	// ShapeDifferences says how the limits differ from w.
	ShapeDifferences(w Wire) ([]string, error)
	// Counters of a pod with limits.
	Counters(w Wire) (shaping.Counters, error)
}

// arrival is an attachment on its way, and the limits that its pod got meanwhile.
type arrival struct {
	namespace, pod string
	newer          *limits.Limits
}

// expect makes at one that is arriving, before its limits are asked for, and
// returns what ends that.
func (a *Attacher) expect(at Attachment) (end func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.room(at); err != nil {
		return nil, err
	}
	a.arriving[at.Attachment] = &arrival{namespace: at.Namespace, pod: at.Pod}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.arriving, at.Attachment)
	}, nil
}

// room is nil when the pod's namespace may have another pod here. a.mu is held.
func (a *Attacher) room(at Attachment) error {
	if a.maxPods == 0 {
		return nil
	}
	n := 0
	for _, other := range a.list {
		if other.Namespace == at.Namespace {
			n++
		}
	}
	for _, other := range a.arriving {
		if other.namespace == at.Namespace {
			n++
		}
	}
	if n < a.maxPods {
		return nil
	}
	return cniapi.Errorf(cniapi.CodeTryAgain, "pod %s/%s: namespace %s has %d pods on this node already, and may have %d (the agent's --max-pods-per-namespace)", at.Namespace, at.Pod, at.Namespace, n, a.maxPods).
		WithDetails("spread the pods over more nodes, or raise the limit")
}

// arrive puts a pod that was attached with that MTU into the list, and brings to
// it what has changed since. It returns the node as it is then.
func (a *Attacher) arrive(ctx context.Context, at Attachment, mtu MTU) (Node, error) {
	a.mu.Lock()
	at.mtu = mtu
	a.list[at.Attachment] = at
	newer, node := a.arriving[at.Attachment].newer, *a.node
	delete(a.arriving, at.Attachment)
	a.mu.Unlock()
	if newer != nil && *newer != at.Limits {
		if err := a.setLimits(ctx, node, &at, *newer); err != nil {
			return node, err
		}
	}
	if node.MTU != mtu {
		return node, a.followMTU(ctx, node, at)
	}
	return node, a.retell(ctx, &at, a.attached(node, at)) // its queue
}

// SetLimits gives all attachments of the pod the limits l, those that are just being
// made too; none is no error. What is passing is not lost, and at no time may the
// pod do more than the larger of what it could and of what it can. After an error
// it may be repeated, and completes what was left half done.
func (a *Attacher) SetLimits(ctx context.Context, namespace, pod string, l limits.Limits) error {
	a.mu.Lock()
	for _, arriving := range a.arriving {
		if arriving.namespace == namespace && arriving.pod == pod {
			arriving.newer = &l
		}
	}
	var keys []cniapi.Attachment
	for key, at := range a.list {
		if at.Namespace == namespace && at.Pod == pod {
			keys = append(keys, key)
		}
	}
	a.mu.Unlock()
	return a.each(ctx, keys, func(ctx context.Context, node Node, at Attachment) error {
		return a.setLimits(ctx, node, &at, l)
	})
}

// setLimits writes the limits down first: should it be interrupted, Repair goes on
// with them. A port that somebody removed gets them when Repair puts it back.
func (a *Attacher) setLimits(ctx context.Context, node Node, at *Attachment, l limits.Limits) error {
	err := a.ports.SetPortExternalIDs(ctx, at.HostIf(), map[string]string{keyLimits: encodeLimits(l)})
	if err != nil && !errors.Is(err, ovs.ErrNoPort) {
		return err
	}
	if at.Limits != l {
		a.log.Info("limits of a pod", "tenant", at.Namespace, "pod", at.Pod, "sandbox", at.Netns, "limits", l)
	}
	at.Limits = l
	a.put(*at)
	return a.change(ctx, node, at, a.kernel.Shape)
}

// change makes the pod's devices what node and at say; its meter follows. The meter
// is behind them: it is wide enough for both states in between, so that it drops
// nothing that they let pass.
func (a *Attacher) change(ctx context.Context, node Node, at *Attachment, devices func(Wire) error) error {
	after := a.attached(node, *at)
	between := after
	between.Meter = wider(at.told.Meter, after.Meter)
	if err := a.retell(ctx, at, between); err != nil {
		return err
	}
	// A pod may have renamed its own device: only the meter holds it to its limit then.
	err := devices(a.wire(node, *at))
	if err != nil && !gone(err) {
		return err
	}
	if told := a.retell(ctx, at, after); told != nil {
		return told
	}
	return err
}

// retell is tell for one in the list; nothing where that is what it was told.
func (a *Attacher) retell(ctx context.Context, at *Attachment, wanted desired.Attached) error {
	if at.told.Equal(wanted) {
		return nil
	}
	if err := a.tell(ctx, at, wanted); err != nil {
		return err
	}
	a.put(*at)
	return nil
}

func wider(x, y desired.Meter) desired.Meter {
	if x == (desired.Meter{}) || y == (desired.Meter{}) {
		return desired.Meter{}
	}
	return desired.Meter{Rate: max(x.Rate, y.Rate), Burst: max(x.Burst, y.Burst)}
}

// reshape puts back the limits of pods that may do so to their own devices. The
// first time it also looks at pods without, for what a crash has left half done.
// It returns how many it mended. What cannot be mended is logged, once: no pod may
// keep its node from being ready.
func (a *Attacher) reshape(ctx context.Context) int {
	a.mu.Lock()
	examined := a.examined
	a.mu.Unlock()
	var keys []cniapi.Attachment
	for _, at := range a.List() {
		if !examined || at.Limits != (limits.Limits{}) {
			keys = append(keys, at.Attachment)
		}
	}
	var mended atomic.Int32
	err := a.each(ctx, keys, func(ctx context.Context, node Node, at Attachment) error {
		ok, err := a.reshapeOne(ctx, node, at)
		if ok {
			mended.Add(1)
		}
		return err
	})
	said := ""
	if err != nil {
		said = err.Error()
	}
	a.mu.Lock()
	news := said != a.unshaped
	a.examined, a.unshaped = examined || err == nil, said
	a.mu.Unlock()
	if err != nil && news {
		a.log.Warn("limits of pods are not as they should be", "error", err)
	}
	return int(mended.Load())
}

// reshapeOne puts the limits of at right, and reports whether they were wrong and
// are right now. A pod can make that necessary as often as it likes, and is
// worth one line.
func (a *Attacher) reshapeOne(ctx context.Context, node Node, at Attachment) (bool, error) {
	diff, err := a.kernel.ShapeDifferences(a.wire(node, at))
	if len(diff) == 0 {
		return false, err
	}
	level := slog.LevelInfo
	if at.mended {
		level = slog.LevelDebug
	}
	a.log.Log(ctx, level, "limits of a pod are put right", "tenant", at.Namespace, "pod", at.Pod, "sandbox", at.Netns, "differences", diff)
	at.mended = true
	a.put(at)
	err = a.change(ctx, node, &at, a.kernel.Shape)
	return err == nil, err
}

// sweep removes what a crash has left of the limits of pods that are not in list.
func (a *Attacher) sweep(list []Attachment) error {
	keep := map[string]bool{}
	for _, at := range list {
		keep[at.HostIf()] = true
	}
	n, err := a.kernel.Sweep(keep)
	if n > 0 {
		a.log.Info("removed what was left of the limits of pods that are gone", "count", n)
	}
	return err
}

// PodCounters are what went through the limits of a pod.
type PodCounters struct {
	Namespace, Pod string
	Port           uint32
	Limits         limits.Limits
	shaping.Counters
}

// Counters are those of all pods with limits, in order of address. One that
// cannot be read is left out: it is going.
func (a *Attacher) Counters() []PodCounters {
	node, _, err := a.known()
	if err != nil {
		return nil
	}
	var out []PodCounters
	for _, at := range a.List() {
		if at.Limits == (limits.Limits{}) {
			continue
		}
		c, err := a.kernel.Counters(a.wire(node, at))
		if err != nil {
			a.log.Debug("counters of a pod's limits", "tenant", at.Namespace, "pod", at.Pod, "error", err)
			continue
		}
		out = append(out, PodCounters{Namespace: at.Namespace, Pod: at.Pod, Port: at.Port, Limits: at.Limits, Counters: c})
	}
	return out
}

// SetQueues makes queues say which class of the uplink a pod has (0: none), of pods that
// are attached and of those to come. It is called without locks held.
func (a *Attacher) SetQueues(ctx context.Context, queues func(Attachment) uint32) error {
	a.mu.Lock()
	a.queues = queues
	keys := slices.Collect(maps.Keys(a.list))
	a.mu.Unlock()
	return a.each(ctx, keys, func(ctx context.Context, node Node, at Attachment) error {
		return a.retell(ctx, &at, a.attached(node, at))
	})
}
