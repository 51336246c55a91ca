package agent

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
)

// Another CNI configuration comes before ours while the node is ready: the node says so within a pass, in its status too, and is
// ready again when it is gone.
func TestLoopPreferred(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		revision := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
		l.start()
		l.isReady(revision)
		l.conf.set(errors.New("the container runtime takes 10-flannel.conflist"))
		time.Sleep(resyncEvery + time.Second)
		l.notReady("10-flannel.conflist")
		if got := l.etcd.shown(); got.Message == "" || got.Revision != revision {
			t.Errorf("status %+v", got)
		}
		// What its pods have goes on.
		revision = l.etcd.set(snapshot(0, 4, labSelf, labPeer))
		time.Sleep(lastPause * 2)
		if got := l.table.inSwitch(); got != revision {
			t.Errorf("flows of revision %d are in the switch, want %d", got, revision)
		}
		l.conf.set(nil)
		time.Sleep(lastPause * 2)
		l.isReady(revision)
		l.stop()
	})
}

// Where another one is there when the agent starts, ours is not offered beside it.
func TestLoopPreferredAtStart(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		revision := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
		l.once("the container runtime's way to the agent", func() {
			l.conf.set(errors.New("the container runtime takes 10-flannel.conflist"))
		})
		l.start()
		time.Sleep(lastPause * 2)
		l.notReady("10-flannel.conflist")
		if l.conf.there {
			t.Error("ours is offered")
		}
		l.conf.set(nil)
		time.Sleep(lastPause * 2)
		l.isReady(revision)
		if !l.conf.there {
			t.Error("ours is not there")
		}
		l.stop()
	})
}

// The runtime's way to the agent is kept open while Open vSwitch is away, when pods still go.
func TestLoopRuntimeWithoutSwitch(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		l.machine.set(func() { l.machine.databaseAway = true })
		l.start()
		l.notReady("the database of Open vSwitch")
		before := l.conf.kept()
		time.Sleep(2 * resyncEvery)
		synctest.Wait()
		if l.conf.kept() == before {
			t.Error("nobody looks after the socket")
		}
		l.stop()
	})
}

// A folder that was deleted under the agent's mount is only there again in a new container, be it found by a look or by a file that
// cannot be written.
func TestLoopDetached(t *testing.T) {
	for name, remove := range map[string]func(c *fakeConf, why error){"a look": (*fakeConf).set, "a file": (*fakeConf).setPlace, "the state directory": (*fakeConf).setGone} {
		t.Run(name, func(t *testing.T) {
			scripted(t, func(t *testing.T, l *lab) {
				revision := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
				l.start()
				l.isReady(revision)
				remove(l.conf, fmt.Errorf("/run/k8s-ovs was deleted: %w", detached.Err))
				time.Sleep(resyncEvery + time.Second)
				synctest.Wait()
				select {
				case err := <-l.ended:
					if !errors.Is(err, detached.Err) {
						t.Errorf("the agent ended: %v", err)
					}
				default:
					l.stop()
					t.Fatal("the agent goes on")
				}
			})
		})
	}
}

// A node that does not come to etcd for want of its own certificate is not ready, and says so; what pods have is
// kept up all the same. etcd that is away is no reason.
func TestLoopWithoutCredentials(t *testing.T) {
	scripted(t, func(t *testing.T, l *lab) {
		revision := l.etcd.set(snapshot(0, 3, labSelf, labPeer))
		l.start()
		l.isReady(revision)
		for _, kind := range []error{store.ErrUnavailable, store.ErrCredentials, nil} {
			var why error
			if kind != nil {
				why = &store.Error{Op: "connect to etcd", Kind: kind, Cause: errors.New("open /state/identity.pem: no such file")}
			}
			l.etcd.mu.Lock()
			l.etcd.unhealthy = why
			l.etcd.mu.Unlock()
			l.machine.set(func() { l.machine.guarded = nil }) // somebody's doing
			time.Sleep(resyncEvery + lastPause)
			l.machine.set(func() {
				if l.machine.guarded == nil {
					t.Errorf("%v: the host's side is not put right", kind)
				}
			})
			if kind == store.ErrCredentials {
				l.notReady("identity.pem")
			} else {
				l.isReady(revision)
			}
		}
		l.stop()
	})
}
