package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/records"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// scripted runs a story on a lab, with a clock of its own.
func scripted(t *testing.T, story func(t *testing.T, l *lab)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { story(t, newLab(t, dir)) })
}

// notReady is that pods cannot be attached, for a reason with that text.
func (l *lab) notReady(reason string) {
	l.t.Helper()
	synctest.Wait()
	if err := l.loop.ready.is(); err == nil || !strings.Contains(err.Error(), reason) {
		l.t.Errorf("ready: %v; want a reason with %q", err, reason)
	}
}

// The first pass of a node that has all does all, and the second finds nothing to do.
func TestLoopComesUp(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		revision := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
		l.start()
		l.isReady(revision)
		if got := l.etcd.shown(); got.Revision != revision || got.Message != "" || got.Subnet != labSelf.Subnet || got.MTU != 1450 {
			t.Errorf("status %+v", got)
		}
		if !l.conf.there {
			t.Error("the runtime has no configuration")
		}
		before := l.count()
		time.Sleep(time.Minute)
		if n := l.count() - before; n < 11 || n > 15 {
			t.Errorf("%d passes in a minute in which nothing happened, want one every %s", n, resyncEvery)
		}
		l.stop()
		if l.etcd.open || l.machine.live {
			t.Errorf("after the end: the status stands: %t, the connection to the switch: %t", l.etcd.open, l.machine.live)
		}
	})
}

// A node that starts while etcd is away has the network of the copy on disk after a while, and does not
// say in the records that it has.
func TestLoopStartsWithEtcdAway(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		revision := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
		l.start()
		l.isReady(revision)
		l.stop()
		l.etcd.setAway(true)
		l.start()
		l.notReady("no records yet from etcd at [https://192.0.2.1:2379]")
		time.Sleep(etcdPatience + lastPause*2)
		l.isReady(revision)
		if l.etcd.open {
			t.Error("it publishes what it has not from etcd")
		}
		later := l.etcd.set(snapshot(0, 4, labSelf, labPeer))
		l.isReady(revision)
		l.etcd.setAway(false)
		l.isReady(later)
		if got := l.etcd.shown().Revision; got != later {
			t.Errorf("published revision %d, want %d", got, later)
		}
		l.stop()
		s, ok, err := records.NewFile(l.dir).Load()
		if err != nil || !ok || s.Revision != later {
			t.Errorf("the copy on disk is of revision %d (%t, %v), want %d", s.Revision, ok, err, later)
		}
	})
}

// Records that come before there is a bridge wait for its ports.
func TestLoopRecordsBeforePorts(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.machine.set(func() { l.machine.databaseAway = true })
		l.start()
		l.notReady("the database of Open vSwitch at unix:/db.sock does not answer")
		revision := l.etcd.set(snapshot(0, 5, labSelf, labPeer))
		l.machine.set(func() { l.machine.databaseAway, l.machine.switchAway = false, true })
		time.Sleep(2 * lastPause)
		l.notReady("ovs-vswitchd does not take the bridge in")
		if got := l.table.inSwitch(); got != 0 {
			t.Errorf("flows of revision %d are in a switch that is away", got)
		}
		l.machine.set(func() { l.machine.switchAway = false })
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		l.stop()
	})
}

// ovs-vswitchd may go before any step of a pass. The node says so, and has the newest flows soon after it
// is back; records that came meanwhile are not lost.
func TestLoopLosesSwitch(t *testing.T) {
	for _, name := range stepNames() {
		t.Run(name, func(t *testing.T) {
			scripted(t, func(t *testing.T, l *lab) {
				l.start()
				l.once(name, l.machine.lose)
				l.etcd.set(snapshot(0, 4, labSelf, labPeer))
				time.Sleep(resyncEvery + time.Second)
				if l.loop.ready.is() == nil {
					t.Error("ready without ovs-vswitchd")
				}
				revision := l.etcd.set(snapshot(0, 5, labSelf, labPeer))
				synctest.Wait()
				l.machine.set(func() { l.machine.switchAway = false })
				time.Sleep(2 * lastPause)
				l.isReady(revision)
				if got := l.etcd.shown(); got.Revision != revision || got.Message != "" {
					t.Errorf("status %+v", got)
				}
				l.stop()
			})
		})
	}
}

