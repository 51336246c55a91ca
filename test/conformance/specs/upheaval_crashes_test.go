package specs

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestOpenVSwitchCrashes: ovs-vswitchd crashes in its container again and again, by one signal after the other. Each time
// its supervisor has it back before kubelet knows, pods of the node talk to each other again in under a second, and metrics
// and an Event say why and how often.
func TestOpenVSwitchCrashes(t *testing.T) {
	notShort(t)
	c := connectTenants(t)
	tenants := []*tenant{c.tenant(t, "crashes", nil, node1, node2), c.tenant(t, "beside", nil, node2)}
	c.awaitCalm(t)
	before, counted := c.vswitchd(t), c.crashes(t)
	run := startProbe(t, podsOf(tenants), probe.RunOptions{Interval: 20 * time.Millisecond, Protocols: []probe.Protocol{probe.UDP}})
	const rounds = 2
	var crashed []time.Time
	var signals []string
	for range rounds {
		for _, signal := range []string{"KILL", "SEGV", "ABRT", "TERM"} {
			crashed, signals = append(crashed, c.crash(t, signal)), append(signals, "SIG"+signal)
			eventually(t, settle, "pods reach each other after SIG"+signal, func() error { return reach(t, tenants, apart) })
			counted["SIG"+signal]++
		}
	}
	report := run.Stop()
	var each []string
	// What was sent so shortly before a crash may be lost by it.
	for i, silence := range report.Silences(crashed, 50*time.Millisecond) {
		each = append(each, fmt.Sprintf("%s %v", signals[i], silence.Round(time.Millisecond)))
		// The bar is 1 s on a machine at rest. kubelet alone takes over 15 s from the second crash on.
		if silence > 5*time.Second {
			t.Errorf("crash no. %d, by %s: a pod was without network for %v", i+1, signals[i], silence)
		}
	}
	t.Attr(measured, fmt.Sprintf("back after %s; %d of %d messages lost", strings.Join(each, ", "), report.Lost(), report.Sent()))
	if n := report.Forbidden(); n > 0 {
		t.Errorf("%d messages arrived that may not: %s", n, report.ForbiddenEvents[0])
	}
	if now := c.vswitchd(t); now.ContainerID != before.ContainerID || now.RestartCount != before.RestartCount {
		t.Errorf("kubelet restarted the container: %d times before, %d now", before.RestartCount, now.RestartCount)
	}
	eventually(t, settle, "metrics count the crashes", func() error {
		if now := c.crashes(t); !maps.Equal(now, counted) {
			return fmt.Errorf("%v, want %v", now, counted)
		}
		return nil
	})
	total := 0
	for _, n := range counted {
		total += n
	}
	c.awaitCrashEvent(t, "ovs-vswitchd ended ("+signals[len(signals)-1]+")", fmt.Sprintf("that was %d times", total))
}

// TestOpenVSwitchThatCannotStart: an ovs-vswitchd that cannot start is not its supervisor's alone: kubelet sees its container
// end and says why. The next container has a program of its own, and all is as before.
func TestOpenVSwitchThatCannotStart(t *testing.T) {
	notShort(t)
	c := connectTenants(t)
	tn := c.tenant(t, "faulty", nil, node1, node2)
	before := c.vswitchd(t)
	id := strings.TrimPrefix(before.ContainerID, "containerd://")
	if _, err := c.onNode(node2, "chmod a-x /run/containerd/io.containerd.runtime.v2.task/k8s.io/"+id+"/rootfs/usr/sbin/ovs-vswitchd"); err != nil {
		t.Fatal(err)
	}
	begin := c.crash(t, "KILL")
	// The supervisor tries for 30 s.
	eventually(t, 2*time.Minute, "kubelet sees the container end", func() error {
		now := c.vswitchd(t)
		ended := now.State.Terminated
		if ended == nil {
			ended = now.LastTerminationState.Terminated
		}
		switch {
		case ended == nil || ended.ContainerID != before.ContainerID:
			return fmt.Errorf("its state is %+v", now.State)
		case ended.ExitCode == 0 || !strings.Contains(ended.Message, "cannot stay up"):
			return fmt.Errorf("it ended with status %d and says %q", ended.ExitCode, ended.Message)
		}
		return nil
	})
	told := time.Since(begin)
	c.awaitCrashEvent(t, "it cannot stay up", "ovs-vswitchd ended (exit status ")
	eventually(t, 2*time.Minute, "the next container", func() error {
		if now := c.vswitchd(t); !now.Ready || now.RestartCount <= before.RestartCount {
			return fmt.Errorf("ready: %t, restarted %d times", now.Ready, now.RestartCount)
		}
		return nil
	})
	eventually(t, settle, "pods of both nodes reach each other", func() error { return reach(t, []*tenant{tn}, apart) })
	t.Attr(measured, fmt.Sprintf("kubelet said so after %v, all as before after %v", told.Round(100*time.Millisecond), time.Since(begin).Round(100*time.Millisecond)))
}

// crash ends ovs-vswitchd of node2, and nothing else of its container, and says when.
func (c *cluster) crash(t *testing.T, signal string) time.Time {
	t.Helper()
	began := time.Now()
	if _, err := c.onNode(node2, "kill -"+signal+" $(cat /run/openvswitch/ovs-vswitchd.pid)"); err != nil {
		t.Fatal(err)
	}
	return began
}

// vswitchd is how the container of node2's ovs-vswitchd is.
func (c *cluster) vswitchd(t *testing.T) corev1.ContainerStatus {
	t.Helper()
	pods, err := c.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=k8s-ovs-openvswitch", FieldSelector: "spec.nodeName=" + node2,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		for _, s := range p.Status.ContainerStatuses {
			if s.Name == "ovs-vswitchd" && p.DeletionTimestamp == nil {
				return s
			}
		}
	}
	t.Fatal("node2 has no container ovs-vswitchd")
	return corev1.ContainerStatus{}
}

var crashMetric = regexp.MustCompile(`(?m)^k8s_ovs_openvswitch_crashes_total{cause="(.*)",daemon="ovs-vswitchd"} (\d+)$`)

// crashes are how often node2's ovs-vswitchd crashed, by cause, as the agent there counts.
func (c *cluster) crashes(t *testing.T) map[string]int {
	t.Helper()
	text, err := c.metrics(node2, 9465)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, m := range crashMetric.FindAllStringSubmatch(text, -1) {
		if counts[m[1]], err = strconv.Atoi(m[2]); err != nil {
			t.Fatal(err)
		}
	}
	return counts
}

// awaitCrashEvent waits for an Event of node2 that says all of that. The agent tells of a daemon every ten seconds at most.
func (c *cluster) awaitCrashEvent(t *testing.T, says ...string) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("an Event that says %q", says), func() error {
		events, err := c.CoreV1().Events("").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=OpenVSwitchCrashed,involvedObject.name=" + node2})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range events.Items {
			if !slices.ContainsFunc(says, func(text string) bool { return !strings.Contains(e.Message, text) }) {
				return nil
			}
			all = append(all, e.Message)
		}
		return errors.New("there are: " + strings.Join(all, "; "))
	})
}
