package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// labs counts the labs of this run: each gets a name of its own.
var labs atomic.Int32

// lab is a lab that belongs to one test.
type lab struct {
	*netlab.Lab
	t *testing.T
	// freeDisk ends a [netlab.Lab.FillDisk].
	freeDisk func() error
}

// long marks one of the tests that together take as long as all others: they are left out
// of a short run (go test -short), as they hold what others hold in a simpler case, or what
// seldom changes.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("long: `make test` runs it")
	}
}

// up starts a lab that ends with the test. A failed test keeps the logs. Tests
// with labs run side by side (go test -parallel): labs do not meet, and mostly
// they wait.
func up(t *testing.T, o netlab.Options) *lab {
	t.Helper()
	t.Parallel()
	return upAlso(t, o)
}

// upAlso starts one more lab for a test that runs beside others already.
func upAlso(t *testing.T, o netlab.Options) *lab {
	t.Helper()
	o.Name = fmt.Sprintf("e2e-%d-%d", os.Getpid(), labs.Add(1))
	if o.BinDir == "" {
		o.BinDir = binDir
	}
	began := time.Now()
	l, err := netlab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("lab %s is up after %s", o.Name, time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, l)
		}
		checkRaces(t, l)
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return &lab{Lab: l, t: t}
}

// keepLogs copies the programs' logs to where they outlive the lab.
func keepLogs(t *testing.T, l *netlab.Lab) {
	dir := filepath.Join(os.TempDir(), "k8s-ovs-e2e-logs", strings.ReplaceAll(t.Name(), "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Log(err)
		return
	}
	procs, err := l.Processes()
	if err != nil {
		t.Log(err)
	}
	for _, p := range procs {
		data, err := os.ReadFile(p.Log)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(p.Name, "/", "-")+".log"), data, 0o644)
		}
		if err != nil {
			t.Log(err)
		}
	}
	if err := keepCounters(l, dir); err != nil {
		t.Log(err)
	}
	t.Logf("logs are in %s", dir)
}

// keepCounters writes down where each node has dropped packets: devices, sockets,
// Open vSwitch and the machine's own queues.
func keepCounters(l *netlab.Lab, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // the test's own has ended
	defer cancel()
	var errs []error
	backlog, err := os.ReadFile("/proc/net/softnet_stat") // of all labs, as the kernel has one for each processor
	errs = append(errs, err)
	nodes, err := l.Nodes()
	errs = append(errs, err)
	for _, n := range nodes {
		var text strings.Builder
		tell := func(what string, out string, err error) {
			fmt.Fprintf(&text, "### %s\n%s\n", what, out)
			if err != nil {
				fmt.Fprintln(&text, err)
			}
		}
		for _, command := range [][]string{{"ip", "-s", "-d", "link"}, {"ss", "--packet", "--all", "--memory"}, {"nstat", "-asz"}} {
			out, err := l.NodeExec(ctx, n.Name, command...)
			tell(strings.Join(command, " "), out, err)
		}
		for _, command := range [][]string{{"coverage/show"}, {"dpctl/show", "-s"}, {"dpctl/dump-flows", "-m"}, {"ovs/route/show"}, {"tnl/neigh/show"}} {
			out, err := l.OVS(n.Name).AppCtl(ctx, command...)
			tell("ovs-appctl "+strings.Join(command, " "), out, err)
		}
		tell("/proc/net/softnet_stat", string(backlog), nil)
		metrics, err := l.Agent(n.Name).Metrics(ctx)
		tell("metrics of the agent", metrics, err)
		errs = append(errs, os.WriteFile(filepath.Join(dir, n.Name+"-counters.txt"), []byte(text.String()), 0o644))
	}
	return errors.Join(errs...)
}

// checkRaces fails the test when a program reported a data race or a panic.
func checkRaces(t *testing.T, l *netlab.Lab) {
	procs, err := l.Processes()
	if err != nil {
		t.Error(err)
	}
	for _, p := range procs {
		data, err := os.ReadFile(p.Log)
		if err != nil {
			continue
		}
		for _, bad := range []string{"WARNING: DATA RACE", "\npanic: ", "fatal error: "} {
			if i := strings.Index(string(data), bad); i >= 0 {
				t.Errorf("%s: %s", p.Name, data[i:min(len(data), i+3000)])
			}
		}
	}
}

