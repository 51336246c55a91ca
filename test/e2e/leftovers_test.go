package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// leftovers are all that limits make on a node: devices, queueing disciplines,
// meters, rows of the database.
func (l *lab) leftovers(node string) ([]string, error) {
	ctx := context.WithoutCancel(l.t.Context())
	links, err := l.NodeExec(ctx, node, "ip", "-o", "link", "show", "type", "ifb")
	if err != nil {
		return nil, err
	}
	meters, err := l.OVS(node).OFCtl(ctx, "dump-meters", "br0")
	if err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(strings.Split(links+meters, "\n"), func(line string) bool {
		return line == "" || strings.HasPrefix(line, "OFPST")
	})
	for _, table := range []string{"QoS", "Queue"} {
		rows, err := l.OVS(node).VSCtl(ctx, "--columns=_uuid", "--format=csv", "--no-headings", "list", table)
		if err != nil {
			return nil, err
		}
		found = append(found, strings.Fields(rows)...)
	}
	shapers, err := l.shapersOf(ctx, node, "")
	return append(found, shapers...), err
}

// TestLimitsLeaveNothing: whatever dies in the middle of an ADD or a DEL of a pod with
// limits, nothing of it is left once the pod is gone.
func TestLimitsLeaveNothing(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	stays := l.pod("n1", "red/stays")
	before, err := l.leftovers("n1")
	l.must(err)
	agent := func() {
		l.must(l.Agent("n1").Restart(ctx))
	}
	vswitchd := func() {
		l.must(l.OVS("n1").KillVswitchd())
		l.must(l.OVS("n1").StartVswitchd(ctx))
	}
	nobody := func() {}
	add := func(ctx context.Context) {
		_, _ = l.AddPod(ctx, "n1", "red", "a", netlab.PodOptions{IngressBandwidth: 5e6, EgressBandwidth: 5e6}) // may fail
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
		l.emptied(fmt.Sprintf("%s dies %s after ADD began", c.name, c.after), stays, before)
		// Who was killed may not serve yet.
		l.eventually("ADD", 20*time.Second, func() error {
			_, err := l.AddPod(ctx, "n1", "red", "a", netlab.PodOptions{IngressBandwidth: 5e6, EgressBandwidth: 5e6})
			return err
		})
		if with, err := l.leftovers("n1"); err != nil || cmp.Equal(before, with) {
			t.Fatalf("a pod with limits shows in nothing that is looked at: %v", err)
		}
		l.interrupted(ctx, c.kill, c.after, func(ctx context.Context) {
			if p, err := l.Pod("red", "a"); err == nil {
				_ = l.CNIDel(ctx, p) // may fail; it is called again
			}
		})
		l.emptied(fmt.Sprintf("%s dies %s after DEL began", c.name, c.after), stays, before)
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

// emptied does what a runtime does in the end, DEL and GC, and waits until nothing but
// what was there before is left.
func (l *lab) emptied(when string, stays netlab.Pod, before []string) {
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
	l.eventually(when, 10*time.Second, func() error {
		now, err := l.leftovers("n1")
		if err != nil {
			return err
		}
		if diff := cmp.Diff(before, now); diff != "" {
			return fmt.Errorf("(-before +after)\n%s", diff)
		}
		return nil
	})
}

// TestDelFinishes: once DEL was answered nothing of the pod stays, whoever dies then, and
// nobody has to ask for it again. The sandbox stays, so that no device goes with it.
func TestDelFinishes(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	l.pod("n1", "red/stays")
	before, err := l.all("n1")
	l.must(err)
	limited := netlab.PodOptions{IngressBandwidth: 5e6, EgressBandwidth: 5e6}
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
				p, err := l.AddPod(ctx, "n1", "blue", fmt.Sprintf("p%d", i), limited)
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
		l.eventually(when, 20*time.Second, func() error {
			now, err := l.all("n1")
			if err != nil {
				return err
			}
			if diff := cmp.Diff(before, now); diff != "" {
				return fmt.Errorf("(-before +after)\n%s", diff)
			}
			return nil
		})
		l.eventually(when+": CHECK", 20*time.Second, func() error { return l.CNICheck(ctx, l.get("red/stays")) })
		for _, p := range pods {
			l.must(l.ForgetPod(p))
		}
	}
}

// all is what there is of pods on a node: what limits make, devices, ports, leases.
func (l *lab) all(node string) ([]string, error) {
	found, err := l.leftovers(node)
	if err != nil {
		return nil, err
	}
	ports, err := l.OVS(node).VSCtl(context.WithoutCancel(l.t.Context()), "list-ports", "br0")
	if err != nil {
		return nil, err
	}
	leases, err := l.Leases(node)
	if err != nil {
		return nil, err
	}
	found = append(found, l.hostEnds(node)...)
	return append(append(found, strings.Fields(ports)...), leases...), nil
}
