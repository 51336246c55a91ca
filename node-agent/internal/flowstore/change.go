package flowstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
)

// Result is what came of a change or of a look at the switch.
type Result struct {
	// Changed is how many flows and groups were written or removed.
	Changed int
	// Found are the flows of the area, with their counters, where it was read.
	Found []of.FlowStats
	// Leftovers are flows that were found and that nobody wanted.
	Leftovers []of.Flow
	// Contested are the owners that wait for something that another has otherwise.
	Contested []Owner
}

// MeterError is why the switch does not take a meter.
type MeterError struct {
	Meter of.Meter
	// New is that the switch had none of that number.
	New bool
	Err error
}

// Error has the text of the meter.
func (e *MeterError) Error() string { return fmt.Sprintf("set %s: %v", e.Meter, e.Err) }

// Unwrap is why.
func (e *MeterError) Unwrap() error { return e.Err }

// Try makes a change of the picture and of the switch, in one bundle. Where that fails
// the picture is as it was. Errors are [ErrDisconnected], [ErrNotReady] while the area is
// not complete, [ErrContested], a *[MeterError], and what the switch says.
func (s *Store) Try(ctx context.Context, c Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, owners, err := s.target(c)
	switch {
	case err != nil || a == nil:
		return err
	case !a.complete():
		return ErrNotReady
	case s.sw == nil:
		return ErrDisconnected
	}
	if !a.known {
		if err := s.listen(ctx); err != nil {
			return err
		}
		f, err := fetch(ctx, s.sw, a)
		if err != nil {
			return err
		}
		s.judge(a, f, false)
	}
	undo := s.note(owners)
	held, contested := s.apply(c, owners)
	if len(contested) > 0 {
		undo()
		return fmt.Errorf("%v: %w", contested[0], ErrContested)
	}
	w := s.work(held)
	if err := s.setMeters(ctx, a, w.meters); err != nil {
		undo()
		return err
	}
	if err := s.commit(ctx, a, w.steps()); err != nil {
		undo()
		s.keep(w.meters)
		return err
	}
	s.dropMeters(ctx, a, w.noMeters)
	s.settled()
	return nil
}

// Set makes a change of the picture, and brings the switch to the picture of its area:
// also what an earlier change did not get in. Where that fails the picture has the change,
// and the next Set or [Store.Resync] of the area brings it in. Errors are those of
// [Store.Try] but for ErrContested.
func (s *Store) Set(ctx context.Context, c Change) (Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, owners, err := s.target(c)
	if err != nil || a == nil {
		return Result{}, err
	}
	var r Result
	_, r.Contested = s.apply(c, owners)
	for k := range c.all {
		s.kinds[k].complete = true
	}
	err = s.bring(ctx, a, &r)
	return r, err
}

// apply makes a change of the picture. held is what its owners have now; those in
// contested wait for some of what they want.
func (s *Store) apply(c Change, owners []Owner) (held []*holding, contested []Owner) {
	var changed []Owner
	for _, o := range owners {
		h := s.kinds[o.Kind].owners[o.Name]
		if h == nil || !h.is(c.set[o]) {
			changed = append(changed, o)
		}
	}
	// All let go first, so that what moves from one to another is contested by nobody; but not
	// of what they go on to want alike, so that nobody else gets it.
	stays := make([]kept, len(changed))
	for n, o := range changed {
		if h := s.kinds[o.Kind].owners[o.Name]; h != nil {
			stays[n] = s.release(o, h, c.set[o])
		}
		delete(s.kinds[o.Kind].owners, o.Name)
	}
	for n, o := range changed {
		if w := c.set[o]; !w.empty() {
			h, waits := s.hold(o, w, stays[n])
			s.kinds[o.Kind].owners[o.Name] = h
			if waits {
				contested = append(contested, o)
			}
		}
	}
	for _, o := range owners {
		if h := s.kinds[o.Kind].owners[o.Name]; h != nil {
			held = append(held, h)
		}
	}
	return held, contested
}

// is reports whether an owner has just what it wants.
func (h *holding) is(w Want) bool {
	return alike(h.flows, w.Flows, of.Flow.Equal) && alike(h.groups, w.Groups, of.GroupEntry.Equal) && alike(h.meters, w.Meters, of.Meter.Equal)
}

