package e2e

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

const (
	ingressRate = "kubernetes.io/ingress-bandwidth"
	egressRate  = "kubernetes.io/egress-bandwidth"
)

// limited makes a cluster with pods red/a, red/near on n1 and red/far on n2; the
// latter two are the service, and the world answers as well.
func limited(t *testing.T) *cluster {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/near"}, "n2": {"red/far"}})
	c := l.inCluster("red/near", "red/far")
	c.answers(netlab.Pod{Namespace: "the", Name: "world", IP: netlab.Outside, Netns: l.UnderlayNetns()})
	return c
}

// limit annotates a pod and waits until its shapers are others, at most the second
// that is promised.
func (c *cluster) limit(name string, annotations map[string]string) {
	c.t.Helper()
	p := c.get(name)
	was := c.shapers(p)
	began := time.Now()
	c.must(c.SetAnnotations(p, annotations))
	c.eventually(fmt.Sprintf("%s is limited by %v", name, annotations), 5*time.Second, func() error {
		if c.shapers(p) == was {
			return fmt.Errorf("nothing has changed:\n%s", was)
		}
		return nil
	})
	if took := time.Since(began); took > time.Second {
		c.t.Errorf("%s is limited by %v after %s, not a second", name, annotations, took)
	}
}

// port is where answers are given, see [lab.answers].
const port = ":8080"

// TestLimits: what a pod sends and receives keeps to its limits, whatever it
// talks to and how.
func TestLimits(t *testing.T) {
	c := limited(t)
	a := c.get("red/a")
	to := []struct{ name, address string }{
		{"the same node", c.get("red/near").IP.String() + port},
		{"another node", c.get("red/far").IP.String() + port},
		{"a service", web},
		{"outside", netlab.Outside.String() + port},
	}
	for _, direction := range []struct {
		annotation, quantity string
		rate                 float64
	}{{egressRate, "6M", 6e6}, {ingressRate, "8M", 8e6}} {
		c.limit("red/a", map[string]string{direction.annotation: direction.quantity})
		for _, other := range to {
			for _, network := range []string{"tcp4", "udp4"} {
				f := c.flood(network, a, other.address, offered)
				c.keepsTo(fmt.Sprintf("%s, %s with %s", direction.annotation, network, other.name), f, direction.rate)
				f.stop()
			}
		}
	}
}

// limitStep is a pod's annotations and the rate of a flood there and back.
type limitStep struct {
	annotations map[string]string
	rate        float64
}

// changeLimits gives a pod one limit after the other while all pods send, and returns
// what was lost.
func (c *cluster) changeLimits(steps []limitStep) error {
	c.t.Helper()
	run := c.run(probe.Exactly(everybody))
	c.traffic(run, 20)
	for range 3 {
		for _, s := range steps {
			c.limit("red/a", s.annotations)
		}
		c.traffic(run, 5)
	}
	rep := run.Stop()
	c.t.Logf("%d messages, %d lost", rep.Sent(), rep.Lost())
	return rep.Err()
}

// TestLimitsLive: limits come, change and go on a running pod within a second, and
// a change itself loses nothing.
func TestLimitsLive(t *testing.T) {
	c := limited(t)
	steps := []limitStep{
		{map[string]string{egressRate: "10M"}, 10e6},
		{map[string]string{egressRate: "4M"}, 4e6},
		{map[string]string{egressRate: "12M", ingressRate: "6M"}, 6e6},
		{map[string]string{ingressRate: "12M"}, 12e6},
		{map[string]string{ingressRate: "5M", egressRate: "15M"}, 5e6},
		{nil, offered},
	}
	if err := c.changeLimits(steps); err != nil {
		t.Errorf("while limits changed: %v", err)
	}

	f := c.flood("udp4", c.get("red/a"), c.get("red/far").IP.String()+port, offered)
	for _, s := range steps {
		c.must(c.SetAnnotations(c.get("red/a"), s.annotations))
		c.within(fmt.Sprint(s.annotations), time.Second, f, s.rate)
	}
}

