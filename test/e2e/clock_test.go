package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// jump moves the machine's clock. Only a machine that a test has to itself has such a clock: test/kernel/init
// says so.
func (l *lab) jump(by time.Duration) {
	l.t.Helper()
	if os.Getenv("NETLAB_OWN_CLOCK") == "" {
		l.t.Fatal("this machine's clock is not the test's to set")
	}
	to := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	l.must(unix.ClockSettime(unix.CLOCK_REALTIME, &to))
	l.t.Logf("the clock jumps by %s, to %s", by, time.Now().UTC().Format(time.TimeOnly))
}

// TestClockJumps: the clock of a machine with a whole lab on it jumps by an hour, both ways. Nobody loses a packet, tenants change, pods
// come, the controller that leads goes on to lead, and agents start anew; a certificate whose half is over with the hour is renewed,
// and so is one that has ended with it.
func TestClockJumps(t *testing.T) {
	if os.Getenv("NETLAB_OWN_CLOCK") == "" {
		t.Skip("it sets the machine's clock, so it runs in the emulated machine only: make test-kernel RUN='^TestClockJumps$'")
	}
	l := upAlso(t, netlab.Options{}) // and not beside other tests
	ctx := t.Context()
	for node, lifetime := range map[string]string{"n1": "100m", "n2": "40m"} {
		l.must(l.GiveBundle(ctx, node, "--lifetime="+lifetime))
		l.must(l.Agent(node).Restart(ctx))
	}
	l.pods(map[string][]string{"n1": {"red/a", "blue/a", "green/a"}, "n2": {"red/b", "blue/b", "green/b"}})
	term := func() string {
		got, err := l.etcd().Get(ctx, networkKey+"/history/now")
		l.must(err)
		return string(got.Kvs[0].Value)
	}
	led := term()
	run := l.run(greenChanges)
	l.traffic(run, 20)
	// Never to before the lab's own CA was made: nobody would believe it.
	for i, by := range []time.Duration{time.Hour, -time.Hour, time.Hour, -time.Hour} {
		l.jump(by)
		for _, node := range []string{"n1", "n2"} {
			l.eventually(node+" has a certificate that is good for a while", 2*time.Minute, func() error {
				b, err := l.NodeIdentity(node)
				if err != nil {
					return err
				}
				if c, now := b.Pair.Cert, time.Now(); now.Before(c.NotBefore) || now.After(b.RenewAt()) {
					return fmt.Errorf("it is good from %s to %s", c.NotBefore, c.NotAfter)
				}
				return nil
			})
		}
		l.traffic(run, 20)
		l.netns("join", "green", "red")
		l.netns("isolate", "green")
		l.pod("n1", fmt.Sprint("red/new", i))
		l.must(l.Agent("n2").Restart(ctx))
		l.traffic(run, 20)
		if now := term(); now != led {
			t.Errorf("after a jump by %s another term began", by)
		}
	}
	l.nothingLost(run, "the clock of all machines jumps by an hour, four times, both ways")
	l.exact("n1")
	l.exact("n2")
}
