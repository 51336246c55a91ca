package policies

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// flush is when, and how often more: the datapath makes connections until it has compared
// what it cached, and the switch may overlook some that end while others are forgotten.
type flush struct {
	due  time.Time
	more int
}

// flush has the switch forget connections of pods that are selected no longer: what it
// knows of them grows old. One that is selected again keeps them.
func (t *Table) flush(ctx context.Context, w work) error {
	now := t.cfg.Now()
	for a, f := range t.flushes {
		switch {
		case w.pods[a].Selected():
			delete(t.flushes, a)
			continue
		case now.Before(f.due):
			continue
		}
		if err := t.forget(ctx, a); err != nil {
			return err
		}
		if delete(t.flushes, a); f.more > 0 {
			t.flushes[a] = flush{now.Add(staleAtMost), f.more - 1}
		}
	}
	return nil
}

// unselect has connections of pods forgotten in a while, whose flows track them no longer.
func (t *Table) unselect(pods []netip.Addr) {
	due := t.cfg.Now().Add(staleAtMost)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range pods {
		t.flushes[a] = flush{due, 1}
		if one, ok := t.pods[a]; ok && !one.given.Selected() {
			one.tracked = false
		}
	}
}

// Forget has the switch forget the connections of addresses that are about to be free. It does
// not ask it where it knows none of them: neither their pods nor others here were selected, as a
// connection of two pods is known for either.
func (t *Table) Forget(ctx context.Context, addresses ...netip.Addr) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	for _, a := range addresses {
		if !a.Is4() {
			continue
		}
		if t.tracks(a) {
			if err := t.forget(ctx, a); err != nil {
				return err
			}
		}
		delete(t.flushes, a)
		t.mu.Lock()
		delete(t.left, a)
		t.mu.Unlock()
	}
	return nil
}

// tracks reports whether the switch may know connections of an address whose pod has left. Of
// one that left before the agent started nobody knows.
func (t *Table) tracks(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.left[a]; !known || len(t.flushes) > 0 {
		return true
	}
	for _, one := range t.pods {
		if one.tracked {
			return true
		}
	}
	return slices.Contains(slices.Collect(maps.Values(t.left)), true)
}

// forgetPasses is how often the switch is asked to forget the same: Open vSwitch 3.1 takes
// connections out of its table while it walks through it, and so passes over one in five.
const forgetPasses = 5

// forget has the switch forget the connections of an address, whoever began them.
func (t *Table) forget(ctx context.Context, a netip.Addr) error {
	for range forgetPasses {
		if err := t.forgetOnce(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) forgetOnce(ctx context.Context, a netip.Addr) error {
	zone := uint16(pipeline.ZonePolicy)
	for _, orig := range []of.CTTuple{{Src: a}, {Dst: a}} {
		if t.noFlush {
			return nil
		}
		err := t.cfg.Store.FlushConnections(ctx, of.CTFilter{Zone: &zone, Orig: orig})
		if errors.Is(err, errors.ErrUnsupported) {
			t.noFlush = true
			t.cfg.Logger.Warn("connections of pods that are gone are forgotten when they expire: Open vSwitch before 3.1 cannot be told to")
			return nil
		}
		if err != nil {
			return fmt.Errorf("policies: forget connections of %s: %w", a, err)
		}
	}
	return nil
}
