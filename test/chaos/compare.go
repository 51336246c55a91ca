package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/world"
)

// compare waits until the world is what the model says: pods and nodes, who reaches whom by real packets, services
// and the outside.
func (r *run) compare(ctx context.Context) error {
	r.mu.Lock()
	s := r.m.now()
	r.mu.Unlock()
	for _, part := range []struct {
		what string
		ok   func(context.Context, state) error
	}{
		{"pods and what nodes have for them", r.c.samePods},
		{"who reaches whom", r.c.sameMatrix},
		{"services", r.c.sameServices},
		{"the outside", r.c.sameOutside},
	} {
		began := time.Now()
		if err := until(ctx, "the world and the model: "+part.what, 200*time.Millisecond, func() error { return part.ok(ctx, s) }); err != nil {
			return fmt.Errorf("%w\nthe model:\n%s", err, s)
		}
		if took := time.Since(began); took > 10*time.Second {
			r.say("%s: the world was as the model only after %s", part.what, took.Round(time.Millisecond))
		}
	}
	return nil
}

// samePods compares the pods that there are, and what their nodes have for them.
func (c *cluster) samePods(ctx context.Context, s state) error {
	pods, err := c.Pods()
	if err != nil {
		return err
	}
	var want, got []string
	for _, p := range s.named() {
		want = append(want, p.String()+" on "+p.node)
	}
	addresses := map[netip.Addr]string{}
	for _, p := range pods {
		got = append(got, p.String()+" on "+p.Node)
		if other, twice := addresses[p.IP]; twice {
			return fmt.Errorf("%s and %s both have address %s", p, other, p.IP)
		}
		addresses[p.IP] = p.String()
	}
	if err := differ(want, got); err != nil {
		return err
	}
	return c.sameNodes(ctx)
}

// sameNodes compares what all nodes consist of with the pods that they should have.
func (c *cluster) sameNodes(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, node := range c.nodes {
		g.Go(func() error { return c.sameNode(ctx, node) })
	}
	return g.Wait()
}

// sameNode compares what a node consists of with the pods that it should have.
func (c *cluster) sameNode(ctx context.Context, node string) error {
	n, err := world.Of(c.Lab, node)
	if err != nil {
		return err
	}
	wrong, err := n.Differences(ctx)
	if err != nil {
		return err
	}
	if err := summary(wrong); err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	return nil
}

// differ names what is in one list only.
func differ(want, got []string) error {
	var wrong []string
	for _, w := range want {
		if !slices.Contains(got, w) {
			wrong = append(wrong, "missing: "+w)
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			wrong = append(wrong, "too much: "+g)
		}
	}
	if len(want) != len(got) && len(wrong) == 0 {
		wrong = append(wrong, fmt.Sprintf("%d of %d are doubles: %v", len(got)-len(want), len(got), got))
	}
	return summary(wrong)
}

// matrixProtocols are those by which who reaches whom is compared.
var matrixProtocols = []probe.Protocol{probe.Ping, probe.UDP, probe.TCP}

// sameMatrix compares who reaches whom by real packets between all pods.
func (c *cluster) sameMatrix(ctx context.Context, s state) error {
	endpoints, err := c.Endpoints()
	if err != nil {
		return err
	}
	m, err := probe.Matrix(ctx, endpoints, matrixProtocols)
	if err != nil {
		return err
	}
	var wrong []string
	for i, from := range endpoints {
		for j, to := range endpoints {
			for _, p := range matrixProtocols {
				if i == j {
					continue
				}
				may, out := s.allows(s.pods[from.String()], s.pods[to.String()], p), m.Outcome(i, j, p)
				switch {
				case may && !out.Reached:
					wrong = append(wrong, fmt.Sprintf("%s -> %s by %s: not reached (delivered: %t)", from, to, p, out.Delivered))
				case !may && (out.Reached || out.Delivered):
					wrong = append(wrong, fmt.Sprintf("%s -> %s by %s: delivered, and may not be", from, to, p))
				}
			}
		}
	}
	return summary(wrong)
}

// sameServices compares who answers through services with who may.
func (c *cluster) sameServices(ctx context.Context, s state) error {
	pods, err := c.Pods()
	if err != nil {
		return err
	}
	var g errgroup.Group
	var mu sync.Mutex
	var wrong []string
	for _, namespace := range slices.Sorted(maps.Keys(s.services)) {
		for _, from := range pods {
			for network, p := range map[string]probe.Protocol{"tcp4": probe.TCP, "udp4": probe.UDP} {
				g.Go(func() error {
					if err := c.sameAnswers(ctx, s, namespace, from, network, p); err != nil {
						mu.Lock()
						defer mu.Unlock()
						wrong = append(wrong, fmt.Sprintf("%s asks the service of %s by %s: %v", from, namespace, p, err))
					}
					return nil
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.Sort(wrong)
	return summary(wrong)
}

// sameAnswers has a pod ask one service a few times.
func (c *cluster) sameAnswers(ctx context.Context, s state, namespace string, from netlab.Pod, network string, p probe.Protocol) error {
	client := s.pods[from.String()]
	endpoints, may := 0, []string{}
	for _, e := range s.named() {
		if e.namespace != namespace || e.app != s.services[namespace] {
			continue
		}
		endpoints++
		if e == client { // a pod reaches itself, whatever policies say
			may = append(may, e.String())
		} else if s.allows(client, e, p) {
			may = append(may, e.String())
		}
	}
	asks := 2
	if len(may) == 0 {
		asks = 1 // it takes its time
	}
	for range asks {
		who := ask(ctx, from, network, serviceAddress(namespace))
		switch {
		case who == "" && len(may) == endpoints && endpoints > 0:
			return fmt.Errorf("nobody answers, and %v should", may)
		case who != "" && !slices.Contains(may, who):
			return fmt.Errorf("%s answers, and of %d endpoints only %v may", who, endpoints, may)
		}
	}
	return nil
}

// sameOutside compares who reaches the world: all pods that no policy keeps from it.
func (c *cluster) sameOutside(ctx context.Context, s state) error {
	pods, err := c.Pods()
	if err != nil {
		return err
	}
	var g errgroup.Group
	for _, from := range pods {
		is := s.pods[from.String()]
		kept := slices.ContainsFunc(slices.Collect(maps.Values(s.policies)), func(p policy) bool { return p.egress.isolates && p.selects(is) })
		g.Go(func() error {
			_, err := c.PodExec(ctx, from, "ping", "-c", "1", "-W", "1", netlab.Outside.String())
			switch {
			case err != nil && !kept:
				return fmt.Errorf("%s does not reach it: %w", from, err)
			case err == nil && kept:
				return fmt.Errorf("%s reaches it, and a policy says that it may not", from)
			}
			return nil
		})
	}
	return g.Wait()
}
