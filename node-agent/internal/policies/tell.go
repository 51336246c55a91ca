package policies

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
)

// tellPods has pods' own flows say what selects them. Those that have no port yet are told
// with their first flows. An address whose pod is another than in whose is left out: what selected the
// one that left says nothing of the one that came.
func (t *Table) tellPods(ctx context.Context, pods map[netip.Addr]pipeline.PodPolicy, whose map[netip.Addr]*pod) error {
	// The ports are looked up before it is seen whose the addresses are, so none is a later pod's.
	ports, told := t.ports(), map[uint32]pipeline.PodPolicy{}
	for _, a := range t.same(slices.Collect(maps.Keys(pods)), whose) {
		if port := ports[a]; port != 0 {
			told[port] = pods[a]
		}
	}
	err := t.cfg.Pods.SetPolicies(ctx, told)
	if err != nil && !away(err) {
		return fmt.Errorf("policies: what selects pods: %w", err)
	}
	// While nothing can be written they know, and their flows follow.
	t.mu.Lock()
	defer t.mu.Unlock()
	for a, p := range pods {
		if one := t.pods[a]; one != nil && one == whose[a] && ports[a] != 0 {
			one.given = p
		}
	}
	return wrap(err)
}

// same are those of addresses that the same pods have as in whose.
func (t *Table) same(addresses []netip.Addr, whose map[netip.Addr]*pod) []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(addresses, func(a netip.Addr) bool { return t.pods[a] != whose[a] })
}

// ports are those of pods that are attached, by address.
func (t *Table) ports() map[netip.Addr]uint32 {
	ports := map[netip.Addr]uint32{}
	for _, at := range t.cfg.Attached.List() {
		if p, ok := podOf(at, ""); ok {
			ports[p.Address] = at.Port
		}
	}
	return ports
}