// Flows that a switch refuses while its connection stands are brought to it when it takes them.
func TestLoopSwitchRefusesFlows(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.machine.refuses = errors.New("bundle refused: table full")
		l.start()
		l.notReady("table full")
		l.machine.set(func() { l.machine.refuses = nil })
		revision := l.etcd.set(snapshot(0, 4, labSelf, labPeer))
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		l.machine.set(func() { l.machine.refuses = errors.New("bundle refused: table full") })
		revision = l.etcd.set(snapshot(0, 5, labSelf, labPeer))
		l.notReady("table full")
		// Also one that has just been started anew.
		l.machine.lose()
		l.machine.set(func() { l.machine.switchAway = false })
		time.Sleep(2 * lastPause)
		l.notReady("table full")
		l.machine.set(func() { l.machine.refuses = nil })
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		l.stop()
	})
}

// Records are not told to be applied when the time ended in which the datapath was waited for:
// the next attempt waits anew, though it finds the flows as they should be.
func TestSettlesAgain(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.build()
		s := snapshot(7, 3, labSelf, labPeer)
		l.loop.records, l.loop.started = &s, labSelf.Subnet
		n := l.loop.flows
		if err := errors.Join(l.table.SetPorts(t.Context(), desired.Ports{Tunnels: map[string]uint32{desired.NodeTunnel: 1}, Gateway: 2}), n.connect(t.Context(), nil)); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), l.machine.compares)
		defer cancel()
		if err := n.apply(short, false); err == nil || n.applied != 0 || l.table.inSwitch() != 7 {
			t.Errorf("applied %d in too short a time, flows %d: %v", n.applied, l.table.inSwitch(), err)
		}
		began := time.Now()
		if err := n.apply(t.Context(), false); err != nil || n.applied != 7 {
			t.Errorf("applied %d: %v", n.applied, err)
		}
		if waited := time.Since(began); waited < 2*l.machine.compares {
			t.Errorf("the datapath was waited for %s, want two rounds of %s", waited, l.machine.compares)
		}
	})
}

// rounds are an ovs-vswitchd's: one that the commit before has brought about, over after own where
// that is not 0, and one after each flow that comes and goes.
type rounds struct {
	flowTable
	own, nudged time.Duration
	nudges      int

	mu      sync.Mutex
	waiting []chan struct{}
}

func (r *rounds) AskRevalidated(ctx context.Context) (wait func() error, err error) {
	over := make(chan struct{})
	r.mu.Lock()
	r.waiting = append(r.waiting, over)
	r.mu.Unlock()
	if r.own > 0 {
		time.AfterFunc(r.own, r.end)
		r.own = 0
	}
	return func() error {
		select {
		case <-over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, nil
}

func (r *rounds) Nudge(context.Context) error {
	r.nudges++
	time.AfterFunc(r.nudged, r.end)
	return nil
}

func (r *rounds) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, over := range r.waiting {
		close(over)
	}
	r.waiting = nil
}

// A commit brings a round about by itself: only where that is over before it can be asked for, or takes
// long, another is brought about in its place.
func TestRounds(t *testing.T) {
	for _, c := range []struct {
		own    time.Duration
		nudges int
		takes  time.Duration
	}{
		{own: time.Millisecond, nudges: 1, takes: 6 * time.Millisecond},
		{own: 0, nudges: 2, takes: ownRound + 10*time.Millisecond},
	} {
		scripted(t, func(t *testing.T, l *lab) {
			l.build()
			r := &rounds{flowTable: l.table, own: c.own, nudged: 5 * time.Millisecond}
			l.loop.flows.datapath, l.loop.flows.table = r, r
			began := time.Now()
			if err := errors.Join(l.loop.flows.conn.dial(t.Context()), l.loop.flows.settle(t.Context())); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); r.nudges != c.nudges || took != c.takes {
				t.Errorf("a round of its own in %s: %d nudges, settled in %s, want %d in %s", c.own, r.nudges, took, c.nudges, c.takes)
			}
		})
	}
}