func alike[V any](have []*item[V], want []V, equal func(a, b V) bool) bool {
	return slices.EqualFunc(have, want, func(i *item[V], v V) bool { return equal(i.value, v) })
}

// kept is what an owner had and goes on to want alike.
type kept struct {
	flows  map[flowKey]*item[of.Flow]
	groups map[uint32]*item[of.GroupEntry]
	meters map[uint32]*item[of.Meter]
}

// release has an owner let go of what it does not want any more.
func (s *Store) release(o Owner, h *holding, w Want) kept {
	return kept{
		flows:  releaseAll(s.flows, o, h.flows, w.Flows),
		groups: releaseAll(s.groups, o, h.groups, w.Groups),
		meters: releaseAll(s.meters, o, h.meters, w.Meters),
	}
}

// hold gives an owner what it wants, and reports whether it has to wait for some.
func (s *Store) hold(o Owner, w Want, stays kept) (h *holding, waits bool) {
	number := s.kinds[o.Kind].number
	h = &holding{}
	var f, g, m bool
	h.flows, f = claimAll(s.flows, o, number, w.Flows, stays.flows)
	h.groups, g = claimAll(s.groups, o, number, w.Groups, stays.groups)
	h.meters, m = claimAll(s.meters, o, number, w.Meters, stays.meters)
	return h, f || g || m
}

// note begins to remember what a change of owners touches; undo takes the change back.
func (s *Store) note(owners []Owner) (undo func()) {
	had := make([]*holding, len(owners))
	for n, o := range owners {
		had[n] = s.kinds[o.Kind].owners[o.Name]
	}
	s.flows.noting, s.groups.noting, s.meters.noting = true, true, true
	return func() {
		s.flows.undo()
		s.groups.undo()
		s.meters.undo()
		for n, o := range owners {
			if had[n] == nil {
				delete(s.kinds[o.Kind].owners, o.Name)
			} else {
				s.kinds[o.Kind].owners[o.Name] = had[n]
			}
		}
		s.settled()
	}
}

// settled ends what note began.
func (s *Store) settled() {
	s.flows.settled()
	s.groups.settled()
	s.meters.settled()
}

// work is what the switch has to be told.
type work struct {
	groups, noGroups []*item[of.GroupEntry]
	flows, noFlows   []*item[of.Flow]
	meters, noMeters []*item[of.Meter]
}

// work is that of a change that is noted: what it touched, and what of its owners is
// behind.
func (s *Store) work(held []*holding) (w work) {
	flows, groups, meters := s.flows.touched(), s.groups.touched(), s.meters.touched()
	for _, h := range held {
		flows, groups, meters = append(flows, h.flows...), append(groups, h.groups...), append(meters, h.meters...)
	}
	w.flows, w.noFlows = dues(flows)
	w.groups, w.noGroups = dues(groups)
	w.meters, w.noMeters = dues(meters)
	return w
}

// step is one change of a bundle: of a flow or of a group.
type step struct {
	flow  *item[of.Flow]
	group *item[of.GroupEntry]
}

// steps are the work as a bundle's parts: groups before the flows that refer to them, and
// what goes last.
func (w work) steps() []step {
	steps := make([]step, 0, len(w.groups)+len(w.flows)+len(w.noFlows)+len(w.noGroups))
	for _, g := range w.groups {
		steps = append(steps, step{group: g})
	}
	for _, flows := range [][]*item[of.Flow]{w.flows, w.noFlows} {
		for _, f := range flows {
			steps = append(steps, step{flow: f})
		}
	}
	for _, g := range w.noGroups {
		steps = append(steps, step{group: g})
	}
	return steps
}

// mod is a step as the switch is told it.
func (a *area) mod(s step) of.Mod {
	switch {
	case s.group != nil && s.group.owners > 0:
		return of.SetGroup(s.group.value)
	case s.group != nil:
		return of.DeleteGroup(s.group.value.ID)
	case s.flow.owners > 0:
		return of.AddFlow(s.flow.value)
	}
	if f, ok := a.retire(s.flow.value); ok {
		return of.AddFlow(f)
	}
	return of.DeleteFlow(s.flow.value)
}

func (a *area) retire(f of.Flow) (of.Flow, bool) {
	if a.Retire == nil {
		return f, false
	}
	return a.Retire(f)
}

