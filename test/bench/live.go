package main

import (
	"context"
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// pairs is how many namespaces of a full node have two pods.
const pairs = (fullPods - movingPods) / 2

// liveTenants compares the same pods as tenants of their own, in twos, among a
// thousand in the records, with all of them as one tenant. Requests go round all
// pairs, so every packet is another tenant's than the one before.
func liveTenants(ctx context.Context, b *bench) error {
	if err := b.populate(ctx, fullPods); err != nil {
		return err
	}
	r, err := b.records()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if err := b.manyRecords(ctx, r); err != nil {
		return err
	}
	var paths []path
	for i := range pairs {
		from, err := b.full[movingPods+2*i].host()
		if err != nil {
			return err
		}
		to, err := b.full[movingPods+2*i+1].host()
		if err != nil {
			return err
		}
		paths = append(paths, path{from: from, to: to})
	}
	err = b.compare(ctx, comparison{
		name: "tenants_live", title: fmt.Sprintf("%d tenants' pods in turn, against the same pods as one tenant", pairs),
		paths: [sides][]path{paths, paths}, rare: true,
		prepare: func(ctx context.Context, side int) error { return b.setTenants(ctx, r, side == ours) },
	})
	if err != nil {
		return err
	}
	return b.setTenants(ctx, r, true)
}

func (a attached) host() (host, error) {
	ip, err := a.address()
	return host{a.pod.Netns, ip}, err
}

// manyRecords makes the namespaces in etcd as many as manyTenants.
func (b *bench) manyRecords(ctx context.Context, r records) error {
	list, _, err := r.namespaces(ctx)
	if err != nil {
		return err
	}
	var names []string
	for i := len(list); i < manyTenants; i++ {
		name := fmt.Sprintf("tenant%d", i)
		names = append(names, name)
		if _, err := r.put(ctx, "netnamespaces", name, topology.Namespace{NetName: name}); err != nil {
			return err
		}
	}
	node, err := b.lab.Node("n1")
	if err != nil {
		return err
	}
	return r.waitApplied(ctx, node, names, func(ids map[netid.ID]int) bool { return len(ids) == len(names) })
}

// setTenants makes each pair a tenant, or all pairs one, by requests in the
// records, and waits until n1 has that in its flows.
func (b *bench) setTenants(ctx context.Context, r records, each bool) error {
	list, _, err := r.namespaces(ctx)
	if err != nil {
		return err
	}
	var names []string
	for i := range pairs {
		name := pairNamespace(i)
		names = append(names, name)
		n := list[name]
		shared := n.Effective != nil && list[pairNamespace(0)].Effective != nil && *n.Effective == *list[pairNamespace(0)].Effective
		switch {
		case i == 0 || shared != each:
			continue
		case each:
			n.Action = topology.Isolate
		default:
			n.Action, n.Namespace = topology.Join, pairNamespace(0)
		}
		if _, err := r.put(ctx, "netnamespaces", name, n); err != nil {
			return err
		}
	}
	node, err := b.lab.Node("n1")
	if err != nil {
		return err
	}
	want := 1
	if each {
		want = pairs
	}
	return r.waitApplied(ctx, node, names, func(ids map[netid.ID]int) bool { return len(ids) == want })
}