// What a look at all there is finds amiss keeps the node from being ready until such a look
// finds all well: passes that do not look do not count.
func TestLoopOwesAFullPass(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		revision := l.etcd.set(snapshot(0, 4, labSelf, labPeer))
		l.start()
		l.isReady(revision)
		l.machine.set(func() { l.machine.refuses = errors.New("bundle refused: table full") })
		time.Sleep(resyncEvery)
		for range 100 {
			l.notReady("table full")
			time.Sleep(resyncEvery / 20)
		}
		l.machine.set(func() { l.machine.refuses = nil })
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		l.stop()
	})
}

// stepNames are the steps in their order.
func stepNames() []string {
	var names []string
	for _, s := range (&rooms{host: &hostSide{}, flows: &flowSide{}, report: &reporter{}, status: &ownStatus{}, record: &ownRecord{}, health: &health{}, services: &serviceFeed{}, policies: &policySide{}}).steps() {
		names = append(names, s.name)
	}
	return names
}

// A step that fails makes the node not ready, with its reason for the CNI and in the records, is tried
// again after growing pauses, and when it comes back all is well.
func TestLoopStepFails(t *testing.T) {
	for _, name := range stepNames() {
		t.Run(name, func(t *testing.T) {
			scripted(t, func(t *testing.T, l *lab) {
				revision := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
				l.start()
				broken := errors.New(name + " is broken")
				l.on(name, func() error { return broken })
				time.Sleep(resyncEvery)
				l.notReady(broken.Error())
				if got := l.etcd.shown().Message; got != broken.Error() {
					t.Errorf("the records say %q", got)
				}
				before := l.count()
				time.Sleep(time.Minute)
				// Every 2 s with jitter, and every 5 s.
				if n := l.count() - before; n < 25 || n > 75 {
					t.Errorf("%d passes in a minute of failures", n)
				}
				l.on(name, nil)
				time.Sleep(2 * lastPause)
				l.isReady(revision)
				if got := l.etcd.shown().Message; got != "" {
					t.Errorf("the records still say %q", got)
				}
				l.stop()
			})
		})
	}
}

// A revision that comes while a pass runs, at whichever step, is in the flows when all has come to rest.
func TestLoopRevisionDuringPass(t *testing.T) {
	for _, name := range stepNames() {
		t.Run(name, func(t *testing.T) {
			scripted(t, func(t *testing.T, l *lab) {
				l.start()
				var revision int64
				l.once(name, func() {
					for i := range 3 {
						revision = l.etcd.set(snapshot(0, 4+i, labSelf, labPeer))
					}
				})
				time.Sleep(resyncEvery)
				synctest.Wait()
				l.isReady(revision)
				if got := l.etcd.shown().Revision; got != revision {
					t.Errorf("published revision %d, want %d", got, revision)
				}
				l.stop()
			})
		})
	}
}

// A revision that comes while a node that is ready is looked at does not wait for the end of
// the pass, but for that of a step. What the flows alone do not show asks for another pass.
func TestLoopRevisionBetweenSteps(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.isReady(1)
		var revision, had int64
		l.once("the host's side", func() { revision = l.etcd.set(snapshot(0, 5, labSelf, labPeer)) })
		l.once("the MTU of pods", func() { had = l.table.inSwitch() })
		time.Sleep(resyncEvery)
		synctest.Wait()
		if revision == 0 || had != revision {
			t.Errorf("two steps later the flows are those of revision %d, want %d", had, revision)
		}
		passes := l.count()
		news := snapshot(0, 5, labSelf, labPeer)
		news.Config.VXLANPort = 8472
		l.once("the host's side", func() { revision = l.etcd.set(news) })
		time.Sleep(resyncEvery)
		synctest.Wait()
		l.isReady(revision)
		if n := l.count() - passes; n != 2 || l.machine.tunnelPort != 8472 {
			t.Errorf("%d passes for a configuration that came during one, want 2; tunnels at %d", n, l.machine.tunnelPort)
		}
		l.stop()
	})
}

