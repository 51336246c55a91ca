package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

const (
	// upgradeInterval is the pause between two messages of everybody who talks in an upgrade.
	upgradeInterval = time.Second / 200
	// heldTo is what red/held may send and receive, in bits per second: little, so that it takes that
	// much also where other tests run beside.
	heldTo = 1e6
)

// TestUpgradeAndBack: from the release before to this version, back and here again: the controller
// and then agent by agent, or back in the other order. Meanwhile pods talk on one node, from
// node to node and through a service, 200 times a second. Nothing is lost, pods stay what they are and as
// fast as they may be, and at each step what the other version made is checked and deleted, and
// new pods come. A version that runs for the second time has the flows that it had the first time.
func TestUpgradeAndBack(t *testing.T) {
	old := previousRelease(t)
	l := up(t, netlab.Options{Bare: true})
	c := l.serveCluster("red", "blue")
	c.must(l.UsePlugin(old))
	c.must(l.StartInCluster(t.Context(), old))
	nodes := []string{"n1", "n2"}
	for _, node := range nodes {
		c.must(l.Agent(node).StartInCluster(t.Context(), old))
	}
	u := c.beginUpgrade()
	for _, node := range nodes {
		u.flows[node+" "+old] = l.flows(node)
		l.pod(node, "red/passing-"+node)
	}
	run := l.runAs(probe.Exactly(redAndBlue.allowed), probe.RunOptions{Interval: upgradeInterval, Protocols: []probe.Protocol{probe.UDP, probe.Stream}},
		l.get("red/a"), l.get("red/near"), l.get("red/far"), l.get("blue/b"))
	through := c.askService("red/a", 8)
	nothingLost := func(when string) {
		t.Helper()
		l.traffic(run, 100)
		through.settle(when)
		if err := run.Report().Err(); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	nothingLost("before the upgrade")
	for _, version := range []struct{ name, bin string }{{"to this version", binDir}, {"back", old}, {"to this version again", binDir}} {
		if version.bin == binDir {
			c.exchangeController(version.bin)
			nothingLost("the controller, " + version.name)
		}
		for _, node := range nodes {
			when := fmt.Sprintf("the agent of %s, %s", node, version.name)
			u.exchangeAgent(when, node, version.bin)
			nothingLost(when)
		}
		if version.bin != binDir {
			c.exchangeController(version.bin)
			nothingLost("the controller, " + version.name)
		}
	}
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("%d messages, %d lost; %d through the service, all answered", rep.Sent(), rep.Lost(), through.stop())
}

// upgrade is a cluster whose programs are exchanged.
type upgrade struct {
	*cluster
	kept  []netlab.Pod
	was   map[string]string   // what each of these pods is
	flows map[string][]string // by node and version that runs there
	flood *flood
}

// beginUpgrade makes the pods that stay, those with limits among them, and service red/web.
func (c *cluster) beginUpgrade() *upgrade {
	c.t.Helper()
	limits := func(rate string) netlab.PodOptions {
		return netlab.PodOptions{Annotations: map[string]string{ingressRate: rate, egressRate: rate}}
	}
	u := &upgrade{cluster: c, was: map[string]string{}, flows: map[string][]string{}}
	for _, p := range []struct {
		node, namespace, name string
		options               netlab.PodOptions
	}{
		{"n1", "red", "a", limits("50M")}, {"n1", "red", "near", netlab.PodOptions{}}, {"n1", "red", "held", limits("1M")},
		{"n2", "red", "far", netlab.PodOptions{}}, {"n2", "blue", "b", netlab.PodOptions{}},
	} {
		pod, err := c.AddPod(c.t.Context(), p.node, p.namespace, p.name, p.options)
		c.must(err)
		u.kept = append(u.kept, pod)
		u.was[pod.String()] = u.is(pod)
	}
	c.must(c.api.Put(c.service()))
	c.endpoints("red/near", "red/far")
	for _, name := range []string{"red/near", "red/far"} {
		c.answers(c.get(name))
	}
	for _, node := range []string{"n1", "n2"} {
		c.waitGroups(node, 2)
	}
	u.flood = c.flood("udp4", c.get("red/held"), c.get("red/far").IP.String()+port, 4*heldTo)
	return u
}

// is what a pod keeps for as long as it lives: its device with index, MAC, MTU and address, the
// number of its port and what limits it.
func (u *upgrade) is(p netlab.Pod) string {
	u.t.Helper()
	device, err := u.PodExec(u.t.Context(), p, "ip", "-details", "link", "show", "dev", "eth0")
	u.must(err)
	address, err := u.PodExec(u.t.Context(), p, "ip", "-4", "address", "show", "dev", "eth0") // what IPv6 says changes by itself
	u.must(err)
	ofport, err := u.OVS(p.Node).VSCtl(u.t.Context(), "get", "interface", p.HostInterface, "ofport")
	u.must(err)
	return device + address + "ofport " + ofport + u.shapers(p)
}

// exchangeController stops the controller and starts another version's.
func (c *cluster) exchangeController(bin string) {
	c.t.Helper()
	c.must(c.Controller().Stop())
	c.must(c.StartInCluster(c.t.Context(), bin))
}

// exchangeAgent stops a node's agent, starts another version's, and asks of it all that it must do.
func (u *upgrade) exchangeAgent(when, node, bin string) {
	u.t.Helper()
	ctx := u.t.Context()
	u.must(u.Agent(node).Stop())
	u.must(u.Agent(node).StartInCluster(ctx, bin))
	check := func() {
		u.t.Helper()
		for _, p := range u.kept {
			if p.Node == node {
				u.must(u.CNICheck(ctx, p))
			}
		}
	}
	// The plugin is still the other version's, as a runtime may have called it just before.
	check()
	passing := u.get("red/passing-" + node)
	u.must(u.CNICheck(ctx, passing))
	u.must(u.DelPod(ctx, passing))
	u.pod(node, passing.String())
	u.must(u.UsePlugin(bin))
	check()
	passing = u.get(passing.String())
	u.must(u.CNICheck(ctx, passing))
	u.must(u.DelPod(ctx, passing))
	if was, again := u.flows[node+" "+bin]; again {
		u.waitFlows(when+": its flows of the first time", node, was, 10*time.Second)
	} else {
		u.flows[node+" "+bin] = u.cluster.flows(node)
	}
	u.pod(node, passing.String())

	for _, p := range u.kept {
		if diff := cmp.Diff(u.was[p.String()], u.is(p)); diff != "" {
			u.t.Errorf("%s: %s is another (-before +after):\n%s", when, p, diff)
		}
	}
	u.keepsTo(when, u.flood, heldTo)
	u.requireAnswers(when, "red/a", "red/near", "red/far") // new connections
}

// inquiry asks service red/web over UDP, without waiting for an answer before it asks again.
type inquiry struct {
	l     *lab
	conns []net.Conn
	end   chan struct{}
	done  sync.WaitGroup

	mu      sync.Mutex
	asked   int
	pending map[string]time.Time // what was asked and is not answered, and when it was
}

// askService has n clients of a pod ask in turn, 200 times a second together.
func (c *cluster) askService(from string, n int) *inquiry {
	c.t.Helper()
	q := &inquiry{l: c.lab, end: make(chan struct{}), pending: map[string]time.Time{}}
	for range n {
		conn := c.client(from)
		q.conns = append(q.conns, conn)
		q.done.Go(func() { q.hear(conn) })
	}
	q.done.Go(q.ask)
	return q
}

func (q *inquiry) ask() {
	tick := time.NewTicker(upgradeInterval)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-q.end:
			return
		case <-tick.C:
		}
		question := fmt.Sprint(i)
		q.mu.Lock()
		q.asked++
		q.pending[question] = time.Now()
		q.mu.Unlock()
		_, _ = q.conns[i%len(q.conns)].Write([]byte(question)) // what is not sent is not answered
	}
}

