package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// etcdMembers is how many members etcd has in these tests.
const etcdMembers = 3

// membersUp is a lab whose etcd has members of its own, with two controllers, two tenants, and a namespace green that
// changes.
func membersUp(t *testing.T) *lab {
	t.Helper()
	l := up(t, netlab.Options{Members: etcdMembers})
	l.must(l.StartExtraController(t.Context(), "controller-2"))
	l.pods(map[string][]string{"n1": {"red/a", "blue/a", "green/a"}, "n2": {"red/b", "blue/b", "green/b"}})
	return l
}

// greenChanges is who may and who must reach whom while green joins red and leaves it again.
var greenChanges = probe.Rule{
	Must: tenants{"red": "r", "blue": "b", "green": "g"}.allowed,
	May:  tenants{"red": "r", "blue": "b", "green": "r"}.allowed,
}

// changer joins green to red and isolates it again until it is stopped.
type changer struct {
	stopping chan struct{}
	done     chan struct{}

	mu      sync.Mutex
	count   int           // that were carried out
	longest time.Duration // of them
	failed  []error
}

// changing starts one. Where a change fails it is asked for again, as a person does.
func (l *lab) changing() *changer {
	c := &changer{stopping: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for next := []string{"join", "green", "red"}; ; {
			select {
			case <-c.stopping:
				return
			default:
			}
			began := time.Now()
			_, err := l.Netns(l.t.Context(), next...)
			c.note(err, time.Since(began))
			if err != nil {
				continue
			}
			if next[0] == "join" {
				next = []string{"isolate", "green"}
			} else {
				next = []string{"join", "green", "red"}
			}
		}
	}()
	return c
}

func (c *changer) note(err error, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed = append(c.failed, fmt.Errorf("after %s: %w", took.Round(time.Millisecond), err))
		return
	}
	c.count++
	c.longest = max(c.longest, took)
}

// outcome is what became of the changes up to now.
func (c *changer) outcome() (count int, longest time.Duration, failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count, c.longest, errors.Join(c.failed...)
}

// stop ends it, and waits for the change that is under way.
func (c *changer) stop() (count int, longest time.Duration, failed error) {
	close(c.stopping)
	<-c.done
	return c.outcome()
}

// goOn waits until n more changes are carried out.
func (l *lab) goOn(c *changer, n int) {
	l.t.Helper()
	was, _, _ := c.outcome()
	l.eventually("tenant changes go on", time.Minute, func() error {
		now, _, failed := c.outcome()
		if now < was+n {
			return fmt.Errorf("%d of %d; failed: %w", now-was, n, failed)
		}
		return nil
	})
}

// leader is the member that leads etcd, from 1.
func (l *lab) leader() (leader int) {
	l.t.Helper()
	l.eventually("etcd has a leader", time.Minute, func() error {
		var last error
		for n := 1; n <= etcdMembers; n++ {
			st, err := l.member(n)
			if err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId {
				leader = n
				return nil
			}
			last = errors.Join(last, err)
		}
		return fmt.Errorf("no member leads: %w", last)
	})
	return leader
}

