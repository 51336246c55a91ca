package podlimits

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
)

// podAPI is an API server with pods; away makes it answer to no question.
type podAPI struct {
	told chan map[kube.PodKey]kube.Pod

	mu     sync.Mutex
	away   error
	pods   map[kube.PodKey]kube.Pod
	events []string
}

func newPodAPI(pods ...kube.Pod) *podAPI {
	a := &podAPI{told: make(chan map[kube.PodKey]kube.Pod), pods: map[kube.PodKey]kube.Pod{}}
	for _, p := range pods {
		a.pods[p.PodKey] = p
	}
	return a
}

func (a *podAPI) WatchPods(ctx context.Context, _ string) <-chan map[kube.PodKey]kube.Pod {
	out := make(chan map[kube.PodKey]kube.Pod)
	go func() {
		defer close(out)
		for {
			select {
			case pods := <-a.told:
				select {
				case out <- pods:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (a *podAPI) Pod(_ context.Context, _ string, key kube.PodKey) (kube.Pod, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away != nil {
		return kube.Pod{}, a.away
	}
	if p, ok := a.pods[key]; ok {
		return p, nil
	}
	return kube.Pod{}, kube.ErrNotFound
}

func (a *podAPI) Event(ref kube.ObjectRef, _ bool, reason kube.EventReason, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, string(reason)+" "+ref.Name+" "+message)
}

func (a *podAPI) sent() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.events...)
}

func apiPod(name, uid string, a map[string]string) kube.Pod {
	return kube.Pod{PodKey: kube.PodKey{Namespace: "red", Name: name}, UID: uid, Annotations: a}
}

func limiterOf(api Source, policy Policy) *Limiter {
	return New(api, "n1", policy, slog.New(slog.DiscardHandler))
}

// What counts at ADD, and what becomes of it when it is no limit.
func TestLimitsAtADD(t *testing.T) {
	away := errors.New("connection refused")
	runtime := &cniapi.Bandwidth{IngressRate: 7000}
	fromRuntime := limits.Limits{Ingress: limits.Limit{Rate: 7000}}
	good := map[string]string{limits.EgressRateAnnotation: "1M"}
	fromPod := limits.Limits{Egress: limits.Limit{Rate: 1_000_000}}
	bad := map[string]string{limits.EgressRateAnnotation: "1M", limits.IngressRateAnnotation: "fast"}
	static := apiPod("p", "u", good)
	static.Mirrors = "hash"
	for name, test := range map[string]struct {
		api             Source
		policy          Policy
		uid             string
		bandwidth       *cniapi.Bandwidth
		want            limits.Limits
		refused, events string
	}{
		"standalone":                {nil, Strict, "u", runtime, fromRuntime, "", ""},
		"standalone, bad":           {nil, Strict, "u", &cniapi.Bandwidth{EgressRate: 5}, limits.Limits{}, "egressRate is 5", ""},
		"standalone, bad, lenient":  {nil, Lenient, "u", &cniapi.Bandwidth{IngressRate: 7000, EgressRate: 5}, fromRuntime, "", ""},
		"annotations alone count":   {newPodAPI(apiPod("p", "u", good)), Strict, "u", runtime, fromPod, "", ""},
		"no annotations":            {newPodAPI(apiPod("p", "u", nil)), Strict, "u", runtime, limits.Limits{}, "", ""},
		"no uid given":              {newPodAPI(apiPod("p", "u", good)), Strict, "", runtime, fromPod, "", ""},
		"static pod":                {newPodAPI(static), Strict, "hash", runtime, fromPod, "", ""},
		"a namesake":                {newPodAPI(apiPod("p", "other", good)), Strict, "u", runtime, fromRuntime, "", ""},
		"no such pod":               {newPodAPI(), Strict, "u", runtime, fromRuntime, "", ""},
		"API server away":           {&podAPI{away: away}, Strict, "u", runtime, fromRuntime, "", ""},
		"bad annotation":            {newPodAPI(apiPod("p", "u", bad)), Strict, "u", runtime, limits.Limits{}, `pod red/p: annotation kubernetes.io/ingress-bandwidth is "fast"`, "the pod cannot start"},
		"bad annotation, lenient":   {newPodAPI(apiPod("p", "u", bad)), Lenient, "u", runtime, fromPod, "", "the pod has no such limit"},
		"bad annotation, no other":  {newPodAPI(apiPod("p", "u", map[string]string{limits.IngressRateAnnotation: "1"})), Lenient, "u", nil, limits.Limits{}, "", `"1"`},
		"bad runtime, API has none": {newPodAPI(apiPod("p", "u", nil)), Strict, "u", &cniapi.Bandwidth{EgressRate: 5}, limits.Limits{}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most wait for the watch
			l := limiterOf(test.api, test.policy)
			req := cniapi.Request{PodNamespace: "red", PodName: "p", PodUID: test.uid, Bandwidth: test.bandwidth}
			got, err := l.Limits(t.Context(), req)
			if got != test.want || (err != nil) != (test.refused != "") {
				t.Fatalf("%+v, %v; want %+v", got, err, test.want)
			}
			if err != nil {
				var cni *cniapi.Error
				if !errors.As(err, &cni) || cni.Code != cniapi.CodeInvalidConfig || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("error %v, want one with %q", err, test.refused)
				}
			}
			if test.events != "" {
				_, _ = l.Limits(t.Context(), req) // the runtime tries again: no second Event
			}
			api, ok := test.api.(*podAPI)
			if !ok {
				return
			}
			switch events := api.sent(); {
			case len(events) == 0 && test.events == "":
			case len(events) != 1 || !strings.HasPrefix(events[0], "BandwidthRefused p annotation") || !strings.Contains(events[0], test.events):
				t.Errorf("events %q, want one with %q", events, test.events)
			}
		})
	}
}

