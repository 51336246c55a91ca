package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// ovsScripts start Open vSwitch in its containers.
const ovsScripts = "../../manifests/image"

// silences are how long after each moment the last packet was sent that a run has lost.
// A moment's are those up to the next.
func silences(rep probe.Report, moments []time.Time) []time.Duration {
	longest := make([]time.Duration, len(moments))
	for _, e := range rep.LostEvents {
		if n, _ := slices.BinarySearchFunc(moments, e.Sent, time.Time.Compare); n > 0 {
			longest[n-1] = max(longest[n-1], e.Sent.Sub(moments[n-1]))
		}
	}
	return longest
}

// backOff is how long ovs-vswitchd pauses at most before it looks for its database again, when that
// has gone several times (reconnect.h): what its main thread does waits meanwhile, and the userspace
// datapath is part of that.
const backOff = 8 * time.Second

// TestOpenVSwitchCrashes: ovs-vswitchd and ovsdb-server, run as their containers run them, crash
// again and again, by whatever signal. Each time they are back and pods talk to each other in under
// a second, nothing passes that is forbidden, and all is counted and told with its reason.
func TestOpenVSwitchCrashes(t *testing.T) {
	rounds := 10
	if testing.Short() {
		rounds = 1
	}
	l := up(t, netlab.Options{})
	l.pods(quartet)
	c := l.inCluster("red/b")
	l.must(l.OVS("n1").Supervise(t.Context(), ovsScripts))
	l.waitMatrix("Open vSwitch is supervised", 10*time.Second, redAndBlue.allowed)
	for _, daemon := range []string{"ovs-vswitchd", "ovsdb-server"} {
		silenceAtMost := recovery
		if daemon == "ovsdb-server" {
			silenceAtMost += backOff
		}
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGABRT} {
			run := l.run(probe.Exactly(redAndBlue.allowed))
			l.traffic(run, 10)
			var crashed []time.Time
			var served []time.Duration
			for range rounds {
				began := time.Now()
				l.must(l.OVS("n1").Crash(t.Context(), daemon, sig))
				l.eventuallyEach(5*time.Millisecond, daemon+" serves again", recovery, func() error { return l.daemonServes(daemon) })
				crashed, served = append(crashed, began), append(served, time.Since(began).Round(time.Millisecond))
				l.traffic(run, 20)
			}
			rep := run.Stop()
			for _, e := range rep.ForbiddenEvents {
				t.Errorf("%s, %s: forbidden: %s", daemon, sig, e)
			}
			silent := silences(rep, crashed)
			t.Logf("%s, %s: it serves again after %v; %d of %d lost, the last that was lost was sent after %v", daemon, sig, served, rep.Lost(), rep.Sent(), silent)
			if longest := slices.Max(silent); longest > silenceAtMost {
				t.Errorf("%s, %s: packets are lost for %s, want at most %s", daemon, sig, longest, silenceAtMost)
			}
		}
	}
	l.eventually("all crashes are counted", 10*time.Second, func() error {
		if n, _, text := l.findMetric("n1", "k8s_ovs_openvswitch_crashes_total"); n != float64(6*rounds) ||
			!strings.Contains(text, fmt.Sprintf(`k8s_ovs_openvswitch_crashes_total{cause="SIGSEGV",daemon="ovsdb-server"} %d`, rounds)) {
			return fmt.Errorf("%v of %d", n, 6*rounds)
		}
		return nil
	})
	l.eventually("they are told", 15*time.Second, func() error {
		for _, daemon := range []string{"ovs-vswitchd", "ovsdb-server"} {
			if !slices.ContainsFunc(c.api.Events(), func(e *corev1.Event) bool {
				return e.Reason == "OpenVSwitchCrashed" && e.InvolvedObject.Name == "n1" && strings.HasPrefix(e.Message, daemon+" ended (SIG")
			}) {
				return fmt.Errorf("%s is not among %v", daemon, c.api.Events())
			}
		}
		return nil
	})
	l.pod("n1", "red/c")
	l.requireMatrix("with a new pod", redAndBlue.allowed)
}

// daemonServes is nil while a daemon of n1 serves: ovs-vswitchd the bridge.
func (l *lab) daemonServes(daemon string) error {
	o := l.OVS("n1")
	if daemon == "ovsdb-server" {
		_, err := o.VSCtl(l.t.Context(), "--no-wait", "br-exists", "br0")
		return err
	}
	list, err := o.AppCtl(l.t.Context(), "ofproto/list")
	if err == nil && !strings.Contains(list, "br0") {
		err = errors.New("it has no bridge br0")
	}
	return err
}