// Records do not wait for what a pass waits for, however long that takes.
func TestLoopRevisionDuringSlowStep(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.isReady(1)
		l.machine.set(func() { l.machine.takes = time.Second })
		passes := l.count()
		for n := range 40 {
			revision := l.etcd.set(snapshot(0, 4+n, labSelf, labPeer))
			time.Sleep(2*l.machine.compares + time.Millisecond)
			synctest.Wait()
			if got := l.etcd.shown().Revision; got != revision {
				t.Errorf("%s after it came, revision %d is published, want %d", 2*l.machine.compares, got, revision)
			}
			time.Sleep(300 * time.Millisecond)
		}
		if n := l.count() - passes; n == 0 || n > 4 {
			t.Errorf("%d passes meanwhile, want two or three, with such a step after the other", n)
		}
		l.stop()
	})
}

// An agent may be ended at any step, of its first pass and of a later one: it stops, and leaves neither a
// connection nor a status, nor anything that runs.
func TestLoopEndsAtEveryStep(t *testing.T) {
	for _, name := range stepNames() {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprint(name, late), func(t *testing.T) {
				scripted(t, func(t *testing.T, l *lab) {
					end := func() error { l.cancel(); return nil }
					if !late {
						l.on(name, end)
					}
					l.start()
					l.on(name, end)
					time.Sleep(resyncEvery)
					select {
					case err := <-l.ended:
						l.ended <- err
					default:
						t.Error("it goes on")
					}
					l.stop()
					if l.etcd.open || l.machine.live {
						t.Errorf("after the end: the status stands: %t, the connection to the switch: %t", l.etcd.open, l.machine.live)
					}
				})
			})
		}
	}
}

// An agent may be ended, and ovs-vswitchd go, while it waits for the datapath to follow the flows. What is
// applied is published after that only.
func TestLoopWhileDatapathFollows(t *testing.T) {
	for name, disturb := range map[string]func(*lab){"agent ends": func(l *lab) { l.cancel() }, "ovs-vswitchd goes": func(l *lab) { l.machine.lose() }} {
		t.Run(name, func(t *testing.T) {
			scripted(t, func(t *testing.T, l *lab) {
				first := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
				l.start()
				l.isReady(first)
				later := l.etcd.set(snapshot(0, 4, labSelf, labPeer))
				time.Sleep(l.machine.compares / 2)
				synctest.Wait()
				if got, shown := l.table.inSwitch(), l.etcd.shown().Revision; got != later || shown != first {
					t.Errorf("the flows are those of revision %d, and %d is published; want %d and %d", got, shown, later, first)
				}
				disturb(l)
				time.Sleep(staleAtMost)
				l.stop()
			})
		})
	}
}

// What the network's configuration changes besides flows is done at once.
func TestLoopFollowsConfiguration(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		time.Sleep(resyncEvery + staleAtMost)
		s := snapshot(0, 3, labSelf, labPeer)
		s.Config.VXLANPort = 8472
		l.isReady(l.etcd.set(s))
		if got := l.etcd.shown().VXLANPort; got != 8472 || l.machine.tunnelPort != 8472 {
			t.Errorf("tunnels at %d, the status says %d", l.machine.tunnelPort, got)
		}
		l.stop()
	})
}

// The tunnels of a node without pods move to the port that the network's configuration names, whatever step of
// that fails at first. The firewall keeps pods from it before, and from the old one after.
func TestLoopTunnelsMove(t *testing.T) {
	for _, name := range stepNames() {
		t.Run(name, func(t *testing.T) {
			scripted(t, func(t *testing.T, l *lab) {
				l.start()
				s := snapshot(0, 3, labSelf, labPeer)
				s.Config.VXLANPort = 8472
				l.on(name, func() error { return errors.New(name + " is broken") })
				revision := l.etcd.set(s)
				time.Sleep(lastPause)
				l.on(name, nil)
				time.Sleep(2 * lastPause)
				l.isReady(revision)
				l.machine.set(func() {
					if diff := cmp.Diff([]tunnel.Port{8472, 4789}, l.machine.guarded); l.machine.tunnelPort != 8472 || diff != "" {
						t.Errorf("tunnels at %d; guarded (-want +got): %s", l.machine.tunnelPort, diff)
					}
					if l.machine.unguarded {
						t.Error("the bridge had a port that pods could send to")
					}
				})
				if got := l.etcd.shown().VXLANPort; got != 8472 {
					t.Errorf("the status says port %d", got)
				}
				l.stop()
			})
		})
	}
}

