package flowstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// model says again, plainly, what the bridge should have: by key, who wants what, in
// the order in which they came.
type model map[string][]wish

type wish struct {
	owner, text string
	// first is that the switch has it so.
	first bool
}

func (m model) copy() model {
	c := model{}
	for k, all := range m {
		c[k] = slices.Clone(all)
	}
	return c
}

// set replaces what owners want, and reports whether one of them has to wait.
func (m model) set(old, now names) (waits bool) {
	var owners []string
	for name, w := range now {
		if !cmp.Equal(wishes(old[name]), wishes(w)) {
			owners = append(owners, name)
		}
	}
	slices.Sort(owners)
	for _, name := range owners {
		for key, text := range wishes(old[name]) {
			if wishes(now[name])[key] == text {
				continue // who goes on to want the same keeps its place
			}
			at := slices.IndexFunc(m[key], func(w wish) bool { return w.owner == name })
			m[key] = slices.Delete(m[key], at, at+1)
			if all := m[key]; len(all) > 0 && !slices.ContainsFunc(all, func(w wish) bool { return w.first }) {
				text := all[0].text
				for i := range all {
					all[i].first = all[i].text == text
				}
			}
		}
	}
	for _, name := range owners {
		for key, text := range wishes(now[name]) {
			if wishes(old[name])[key] == text {
				at := slices.IndexFunc(m[key], func(w wish) bool { return w.owner == name })
				waits = waits || !m[key][at].first
				continue
			}
			at := slices.IndexFunc(m[key], func(w wish) bool { return w.first })
			first := at < 0 || m[key][at].text == text
			m[key] = append(m[key], wish{name, text, first})
			waits = waits || !first
		}
	}
	return waits
}

func (m model) lines() []string {
	var out []string
	for _, all := range m {
		if at := slices.IndexFunc(all, func(w wish) bool { return w.first }); at >= 0 {
			out = append(out, all[at].text)
		}
	}
	slices.Sort(out)
	return out
}

// wishes are what an owner wants, as text by key.
func wishes(w flowstore.Want) map[string]string {
	out := map[string]string{}
	for _, f := range w.Flows {
		out[f.Key()] = text(f)
	}
	for _, g := range w.Groups {
		out[fmt.Sprint("group ", g.ID)] = g.String()
	}
	for _, m := range w.Meters {
		out[fmt.Sprint("meter ", m.ID)] = m.String()
	}
	return out
}

// wanted is a random want, of things that others may want too, alike or not.
func wanted(rnd *rand.Rand) (w flowstore.Want) {
	for in := range uint32(4) {
		if rnd.IntN(2) == 0 {
			w.Flows = append(w.Flows, flow(in+1, rnd.Uint32N(3)+1))
		}
	}
	for id := range uint32(2) {
		if rnd.IntN(4) == 0 {
			g := greeter(id+1, 100+id)
			g.Flows[0].Cookie = otherCookie
			g.Groups[0].Buckets[0].Weight = uint16(1 + rnd.IntN(2))
			w.Flows, w.Groups = append(w.Flows, g.Flows...), append(w.Groups, g.Groups...)
		}
		if rnd.IntN(4) == 0 {
			m := metered(id+1, 10*(1+rnd.Uint32N(2)))
			w.Flows, w.Meters = append(w.Flows, m.Flows...), append(w.Meters, m.Meters...)
		}
	}
	return w
}

