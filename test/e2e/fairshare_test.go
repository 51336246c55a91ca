package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// needKernelDatapath skips the test where labs use the userspace datapath.
func needKernelDatapath(t *testing.T, why string) {
	t.Helper()
	here, err := link.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	kernel, err := here.HasGenericFamily("ovs_datapath")
	if err != nil {
		t.Fatal(err)
	}
	if !kernel || os.Getenv("NETLAB_DATAPATH") == "netdev" {
		t.Skipf("only on the kernel datapath: %s; `make test-kernel` runs it", why)
	}
}

// stream is TCP that one pod sends to an address, as fast as it goes.
type stream struct {
	from  netlab.Pod
	flows int
	// sandbox has the address to.
	sandbox string
	to      netip.Addr
}

// runStreams lets all streams run at once and returns what arrived of each in window,
// once they had time to fill the uplink, in bits per second.
func (l *lab) runStreams(window time.Duration, streams ...stream) []float64 {
	l.t.Helper()
	const settle = 3 * time.Second
	ctx, cancel := context.WithCancel(l.t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	arrived := make([]atomic.Int64, len(streams))
	for i, s := range streams {
		sink, err := ns.ListenTCP(s.sandbox, netip.AddrPortFrom(s.to, 0).String())
		l.must(err)
		context.AfterFunc(ctx, func() { _ = sink.Close() })
		wg.Go(func() { drain(ctx, sink, &arrived[i]) })
		for range s.flows {
			wg.Go(func() {
				if err := s.send(ctx, sink.Addr().String()); err != nil && ctx.Err() == nil {
					l.t.Errorf("stream from %s: %v", s.from, err)
				}
			})
		}
	}
	time.Sleep(settle)
	began := time.Now()
	before := make([]int64, len(streams))
	for i := range arrived {
		before[i] = arrived[i].Load()
	}
	time.Sleep(window)
	rates := make([]float64, len(streams))
	for i := range arrived {
		rates[i] = float64(arrived[i].Load()-before[i]) * 8 / time.Since(began).Seconds()
	}
	return rates
}

// drain counts what comes by all connections.
func drain(ctx context.Context, sink net.Listener, arrived *atomic.Int64) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := sink.Accept()
		if err != nil {
			return
		}
		context.AfterFunc(ctx, func() { _ = c.Close() })
		wg.Go(func() { _, _ = io.Copy(byteCounter{arrived}, c) })
	}
}

type byteCounter struct{ n *atomic.Int64 }

func (c byteCounter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// send fills one connection until ctx ends.
func (s stream) send(ctx context.Context, to string) error {
	var c net.Conn
	err := ns.DoPath(s.from.Sandbox(), func() (err error) {
		c, err = net.DialTimeout("tcp4", to, 30*time.Second)
		return err
	})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer func() { _ = c.Close() }()
	buf := make([]byte, 1<<16)
	for err == nil {
		_, err = c.Write(buf)
	}
	return errors.Join(err, ctx.Err())
}

// TestFairShare: pods of a node that together overload its uplink share it by
// tenant, and then by pod, however many connections each of them has.
func TestFairShare(t *testing.T) {
	needKernelDatapath(t, "packets of the userspace datapath carry no priority to the uplink")
	const rate = 20e6
	l := up(t, netlab.Options{AgentArgs: []string{"--uplink-rate", "20M"}})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "red/c", "blue/a"}, "n2": {"red/far", "blue/far"}})
	l.waitClasses("n1", 4)
	outside := ns.Path(l.UnderlayNetns())
	far := func(from string, flows int) stream {
		p := l.get(from)
		to := l.get(p.Namespace + "/far")
		return stream{p, flows, to.Sandbox(), to.IP}
	}
	out := func(from string, flows int) stream { return stream{l.get(from), flows, outside, netlab.Outside} }
	for _, c := range []struct {
		name    string
		streams []stream
	}{
		// The last one of each is quiet.
		{"tenants across nodes", []stream{far("red/a", 64), far("blue/a", 1)}},
		{"pods of a tenant across nodes", []stream{far("red/a", 64), far("red/b", 1)}},
		{"tenants to outside", []stream{out("red/a", 64), out("blue/a", 1)}},
		{"pods of a tenant to outside", []stream{out("red/a", 64), out("red/b", 1)}},
		{"across nodes against outside", []stream{far("red/a", 64), out("blue/a", 1)}},
		{"three pods against one", []stream{far("red/a", 16), far("red/b", 16), out("red/c", 16), far("blue/a", 1)}},
	} {
		rates := l.runStreams(4*time.Second, c.streams...)
		total := 0.0
		for _, r := range rates {
			total += r
		}
		quiet := rates[len(rates)-1] / total
		t.Logf("%-30s quiet %.1f %% of %.1f Mbit/s", c.name, 100*quiet, total/1e6)
		if quiet < 0.45 {
			t.Errorf("%s: the quiet pod got %.1f %% of the link: %.0f bit/s", c.name, 100*quiet, rates)
		}
		if total < 0.85*rate || total > rate {
			t.Errorf("%s: %.1f Mbit/s arrived by an uplink of %.1f", c.name, total/1e6, rate/1e6)
		}
	}
	l.uplinkMended()
	l.uplinkLeft()
}