func (q *inquiry) hear(conn net.Conn) {
	buf := make([]byte, 2048)
	for {
		n, err := conn.Read(buf)
		select {
		case <-q.end:
			return
		default:
		}
		if err != nil {
			continue // it was refused, and stays unanswered
		}
		_, question, _ := strings.Cut(string(buf[:n]), "\n")
		q.mu.Lock()
		delete(q.pending, question)
		q.mu.Unlock()
	}
}

// settle waits until all that was asked so far is answered.
func (q *inquiry) settle(when string) {
	q.l.t.Helper()
	began := time.Now()
	q.l.eventually(when+": answers through the service", 2*time.Second, func() error {
		q.mu.Lock()
		defer q.mu.Unlock()
		var missing []string
		for question, at := range q.pending {
			if at.Before(began) {
				missing = append(missing, question+" of "+at.Format("15:04:05.000"))
			}
		}
		if len(missing) > 0 {
			slices.Sort(missing)
			return fmt.Errorf("%d of %d are missing, %q among them", len(missing), q.asked, missing[:min(len(missing), 10)])
		}
		return nil
	})
}

// stop ends the asking, waits for the last answers and returns how many questions there were.
func (q *inquiry) stop() int {
	q.l.t.Helper()
	q.settle("at the end")
	close(q.end)
	for _, conn := range q.conns {
		_ = conn.Close() // ends its reading
	}
	q.done.Wait()
	return q.asked
}
