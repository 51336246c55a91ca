package kube

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// retry is how a watch that failed is tried again. client-go's own cap is 30 s:
// too long for nodes that wait for the API server to come up.
var retry = wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 4, Cap: 5 * time.Second}

// picture is what several tables share: a lock, and the word that one changed.
type picture struct {
	mu   sync.Mutex
	wake chan struct{}
}

func newPicture() *picture { return &picture{wake: make(chan struct{}, 1)} }

func (p *picture) changed() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// table is what one watch shows, in our terms: the store behind a reflector.
// client-go's informers would hold every object whole beside it.
type table[O runtime.Object, K comparable, T any] struct {
	*picture
	// convert turns an object into its key and value.
	convert func(O) (K, T)
	// noted, if not nil, hears of each change, with the lock held; old or fresh
	// is nil where there was or is no value.
	noted  func(key K, old, fresh *T)
	items  map[K]T
	synced bool // all there are were seen once
}

func newTable[O runtime.Object, K comparable, T any](p *picture, convert func(O) (K, T)) *table[O, K, T] {
	return &table[O, K, T]{picture: p, convert: convert, items: map[K]T{}}
}

// Add is for the reflector, as the next four are.
func (t *table[O, K, T]) Add(obj any) error { return t.Update(obj) }

// Update takes in one object.
func (t *table[O, K, T]) Update(obj any) error {
	o, ok := obj.(O)
	if !ok {
		return fmt.Errorf("watch shows a %T", obj)
	}
	key, value := t.convert(o)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(key, value)
	return nil
}

// Delete takes out one object.
func (t *table[O, K, T]) Delete(obj any) error {
	o, ok := obj.(O)
	if !ok {
		return fmt.Errorf("watch shows a %T", obj)
	}
	key, _ := t.convert(o)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(key)
	return nil
}

// Replace takes in all there are.
func (t *table[O, K, T]) Replace(list []any, _ string) error {
	fresh := make(map[K]T, len(list))
	for _, obj := range list {
		o, ok := obj.(O)
		if !ok {
			return fmt.Errorf("list shows a %T", obj)
		}
		key, value := t.convert(o)
		fresh[key] = value
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.items {
		if _, still := fresh[key]; !still {
			t.remove(key)
		}
	}
	for key, value := range fresh {
		t.put(key, value)
	}
	if !t.synced {
		t.synced = true
		t.changed()
	}
	return nil
}

// Resync has no meaning here.
func (t *table[O, K, T]) Resync() error { return nil }

func (t *table[O, K, T]) put(key K, value T) {
	old, had := t.items[key]
	if had && reflect.DeepEqual(old, value) {
		return
	}
	t.items[key] = value
	if t.noted != nil {
		if had {
			t.noted(key, &old, &value)
		} else {
			t.noted(key, nil, &value)
		}
	}
	t.changed()
}

func (t *table[O, K, T]) remove(key K) {
	old, had := t.items[key]
	if !had {
		return
	}
	delete(t.items, key)
	if t.noted != nil {
		t.noted(key, &old, nil)
	}
	t.changed()
}

// resource is the client-go client of one kind.
type resource[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// follow keeps store up to date with the objects that match, until ctx ends.
func follow[L runtime.Object](ctx context.Context, c *Client, name string, r resource[L], example runtime.Object, match metav1.ListOptions, store cache.ReflectorStore) {
	// What says which kinds of watches there are not: see [podTables].
	client := c.api.Clientset
	if says, ok := any(r).(interface{ IsWatchListSemanticsUnSupported() bool }); ok {
		client = says
	}
	selected := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector, o.FieldSelector = match.LabelSelector, match.FieldSelector
		return o
	}
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return r.List(ctx, selected(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return r.Watch(ctx, selected(o))
		},
	}, client)
	log := logr.FromSlogHandler(c.log.Handler())
	backoff := retry
	reflector := cache.NewReflectorWithOptions(lw, example, store, cache.ReflectorOptions{Name: name, Logger: &log, Backoff: &backoff})
	reflector.RunWithContext(klog.NewContext(ctx, log))
}

// named selects the one object called name.
func named(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: "metadata.name=" + name}
}

// tellAll tells of all that t has while fill fills it: when that is first known, and anew
// after each batch of changes. The newest wins: a slow reader passes over what is out of
// date. What is told is not changed. The channel is closed when ctx ends and fill has.
func tellAll[O runtime.Object, K comparable, T any](ctx context.Context, p *picture, t *table[O, K, T], fill func()) <-chan map[K]T {
	out := make(chan map[K]T)
	done := make(chan struct{})
	go func() {
		defer close(done)
		fill()
	}()
	go func() {
		defer close(out)
		defer func() { <-done }()
		var pending map[K]T
		var ready chan<- map[K]T
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
				p.mu.Lock()
				if t.synced {
					pending, ready = maps.Clone(t.items), out
				}
				p.mu.Unlock()
			case ready <- pending:
				pending, ready = nil, nil
			}
		}
	}()
	return out
}