// must fails the test on an error.
func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// pod makes a pod: l.pod("n1", "red/a").
func (l *lab) pod(node, name string) netlab.Pod {
	l.t.Helper()
	namespace, pod, err := netlab.ParsePodName(name)
	l.must(err)
	p, err := l.AddPod(l.t.Context(), node, namespace, pod, netlab.PodOptions{})
	l.must(err)
	return p
}

// pods makes pods, those of one node after another and nodes at once, as real
// nodes would: node to names.
func (l *lab) pods(on map[string][]string) {
	l.t.Helper()
	g, ctx := errgroup.WithContext(l.t.Context())
	for node, names := range on {
		g.Go(func() error {
			for _, name := range names {
				namespace, pod, err := netlab.ParsePodName(name)
				if err != nil {
					return err
				}
				if _, err := l.AddPod(ctx, node, namespace, pod, netlab.PodOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	l.must(g.Wait())
}

func (l *lab) get(name string) netlab.Pod {
	l.t.Helper()
	namespace, pod, err := netlab.ParsePodName(name)
	l.must(err)
	p, err := l.Pod(namespace, pod)
	l.must(err)
	return p
}

func (l *lab) netns(args ...string) string {
	l.t.Helper()
	out, err := l.Netns(l.t.Context(), args...)
	l.must(err)
	return out
}

// tenants says which namespaces share a network: the same letter or number;
// "0" is global.
type tenants map[string]string

func (ts tenants) allowed(from, to probe.Endpoint) bool {
	a, b := ts[from.Namespace], ts[to.Namespace]
	return a == b || a == "0" || b == "0"
}

// with returns a copy in which one namespace has another network.
func (ts tenants) with(namespace, network string) tenants {
	c := tenants{}
	for k, v := range ts {
		c[k] = v
	}
	c[namespace] = network
	return c
}

func everybody(probe.Endpoint, probe.Endpoint) bool { return true }

// matrix asks who reaches whom, now.
func (l *lab) matrix() *probe.Result {
	l.t.Helper()
	endpoints, err := l.Endpoints()
	l.must(err)
	r, err := probe.Matrix(l.t.Context(), endpoints, probe.AllProtocols)
	l.must(err)
	return r
}

// requireMatrix fails the test unless exactly the allowed pairs reach each other, now.
func (l *lab) requireMatrix(when string, allowed func(a, b probe.Endpoint) bool) {
	l.t.Helper()
	r := l.matrix()
	if err := r.Check(allowed); err != nil {
		l.t.Errorf("%s: %v\n%s", when, err, table(r))
	}
}

// waitMatrix waits until exactly the allowed pairs reach each other.
func (l *lab) waitMatrix(when string, timeout time.Duration, allowed func(a, b probe.Endpoint) bool) {
	l.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		r := l.matrix()
		err := r.Check(allowed)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: not in %s: %v\n%s", when, timeout, err, table(r))
		}
	}
}

func table(r interface{ Render(io.Writer) error }) string {
	var b strings.Builder
	_ = r.Render(&b) // a builder takes all
	return b.String()
}

// run starts the continuous probe between all pods.
func (l *lab) run(rule probe.Rule) *probe.Run {
	l.t.Helper()
	pods, err := l.Pods()
	l.must(err)
	return l.runBetween(rule, pods...)
}

// runBetween is run for some pods.
func (l *lab) runBetween(rule probe.Rule, pods ...netlab.Pod) *probe.Run {
	l.t.Helper()
	return l.runAs(rule, probe.RunOptions{}, pods...)
}

// runAs is runBetween that sends as the options say.
func (l *lab) runAs(rule probe.Rule, o probe.RunOptions, pods ...netlab.Pod) *probe.Run {
	l.t.Helper()
	p, err := probe.Open(netlab.Endpoints(pods))
	l.must(err)
	r := p.Start(rule, o)
	l.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			l.t.Error(err)
		}
	})
	return r
}

// traffic waits until n more messages have arrived by every pair that must reach
// each other, and a tenth of that by TCP, whose connections are made less often.
func (l *lab) traffic(r *probe.Run, n int) {
	l.t.Helper()
	type flow struct {
		from, to string
		p        probe.Protocol
	}
	was := map[flow]int{}
	for _, f := range r.Report().Flows {
		was[flow{f.From.String(), f.To.String(), f.Protocol}] = f.Received
	}
	l.eventually("traffic of the probe", time.Minute, func() error {
		for _, f := range r.Report().Flows {
			need := n
			if f.Protocol == probe.TCP {
				need = (n + 9) / 10
			}
			if got := f.Received - was[flow{f.From.String(), f.To.String(), f.Protocol}]; f.Must && got < need {
				return fmt.Errorf("%s -> %s: %d of %d by %s", f.From, f.To, got, need, f.Protocol)
			}
		}
		return nil
	})
}