// An ADD that comes before the watch shows its pod waits for it.
func TestLimitsWaitForWatch(t *testing.T) {
	api := &podAPI{away: errors.New("asked though the watch shows it"), told: make(chan map[kube.PodKey]kube.Pod)}
	l := limiterOf(api, Strict)
	pod := apiPod("p", "u", map[string]string{limits.EgressRateAnnotation: "1M"})
	go l.learn(map[kube.PodKey]kube.Pod{pod.PodKey: pod})
	got, err := l.Limits(t.Context(), cniapi.Request{PodNamespace: "red", PodName: "p", PodUID: "u"})
	if err != nil || got.Egress.Rate != 1_000_000 {
		t.Errorf("%+v, %v", got, err)
	}
}

// A pod that returns by its name keeps its limits while the watch shows the one
// before it.
func TestLimitsOfNamesake(t *testing.T) {
	before, after := apiPod("p", "old", nil), apiPod("p", "new", map[string]string{limits.EgressRateAnnotation: "1M"})
	l := limiterOf(newPodAPI(after), Strict)
	l.learn(map[kube.PodKey]kube.Pod{before.PodKey: before})
	got, err := l.Limits(t.Context(), cniapi.Request{PodNamespace: "red", PodName: "p", PodUID: "new"})
	list := &podList{pods: map[string]limits.Limits{"p": got}}
	l.follow(t.Context(), list)
	if err != nil || list.get("p") != (limits.Limits{Egress: limits.Limit{Rate: 1_000_000}}) {
		t.Errorf("while the watch shows another: %+v, %v", list.get("p"), err)
	}
	after.Annotations = nil
	l.learn(map[kube.PodKey]kube.Pod{after.PodKey: after})
	l.follow(t.Context(), list)
	if list.get("p") != (limits.Limits{}) || len(l.newer) != 0 {
		t.Errorf("when the watch shows it: %+v, still waiting for %v", list.get("p"), l.newer)
	}
}

// podList is attached pods; broken keeps limits from being set whole, once.
type podList struct {
	mu     sync.Mutex
	pods   map[string]limits.Limits
	broken error
	tried  chan struct{} // closed when setting limits failed
	sets   int
}

func (p *podList) List() []attach.Attachment {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []attach.Attachment
	for name, l := range p.pods {
		all = append(all, attach.Attachment{Namespace: "red", Pod: name, Limits: l})
	}
	return all
}