// member is what a member says of itself.
func (l *lab) member(n int) (*clientv3.StatusResponse, error) {
	c, err := l.MemberClient(n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // it was answered
	return c.Status(l.t.Context(), c.Endpoints()[0])
}

// waitMembers waits until all members follow one leader.
func (l *lab) waitMembers() {
	l.t.Helper()
	l.eventually("all members of etcd follow one leader", time.Minute, func() error {
		leaders := map[uint64]bool{}
		for n := 1; n <= etcdMembers; n++ {
			st, err := l.member(n)
			if err != nil {
				return err
			}
			leaders[st.Leader] = true
		}
		if len(leaders) != 1 || leaders[0] {
			return fmt.Errorf("leaders are %v", leaders)
		}
		return nil
	})
}

// oneLeads waits until just one controller leads, all are ready, and both nodes are what they should be.
func (l *lab) oneLeads() {
	l.t.Helper()
	l.eventually("one controller leads, and all are ready", time.Minute, func() error {
		leading := 0
		for _, name := range []string{"controller", "controller-2"} {
			if err := l.ControllerReady(l.t.Context(), name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			metrics, err := l.ControllerMetrics(l.t.Context(), name)
			if err != nil {
				return err
			}
			if strings.Contains(metrics, "\nk8s_ovs_controller_leader 1\n") {
				leading++
			}
		}
		if leading != 1 {
			return fmt.Errorf("%d controllers lead", leading)
		}
		return errors.Join(l.Agent("n1").Ready(l.t.Context()), l.Agent("n2").Ready(l.t.Context()))
	})
	l.exact("n1")
	l.exact("n2")
}

// TestEtcdMemberKilled: each member of three is killed in turn, then cut off as its machine that loses power is, while a namespace
// changes. Nobody loses a packet, and the changes go on, all of them: who is connected to that member goes to another.
func TestEtcdMemberKilled(t *testing.T) {
	long(t)
	l := membersUp(t)
	ctx := t.Context()
	run := l.run(greenChanges)
	l.traffic(run, 20)
	c := l.changing()
	l.goOn(c, 3)
	for n := 1; n <= etcdMembers; n++ {
		l.must(l.Member(n).Kill())
		l.goOn(c, 5)
		l.must(l.StartMember(ctx, n))
		l.waitMembers()
	}
	l.goOn(c, 3)
	count, longest, failed := c.outcome()
	if failed != nil {
		t.Errorf("of %d changes while a member was killed: %v", count, failed)
	}
	t.Logf("%d changes while members were killed, the longest took %s", count, longest)

	leader := l.leader()
	for _, n := range []int{leader, leader%etcdMembers + 1} {
		name := fmt.Sprint("etcd-", n)
		l.must(l.Cut(ctx, name))
		l.goOn(c, 5)
		l.must(l.Heal(ctx, name))
		l.waitMembers()
	}
	count, longest, failed = c.stop()
	if failed != nil {
		t.Errorf("of %d changes, with members killed and cut off: %v", count, failed)
	}
	t.Logf("%d changes in all, the longest took %s", count, longest)
	l.nothingLost(run, "each member of etcd's three killed in turn, two cut off, while a namespace changes")
	l.oneLeads()
}

// TestEtcdLeaderMoved: etcd's leader moves to another member, again and again, while a namespace changes. Nobody loses a
// packet, the changes go on, all of them, and the controller that leads goes on to.
func TestEtcdLeaderMoved(t *testing.T) {
	long(t)
	const moves = 12
	l := membersUp(t)
	run := l.run(greenChanges)
	l.traffic(run, 20)
	c := l.changing()
	l.goOn(c, 2)
	led := l.controllerLeads()
	for range moves {
		from := l.leader()
		to, err := l.member(from%etcdMembers + 1)
		l.must(err)
		m, err := l.MemberClient(from)
		l.must(err)
		_, err = m.MoveLeader(t.Context(), to.Header.MemberId)
		l.must(errors.Join(err, m.Close()))
		l.goOn(c, 2)
	}
	count, longest, failed := c.stop()
	if failed != nil {
		t.Errorf("of %d changes: %v", count, failed)
	}
	t.Logf("%d changes, the longest took %s", count, longest)
	l.nothingLost(run, fmt.Sprintf("etcd's leader moved %d times, while a namespace changes", moves))
	l.oneLeads()
	if now := l.controllerLeads(); now != led {
		t.Errorf("%s leads, and not %s any more", now, led)
	}
}

// controllerLeads is the name of the controller that leads.
func (l *lab) controllerLeads() (name string) {
	l.t.Helper()
	l.eventually("a controller leads", time.Minute, func() error {
		for _, name = range []string{"controller", "controller-2"} {
			metrics, err := l.ControllerMetrics(l.t.Context(), name)
			if err == nil && strings.Contains(metrics, "\nk8s_ovs_controller_leader 1\n") {
				return nil
			}
		}
		return errors.New("none does")
	})
	return name
}

// noLeader is what is said of an etcd that has lost most of its members.
const noLeader = "etcd has no leader: most of its members are away"

// TestEtcdQuorumLost: two members of three are killed, for longer than any lease lasts. Nobody loses a packet, pods of known namespaces
// come, what is asked for is refused with an error that says what etcd lacks, and so do controllers, which are not ready, and agents,
// which are. When the members are back all catch up, and one controller leads.
func TestEtcdQuorumLost(t *testing.T) {
	long(t)
	l := membersUp(t)
	ctx := t.Context()
	run := l.run(greenChanges)
	l.traffic(run, 20)
	leader := l.leader()
	other := leader%etcdMembers + 1
	lost := time.Now()
	l.must(l.Member(leader).Kill())
	l.must(l.Member(other).Kill())
	l.eventually("ADD without a quorum", 30*time.Second, func() error {
		_, err := l.AddPod(ctx, "n1", "red", "new", netlab.PodOptions{})
		return err
	})
	began := time.Now()
	_, err := l.Netns(ctx, "join", "green", "red", "--timeout=5s")
	l.says("a join without a quorum", err, "most of its members") // it may have come before the members left noticed
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the join was refused after %s", took)
	}
	for _, name := range []string{"controller", "controller-2"} {
		l.eventually(name+" says that etcd is away", 30*time.Second, func() error {
			if err := l.ControllerReady(ctx, name); err == nil || !strings.Contains(err.Error(), noLeader) {
				return fmt.Errorf("it says: %w", err)
			}
			return nil
		})
	}
	for _, node := range []string{"n1", "n2"} { // which serve pods all the same
		l.must(l.Agent(node).Ready(ctx))
		l.eventually("the agent of "+node+" says that etcd is away", 30*time.Second, func() error {
			log, err := l.Agent(node).Log()
			if err != nil || strings.Contains(log, "records in etcd are out of sight; trying again") && strings.Contains(log, noLeader) {
				return err
			}
			return errors.New("it does not")
		})
	}
	_, err = l.AddPod(ctx, "n1", "unknown", "a", netlab.PodOptions{})
	l.says("ADD of an unknown namespace", err, "namespace unknown has no netID")
	time.Sleep(time.Until(lost.Add(20 * time.Second))) // the fault itself: longer than any lease
	l.traffic(run, 20)
	l.must(l.StartMember(ctx, leader))
	l.must(l.StartMember(ctx, other))
	l.waitMembers()
	l.eventually("ADD of that namespace", time.Minute, func() error {
		_, err := l.AddPod(ctx, "n1", "unknown", "a", netlab.PodOptions{})
		return err
	})
	l.oneLeads()
	l.netns("join", "green", "red")
	l.traffic(run, 20)
	l.nothingLost(run, "two members of etcd's three killed for 20 s")
	l.waitMatrix("green has joined red", 10*time.Second, tenants{"red": "r", "blue": "b", "green": "r", "unknown": "u"}.allowed)
}
