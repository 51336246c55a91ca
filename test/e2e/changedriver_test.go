package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

var changesSeed = flag.Uint64("changes.seed", 0, "seed of the tests that draw tenant changes; 0: a new one, which is printed")

const (
	// wideInterval is the pause between two messages of each pair of all pods, ownInterval of few pods.
	wideInterval, ownInterval = 100 * time.Millisecond, 4 * time.Millisecond
	// giveUp is how long a connection waits whose other end was split off: short, so that there is one again when
	// the two are joined.
	giveUp = 300 * time.Millisecond
	// grace is how late a message may be: on a machine with little time to give they wait in queues.
	grace = 5 * time.Second
)

// changing makes tenant changes, several at once, while all pods talk: to each other and through services, one of each pod,
// over UDP and over connections that stay. It knows by a model of its own who may talk: all the time, and after each change from when
// netns has returned.
type changing struct {
	*cluster
	random *rand.Rand
	// names are the namespaces that change. One more, the outsider, does not, and nobody joins it.
	names []string
	now   tenants
	sight sight
	ids   networks

	// own is dense traffic between few pods, direct and through are wide.
	own, direct, through *probe.Run

	made     []span
	took     []time.Duration
	drawn    int // networks
	split    int // ordered pairs of pods that a change has split
	revision int64
}

// changingTenants makes pods, services and traffic.
func (l *lab) changingTenants() *changing {
	l.t.Helper()
	seed := *changesSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	l.t.Logf("-changes.seed=%d", seed)
	c := &changing{random: rand.New(rand.NewPCG(seed, 0)), names: []string{"red", "green", "blue", "gray"}, now: tenants{}, ids: networks{}}
	for _, name := range append([]string{"outsider"}, c.names...) {
		c.now[name] = name
	}
	l.pods(map[string][]string{
		"n1": {"red/a", "red/near", "green/a", "blue/a", "gray/a", "outsider/a"}, "n2": {"red/far", "green/b", "blue/b", "gray/b", "outsider/b"},
	})
	c.cluster = l.inCluster("red/near", "red/far")
	c.learn(possibleFrom(c.now, nil))
	at := probe.Exactly(func(from, to probe.Endpoint) bool { return c.sight.direct(c.now, from, to) })
	udp := []probe.Protocol{probe.UDP}
	c.own = l.runAs(at, probe.RunOptions{Interval: ownInterval, Protocols: udp, Grace: grace}, l.get("red/a"), l.get("red/near"), l.get("red/far"), l.get("green/b"))
	both := probe.RunOptions{Interval: wideInterval, Connect: wideInterval, Protocols: append(udp, probe.Stream), Grace: grace, GiveUp: giveUp}
	pods, err := l.Pods()
	l.must(err)
	c.direct = l.runAs(at, both, pods...)
	both.Answered = true
	c.through = c.throughServices(pods).Start(at, both)
	c.flowing()
	return c
}

// throughServices is a prober that reaches each pod through a service of its own.
func (c *changing) throughServices(pods []netlab.Pod) *probe.Prober {
	c.t.Helper()
	p, err := probe.Open(netlab.Endpoints(pods))
	c.must(err)
	c.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			c.t.Error(err)
		}
	})
	address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 20, byte(i + 1)}) }
	const port = 80
	names, tcp, udp := []string{"tcp", "udp"}, corev1.ProtocolTCP, corev1.ProtocolUDP
	for i, e := range p.Endpoints() {
		meta := metav1.ObjectMeta{Namespace: e.Namespace, Name: "of-" + e.Name}
		c.must(c.api.Put(&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: address(i).String(), Ports: []corev1.ServicePort{
			{Name: names[0], Protocol: tcp, Port: port}, {Name: names[1], Protocol: udp, Port: port},
		}}}))
		ports := []int32{int32(p.Port(i, probe.Stream)), int32(p.Port(i, probe.UDP))}
		meta.Labels = map[string]string{discoveryv1.LabelServiceName: meta.Name}
		c.must(c.api.Put(&discoveryv1.EndpointSlice{
			ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{e.IP.String()}}},
			Ports: []discoveryv1.EndpointPort{{Name: &names[0], Protocol: &tcp, Port: &ports[0]}, {Name: &names[1], Protocol: &udp, Port: &ports[1]}},
		}))
	}
	p.Through(func(to int, _ probe.Protocol) netip.AddrPort { return netip.AddrPortFrom(address(to), port) })
	for _, node := range []string{"n1", "n2"} {
		c.waitBuckets(node, 2*(len(pods)+2)) // red/web has two endpoints
	}
	return p
}

// judge has the probes judge by what may be.
func (c *changing) judge(states possibleStates) {
	c.own.SetRule(states.rule(c.sight.direct))
	c.direct.SetRule(states.rule(c.sight.direct))
	c.through.SetRule(states.rule(c.sight.service))
}

// changes makes n drawn changes, some at once.
func (c *changing) changes(n, atOnce int) {
	c.t.Helper()
	for n > 0 {
		k := min(n, atOnce)
		c.change(drawChanges(c.random, c.now, c.names, k, c.network)...)
		n -= k
	}
}

// network is the name of a new one.
func (c *changing) network() string { c.drawn++; return fmt.Sprint("own-", c.drawn) }

