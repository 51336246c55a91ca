package main

import (
	"context"
	"fmt"
	"net/netip"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sync/errgroup"
)

const (
	// fullPods is how many pods a full node has.
	fullPods = 200
	// movingPods of them, the first, are in namespace moving, the others by twos in
	// namespaces of their own.
	movingPods = 100
	moving     = "moving"
	// still is a namespace without pods, which moving joins.
	still = "still"
)

// pairNamespace is where two pods of a full node are.
func pairNamespace(i int) string { return fmt.Sprintf("pair%d", i) }

// populate attaches pods by each side's plugin until there are n.
func (b *bench) populate(ctx context.Context, n int) error {
	had := len(b.full)
	if had >= n {
		return nil
	}
	our, err := b.sandboxes(n-had, func(i int) string {
		if i += had; i < movingPods {
			return moving
		}
		return pairNamespace((i - movingPods) / 2)
	})
	if err != nil {
		return err
	}
	other, err := b.sandboxes(n-had, func(int) string { return "bench" })
	if err != nil {
		return err
	}
	for side, list := range [sides][]attached{our, other} {
		p := [sides]*plugin{b.ours, b.reference}[side]
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(4)
		for i := range list {
			g.Go(func() error { _, err := p.add(gctx, &list[i]); return err })
		}
		if err := g.Wait(); err != nil {
			return fmt.Errorf("fill the node: %w", err)
		}
	}
	b.full = append(b.full, our...)
	return nil
}

// address is the pod's, as ADD's result has it.
func (a attached) address() (netip.Addr, error) {
	r, err := types100.NewResultFromResult(a.result)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(r.IPs) != 1 {
		return netip.Addr{}, fmt.Errorf("the result has %d addresses, want 1", len(r.IPs))
	}
	ip, ok := netip.AddrFromSlice(r.IPs[0].Address.IP)
	if !ok {
		return netip.Addr{}, fmt.Errorf("the result's address %v is none", r.IPs[0].Address)
	}
	return ip.Unmap(), nil
}
