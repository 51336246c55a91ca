package main

import (
	"context"
	"fmt"
	"time"
)

// services measures what manyServices take: all of them programmed from nothing, one
// endpoint's change, and how many flows they are.
func services(ctx context.Context, b *bench) error {
	return b.inCluster(ctx, func(c *cluster) error {
		if err := c.alone(); err != nil {
			return err
		}
		without, err := b.flowCount(ctx)
		if err != nil {
			return err
		}
		if err := c.putServices(ctx); err != nil {
			return err
		}
		if err := c.programming(ctx); err != nil {
			return err
		}
		if err := c.serviceFlows(ctx, without); err != nil {
			return err
		}
		return c.endpointChanges(ctx)
	})
}

// programming measures an agent that is ready but for the services, of which the
// switch has no flow, from the API server's answer on.
func (c *cluster) programming(ctx context.Context) error {
	var took, writing []float64
	for range c.times(7, 1) {
		ms, err := c.programOnce(ctx)
		if err != nil {
			return err
		}
		spent, err := c.agentTimes(ctx) // this agent has had no other news
		if err != nil {
			return err
		}
		took, writing = append(took, ms), append(writing, spent[programmingKey].seconds*1000)
	}
	c.add(
		measured("services_programmed_median", servicesSize+", from the API server's first answer to the flows, median", "ms", median, took, oursAtMost(2000)),
		measured("services_programmed_max", servicesSize+", from the API server's first answer to the flows, longest", "ms", longest, took, nil),
		measured("services_writing_median", "of it from all being known to the flows, as the agent sees it, median", "ms", median, writing, nil),
	)
	return nil
}

func (c *cluster) programOnce(ctx context.Context) (ms float64, err error) {
	a := c.lab.Agent("n1")
	if err := a.Kill(); err != nil {
		return 0, err
	}
	for _, what := range []string{"del-flows", "del-groups"} {
		if _, err := c.lab.OVS("n1").OFCtl(ctx, what, "br0"); err != nil {
			return 0, err
		}
	}
	watches := []string{"services", "endpointslices", "nodes"}
	waiting, release := c.api.Hold(watches...)
	defer release()
	if err := a.StartUnready(ctx); err != nil {
		return 0, err
	}
	err = wait(ctx, "n1 waits for services only", func() (bool, error) {
		ready, err := c.gauge(ctx, "n1", "k8s_ovs_ready")
		return ready == 1 && waiting() == len(watches), err
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	release()
	if err := c.waitServed(ctx, "n1", manyServices); err != nil {
		return 0, err
	}
	ms = time.Since(began).Seconds() * 1000
	return ms, a.Ready(ctx)
}

// serviceFlows counts the flows of services; without is how many there are
// without any.
func (c *cluster) serviceFlows(ctx context.Context, without int) error {
	with, err := c.flowCount(ctx)
	if err != nil {
		return err
	}
	const idle = 1000
	if err := c.namespaces(ctx, idle, func(i int) string { return fmt.Sprintf("idle%d", i) }); err != nil {
		return err
	}
	more, err := c.flowCount(ctx)
	if err != nil {
		return err
	}
	if err := c.removeNamespaces(ctx, "idle"); err != nil {
		return err
	}
	c.add(
		alone("services_flows", "flows of "+servicesSize+", in 100 namespaces", "flows", float64(with-without), 1, nil),
		alone("services_flows_idle_namespaces", "flows that 1,000 more namespaces without services add", "flows", float64(more-with), 1, oursAtMost(0)),
	)
	return nil
}

// endpointChanges measures one endpoint of one service replaced by another, from
// the API server's event to the commit, in which the new one's flow appears.
func (c *cluster) endpointChanges(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	node, err := c.lab.Node("n1")
	if err != nil {
		return err
	}
	flows, err := c.flowEvents(ctx, node, pipelineReply, "event=ADDED")
	if err != nil {
		return err
	}
	const warm = 4
	var took []float64
	for i := range c.times(200, 20) + warm {
		at := i * 7 % manyServices
		addresses := []string{nth(freshAddresses, i)}
		for e := range serviceEndpoints - 1 {
			addresses = append(addresses, nth(endpointAddresses, at*serviceEndpoints+e))
		}
		drain(flows)
		began := time.Now()
		if err := c.putEndpoints(at, addresses); err != nil {
			return err
		}
		flow, err := next(ctx, flows, "flows of an endpoint")
		if err != nil {
			return err
		}
		if i >= warm {
			took = append(took, flow.Sub(began).Seconds()*1000)
		}
	}
	title := "one endpoint's change with " + servicesSize + ", from the API server's event to the flows"
	c.add(
		measured("endpoint_change_median", title+", median", "ms", median, took, oursAtMost(20)),
		measured("endpoint_change_p99", title+", p99", "ms", rank(0.99), took, nil),
	)
	return nil
}

// agentServices measures the memory of an agent in Kubernetes with everything
// there, without and with manyServices.
func agentServices(ctx context.Context, b *bench) error {
	if err := b.fillAll(ctx); err != nil {
		return err
	}
	return b.inCluster(ctx, func(c *cluster) error {
		if err := c.alone(); err != nil {
			return err
		}
		without, err := b.resident(ctx)
		if err != nil {
			return err
		}
		if err := c.putServices(ctx); err != nil {
			return err
		}
		if err := c.waitServed(ctx, "n1", manyServices); err != nil {
			return err
		}
		if err := b.lab.Agent("n1").Restart(ctx); err != nil {
			return err
		}
		with, err := b.resident(ctx)
		if err != nil {
			return err
		}
		b.add(
			alone("agent_rss_kubernetes", "agent's resident memory at rest in Kubernetes, "+agentSize+", no services", "MB", without, 1, oursAtMost(55)),
			alone("agent_rss_services", "agent's resident memory at rest in Kubernetes, "+agentSize+", "+servicesSize, "MB", with, 1, nil),
		)
		return nil
	})
}