// change makes changes at once. What is split by one gets nothing from when its netns has returned, whatever the others do;
// what is joined reaches each other from then on.
func (c *changing) change(plan ...tenantChange) {
	c.t.Helper()
	var said []string
	for _, change := range plan {
		said = append(said, strings.Join(change.args(), " "))
	}
	states := possibleFrom(c.now, plan)
	c.judge(states)
	var g errgroup.Group
	var mu sync.Mutex
	made := during(strings.Join(said, ", "), func() {
		for i, change := range plan {
			g.Go(func() error {
				began := time.Now()
				revision, err := c.carryOut(change)
				mu.Lock()
				defer mu.Unlock()
				states = states.with(i)
				c.judge(states)
				c.took = append(c.took, time.Since(began))
				c.revision = max(c.revision, revision)
				return err
			})
		}
		c.must(g.Wait())
	})
	c.made = append(c.made, made)
	was := c.now
	c.learn(states)
	c.judge(possibleFrom(c.now, nil))
	c.countSplit(was)
	c.flowing()
	c.nothingForbidden(c.made[len(c.made)-1].name)
}

// carryOut asks for a change and returns its revision. netns names the node that is cut off, and no other.
func (c *changing) carryOut(change tenantChange) (revision int64, err error) {
	out, err := c.Netns(c.t.Context(), append(change.args(), "--output", "json")...)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Result   string
		Revision int64
		Nodes    struct{ NotLive []string }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return 0, fmt.Errorf("netns %v: %w in %q", change.args(), err, out)
	}
	var missing []string
	if c.sight.cutOff != "" {
		missing = []string{c.sight.cutOff}
	}
	if !slices.Equal(answer.Nodes.NotLive, missing) {
		return 0, fmt.Errorf("netns %v names %q as not live, want %q:\n%s", change.args(), answer.Nodes.NotLive, missing, out)
	}
	return answer.Revision, nil
}

// learn finds out which of the possible states has come about: by their netIDs, as many orders may be.
func (c *changing) learn(states possibleStates) {
	c.t.Helper()
	var list []struct {
		Namespace string
		NetID     *int64
	}
	out := c.netns("list", "--output", "json")
	c.must(json.Unmarshal([]byte(out), &list))
	have := map[string]int64{}
	for _, n := range list {
		if n.NetID != nil {
			have[n.Namespace] = *n.NetID
		}
	}
	for _, s := range states {
		if c.ids.learn(s.now, have) {
			c.now = s.now
			return
		}
	}
	c.t.Fatalf("after %s the netIDs are %v, which no order of the changes makes of %v; known are %v", c.lastMade(), have, c.now, c.ids)
}

func (c *changing) lastMade() string {
	if len(c.made) == 0 {
		return "the beginning"
	}
	return c.made[len(c.made)-1].name
}

// countSplit counts the pairs that could talk and cannot any more.
func (c *changing) countSplit(was tenants) {
	for _, f := range c.direct.Report().Flows {
		if f.Protocol == probe.UDP && was.allowed(f.From, f.To) && !c.now.allowed(f.From, f.To) {
			c.split++
		}
	}
}

// flowing waits until all who may talk have, both ways: by the rule that is in force now.
func (c *changing) flowing() {
	c.t.Helper()
	c.traffic(c.direct, 3)
	c.traffic(c.through, 3)
}

// runs are the probes by what they ask.
func (c *changing) runs() map[string]*probe.Run {
	return map[string]*probe.Run{"own": c.own, "direct": c.direct, "through services": c.through}
}

func (c *changing) nothingForbidden(when string) {
	c.t.Helper()
	for name, run := range c.runs() {
		if forbidden := run.Report().ForbiddenEvents; len(forbidden) > 0 {
			c.t.Fatalf("%s: %d messages were delivered %s that may not be, the first: %s", when, len(forbidden), name, forbidden[0])
		}
	}
}

// end ends the traffic, fails the test unless all of it was as it had to be, and says how much that was.
func (c *changing) end() {
	c.t.Helper()
	c.flowing()
	c.nothingForbidden("at the end")
	took := slices.Sorted(slices.Values(c.took))
	c.t.Logf("%d changes, which have split %d ordered pairs of pods; the median took %s, the longest %s",
		len(took), c.split, took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	for name, run := range c.runs() {
		rep := run.Stop()
		for _, e := range rep.LostEvents {
			c.t.Errorf("lost %s (%s), during %q", e, name, c.madeAt(e.Sent))
		}
		cut := 0
		for _, f := range rep.Flows {
			cut += f.Broken
		}
		if cut == 0 && name != "own" && c.split > 0 {
			c.t.Errorf("%s: no connection was ever cut", name)
		}
		c.t.Logf("%s, %s: %d connections cut\n%s", name, rep.Duration.Round(time.Second), cut, table(rep))
	}
}

// madeAt names the changes that were under way, or the last ones before.
func (c *changing) madeAt(at time.Time) string {
	for _, s := range slices.Backward(c.made) {
		if !at.Before(s.began) {
			if at.After(s.done) {
				return fmt.Sprintf("%s after %s", at.Sub(s.done).Round(time.Millisecond), s.name)
			}
			return s.name
		}
	}
	return "the beginning"
}
