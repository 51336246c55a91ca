// Package podlimits knows how fast pods may be, by their annotations in Kubernetes and else by what the
// runtime passes, keeps running pods to it, and shows what their limits do. Others hear of the
// node's pods by it, so that there is one watch.
//
// It never shapes anything itself: who attached the pods does.
package podlimits

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
)

const (
	// podPatience is how long an ADD waits for the watch to show its pod, which the
	// kubelet has seen; readPatience how long for the API server's answer after that.
	podPatience, readPatience = 300 * time.Millisecond, 700 * time.Millisecond
	// recheckEvery is how often pods are compared with their annotations though the
	// API server told nothing: for those that changed while their pod was being
	// attached, and what could not be done before.
	recheckEvery = time.Second
	// setTimeout bounds one look at all pods.
	setTimeout = 10 * time.Second
)

// Policy says what becomes of a pod whose limit cannot be read.
type Policy string

const (
	// Strict: it does not start.
	Strict Policy = "strict"
	// Lenient: it starts without that limit.
	Lenient Policy = "lenient"
)

// refusedReason is the Event's.
const refusedReason = "BandwidthRefused"

// Source is the part of the Kubernetes API that limits come from.
type Source interface {
	WatchPods(ctx context.Context, nodeName string) <-chan map[kube.PodKey]kube.Pod
	Pod(ctx context.Context, nodeName string, key kube.PodKey) (kube.Pod, error)
	Event(ref kube.ObjectRef, warning bool, reason kube.EventReason, message string)
}

// Pods are the pods of the node; [attach.Attacher] is them.
type Pods interface {
	List() []attach.Attachment
	SetLimits(ctx context.Context, namespace, pod string, l limits.Limits) error
}

// Hearer is told of the node's pods, for what follows from them besides limits. What it is
// told is not changed.
type Hearer interface {
	// Shown is told of all pods that the watch shows, Seen of one that an ADD has read
	// before the watch shows it; both before limits are known of them.
	Shown(pods map[kube.PodKey]kube.Pod)
	Seen(pod kube.Pod)
}

// Limiter knows how fast pods may be: by their annotations in Kubernetes, else by
// what the runtime passes.
type Limiter struct {
	api     Source // nil outside of Kubernetes
	node    string
	lenient bool
	// hearer is nil where nobody else asks for pods.
	hearer Hearer
	log    *slog.Logger

	mu sync.Mutex
	// pods are what the watch shows; nil before it shows any.
	pods    map[kube.PodKey]kube.Pod
	changed chan struct{}
	// newer are the UIDs of pods that were attached and whose namesakes the watch may
	// still show: a StatefulSet's pod returns by its name.
	newer map[kube.PodKey]string
	// refused is what was said of pods, by UID.
	refused map[string]string

	// These two belong to run: pods whose limits are half done, and the last failure
	// that was logged.
	unfinished map[kube.PodKey]bool
	failing    backoff.Trouble
}

// New returns the limiter of the node called node; api is nil outside of Kubernetes.
func New(api Source, node string, policy Policy, log *slog.Logger) *Limiter {
	return &Limiter{
		api: api, node: node, lenient: policy == Lenient, log: log,
		changed: make(chan struct{}), newer: map[kube.PodKey]string{}, refused: map[string]string{}, unfinished: map[kube.PodKey]bool{},
	}
}

// SetHearer has h told of the node's pods. It is called before anything is served.
func (l *Limiter) SetHearer(h Hearer) { l.hearer = h }

// Limits implements attach.Limiter.
func (l *Limiter) Limits(ctx context.Context, req cniapi.Request) (limits.Limits, error) {
	key := kube.PodKey{Namespace: req.PodNamespace, Name: req.PodName}
	pod, known := l.find(ctx, key, req.PodUID)
	var asked limits.Limits
	var err error
	if known {
		asked, err = limits.FromAnnotations(pod.Annotations)
	} else {
		asked, err = limits.FromCapability(req.Bandwidth)
	}
	if err == nil {
		return asked, nil
	}
	if l.lenient {
		if !known || l.refuse(pod, err, "the pod has no such limit") {
			l.log.Warn("a limit is refused: the pod starts without it", "tenant", key.Namespace, "pod", key.Name, "error", err)
		}
		return asked, nil
	}
	if known {
		l.refuse(pod, err, "the pod cannot start")
	}
	return limits.Limits{}, cniapi.Errorf(cniapi.CodeInvalidConfig, "pod %s/%s: %w", key.Namespace, key.Name, err).
		WithDetails("correct it; with --bandwidth-policy lenient the agent starts pods without such a limit")
}