func (p *podList) SetLimits(_ context.Context, _, pod string, l limits.Limits) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pods[pod] = l // also when not all is done
	if err := p.broken; err != nil {
		p.broken = nil
		close(p.tried)
		return err
	}
	p.sets++
	return nil
}

// wait returns when limits were set whole n times.
func (p *podList) wait(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		sets := p.sets
		p.mu.Unlock()
		if sets >= n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("limits were set %d times, want %d", sets, n)
		}
	}
}

func (p *podList) get(pod string) limits.Limits {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[pod]
}

// The life of a running pod's limits.
func TestLimitsLive(t *testing.T) {
	api := newPodAPI()
	l := limiterOf(api, Strict)
	old := limits.Limits{Ingress: limits.Limit{Rate: 5000}}
	list := &podList{broken: errors.New("ovsdb-server is away"), tried: make(chan struct{}), pods: map[string]limits.Limits{"a": old, "b": {}, "unknown": old}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx, list) }()
	tell := func(a, b string) {
		pods := map[kube.PodKey]kube.Pod{}
		for name, rate := range map[string]string{"a": a, "b": b} {
			p := apiPod(name, "u"+name, nil)
			if rate != "" {
				p.Annotations = map[string]string{limits.EgressRateAnnotation: rate}
			}
			pods[p.PodKey] = p
		}
		api.told <- pods
	}
	has := func(pod string, egress uint64) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); list.get(pod) != (limits.Limits{Egress: limits.Limit{Rate: egress}}); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("pod %s has %+v, want egress %d", pod, list.get(pod), egress)
			}
		}
	}
	// After a restart: what the records of the node say is put right, as soon as can be.
	tell("1M", "")
	<-list.tried
	has("a", 1_000_000)
	list.wait(t, 1)
	tell("2M", "3M")
	has("a", 2_000_000)
	has("b", 3_000_000)
	// What is refused changes nothing, and is said once.
	tell("slow", "4M")
	has("b", 4_000_000)
	tell("slow", "5M")
	has("b", 5_000_000)
	has("a", 2_000_000)
	if events := api.sent(); len(events) != 1 || !strings.Contains(events[0], `a annotation kubernetes.io/egress-bandwidth is "slow"`) || !strings.HasSuffix(events[0], "the pod keeps the limits that it has") {
		t.Errorf("events %q", events)
	}
	tell("", "5M")
	has("a", 0)
	tell("slow", "6M")
	has("b", 6_000_000)
	if got := list.get("unknown"); got != old {
		t.Errorf("a pod that the API server does not show has %+v", got)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	if events := api.sent(); len(events) != 2 {
		t.Errorf("the same again, after it was mended: events %q", events)
	}
	if list.sets != 7 {
		t.Errorf("limits were set %d times, want 7", list.sets)
	}
}

// hearer notes what it is told, and whether limits are known of it then.
type hearer struct {
	l           *Limiter
	shown, seen []string
}

func (h *hearer) Shown(pods map[kube.PodKey]kube.Pod) {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	for key, p := range pods {
		if _, known := h.l.pods[key]; !known {
			h.shown = append(h.shown, p.UID)
		}
	}
}

func (h *hearer) Seen(p kube.Pod) { h.seen = append(h.seen, p.UID) }

// Who else asks for the node's pods hears of them before limits count: what the watch shows, and
// what an ADD has read.
func TestOthersHear(t *testing.T) {
	api := newPodAPI(apiPod("p", "u", nil))
	l := limiterOf(api, Strict)
	h := &hearer{l: l}
	l.SetHearer(h)
	ask := func(uid string) {
		t.Helper()
		if _, err := l.Limits(t.Context(), cniapi.Request{PodNamespace: "red", PodName: "p", PodUID: uid}); err != nil {
			t.Fatal(err)
		}
	}
	ask("u") // the watch shows nothing yet
	ask("v") // another of the name
	l.learn(map[kube.PodKey]kube.Pod{{Namespace: "red", Name: "p"}: apiPod("p", "v", nil)})
	ask("v")
	if got := strings.Join(h.shown, " ") + "; " + strings.Join(h.seen, " "); got != "v; u" {
		t.Errorf("heard %q", got)
	}
}