// While the way out of the node is closed pods that run keep their network, also what changes of it; the
// node is looked at again and again, and not without a pause.
func TestLoopWayOutClosed(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.machine.set(func() { l.machine.closed = errors.New("the uplink eth0 is down") })
		time.Sleep(resyncEvery)
		l.notReady("the uplink eth0 is down")
		before := l.count()
		time.Sleep(time.Minute)
		if n := l.count() - before; n < 25 || n > 75 {
			t.Errorf("%d passes in a minute", n)
		}
		revision := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
		synctest.Wait()
		if got := l.table.inSwitch(); got != revision {
			t.Errorf("the flows are those of revision %d, want %d", got, revision)
		}
		l.machine.set(func() { l.machine.closed = nil })
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		l.stop()
	})
}

// While there is no way to other nodes the node is not ready, and is again once there is one.
func TestLoopNodesOutOfReach(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.machine.set(func() { l.machine.alone = errors.New("a firewall drops UDP port 4789") })
		time.Sleep(resyncEvery)
		l.notReady("a firewall drops UDP port 4789")
		revision := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
		synctest.Wait()
		if got := l.table.inSwitch(); got != revision {
			t.Errorf("the flows are those of revision %d, want %d", got, revision)
		}
		l.machine.set(func() { l.machine.alone = nil })
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		l.stop()
	})
}

// While the kernel has no device for the tunnels, whose port is therefore refused, the node is not ready, and pods that
// run keep what they have. The port is made anew now and then.
func TestLoopTunnelDeviceGone(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.machine.set(func() { l.machine.tunnelDown = errors.New("the kernel has no device vxlan_sys_4789") })
		time.Sleep(resyncEvery)
		l.notReady("vxlan_sys_4789")
		revision := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
		time.Sleep(4 * resyncEvery)
		l.notReady("vxlan_sys_4789")
		if got := l.table.inSwitch(); got != revision {
			t.Errorf("the flows are those of revision %d, want %d", got, revision)
		}
		l.machine.set(func() {
			if n := l.machine.remakes; n < 4 || n > 6 {
				t.Errorf("the port was made anew %d times in five passes that read back all there is", n)
			}
			l.machine.tunnelDown = nil
		})
		time.Sleep(resyncEvery + 2*lastPause)
		l.isReady(revision)
		l.stop()
	})
}

// A link that leaves pods too little is why the node is not ready. All else goes on, with what pods have.
func TestLoopSmallLink(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.machine.set(func() { l.machine.mtu = 600 })
		newest(l.machine.links, struct{}{})
		time.Sleep(resyncEvery)
		l.notReady("eth0 leaves pods packets of 550 bytes, and they need 576")
		l.machine.set(func() { l.machine.guarded = nil }) // somebody's doing
		before := l.count()
		time.Sleep(time.Minute)
		if n := l.count() - before; n > 75 {
			t.Errorf("%d passes in a minute", n)
		}
		l.machine.set(func() {
			if l.machine.guarded == nil {
				t.Error("the host's side is not put right")
			}
		})
		revision := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
		synctest.Wait()
		if got := l.table.inSwitch(); got != revision {
			t.Errorf("the flows are those of revision %d, want %d", got, revision)
		}
		l.machine.set(func() { l.machine.mtu = 1250 })
		newest(l.machine.links, struct{}{})
		time.Sleep(resyncEvery)
		l.isReady(revision)
		l.stop()
	})
}

// However often others change the database or devices, all is looked at once in a while only.
func TestLoopIsCalm(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		before := l.count()
		for range 6000 {
			newest(l.machine.changes, struct{}{})
			newest(l.machine.links, struct{}{})
			time.Sleep(10 * time.Millisecond)
		}
		if n := l.count() - before; n < 50 || n > 75 {
			t.Errorf("%d passes in a minute, want one for each %s and every %s", n, calm, resyncEvery)
		}
		l.stop()
	})
}