// find is the pod as the API server has it; false outside of Kubernetes and where
// the API server does not say.
func (l *Limiter) find(ctx context.Context, key kube.PodKey, uid string) (kube.Pod, bool) {
	if l.api == nil {
		return kube.Pod{}, false
	}
	l.mu.Lock()
	l.newer[key] = uid
	l.mu.Unlock()
	if pod, ok := l.await(ctx, key, uid); ok {
		return pod, true
	}
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	pod, err := l.api.Pod(ctx, l.node, key)
	switch {
	case err == nil && pod.Is(uid):
		if l.hearer != nil {
			l.hearer.Seen(pod)
		}
		return pod, true
	case err == nil, errors.Is(err, kube.ErrNotFound): // a static pod that is not shown yet, or one that is gone
		return kube.Pod{}, false
	}
	l.log.Warn("the API server does not say which limits the pod has: going by the runtime's until it does", "tenant", key.Namespace, "pod", key.Name, "error", err)
	return kube.Pod{}, false
}

// await waits a little until the watch shows the pod.
func (l *Limiter) await(ctx context.Context, key kube.PodKey, uid string) (kube.Pod, bool) {
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	for {
		l.mu.Lock()
		pod, ok := l.pods[key]
		changed := l.changed
		l.mu.Unlock()
		if ok && pod.Is(uid) {
			return pod, true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return kube.Pod{}, false
		}
	}
}

// refuse sends an Event, once for each pod and reason. It reports whether this was
// the first time.
func (l *Limiter) refuse(pod kube.Pod, why error, so string) bool {
	l.mu.Lock()
	said := l.refused[pod.UID] == why.Error()
	l.refused[pod.UID] = why.Error()
	l.mu.Unlock()
	if said {
		return false
	}
	l.api.Event(pod.Ref(), true, refusedReason, why.Error()+": "+so)
	return true
}

// Run keeps the limits of running pods what their annotations say, also after a
// restart. Outside of Kubernetes it has nothing to do.
func (l *Limiter) Run(ctx context.Context, attached Pods) error {
	if l.api == nil {
		return nil
	}
	told := l.api.WatchPods(ctx, l.node)
	recheck := time.NewTicker(recheckEvery)
	defer recheck.Stop()
	for {
		select {
		case pods, open := <-told:
			if !open {
				return ctx.Err()
			}
			l.learn(pods)
		case <-recheck.C:
		}
		l.follow(ctx, attached)
	}
}

// learn takes in what the watch shows.
func (l *Limiter) learn(pods map[kube.PodKey]kube.Pod) {
	there := make(map[string]bool, len(pods))
	for _, p := range pods {
		there[p.UID] = true
	}
	if l.hearer != nil {
		l.hearer.Shown(pods)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.refused, func(uid, _ string) bool { return !there[uid] })
	maps.DeleteFunc(l.newer, func(key kube.PodKey, uid string) bool {
		p, shown := pods[key]
		return !shown || p.Is(uid)
	})
	l.pods = pods
	close(l.changed)
	l.changed = make(chan struct{})
}

// follow sets the limits of pods that have others than they should. What fails
// is tried again with the next look.
func (l *Limiter) follow(ctx context.Context, attached Pods) {
	ctx, cancel := context.WithTimeout(ctx, setTimeout)
	defer cancel()
	l.mu.Lock()
	pods, newer := l.pods, maps.Clone(l.newer)
	l.mu.Unlock()
	var errs []error
	unfinished := map[kube.PodKey]bool{}
	for _, at := range attached.List() {
		pod, ok := pods[kube.PodKey{Namespace: at.Namespace, Name: at.Pod}]
		if !ok || !pod.Is(newer[pod.PodKey]) {
			continue
		}
		want, err := limits.FromAnnotations(pod.Annotations)
		if err != nil {
			if l.refuse(pod, err, "the pod keeps the limits that it has") {
				l.log.Warn("a changed limit is refused: the pod keeps those that it has", "tenant", at.Namespace, "pod", at.Pod, "error", err)
			}
			continue
		}
		l.accept(pod)
		if want == at.Limits && !l.unfinished[pod.PodKey] {
			continue
		}
		if err := attached.SetLimits(ctx, at.Namespace, at.Pod, want); err != nil {
			errs = append(errs, err)
			unfinished[pod.PodKey] = true
		}
	}
	l.unfinished = unfinished
	l.report(ctx, errors.Join(errs...))
}

// accept forgets what was refused of the pod: the same again is news.
func (l *Limiter) accept(pod kube.Pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.refused, pod.UID)
}

// report logs what keeps limits from being set, once.
func (l *Limiter) report(ctx context.Context, err error) {
	if !errors.Is(ctx.Err(), context.Canceled) && l.failing.News(err) {
		l.log.Warn("limits of pods cannot be changed: trying again", "error", err)
	}
}
