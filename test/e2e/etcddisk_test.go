package e2e

import (
	"context"
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

const (
	// etcdDisk is the size of a disk on which etcd has room, with twice 64 MB for its log.
	etcdDisk = 400 << 20
	// freeRoom is what the controller says of one that is full.
	freeRoom = "free some room there"
)

// onSmallDisk puts etcd's data on a small disk until the test ends.
func (l *lab) onSmallDisk(disk *netlab.SmallDisk, err error) *netlab.SmallDisk {
	l.t.Helper()
	l.must(err)
	l.t.Cleanup(func() {
		if err := disk.End(); err != nil {
			l.t.Error(err)
		}
	})
	return disk
}

// writer writes large records that nobody reads, so that a full disk is noticed, and knows those that etcd has confirmed.
type writer struct {
	stopping context.CancelFunc
	done     chan struct{}

	mu        sync.Mutex
	confirmed map[string]bool
}

const written = "/written/" // beside the records

// writing starts one.
func (l *lab) writing() *writer {
	ctx, cancel := context.WithCancel(l.t.Context())
	w := &writer{stopping: cancel, done: make(chan struct{}), confirmed: map[string]bool{}}
	c := l.etcd()
	value := strings.Repeat("x", 64<<10)
	go func() {
		defer close(w.done)
		for i := 0; ctx.Err() == nil; i++ {
			key := fmt.Sprint(written, i)
			asking, cancel := context.WithTimeout(ctx, 2*time.Second)
			_, err := c.Put(asking, key, value)
			cancel()
			if err == nil {
				w.mu.Lock()
				w.confirmed[key] = true
				w.mu.Unlock()
			}
			time.Sleep(20 * time.Millisecond) // it is not to fill the disk by itself
		}
	}()
	return w
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.confirmed)
}

// writes waits until n more records are confirmed.
func (l *lab) writes(w *writer, n int) {
	l.t.Helper()
	was := w.count()
	l.eventually("etcd confirms what is written", time.Minute, func() error {
		if now := w.count(); now < was+n {
			return fmt.Errorf("%d of %d", now-was, n)
		}
		return nil
	})
}

