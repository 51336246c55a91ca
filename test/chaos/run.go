package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// run is one run of chaos.
type run struct {
	seed uint64
	c    *cluster
	tell func(line string)

	mu sync.Mutex
	m  model
	// probe, windows and changes are of the round that goes on.
	probe   *probe.Run
	windows []*window
	changes []*tenantChange
	// garbage are the nodes whose runtime has something to call GC for.
	garbage map[string]bool

	// What the report has.
	began      time.Time
	took       time.Duration
	rounds     int
	counts     map[kind]int
	tally      map[kind]tally
	sent       int
	arrivedAll int
	first      []usage
	last       []usage
}

// tally is what became of the packets that a kind of fault concerned.
type tally struct {
	times, lost, arrived int
	// gap is the longest silence of a pair; after is how long after the fault was mended the last lost one was
	// sent; took is how long it took from then until all pairs had traffic and programs were ready.
	gap, after, took time.Duration
}

func newRun(seed uint64, c *cluster, tell func(string)) *run {
	return &run{seed: seed, c: c, tell: tell, m: model{settled: newState(namespaces)}, garbage: map[string]bool{}, counts: map[kind]int{}, tally: map[kind]tally{}}
}

// say writes a line of the run's story.
func (r *run) say(format string, args ...any) {
	r.tell(time.Now().Format("15:04:05.000 ") + fmt.Sprintf(format, args...))
}

// all goes through rounds until the time is over, and then takes everything away.
func (r *run) all(ctx context.Context, length time.Duration) error {
	r.began = time.Now()
	defer func() { r.took = time.Since(r.began) }()
	if err := r.populate(ctx); err != nil {
		return fmt.Errorf("the first pods: %w", err)
	}
	for n := 1; n == 1 || time.Since(r.began) < length; n++ {
		if err := r.round(ctx, n); err != nil {
			return fmt.Errorf("round %d of seed %d: %w", n, r.seed, err)
		}
		r.rounds = n
	}
	if err := r.emptied(ctx); err != nil {
		return fmt.Errorf("after all pods are deleted: %w", err)
	}
	return r.flat()
}

// populate makes the first pods.
func (r *run) populate(ctx context.Context) error {
	l := newLines(ctx)
	for _, d := range begin(r.seed, r.c.nodes, r.m.settled) {
		if err := r.begin(l, d); err != nil {
			return err
		}
	}
	if err := l.works.Wait(); err != nil {
		return err
	}
	return r.compare(ctx)
}

// mostProbed bounds what the probe costs the machine, which has other work.
const mostProbed = 10

// probed are the pods that are there throughout a round, or some of them.
func (r *run) probed(number int, plan []*decision) ([]netlab.Pod, error) {
	pods, err := r.c.Pods()
	if err != nil {
		return nil, err
	}
	pods = slices.DeleteFunc(pods, func(p netlab.Pod) bool {
		return slices.ContainsFunc(plan, func(d *decision) bool {
			return p.String() == d.pod.String() && (d.kind == deletePod || d.kind == loseNetns || d.kind == forgetPod)
		})
	})
	slices.SortFunc(pods, func(a, b netlab.Pod) int { return strings.Compare(a.String(), b.String()) })
	random := rand.New(rand.NewPCG(r.seed, uint64(number)<<32))
	random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	return pods[:min(len(pods), mostProbed)], nil
}

// round does what is decided for one, under the probe, and compares the world with the model at its end.
func (r *run) round(ctx context.Context, number int) (err error) {
	plan := round(r.seed, number, r.c.nodes, r.m.settled)
	pods, err := r.probed(number, plan)
	if err != nil {
		return err
	}
	r.say("round %d: %d decisions, %d of %d pods talk", number, len(plan), len(pods), len(r.m.settled.pods))
	prober, err := probe.Open(netlab.Endpoints(pods))
	if err != nil {
		return err
	}
	r.windows, r.changes = nil, nil
	r.probe = prober.Start(r.m.rule(probe.UDP), probe.RunOptions{Interval: interval, Protocols: []probe.Protocol{probe.UDP}, Grace: grace})
	done := false
	defer func() {
		if !done {
			r.probe.Stop()
		}
		r.probe = nil
		err = errors.Join(err, prober.Close())
	}()
	if err := r.disturb(ctx, plan); err != nil {
		return err
	}
	rep := r.probe.Stop()
	done = true
	if err := r.judge(rep); err != nil {
		return err
	}
	return r.measure(ctx)
}

// disturb carries a plan out, waits until the world has taken it up, and compares.
func (r *run) disturb(ctx context.Context, plan []*decision) error {
	if err := r.traffic(ctx, 10); err != nil {
		return err
	}
	l := newLines(ctx)
	for _, d := range plan {
		err := sleep(ctx, d.pause)
		if err == nil && l.ctx.Err() != nil {
			break // one has failed: Wait says which
		}
		if err == nil {
			err = r.begin(l, d)
		}
		if err != nil {
			return errors.Join(err, l.works.Wait())
		}
	}
	if err := l.works.Wait(); err != nil {
		return err
	}
	if err := errors.Join(r.gc(ctx), r.endpoints()); err != nil {
		return err
	}
	if err := r.compare(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	r.m.settle()
	r.judgeBy()
	r.mu.Unlock()
	r.closePolicies()
	return r.traffic(ctx, 20)
}

// traffic waits until so many more datagrams have arrived by each pair that must be able to talk.
func (r *run) traffic(ctx context.Context, n int) error {
	was := map[pair]int{}
	for _, f := range r.probe.Report().Flows {
		was[pairOf(f.From, f.To)] = f.Received
	}
	return until(ctx, "traffic of the probe", 50*time.Millisecond, func() error {
		for _, f := range r.probe.Report().Flows {
			if f.Must && f.Received < was[pairOf(f.From, f.To)]+n {
				return fmt.Errorf("%s -> %s is silent", f.From, f.To)
			}
		}
		return nil
	})
}

// emptied deletes services, policies and all pods, and waits until nodes have nothing of them.
func (r *run) emptied(ctx context.Context) error {
	for namespace := range r.m.settled.services {
		if err := r.c.takeService(namespace); err != nil {
			return err
		}
	}
	for _, p := range r.m.settled.policies {
		if err := r.c.takePolicy(p); err != nil {
			return err
		}
	}
	pods, err := r.c.Pods()
	if err != nil {
		return err
	}
	for _, p := range pods {
		r.c.unserve(r.m.settled.pods[p.String()])
		if err := r.c.DelPod(ctx, p); err != nil {
			return err
		}
	}
	return until(ctx, "nodes without pods", 200*time.Millisecond, func() error { return r.c.sameNodes(ctx) })
}

// firstLine is the first line of an error.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