// commit carries out steps as one bundle. One that the switch refuses has changed
// nothing; what became of one that ends otherwise is not known.
func (s *Store) commit(ctx context.Context, a *area, steps []step) error {
	if len(steps) == 0 {
		return nil
	}
	mods := make([]of.Mod, len(steps))
	for n, st := range steps {
		mods[n] = a.mod(st)
	}
	a.commits++
	start := s.now()
	if err := s.sw.Commit(ctx, mods); err != nil {
		var refused *of.ModError
		a.known = a.known && errors.As(err, &refused)
		return fmt.Errorf("commit %d changes of %s: %w", len(mods), a.Name, err)
	}
	s.observer.Committed(a.Name, len(mods), s.now().Sub(start).Seconds())
	faultpoint.Here("flows", a.Name)
	for _, st := range steps {
		if st.flow != nil {
			s.flows.done(st.flow)
		} else {
			s.groups.done(st.group)
		}
	}
	return nil
}

// setMeters makes meters, and changes in place those that there are.
func (s *Store) setMeters(ctx context.Context, a *area, meters []*item[of.Meter]) error {
	for _, m := range meters {
		set, isNew := s.sw.ModifyMeter, m.state == absent
		if isNew {
			set = s.sw.AddMeter
		}
		a.commits++
		if err := set(ctx, m.value); err != nil {
			a.known = false // somebody else was at them
			return &MeterError{m.value, isNew, err}
		}
		faultpoint.Here("flows", "meter")
		s.meters.done(m)
	}
	return nil
}

// keep notes that meters were written for a change that was taken back.
func (s *Store) keep(meters []*item[of.Meter]) {
	for _, m := range meters {
		m.state = differs
		s.meters.items[m.value.ID] = m
		s.meters.queue(m)
	}
}

// dropMeters deletes meters that no flow refers to any more. What cannot be deleted now is
// tried again with the next [Store.Set] or [Store.Resync]: it is no reason to take back a
// change that was made.
func (s *Store) dropMeters(ctx context.Context, a *area, meters []*item[of.Meter]) {
	for _, m := range meters {
		a.commits++
		if s.sw.DeleteMeter(ctx, m.value.ID) == nil {
			faultpoint.Here("flows", "meter deleted")
			s.meters.done(m)
		}
	}
}

// bring brings the switch to the picture of an area. It lets others in before it reads,
// and between two bundles.
func (s *Store) bring(ctx context.Context, a *area, r *Result) error {
	for {
		switch {
		case !a.complete():
			return ErrNotReady
		case s.sw == nil:
			return ErrDisconnected
		case !a.known:
			found, _, err := s.read(ctx, a, false)
			if err != nil {
				return err
			}
			r.Found = found
			continue
		}
		w := s.behind(a)
		if err := s.setMeters(ctx, a, w.meters); err != nil {
			return err
		}
		steps := w.steps()
		first := a.bundle(steps)
		more := len(first) < len(steps)
		steps = first
		r.leave(steps)
		if err := s.commit(ctx, a, steps); err != nil {
			return err
		}
		r.Changed += len(steps)
		if !more {
			s.dropMeters(ctx, a, w.noMeters)
			return nil
		}
		s.mu.Unlock()
		s.mu.Lock()
	}
}

// bundle is as much of some steps as is carried out at once.
func (a *area) bundle(steps []step) []step {
	if a.AtOnce == 0 || len(steps) <= a.AtOnce {
		return steps
	}
	if a.Together != nil {
		apart := func(s step) bool { return s.flow == nil || !a.Together(s.flow.value) }
		if together := slices.DeleteFunc(slices.Clone(steps), apart); len(together) > 0 {
			return together
		}
	}
	return steps[:a.AtOnce]
}

// leave notes which of the steps remove what nobody had wanted.
func (r *Result) leave(steps []step) {
	for _, st := range steps {
		if st.flow != nil && st.flow.stray {
			r.Leftovers = append(r.Leftovers, st.flow.value)
		}
	}
}

// behind is the work that an area has.
func (s *Store) behind(a *area) (w work) {
	groups, meters := true, true
	for _, b := range s.areas {
		groups, meters = groups && (!b.Groups || b.complete()), meters && (!b.Meters || b.complete())
	}
	w.flows, w.noFlows = s.flows.dues(a, true)
	w.groups, w.noGroups = s.groups.dues(a, groups)
	w.meters, w.noMeters = s.meters.dues(a, meters)
	return w
}