// podClass is a pod's class as tc(8) shows it.
var podClass = regexp.MustCompile(`class hfsc 1:[0-9a-f]+ parent 1:f00[1-9a-f] `)

// waitClasses waits until n pods have classes on the uplink, and names in the firewall.
func (l *lab) waitClasses(node string, n int) {
	l.t.Helper()
	l.eventually("classes of pods on the uplink", 10*time.Second, func() error {
		// An agent that starts makes the classes before the firewall's table.
		classes, err := l.NodeExec(l.t.Context(), node, "tc", "class", "show", "dev", "eth0")
		if err != nil {
			return err
		}
		if got := len(podClass.FindAllString(classes, -1)); got != n {
			return fmt.Errorf("%d pods have classes, want %d:\n%s", got, n, classes)
		}
		named, err := l.NodeExec(l.t.Context(), node, "nft", "list", "map", "ip", "k8s-ovs-uplink", "classes")
		if err != nil {
			return err
		}
		if got := strings.Count(named, " : 1:"); got != n {
			return fmt.Errorf("%d pods have priorities, want %d:\n%s", got, n, named)
		}
		return nil
	})
}

// uplinkMended: the tree survives the agent, and comes back when somebody deletes it.
func (l *lab) uplinkMended() {
	l.t.Helper()
	ctx := l.t.Context()
	show := func() string { return l.node("n1", "tc", "class", "show", "dev", "eth0") }
	classes, flows := show(), l.flows("n1")
	l.must(l.Agent("n1").Restart(ctx))
	if got := podClass.FindAllString(show(), -1); len(got) != 4 {
		l.t.Errorf("classes after the agent's restart, before:\n%s\nafter:\n%s", classes, got)
	}
	l.waitFlows("flows after the agent's restart", "n1", flows, 5*time.Second)
	if n := strings.Count(strings.Join(flows, "\n"), "set_queue:"); n != 4 {
		l.t.Errorf("%d flows name a queue, want 4:\n%s", n, strings.Join(flows, "\n"))
	}
	l.node("n1", "tc", "qdisc", "del", "dev", "eth0", "root")
	l.waitClasses("n1", 4)
	l.must(l.DelPod(ctx, l.get("red/c")))
	l.waitClasses("n1", 3)
	metrics, err := l.Agent("n1").Metrics(ctx)
	l.must(err)
	for _, want := range []string{"k8s_ovs_uplink_rate_bits_per_second 2e+07", "k8s_ovs_uplink_shared 1"} {
		if !strings.Contains(metrics, want+"\n") {
			l.t.Errorf("metrics lack %q", want)
		}
	}
}

// uplinkLeft: switched off, nothing is left; and what somebody else put there stays.
func (l *lab) uplinkLeft() {
	l.t.Helper()
	ctx := l.t.Context()
	l.must(l.SetAgentArgs("n1", "--uplink-rate=off"))
	l.must(l.Agent("n1").Restart(ctx))
	l.eventually("the uplink without sharing", 5*time.Second, func() error {
		all := l.node("n1", "tc", "qdisc", "show", "dev", "eth0") + l.node("n1", "nft", "list", "tables") + strings.Join(l.flows("n1"), "\n")
		for _, trace := range []string{"hfsc", "k8s-ovs-uplink", "set_queue"} {
			if strings.Contains(all, trace) {
				return fmt.Errorf("there still is %s:\n%s", trace, all)
			}
		}
		return nil
	})
	l.node("n1", "tc", "qdisc", "add", "dev", "eth0", "root", "handle", "7:", "pfifo")
	l.must(l.SetAgentArgs("n1", "--uplink-rate=20M"))
	l.must(l.Agent("n1").Restart(ctx))
	if got := l.node("n1", "tc", "qdisc", "show", "dev", "eth0"); !strings.Contains(got, "pfifo 7: root") {
		l.t.Errorf("somebody's queueing discipline is now\n%s", got)
	}
}
