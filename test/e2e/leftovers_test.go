package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/world"
)

// TestLimitsLeaveNothing: whatever dies in the middle of an ADD or a DEL of a pod with
// limits, nothing of it is left once the pod is gone.
func TestLimitsLeaveNothing(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	stays := l.pod("n1", "red/stays")
	agent := func() {
		l.must(l.Agent("n1").Restart(ctx))
	}
	vswitchd := func() {
		l.must(l.OVS("n1").KillVswitchd())
		l.must(l.OVS("n1").StartVswitchd(ctx))
	}
	nobody := func() {}
	add := func(ctx context.Context) {
		_, _ = l.AddPod(ctx, "n1", "red", "a", whole) // may fail
	}
	for _, c := range []struct {
		name  string
		kill  func()
		after time.Duration // from the call on
	}{
		{"nobody", nobody, 0},
		{"the agent", agent, 5 * time.Millisecond}, {"the agent", agent, 15 * time.Millisecond}, {"the agent", agent, 30 * time.Millisecond},
		{"ovs-vswitchd", vswitchd, 5 * time.Millisecond}, {"ovs-vswitchd", vswitchd, 20 * time.Millisecond},
	} {
		l.interrupted(ctx, c.kill, c.after, add)
		l.emptied(fmt.Sprintf("%s dies %s after ADD began", c.name, c.after), stays)
		// Who was killed may not serve yet.
		l.eventually("ADD", 20*time.Second, func() error {
			_, err := l.AddPod(ctx, "n1", "red", "a", whole)
			return err
		})
		l.asItShould("with a pod that has limits", "n1")
		l.interrupted(ctx, c.kill, c.after, func(ctx context.Context) {
			if p, err := l.Pod("red", "a"); err == nil {
				_ = l.CNIDel(ctx, p) // may fail; it is called again
			}
		})
		l.emptied(fmt.Sprintf("%s dies %s after DEL began", c.name, c.after), stays)
	}
}

// interrupted begins a call, kills somebody a moment later, and waits for both.
func (l *lab) interrupted(ctx context.Context, kill func(), after time.Duration, call func(context.Context)) {
	l.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		call(ctx)
	}()
	select {
	case <-done:
	case <-time.After(after):
	}
	kill()
	<-done
}

// emptied does what a runtime does in the end, DEL and GC, and waits until nothing is left.
func (l *lab) emptied(when string, stays netlab.Pod) {
	l.t.Helper()
	ctx := l.t.Context()
	l.eventually(when+": DEL and GC", 20*time.Second, func() error {
		if p, err := l.Pod("red", "a"); err == nil {
			if err := l.CNIDel(ctx, p); err != nil {
				return err
			}
			if err := l.ForgetPod(p); err != nil {
				return err
			}
		}
		return l.CNIGC(ctx, "n1", []netlab.Pod{stays})
	})
	l.asItShould(when, "n1")
}

// TestDelFinishes: once DEL was answered nothing of the pod stays, whoever dies then, and
// nobody has to ask for it again. The sandbox stays, so that no device goes with it.
func TestDelFinishes(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	l.pod("n1", "red/stays")
	for _, c := range []struct {
		name  string
		kill  func()
		after time.Duration // from the last answer on
	}{
		{"nobody", func() {}, 0},
		{"the agent", func() { l.must(l.Agent("n1").Restart(ctx)) }, 0},
		{"the agent", func() { l.must(l.Agent("n1").Restart(ctx)) }, 60 * time.Millisecond},
		{"the agent", func() { l.must(l.Agent("n1").Restart(ctx)) }, 90 * time.Millisecond},
		{"the agent, and ends in time", func() { l.must(l.Agent("n1").Stop()); l.must(l.Agent("n1").Start(ctx)) }, 0},
		{"ovs-vswitchd", func() { l.must(l.OVS("n1").KillVswitchd()); l.must(l.OVS("n1").StartVswitchd(ctx)) }, 0},
		{"ovsdb-server", func() { l.must(l.OVS("n1").KillOVSDB()); l.must(l.OVS("n1").StartOVSDB(ctx)) }, 0},
	} {
		var pods []netlab.Pod
		for i := range 3 {
			l.eventually("ADD", 20*time.Second, func() error { // who was killed may not serve yet
				p, err := l.AddPod(ctx, "n1", "blue", fmt.Sprintf("p%d", i), whole)
				if err == nil {
					pods = append(pods, p)
				}
				return err
			})
		}
		for _, p := range pods {
			l.must(l.CNIDel(ctx, p))
			if flows := strings.Join(l.flows("n1"), "\n"); strings.Contains(flows, p.MAC) {
				t.Errorf("%s is answered, and there are flows of %s", p, p.MAC)
			}
		}
		time.Sleep(c.after)
		c.kill()
		when := fmt.Sprintf("%s dies %s after DEL", c.name, c.after)
		n, err := world.Of(l.Lab, "n1")
		l.must(err)
		n.Pods = []netlab.Pod{l.get("red/stays")}
		if err := n.Await(ctx, 20*time.Second); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		for _, p := range pods {
			l.must(l.ForgetPod(p))
		}
	}
}