// TestRandomHistory: after any history of changes that are tried and taken back, of news
// that stay, of lost answers and connections, restarts and meddling, the switch has what
// the model says.
func TestRandomHistory(t *testing.T) {
	const seed, steps = 3, 200
	rnd := rand.New(rand.NewPCG(seed, seed))
	b := complete(t)
	have, m := names{}, model{}
	for step := range steps {
		now := names{}
		for range 1 + rnd.IntN(3) {
			name := string(rune('a' + rnd.IntN(5)))
			now[name] = wanted(rnd)
			if rnd.IntN(4) == 0 {
				now[name] = flowstore.Want{}
			}
		}
		after := m.copy()
		waits := after.set(have, now)
		taken := true
		switch rnd.IntN(8) {
		case 0, 1, 2:
			err := b.store.Try(t.Context(), b.change(now))
			if taken = !waits; waits != errors.Is(err, flowstore.ErrContested) || !waits && err != nil {
				t.Fatalf("seed %d step %d: %v, waits %t", seed, step, err, waits)
			}
		case 3: // the switch refuses it
			bad := names{"z": flows(refused())}
			for name, w := range now {
				bad[name] = w
			}
			if err := b.store.Try(t.Context(), b.change(bad)); err == nil {
				t.Fatalf("seed %d step %d: no error", seed, step)
			}
			taken = false
		case 4: // its answer is lost
			at := rnd.IntN(2) == 0
			b.fail = func(after bool) error {
				if after == at {
					return errors.New("no answer")
				}
				return nil
			}
			_, _ = b.store.Set(t.Context(), b.change(now))
			b.fail = nil
		case 5:
			b.store.Disconnect()
			if rnd.IntN(2) == 0 {
				b.OFCtl("del-flows", "br0")
				b.OFCtl("del-meters", "br0")
			}
			_, _ = b.store.Set(t.Context(), b.change(now))
			b.store.Connect(b)
		case 6: // another agent, which is told of all in their order
			b.restart()
			all := names{}
			for name, w := range have {
				all[name] = w
			}
			for name, w := range now {
				all[name] = w
			}
			b.set(all, "one", "two")
			after = model{}
			after.set(nil, all)
		default:
			b.set(now)
		}
		if taken {
			m = after
			for name, w := range now {
				have[name] = w
			}
		}
		b.OFCtl([][]string{{"del-flows", "br0", "table=1,in_port=1"}, {"del-groups", "br0", "group_id=1"}, {"del-flows", "br0", "table=77"}, {"add-flow", "br0", "cookie=0x100000000000,table=77,actions=drop"}}[rnd.IntN(4)]...)
		b.resync("others")
		if diff := cmp.Diff(m.lines(), b.contents()); diff != "" {
			t.Fatalf("seed %d step %d (-want +got):\n%s", seed, step, diff)
		}
		flows := 0
		for _, l := range m.lines() {
			if l[0] == 'c' { // its cookie
				flows++
			}
		}
		if n := b.store.Size("others"); n != flows {
			t.Fatalf("seed %d step %d: %d flows counted, want %d", seed, step, n, flows)
		}
	}
}

// TestAtOnce: owners that come and go at once, beside large changes and the reading of
// the switch, do not disturb each other, and nothing is taken for somebody else's.
func TestAtOnce(t *testing.T) {
	b := complete(t)
	const owners, rounds = 6, 40
	errs := make(chan error, 2*owners*rounds)
	var running sync.WaitGroup
	final := func(owner uint32) flowstore.Want {
		return flowstore.Want{Flows: []of.Flow{flow(100+owner, 1), flow(5, 5)}}
	}
	for owner := range uint32(owners) {
		running.Go(func() {
			for round := range uint32(rounds) {
				var c flowstore.Change
				name := fmt.Sprint(owner)
				c.Set(flowstore.Owner{Kind: "one", Name: name}, flowstore.Want{Flows: []of.Flow{flow(100+owner, round), flow(5, 5), flow(1000+1000*owner+round, 1)}})
				if owner%2 == 0 {
					errs <- b.store.Try(t.Context(), c)
				} else {
					_, err := b.store.Set(t.Context(), c)
					errs <- err
				}
			}
			_, err := b.store.Set(t.Context(), b.change(names{fmt.Sprint(owner): final(owner)}))
			errs <- err
		})
	}
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := b.store.Resync(t.Context(), "others"); err != nil {
					errs <- err
					return
				}
			}
		}
	})
	running.Wait()
	close(stop)
	reading.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	var want []flowstore.Want
	for owner := range uint32(owners) {
		want = append(want, final(owner))
	}
	b.require("in the end", lines(want...)...)
	if len(b.repaired) > 0 {
		t.Errorf("taken for somebody else's: %v", b.repaired)
	}
}
