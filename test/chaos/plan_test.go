package main

import (
	"fmt"
	"strings"
	"testing"
)

// text is all that a seed decides.
func text(seed uint64, rounds int) string {
	var b strings.Builder
	each(seed, rounds, func(_ state, plan []*decision) {
		for _, d := range plan {
			fmt.Fprintf(&b, "%s after %s\n", d, d.pause)
		}
		b.WriteString("\n")
	})
	return b.String()
}

// TestPlansAgain: a seed decides the same each time, and another seed otherwise.
func TestPlansAgain(t *testing.T) {
	if a, b := text(7, 20), text(7, 20); a != b {
		t.Errorf("the same seed decides once\n%s\nand then\n%s", a, b)
	}
	if text(7, 20) == text(8, 20) {
		t.Error("two seeds decide the same")
	}
}

// TestPlansHold: what is decided can be done, and every kind of it comes up.
func TestPlansHold(t *testing.T) {
	drawn := map[kind]int{}
	for seed := range uint64(20) {
		each(seed, 40, func(s state, plan []*decision) {
			before, moves, broken := s.clone(), 0, map[string]bool{}
			for _, d := range plan {
				drawn[d.kind]++
				_, there := s.pods[d.pod.String()]
				_, was := before.pods[d.pod.String()]
				switch d.kind {
				case addPod:
					if there || was {
						t.Errorf("%s: it is there, or was in this round", d)
					}
				case deletePod, loseNetns, forgetPod, label, limit:
					if !there || !was {
						t.Errorf("%s: it is not there, or came in this round", d)
					}
				case takePolicy:
					if _, there := s.policies[d.policy.String()]; !there {
						t.Errorf("%s: it is not there", d)
					}
				case takeService:
					if _, there := s.services[d.namespace]; !there {
						t.Errorf("%s: there is none", d)
					}
				case join:
					if s.networks[d.namespace] == s.networks[d.target] || s.networks[d.target] == global {
						t.Errorf("%s: nothing to do, or global", d)
					}
				default:
					if d.kind.isFault() && broken[d.node] {
						t.Errorf("%s: it has a fault", d)
					}
					broken[d.node] = broken[d.node] || d.kind.isFault()
				}
				if d.moves() {
					moves++
				}
				d.apply(&s)
			}
			if moves > mostMoves || len(s.pods) > mostPods || len(s.pods) < fewestPods {
				t.Errorf("%d changes of who talks to whom, %d pods", moves, len(s.pods))
			}
		})
	}
	all := append(kindsOf(ofNode), kindsOf(ofCluster)...)
	for _, k := range append(all, addPod, deletePod, loseNetns, forgetPod, join, isolate, makeGlobal, putPolicy, takePolicy, label, limit, putService, takeService) {
		if drawn[k] < 5 {
			t.Errorf("%q came up %d times", k, drawn[k])
		}
	}
}