// allThere stops a writer: etcd has all that it has confirmed.
func (l *lab) allThere(w *writer) {
	l.t.Helper()
	w.stopping()
	<-w.done
	got, err := l.etcd().Get(l.t.Context(), written, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	l.must(err)
	for _, kv := range got.Kvs {
		delete(w.confirmed, string(kv.Key))
	}
	if len(w.confirmed) > 0 {
		l.t.Errorf("etcd has lost what it had confirmed: %v", w.confirmed)
	}
}

// controllerWants waits until the controller is not ready, and says what has to be done.
func (l *lab) controllerWants(what string) {
	l.t.Helper()
	l.eventually("the controller says: "+what, 30*time.Second, func() error {
		if err := l.ControllerReady(l.t.Context(), "controller"); err == nil || !strings.Contains(err.Error(), what) {
			return fmt.Errorf("it says: %v", err)
		}
		return nil
	})
}

// takesChanges waits until the controller is ready, and has a tenant change carried out.
func (l *lab) takesChanges() {
	l.t.Helper()
	l.eventually("the controller is ready", time.Minute, func() error { return l.ControllerReady(l.t.Context(), "controller") })
	l.netns("join", "green", "red")
	l.netns("isolate", "green")
}

// restartPod has a pod go, and another one of the same name come.
func (l *lab) restartPod(p *netlab.Pod) {
	l.t.Helper()
	l.must(l.DelPod(l.t.Context(), *p))
	var next netlab.Pod
	l.eventually("ADD of "+p.Name, time.Minute, func() (err error) {
		next, err = l.AddPod(l.t.Context(), p.Node, p.Namespace, p.Name, netlab.PodOptions{})
		return err
	})
	*p = next
}

// goesOn is what works while the disk of etcd is full, and what does not.
func (l *lab) goesOn(run *probe.Run, added *netlab.Pod, unknown string) {
	l.t.Helper()
	l.restartPod(added)
	l.traffic(run, 20)
	_, err := l.AddPod(l.t.Context(), added.Node, unknown, "a", netlab.PodOptions{})
	l.says("ADD of an unknown namespace", err, "namespace "+unknown+" has no netID")
	if !l.Controller().Alive() {
		l.t.Error("the controller has ended")
	}
}

// TestEtcdDiskFull: the disk of the etcd in the controller fills up. While there is some room left that only stops changes, and
// the controller says what to do. Filled at once it ends the controller, which says why, and started anew waits until there is
// room. Nobody loses a packet to any of it, pods and agents are restarted meanwhile, and nothing is lost that was confirmed.
func TestEtcdDiskFull(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a", "green/a"}, "n2": {"red/b", "blue/b", "green/b"}})
	ctx := t.Context()
	l.must(l.Controller().Stop())
	disk := l.onSmallDisk(l.EtcdDisk(ctx, etcdDisk))
	l.must(l.StartController(ctx))
	run := l.run(greenChanges)
	l.traffic(run, 20)
	added := l.pod("n1", "red/restarted")

	l.must(disk.Fill(32 << 20))
	l.controllerWants(freeRoom)
	_, err := l.Netns(ctx, "join", "green", "red", "--timeout=5s")
	l.says("a join while the disk is nearly full", err, "database space exceeded: etcd takes no changes")
	l.goesOn(run, &added, "early")
	l.must(disk.Free())
	freed := time.Now()
	l.takesChanges()
	t.Logf("two changes were carried out %s after there was room", time.Since(freed).Round(time.Millisecond))

	w := l.writing()
	l.writes(w, 20)
	// Before it is looked at again, and with something to be written that is confirmed already.
	l.must(l.Controller().Suspend())
	l.must(disk.Fill(0))
	l.must(l.Controller().Resume())
	l.eventually("etcd ends", time.Minute, func() error {
		if l.Controller().Alive() {
			return errors.New("it does not")
		}
		return nil
	})
	log, err := l.Controller().Log()
	l.must(err)
	if !strings.Contains(log, "the controller ends, as the disk of its etcd is full: "+freeRoom) {
		t.Error("the controller does not say why it ends")
	}
	l.must(l.StartControllerUnready(ctx)) // as a kubelet does
	l.controllerWants(freeRoom)
	l.goesOn(run, &added, "late")
	l.must(l.Agent("n1").Kill())
	l.must(l.Agent("n1").StartUnready(ctx))
	l.goesOn(run, &added, "late")
	l.must(disk.Free())
	freed = time.Now()
	l.writes(w, 20)
	l.takesChanges()
	again := time.Since(freed)
	l.allThere(w)
	l.eventually("n1 is ready", time.Minute, func() error { return l.Agent("n1").Ready(ctx) })
	l.pod("n1", "early/a")
	l.pod("n1", "late/a")
	l.exact("n1")
	l.exact("n2")
	l.nothingLost(run, fmt.Sprintf("the disk of the controller's etcd nearly full, then full; tenant changes are carried out %s after there is room", again.Round(time.Millisecond)))
}

// TestEtcdMemberDiskFull: the disk of the member that leads an etcd of three is full, which ends it, also when it is started again.
// Nobody loses a packet, and tenant changes go on, all of them. With room it catches up, and has all that was confirmed.
func TestEtcdMemberDiskFull(t *testing.T) {
	long(t)
	l := membersUp(t)
	ctx := t.Context()
	run := l.run(greenChanges)
	full := l.leader()
	l.must(l.Member(full).Stop())
	disk := l.onSmallDisk(l.MemberDisk(ctx, full, etcdDisk))
	l.must(l.StartMember(ctx, full))
	l.waitMembers()
	to, err := l.member(full)
	l.must(err)
	from, err := l.MemberClient(l.leader())
	l.must(err)
	_, err = from.MoveLeader(ctx, to.Header.MemberId)
	l.must(errors.Join(err, from.Close()))
	l.traffic(run, 20)

	c, w := l.changing(), l.writing()
	l.goOn(c, 3)
	l.writes(w, 20)
	ends := func() {
		l.eventually("the member ends", time.Minute, func() error {
			if l.Member(full).Alive() {
				return errors.New("it does not")
			}
			return nil
		})
	}
	l.must(disk.Fill(0))
	ends()
	l.goOn(c, 5)
	l.must(l.StartMember(ctx, full))
	ends()
	l.goOn(c, 3)
	l.must(disk.Free())
	l.must(l.StartMember(ctx, full))
	l.waitMembers()
	l.writes(w, 20)
	l.goOn(c, 3)
	count, longest, failed := c.stop()
	if failed != nil {
		t.Errorf("of %d changes: %v", count, failed)
	}
	t.Logf("%d changes, the longest took %s", count, longest)
	l.nothingLost(run, "the disk of one of etcd's three members full, of the one that leads, while a namespace changes")
	l.allThere(w)
	l.oneLeads()
}
