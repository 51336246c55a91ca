package flowstore

import (
	"context"
	"fmt"
	"slices"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// found is what a switch has of an area.
type found struct {
	flows  []of.FlowStats
	groups []of.GroupEntry
	meters []of.Meter
}

func fetch(ctx context.Context, sw Switch, a *area) (f found, err error) {
	if f.flows, err = sw.Flows(ctx, of.FlowFilter{Cookie: a.Cookie, CookieMask: a.Mask}); err != nil {
		return f, fmt.Errorf("read the flows of %s: %w", a.Name, err)
	}
	if f.flows == nil {
		f.flows = []of.FlowStats{} // it was read
	}
	if a.Groups {
		if f.groups, err = sw.Groups(ctx); err != nil {
			return f, fmt.Errorf("read the groups of the bridge: %w", err)
		}
	}
	if a.Meters {
		if f.meters, err = sw.Meters(ctx); err != nil {
			return f, fmt.Errorf("read the meters of the bridge: %w", err)
		}
	}
	return f, nil
}

// read reads an area and judges it. It lets others in meanwhile; where one of them has
// changed something, it reads again and lets nobody in. repaired is how much somebody else
// had changed.
func (s *Store) read(ctx context.Context, a *area, count bool) (stats []of.FlowStats, repaired int, err error) {
	for locked := false; ; locked = true {
		if s.sw == nil {
			return nil, 0, ErrDisconnected
		}
		if err := s.listen(ctx); err != nil {
			return nil, 0, err
		}
		sw, connections, commits := s.sw, s.connections, a.commits
		if !locked {
			s.mu.Unlock()
		}
		f, err := fetch(ctx, sw, a)
		if !locked {
			s.mu.Lock()
		}
		switch {
		case s.connections != connections || err == nil && a.commits != commits:
			continue
		case err != nil:
			return nil, 0, err
		}
		return f.flows, s.judge(a, f, count), nil
	}
}

// judge compares what was found with what the switch was known to have, and tells what
// somebody else had changed where that counts: total is how much.
func (s *Store) judge(a *area, f found, count bool) (total int) {
	repairs := map[Kind]int{}
	repaired := func(kind uint8) {
		repairs[s.byNumber[kind].name]++
		total++
	}
	s.flows.judge(a, func(yield func(of.Flow) bool) {
		for _, st := range f.flows {
			if !yield(st.Flow) {
				return
			}
		}
	}, a.retire, repaired)
	if a.Groups {
		s.groups.judge(a, slices.Values(f.groups), deleted[of.GroupEntry], repaired)
	}
	if a.Meters {
		s.meters.judge(a, slices.Values(f.meters), deleted[of.Meter], repaired)
	}
	a.known, a.readAt = true, s.now()
	if !count {
		return 0
	}
	for k, n := range repairs {
		s.observer.Repaired(k, n)
	}
	return total
}

// deleted is what groups and meters become that nobody wants.
func deleted[V any](v V) (V, bool) { return v, false }

// Read reads an area, also one that is not complete, and changes nothing: for a producer
// that starts and wants to know what there was. It fails with [ErrDisconnected] or an
// error of the switch.
func (s *Store) Read(ctx context.Context, name string) ([]of.FlowStats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats, _, err := s.read(ctx, s.areas[name], false)
	return stats, err
}

// Resync brings the switch to the picture of an area. When it is time it reads it, puts
// right what differs, and tells the observer what somebody else had changed. Errors are
// those of [Store.Set].
func (s *Store) Resync(ctx context.Context, name string) (r Result, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.areas[name]
	if a.complete() && a.known && s.sw != nil && s.now().Sub(a.readAt) >= a.Every {
		if r.Found, _, err = s.read(ctx, a, true); err != nil {
			return r, err
		}
	}
	err = s.bring(ctx, a, &r)
	return r, err
}

// Check compares the flows and meters of owners in the switch with what they want and says
// what differs, nothing where all is as it should be.
func (s *Store) Check(ctx context.Context, owners ...Owner) (diff []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sw == nil {
		return nil, ErrDisconnected
	}
	for _, o := range owners {
		k, ok := s.kinds[o.Kind]
		if !ok || k.owners[o.Name] == nil {
			continue
		}
		h := k.owners[o.Name]
		meters, err := s.checkMeters(ctx, h)
		if err != nil {
			return nil, err
		}
		flows, err := s.checkFlows(ctx, h)
		if err != nil {
			return nil, err
		}
		diff = append(append(diff, meters...), flows...)
	}
	return diff, nil
}

func (s *Store) checkFlows(ctx context.Context, h *holding) (diff []string, err error) {
	have, read := map[flowKey]of.Flow{}, map[uint64]bool{}
	for _, i := range h.flows {
		if cookie := i.value.Cookie; !read[cookie] {
			read[cookie] = true
			stats, err := s.sw.Flows(ctx, of.FlowFilter{Cookie: cookie, CookieMask: ^uint64(0)})
			if err != nil {
				return nil, fmt.Errorf("read the flows with cookie %#x: %w", cookie, err)
			}
			for _, st := range stats {
				have[keyOf(st.Flow)] = st.Flow
			}
		}
	}
	for _, i := range h.flows {
		got, ok := have[keyOf(i.value)]
		switch {
		case !ok:
			diff = append(diff, "flow is missing: "+i.value.String())
		case !got.Equal(i.value):
			diff = append(diff, fmt.Sprintf("flow differs: have %s, want %s", got, i.value))
		}
	}
	return diff, nil
}

func (s *Store) checkMeters(ctx context.Context, h *holding) (diff []string, err error) {
	if len(h.meters) == 0 {
		return nil, nil
	}
	all, err := s.sw.Meters(ctx)
	if err != nil {
		return nil, err
	}
	have := make(map[uint32]of.Meter, len(all))
	for _, m := range all {
		have[m.ID] = m
	}
	for _, i := range h.meters {
		got, ok := have[i.value.ID]
		switch {
		case !ok:
			diff = append(diff, "meter is missing: "+i.value.String())
		case !got.Equal(i.value):
			diff = append(diff, fmt.Sprintf("meter differs: have %s, want %s", got, i.value))
		}
	}
	return diff, nil
}

// MeterCounters are those of all meters of the bridge. It fails with [ErrDisconnected] or
// an error of the switch.
func (s *Store) MeterCounters(ctx context.Context) ([]of.MeterCounters, error) {
	sw, err := s.connection()
	if err != nil {
		return nil, err
	}
	return sw.MeterCounters(ctx)
}

// FlushConnections makes the switch forget the connections that the filter chooses, as
// [of.Conn.FlushConnections] does. It fails with [ErrDisconnected] too.
func (s *Store) FlushConnections(ctx context.Context, filter of.CTFilter) error {
	sw, err := s.connection()
	if err != nil {
		return err
	}
	return sw.FlushConnections(ctx, filter)
}

// Nudge makes the switch compare the flows that its datapath cached with its tables: f
// comes and goes. It must be one that no packet reaches. Nudge does not wait for the switch.
func (s *Store) Nudge(ctx context.Context, f of.Flow) error {
	sw, err := s.connection()
	if err != nil {
		return err
	}
	if err := sw.Post(ctx, []of.Mod{of.AddFlow(f), of.DeleteFlow(f)}); err != nil {
		return fmt.Errorf("nudge the switch: %w", err)
	}
	return nil
}

// connection is the switch, which may be gone by the time that it is used.
func (s *Store) connection() (Switch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sw == nil {
		return nil, ErrDisconnected
	}
	return s.sw, nil
}