// A database that was away may be another one when it is back: all is read back at once.
func TestLoopDatabaseIsBack(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		time.Sleep(resyncEvery / 2)
		before := l.count()
		l.machine.set(func() { l.machine.databases++ })
		newest(l.machine.changes, struct{}{})
		time.Sleep(calm / 10)
		if n := l.count() - before; n != 1 {
			t.Errorf("%d passes when it was back", n)
		}
		newest(l.machine.changes, struct{}{})
		time.Sleep(calm / 10)
		if n := l.count() - before; n != 1 {
			t.Errorf("%d passes after another change", n)
		}
		l.machine.set(func() {
			if l.machine.refills != 1 {
				t.Errorf("what it may have lost was put back %d times, want once", l.machine.refills)
			}
		})
		l.stop()
	})
}

// A database that cannot be written is why no pods are attached, and nothing else waits for it.
func TestLoopDatabaseFull(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.machine.set(func() { l.machine.full = &ovs.StorageError{Text: "I/O error"} })
		time.Sleep(resyncEvery)
		l.notReady("the database of Open vSwitch cannot be written (I/O error)")
		revision := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
		synctest.Wait()
		if got := l.table.inSwitch(); got != revision {
			t.Errorf("the flows are those of revision %d, want %d", got, revision)
		}
		l.machine.set(func() { l.machine.full = nil })
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		l.stop()
	})
}

// A state directory that cannot be written is why no pods are attached, and nothing else waits for it: a switch that
// starts meanwhile has the flows of all, those of policies and services too.
func TestLoopStateDirectoryFull(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.machine.set(func() { l.machine.noRoom = &ipam.StorageError{Path: "/s/addresses.json", Cause: unix.ENOSPC} })
		time.Sleep(resyncEvery)
		l.notReady("/s/addresses.json")
		done := map[string]int{}
		later := []string{"policies in the flows", "the node's status", "services in the flows"}
		for _, name := range later {
			l.on(name, func() error { done[name]++; return nil })
		}
		l.machine.lose()
		revision := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
		l.machine.set(func() { l.machine.switchAway = false })
		time.Sleep(2 * lastPause)
		synctest.Wait()
		l.notReady("/s/addresses.json")
		if got := l.table.inSwitch(); got != revision {
			t.Errorf("the flows are those of revision %d, want %d", got, revision)
		}
		for _, name := range later {
			if done[name] == 0 {
				t.Errorf("no pass came as far as %q", name)
			}
		}
		l.machine.set(func() { l.machine.noRoom = nil })
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		l.stop()
	})
}

// A switch that starts and waits for its flows forwards by them when they are there, and not before; records
// that come meanwhile are not told as applied, as the datapath goes on as before them. Where somebody else has it
// wait, it is given some time, and the node takes no pods.
func TestLoopRestores(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.isReady(1)
		// stands is that it waits or not, that this is why the node is not ready or it is, and which revision is published.
		stands := func(when string, waits bool, reason string, published int64) {
			t.Helper()
			synctest.Wait()
			if got, _ := l.machine.RestoreWait(); got != waits {
				t.Errorf("%s: it waits: %t", when, got)
			}
			if got := l.etcd.shown().Revision; got != published {
				t.Errorf("%s: revision %d is published, want %d", when, got, published)
			}
			if reason != "" {
				l.notReady(reason)
			} else if err := l.loop.ready.is(); err != nil {
				t.Errorf("%s: not ready: %v", when, err)
			}
		}
		l.machine.lose()
		l.machine.set(func() {
			l.machine.switchAway, l.machine.restoring, l.machine.ours = false, true, true
			l.machine.refuses = errors.New("no flows yet")
		})
		time.Sleep(time.Minute)
		stands("no flows are in the switch", true, "no flows yet", 1)
		l.once("a switch that waits for flows", func() {
			synctest.Wait()
			if got := l.etcd.shown().Revision; got != 1 {
				t.Errorf("it waits: revision %d is published", got)
			}
		})
		second := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
		l.machine.set(func() { l.machine.refuses = nil })
		time.Sleep(2 * lastPause)
		stands("all flows are in the switch", false, "", second)

		l.machine.set(func() { l.machine.restoring = true })
		third := l.etcd.set(snapshot(0, 8, labSelf, labPeer))
		time.Sleep(othersRestoreWithin - resyncEvery)
		stands("somebody else has it wait", true, "somebody has Open vSwitch wait for flows", second)
		time.Sleep(othersRestoreWithin + resyncEvery)
		stands("somebody else left it waiting", false, "", third)
		l.stop()
	})
}