// span is the time in which somebody does something to the network.
type span struct {
	name        string
	began, done time.Time
}

// during carries out do and returns when that was.
func during(name string, do func()) span {
	s := span{name: name, began: time.Now()}
	do()
	s.done = time.Now()
	return s
}

// lostOutside names what a run has lost that was not on its way in one of the
// spans, each longer by after.
func lostOutside(rep probe.Report, spans []span, after time.Duration) []probe.Event {
	return slices.DeleteFunc(slices.Clone(rep.LostEvents), func(e probe.Event) bool {
		return slices.ContainsFunc(spans, func(s span) bool {
			// A short connection may last two seconds, all else some milliseconds.
			before := underWay
			if e.Protocol == probe.TCP {
				before = 2 * time.Second
			}
			return !e.Sent.Before(s.began.Add(-before)) && e.Sent.Before(s.done.Add(after))
		})
	})
}

// eventually waits until ok returns nil.
func (l *lab) eventually(what string, timeout time.Duration, ok func() error) {
	l.t.Helper()
	l.eventuallyEach(20*time.Millisecond, what, timeout, ok)
}

// eventuallyEach asks after pauses: for what costs the machine much to answer.
func (l *lab) eventuallyEach(pause time.Duration, what string, timeout time.Duration, ok func() error) {
	l.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: not in %s: %v", what, timeout, err)
		}
		time.Sleep(pause)
	}
}

// unstable are the parts of a flow that change without its meaning changing.
var unstable = regexp.MustCompile(`cookie=0x[0-9a-f]+, |duration=[^,]+, |n_packets=\d+, |n_bytes=\d+, |idle_age=\d+, |hard_age=\d+, `)

// flows are the flows of a node's br0 without what differs from run to run, sorted.
func (l *lab) flows(node string) []string {
	l.t.Helper()
	f, err := l.tryFlows(node)
	l.must(err)
	return f
}

func (l *lab) tryFlows(node string) ([]string, error) {
	out, err := l.OVS(node).OFCtl(context.WithoutCancel(l.t.Context()), "--no-stats", "--no-names", "dump-flows", "br0")
	if err != nil {
		return nil, err
	}
	var flows []string
	for _, line := range strings.Split(out, "\n") {
		line = strings.TrimSpace(unstable.ReplaceAllString(line, ""))
		if line != "" && !strings.HasPrefix(line, "OFPST") {
			flows = append(flows, line)
		}
	}
	slices.Sort(flows)
	return flows, nil
}

// waitFlows waits until a node's flows are exactly these.
func (l *lab) waitFlows(when, node string, want []string, timeout time.Duration) {
	l.t.Helper()
	l.eventually(when, timeout, func() error {
		got, err := l.tryFlows(node)
		if err != nil {
			return err
		}
		return diffFlows(want, got)
	})
}

// diffFlows names the flows that are in one list only.
func diffFlows(want, got []string) error {
	var d []error
	for _, f := range want {
		if !slices.Contains(got, f) {
			d = append(d, fmt.Errorf("- %s", f))
		}
	}
	for _, f := range got {
		if !slices.Contains(want, f) {
			d = append(d, fmt.Errorf("+ %s", f))
		}
	}
	return errors.Join(d...)
}

// ports are the names of the ports of a node's br0.
func (l *lab) ports(node string) []string {
	l.t.Helper()
	out, err := l.OVS(node).VSCtl(l.t.Context(), "list-ports", "br0")
	l.must(err)
	return strings.Fields(out)
}

// waitPorts waits until a node's br0 has those ports. DEL does not wait for ports to be closed.
func (l *lab) waitPorts(when, node string, want []string) {
	l.t.Helper()
	l.eventually(when, 10*time.Second, func() error {
		if diff := cmp.Diff(want, l.ports(node)); diff != "" {
			return fmt.Errorf("-want +got:\n%s", diff)
		}
		return nil
	})
}

var errUnanswered = errors.New("the controller has not answered")

func asExit(err error, exit **exec.ExitError) bool { return errors.As(err, exit) }

// addressDevice is the device with a node's address: of the userspace datapath it is a
// bridge's that the uplink belongs to.
func addressDevice() string {
	if ovstest.Datapath() == "netdev" {
		return "br-phy"
	}
	return "eth0"
}
