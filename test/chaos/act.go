package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// lines are works that are done one after the other, in the order in which they were begun: those of a node's
// container runtime, those of the operator who changes tenants.
type lines struct {
	works *errgroup.Group
	ctx   context.Context
	last  map[string]chan struct{}
}

func newLines(ctx context.Context) *lines {
	g, ctx := errgroup.WithContext(ctx)
	return &lines{works: g, ctx: ctx, last: map[string]chan struct{}{}}
}

// begin has a work done once those of the same line are, and returns at once. When one fails, others end.
func (l *lines) begin(line string, work func(ctx context.Context) error) {
	before, done := l.last[line], make(chan struct{})
	l.last[line] = done
	l.works.Go(func() error {
		defer close(done)
		if before != nil {
			<-before
		}
		if l.ctx.Err() != nil {
			return context.Cause(l.ctx)
		}
		return work(l.ctx)
	})
}

// begin begins what was decided. What takes its time goes on behind: one line for each node's pods, one for
// tenants, and each fault for itself.
func (r *run) begin(l *lines, d *decision) error {
	r.say("%s", d)
	r.change(d)
	r.counts[d.kind]++
	switch d.kind {
	case addPod, deletePod, loseNetns, forgetPod:
		l.begin("pods of "+d.pod.node, func(ctx context.Context) error { return r.pods(ctx, d) })
	case join, isolate, makeGlobal:
		l.begin("tenants", func(ctx context.Context) error { return r.tenantChange(ctx, d) })
	case putPolicy:
		r.openPolicies(d)
		return r.c.putPolicy(d.policy)
	case takePolicy:
		r.openPolicies(d)
		return r.c.takePolicy(d.policy)
	case label:
		r.openPolicies(d)
		p, err := r.c.Pod(d.pod.namespace, d.pod.name)
		if err != nil {
			return err
		}
		return errors.Join(r.c.SetLabels(p, map[string]string{"app": d.app}), r.endpoints())
	case limit:
		p, err := r.c.Pod(d.pod.namespace, d.pod.name)
		if err != nil {
			return err
		}
		return r.c.SetAnnotations(p, maps.Clone(d.limits))
	case putService:
		return errors.Join(r.c.putService(d.namespace), r.endpoints())
	case takeService:
		return r.c.takeService(d.namespace)
	default:
		w := r.openFault(d)
		l.begin("fault on "+d.node, func(ctx context.Context) error { return r.fault(ctx, w) })
	}
	return nil
}

// change makes a change of the model, and has the probe judge by it.
func (r *run) change(d *decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m.change(d)
	r.judgeBy()
}

// endpoints has services know their pods.
func (r *run) endpoints() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.c.putEndpoints(r.m.now())
}

// again is the pause before a runtime, or a person, tries again what has failed.
const again = 300 * time.Millisecond

// pods does what a container runtime does: it tries until it has done it.
func (r *run) pods(ctx context.Context, d *decision) error {
	began := time.Now()
	err := until(ctx, d.String(), again, func() error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		err := r.onePod(ctx, d)
		if err != nil {
			r.say("%s: %v: again", d, firstLine(err))
		}
		return err
	})
	if err != nil {
		return err
	}
	r.say("done after %s: %s", time.Since(began).Round(time.Millisecond), d)
	return r.endpoints()
}

func (r *run) onePod(ctx context.Context, d *decision) error {
	if d.kind == addPod {
		p, err := r.c.AddPod(ctx, d.pod.node, d.pod.namespace, d.pod.name, netlab.PodOptions{Labels: map[string]string{"app": d.pod.app}})
		if err != nil {
			// What was begun is not the runtime's any more: DEL was called once, and GC has the rest.
			r.collect(d.pod.node)
			return err
		}
		return r.c.serve(p)
	}
	p, err := r.c.Pod(d.pod.namespace, d.pod.name)
	if err != nil {
		return err
	}
	r.c.unserve(d.pod)
	switch d.kind {
	case loseNetns:
		if err := r.c.DeleteSandbox(p); err != nil {
			return err
		}
	case forgetPod:
		r.collect(p.Node)
		return r.c.ForgetPod(p)
	}
	return r.c.DelPod(ctx, p)
}

// collect has a node's runtime call GC at the end of the round.
func (r *run) collect(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.garbage[node] = true
}

// tenantChange does what an operator does: it asks until it was done. When no fault was there from the beginning
// to the end, then the change is in force everywhere once the answer is there.
func (r *run) tenantChange(ctx context.Context, d *decision) error {
	args := map[kind][]string{join: {"join", d.namespace, d.target}, isolate: {"isolate", d.namespace}, makeGlobal: {"global", d.namespace}}[d.kind]
	t := r.openChange(d)
	err := until(ctx, d.String(), again, func() error {
		undisturbed := r.undisturbed()
		answer, err := r.c.netns(ctx, args...)
		if err != nil {
			r.say("%s: %v: again", d, firstLine(err))
			return err
		}
		if answer.everywhere() && undisturbed() {
			r.mu.Lock()
			r.m.settleOne(d)
			r.judgeBy()
			r.mu.Unlock()
		}
		r.say("done after %s: %s", time.Since(t.began).Round(time.Millisecond), d)
		return nil
	})
	r.closeChange(t)
	return err
}

// gc has the runtimes of nodes say which pods there are.
func (r *run) gc(ctx context.Context) error {
	r.mu.Lock()
	nodes := maps.Clone(r.garbage)
	clear(r.garbage)
	r.mu.Unlock()
	pods, err := r.c.Pods()
	if err != nil {
		return err
	}
	for node := range nodes {
		err := until(ctx, "GC on "+node, again, func() error { return r.c.CNIGC(ctx, node, pods) })
		if err != nil {
			return err
		}
	}
	return nil
}

// fault breaks something, mends it, and waits until all works again.
func (r *run) fault(ctx context.Context, w *window) error {
	f, node := faults[w.d.kind], w.d.node
	if err := f.begin(ctx, r.c, node); err != nil {
		return fmt.Errorf("%s: %w", w.d, err)
	}
	if f.end != nil {
		if err := sleep(ctx, w.d.lasts); err != nil {
			return err
		}
		if err := f.end(ctx, r.c, node); err != nil {
			return fmt.Errorf("the end of %s: %w", w.d, err)
		}
	}
	r.mended(w)
	concerned := []string{node}
	if f.scope == ofCluster {
		concerned = r.c.nodes
	}
	err := until(ctx, "ready after "+w.d.String(), 50*time.Millisecond, func() error { return r.c.ready(ctx, concerned...) })
	if err != nil {
		return err
	}
	if err := until(ctx, "traffic after "+w.d.String(), 100*time.Millisecond, func() error { return r.flows(w) }); err != nil {
		return err
	}
	r.close(w)
	return nil
}