// The kernel's datapath goes on without ovs-vswitchd: records are not told to be applied when that went
// before what was cached was compared with the flows, however soon it is back.
func TestSwitchGoesBeforeItSettles(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.start()
		l.isReady(1)
		revision := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
		time.Sleep(l.machine.compares / 2)
		l.machine.lose()
		time.Sleep(2 * staleAtMost)
		synctest.Wait()
		if got := l.etcd.shown().Revision; got != 1 {
			t.Errorf("revision %d is published", got)
		}
		l.machine.set(func() { l.machine.switchAway = false })
		time.Sleep(2 * lastPause)
		l.isReady(revision)
		if got := l.etcd.shown().Revision; got != revision {
			t.Errorf("revision %d is published, want %d", got, revision)
		}
		l.stop()
	})
}

// Whatever goes and comes, in whatever order: once all is there again the node is ready with the newest
// records, also if its agent was started anew meanwhile.
func TestLoopInAnyOrder(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			scripted(t, func(t *testing.T, l *lab) {
				random := rand.New(rand.NewPCG(seed, 1))
				names := stepNames()
				l.start()
				for range 60 {
					disturb(l, random, names)
					time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
				}
				for _, name := range names {
					l.on(name, nil)
				}
				l.machine.set(func() { l.machine.databaseAway, l.machine.switchAway, l.machine.closed = false, false, nil })
				l.etcd.setAway(false)
				revision := l.etcd.set(snapshot(0, 9, labSelf, labPeer))
				time.Sleep(resyncEvery + 2*lastPause)
				l.isReady(revision)
				l.stop()
			})
		})
	}
}

// disturb does one thing to the node that may happen at any time.
func disturb(l *lab, random *rand.Rand, names []string) {
	name := names[random.IntN(len(names))]
	switch random.IntN(10) {
	case 0:
		l.machine.set(func() { l.machine.databaseAway = !l.machine.databaseAway })
	case 1:
		l.machine.lose()
	case 2, 3:
		l.machine.set(func() { l.machine.switchAway = false })
	case 4:
		l.etcd.setAway(random.IntN(2) == 0)
	case 5:
		l.on(name, func() error { return errors.New("broken") })
	case 6:
		l.on(name, nil)
	case 7:
		l.once(name, l.machine.lose)
	case 8:
		l.etcd.set(snapshot(0, random.IntN(9), labSelf, labPeer))
	case 9:
		l.stop()
		l.start()
	}
}

// readdress gives the machine another address in the place of its own, or gives it that back.
func (m *machine) readdress(ip netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.address = ip
}

// An address that is away for a moment, as one that is renewed, is waited for. Where another one stays in its place
// the agent ends, and says so, also where the record went to that address already.
func TestLoopReaddressed(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		revision := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
		l.start()
		l.isReady(revision)
		other := netip.MustParseAddr("198.18.0.77")
		l.machine.readdress(other)
		time.Sleep(resyncEvery)
		l.notReady("the node's address changed from 198.18.0.1 to 198.18.0.77")
		l.machine.readdress(netip.Addr{})
		time.Sleep(lastPause + lastPause/2)
		l.isReady(revision)
		select {
		case err := <-l.ended:
			t.Fatalf("the agent ended: %v", err)
		default:
		}
		moved := labSelf
		moved.HostIP = other
		l.machine.readdress(other)
		l.etcd.set(snapshot(0, 3, moved, labPeer))
		time.Sleep(2 * resyncEvery)
		synctest.Wait()
		select {
		case err := <-l.ended:
			if !errors.Is(err, errReaddressed) || !strings.Contains(err.Error(), "from 198.18.0.1 to 198.18.0.77") {
				t.Errorf("the agent ended: %v", err)
			}
		default:
			l.stop()
			t.Fatal("the agent goes on")
		}
	})
}
