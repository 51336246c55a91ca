package cluster

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// API is what errands need of [kube.Client].
type API interface {
	HasPods(ctx context.Context, namespace string) (bool, error)
	Annotate(ctx context.Context, namespace, uid, key, value string) error
	Event(object kube.ObjectRef, warning bool, reason kube.EventReason, message string)
}

const (
	// podsPause is how long after pods were found, or a call failed, it is made again.
	podsPause = time.Second
	maxPause  = 30 * time.Second
)

// Errands makes the calls to the API server that plans want. They are made in a
// goroutine of their own, so that the records do not wait for the API server.
type Errands struct {
	api  API
	log  *slog.Logger
	wake chan struct{}
	news chan struct{}

	mu          sync.Mutex // guards what follows
	annotations map[string]Annotation
	asks        map[string]Ask // by UID
	// done are the annotations that were made and that the plan still lists,
	// because the watch lags behind.
	done  map[string]Annotation
	empty map[string]bool // by UID
}

// NewErrands makes Errands that do nothing before Run.
func NewErrands(api API, log *slog.Logger) *Errands {
	return &Errands{api: api, log: log, wake: make(chan struct{}, 1), news: make(chan struct{}, 1), done: map[string]Annotation{}, empty: map[string]bool{}}
}

// Set takes what the newest plan wants, in place of what plans before it wanted,
// and sends its Events.
func (e *Errands) Set(p Plan) {
	for _, ev := range p.Events {
		if ev.Object.Kind == "Node" && ev.Warning {
			e.log.Warn("something about a node is refused", "node", ev.Object.Name, "reason", ev.Reason, "error", ev.Message)
		}
		e.api.Event(ev.Object, ev.Warning, ev.Reason, ev.Message)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.annotations, e.asks = map[string]Annotation{}, map[string]Ask{}
	for _, a := range p.Annotations {
		e.annotations[a.Namespace] = a
	}
	maps.DeleteFunc(e.done, func(name string, a Annotation) bool { return e.annotations[name] != a })
	for _, a := range p.Asks {
		e.asks[a.UID] = a
	}
	maps.DeleteFunc(e.empty, func(uid string, _ bool) bool { return e.asks[uid] == Ask{} })
	signal(e.wake)
}

// News is sent to when Empty says more than before.
func (e *Errands) News() <-chan struct{} { return e.news }

// Empty has the UIDs of the namespaces that were asked about and have no pod left.
func (e *Errands) Empty() map[string]bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.empty)
}

// Run works until ctx ends.
func (e *Errands) Run(ctx context.Context) {
	pauses := backoff.Pauses{First: podsPause, Last: maxPause}
	for {
		again, err := e.work(ctx)
		var retry <-chan time.Time
		switch {
		case err != nil:
			e.log.Warn("a call to the Kubernetes API server failed; trying again", "error", err)
			retry = time.After(pauses.Next())
		case again:
			pauses.Reset()
			retry = time.After(podsPause)
		default:
			pauses.Reset()
		}
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-retry:
		}
	}
}

// work makes all calls that are wanted. again says that some are to be made once
// more; err is that of the last that failed.
func (e *Errands) work(ctx context.Context) (again bool, err error) {
	annotations, asks := e.todo()
	for _, a := range annotations {
		if aerr := e.api.Annotate(ctx, a.Namespace, a.UID, topology.NetIDAnnotation, a.Value); aerr != nil {
			if ctx.Err() != nil {
				return false, nil
			}
			err = aerr
			continue
		}
		e.mu.Lock()
		e.done[a.Namespace] = a
		e.mu.Unlock()
	}
	for _, a := range asks {
		has, aerr := e.api.HasPods(ctx, a.Namespace)
		switch {
		case ctx.Err() != nil:
			return false, nil
		case aerr != nil:
			err = aerr
		case has:
			again = true
		default:
			e.mu.Lock()
			e.empty[a.UID] = true
			e.mu.Unlock()
			signal(e.news)
		}
	}
	return again, err
}

// todo is what is wanted and not done.
func (e *Errands) todo() (annotations []Annotation, asks []Ask) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, a := range e.annotations {
		if e.done[name] != a {
			annotations = append(annotations, a)
		}
	}
	for uid, a := range e.asks {
		if !e.empty[uid] {
			asks = append(asks, a)
		}
	}
	return annotations, asks
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