// TestLimitsRefused: a limit that is none is refused, and said to be; a running pod
// keeps the last good one.
func TestLimitsRefused(t *testing.T) {
	c := limited(t)
	ctx := t.Context()
	bad := map[string]string{egressRate: "10 Mbit"}
	_, err := c.AddPod(ctx, "n1", "red", "bad", netlab.PodOptions{Annotations: bad})
	if err == nil || !strings.Contains(err.Error(), egressRate) || !strings.Contains(err.Error(), "10 Mbit") {
		t.Errorf("ADD with egress-bandwidth \"10 Mbit\": %v, want that quoted", err)
	}
	c.event("bad", "10 Mbit")

	c.limit("red/a", map[string]string{egressRate: "5M"})
	before := c.shapers(c.get("red/a"))
	c.must(c.SetAnnotations(c.get("red/a"), bad))
	c.event("a", "10 Mbit")
	if diff := cmp.Diff(before, c.shapers(c.get("red/a"))); diff != "" {
		t.Errorf("a limit that is none changes a running pod (-before +after):\n%s", diff)
	}
	f := c.flood("udp4", c.get("red/a"), c.get("red/far").IP.String()+port, offered)
	c.keepsTo("the last good limit", f, 5e6)

	c.must(c.SetAgentArgs("n1", "--bandwidth-policy=lenient"))
	c.must(c.Agent("n1").Restart(ctx))
	c.keepsTo("the last good limit, for an agent that starts", f, 5e6)
	p, err := c.AddPod(ctx, "n1", "red", "lenient", netlab.PodOptions{Annotations: bad})
	c.must(err)
	c.event("lenient", "10 Mbit")
	c.within("lenient", 5*time.Second, c.flood("udp4", p, c.get("red/far").IP.String()+port, offered), offered)
}

// event waits for an Event about a pod of red that quotes something.
func (c *cluster) event(pod, quoted string) {
	c.t.Helper()
	c.eventually("an Event about "+pod, 5*time.Second, func() error {
		for _, e := range c.api.Events() {
			if e.InvolvedObject.Name == pod && strings.Contains(e.Message, quoted) {
				return nil
			}
		}
		return fmt.Errorf("there are %v", c.api.Events())
	})
}

// TestLimitsNotLifted: a pod that may change its own network and takes its shaper away
// is no faster, and has it back soon.
func TestLimitsNotLifted(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	l.pod("n1", "red/b")
	l.answers(l.get("red/b"))
	const rate = 5e6
	p, err := l.AddPod(t.Context(), "n1", "red", "a", netlab.PodOptions{EgressBandwidth: rate})
	l.must(err)
	f := l.flood("udp4", p, l.get("red/b").IP.String()+port, offered)
	l.keepsTo("at first", f, rate)
	was := l.shapers(p)
	if n := l.metric("n1", "k8s_ovs_backstop_dropped_packets_total"); n != 0 {
		t.Errorf("the bridge dropped %v packets of a pod that has its shaper", n)
	}
	_, err = l.PodExec(t.Context(), p, "tc", "qdisc", "del", "dev", "eth0", "root")
	l.must(err)
	f.rate(time.Second) // the bucket of what drops now is deeper
	l.eventually("its shaper is back", 15*time.Second, func() error {
		if got := f.rate(time.Second); got > 1.06*rate {
			t.Errorf("without its shaper it sends %.2f Mbit/s, the limit is %.2f", got/1e6, rate/1e6)
		}
		if diff := cmp.Diff(handles.ReplaceAllString(was, ""), handles.ReplaceAllString(l.shapers(p), "")); diff != "" {
			return fmt.Errorf("(-before +after)\n%s", diff)
		}
		return nil
	})
	if l.metric("n1", "k8s_ovs_backstop_dropped_packets_total") == 0 {
		t.Error("the bridge dropped nothing of a pod without its shaper")
	}
	l.keepsTo("with its shaper again", f, rate)
}

// TestLimitsCounted: operators see what a limit does.
func TestLimitsCounted(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	l.pod("n1", "red/b")
	l.answers(l.get("red/b"))
	p, err := l.AddPod(t.Context(), "n1", "red", "a", netlab.PodOptions{IngressBandwidth: 4e6, EgressBandwidth: 8e6})
	l.must(err)
	f := l.flood("udp4", p, l.get("red/b").IP.String()+port, offered)
	l.keepsTo("a pod with two limits", f, 4e6)
	for name, least := range map[string]float64{
		"limit_bits_per_second": 12e6, "shaped_bytes_total": 5e5, "shaped_delayed_packets_total": 100, "shaped_dropped_packets_total": 100,
	} {
		l.eventually(name, 5*time.Second, func() error {
			if got := l.metric("n1", "k8s_ovs_"+name); got < least {
				return fmt.Errorf("it is %v, want %v at least", got, least)
			}
			return nil
		})
	}
	l.eventually("netns show", 15*time.Second, func() error {
		out := l.netns("show", "red")
		for _, want := range []string{`(?m)^a +n1 +ingress +4M +- +[1-9]\d+ +[1-9]\d+ +[1-9]\d+$`, `(?m)^a +n1 +egress +8M +- +[1-9]\d+ +[1-9]\d+ +\d+$`} {
			if !regexp.MustCompile(want).MatchString(out) {
				return fmt.Errorf("no line matches %s in\n%s", want, out)
			}
		}
		return nil
	})
}

// TestLimitsOutlive: limits hold while agent and ovs-vswitchd are killed and come
// back, and are what they were.
func TestLimitsOutlive(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	ctx := t.Context()
	l.pod("n2", "red/far")
	l.answers(l.get("red/far"))
	const rate = 5e6
	p, err := l.AddPod(ctx, "n1", "red", "a", netlab.PodOptions{EgressBandwidth: rate, IngressBandwidth: 2 * rate})
	l.must(err)
	f := l.flood("udp4", p, l.get("red/far").IP.String()+port, offered)
	l.keepsTo("at first", f, rate)
	shapers, meters := l.shapers(p), l.meters("n1")
	if len(meters) == 0 {
		t.Error("there is no meter")
	}
	same := func(when string) {
		l.keepsTo(when, f, rate)
		l.eventually(when+": shapers and meters", 10*time.Second, func() error {
			if diff := cmp.Diff(shapers, l.shapers(p)) + cmp.Diff(meters, l.meters("n1")); diff != "" {
				return fmt.Errorf("(-before +after)\n%s", diff)
			}
			return nil
		})
	}
	l.must(l.Agent("n1").Kill())
	same("without agent")
	l.must(l.Agent("n1").Start(ctx))
	same("the agent is back")
	l.must(l.OVS("n1").KillVswitchd())
	if diff := cmp.Diff(shapers, l.shapers(p)); diff != "" {
		t.Errorf("without ovs-vswitchd the shapers are others (-before +after):\n%s", diff)
	}
	l.must(l.OVS("n1").StartVswitchd(ctx))
	same("ovs-vswitchd is back")
	if diff := cmp.Diff(shapers, l.shapers(p)); diff != "" {
		t.Errorf("ovs-vswitchd changes shapers (-before +after):\n%s", diff)
	}
}

// shapers are a pod's queueing disciplines and what leads to them, without what
// counts, in its own namespace and on the node.
func (l *lab) shapers(p netlab.Pod) string {
	l.t.Helper()
	own, err := l.PodExec(l.t.Context(), p, "tc", "qdisc", "show", "dev", "eth0")
	l.must(err)
	host, err := l.shapersOf(l.t.Context(), p.Node, p.HostInterface[len("kov"):])
	l.must(err)
	return own + strings.Join(host, "")
}

// counts and handles are parts of a queueing discipline's text that change with use, and
// with each one made.
var (
	counts  = regexp.MustCompile(`direct_packets_stat \d+ `)
	handles = regexp.MustCompile(`\b[0-9a-f]+: `)
)

// shapersOf are the queueing disciplines and filters on a node's devices whose names
// end so: pods' host ends and the ifbs beside them.
func (l *lab) shapersOf(ctx context.Context, node, suffix string) ([]string, error) {
	ours := regexp.MustCompile(`\b(kov|koi)[0-9a-z]*` + suffix + `\b`)
	qdiscs, err := l.NodeExec(ctx, node, "tc", "qdisc", "show")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, line := range strings.SplitAfter(counts.ReplaceAllString(qdiscs, ""), "\n") {
		device := ours.FindString(line)
		if device == "" {
			continue
		}
		filters, err := l.NodeExec(ctx, node, "tc", "filter", "show", "dev", device)
		if err != nil && strings.Contains(err.Error(), "Cannot find device") {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		found = append(found, line+filters)
	}
	return found, nil
}

// meters are those of a node's br0.
func (l *lab) meters(node string) []string {
	l.t.Helper()
	out, err := l.OVS(node).OFCtl(context.WithoutCancel(l.t.Context()), "dump-meters", "br0")
	l.must(err)
	return slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool { return !strings.Contains(line, "meter=") })
}

// TestLimitsOfOthers: two pods that are held to their limits do not hold up a third
// one on their node.
func TestLimitsOfOthers(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/free"}, "n2": {"red/far"}})
	far := l.get("red/far")
	l.answers(far)
	free := l.flood("tcp4", l.get("red/free"), far.IP.String()+port, offered)
	l.moves("the pod without a limit", free, 1e6, 10*time.Second)
	for _, name := range []string{"a", "b"} {
		p, err := l.AddPod(t.Context(), "n1", "red", name, netlab.PodOptions{IngressBandwidth: 5e6})
		l.must(err)
		l.answers(p)
	}
	var ratios []float64
	for range 3 {
		alone := free.rate(time.Second)
		var slow []*flood
		for _, name := range []string{"red/a", "red/b"} {
			slow = append(slow, l.flood("udp4", far, l.get(name).IP.String()+port, offered/2))
		}
		for _, f := range slow {
			l.keepsTo("a pod with a limit", f, 5e6)
		}
		ratios = append(ratios, free.rate(time.Second)/alone)
		for _, f := range slow {
			f.stop()
		}
	}
	slices.Sort(ratios)
	t.Logf("%.2f", ratios)
	if ratios[1] < 0.8 {
		t.Errorf("beside two pods at their limit, a third one keeps %.2f of what it has alone", ratios[1])
	}
}
