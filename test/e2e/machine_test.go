package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// The machine suite changes what a node consists of, as its owner, his tools and
// accidents do, and asks of each change, alone and in pairs:
//
//   - within machineTime either all pods reach what they should, or the node is not ready
//     and names the reason; a pod that comes to a node that is ready is reached at once;
//   - once the change is undone, all is well again within machineTime, without a
//     restart of the agent.
var (
	machineSeed  = flag.Uint64("machine.seed", 1, "seed of the machine suite; 0: a new one, which is printed")
	machinePairs = flag.Int("machine.pairs", 2, "pairs of changes that the machine suite tries")
	machineAll   = flag.Bool("machine.all", false, "try each change alone, not a selection")
	machineOnly  = flag.String("machine.only", "", "a regular expression: try the changes whose names match")
	machineLab   = flag.Int("machine.lab", 1, "changes, or pairs of them, that one lab stands one after the other; where labs are slow to start")
)

const (
	machineTime = 15 * time.Second
	// machineSettles is how long the effect of a change may take to show: the agent
	// looks at everything every 5 s.
	machineSettles = 6 * time.Second
	// machineLooks is the pause between two looks at all pods, which are a dozen processes.
	machineLooks = time.Second
	// machineSome is how many changes are tried alone without -machine.all.
	machineSome = 8
)

// possible skips the test where the kernel has not what the change is made of.
func (c change) possible(t *testing.T) {
	t.Helper()
	if c.needs == "" {
		return
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", c.needs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("%s: this kernel does not take `%s`: %v: %s", c.name, c.needs, err, bytes.TrimSpace(out))
	}
}

// candidates are the changes, and moments of them, that can happen here and that -machine.only names.
func candidates(t *testing.T) []change {
	only := regexp.MustCompile(*machineOnly)
	_, err := exec.LookPath("iptables-legacy")
	if err != nil {
		t.Log("no iptables-legacy here, so nothing is changed with it; `make test-kernel` has it")
	}
	return slices.DeleteFunc(slices.Concat(changes, moments(changes)), func(c change) bool {
		return c.datapath != "" && c.datapath != ovstest.Datapath() || !only.MatchString(c.name) || err != nil && strings.Contains(c.do, "iptables-legacy")
	})
}

// machine is a lab whose n1 is changed.
type machine struct {
	*lab
	conf string // n1's directory of CNI configurations
	// much sends a lot to who connects to it, from the outside.
	much  netip.AddrPort
	agent int // the pid of n1's agent: it must not have to be restarted
}

func upMachine(t *testing.T) *machine {
	l := upAlso(t, netlab.Options{})
	conf := t.TempDir()
	l.must(l.SetAgentArgs("n1", "--cni-conf-dir", conf))
	l.must(l.Agent("n1").Restart(t.Context()))
	l.pods(map[string][]string{"n1": {"red/a", "red/c"}, "n2": {"red/b"}})
	m := &machine{lab: l, conf: conf, much: l.sendsMuch()}
	m.agent = m.agentPID()
	m.await("before anything", m.well)
	return m
}

func (m *machine) agentPID() int {
	m.t.Helper()
	procs, err := m.Processes()
	m.must(err)
	i := slices.IndexFunc(procs, func(p netlab.Process) bool { return p.Name == "n1/agent" })
	if i < 0 {
		m.t.Fatal("n1 has no agent")
	}
	return procs[i].PID
}

// shell runs commands of a change in n1.
func (m *machine) shell(script string, env ...string) {
	m.t.Helper()
	dev, uplink := addressDevice(), "eth0"
	procs, err := m.Processes()
	m.must(err)
	pid := ""
	for _, p := range procs {
		if p.Name == "n1/ovs-vswitchd" {
			pid = fmt.Sprint(p.PID)
		}
	}
	run := m.t.TempDir()
	m.must(os.WriteFile(run+"/vswitchd.pid", []byte(pid), 0o644))
	node, err := m.Node("n1")
	m.must(err)
	peer, err := m.Node("n2")
	m.must(err)
	before, after, start := strings.Cut(script, "START")
	for _, part := range []string{before, after} {
		if strings.Trim(part, "; ") == "" {
			continue
		}
		cmd := exec.CommandContext(m.t.Context(), "ip", "netns", "exec", node.Netns, "sh", "-ec", strings.Trim(part, "; "))
		cmd.Env = append(os.Environ(), "DEV="+dev, "UPLINK="+uplink, "ADDR="+node.VTEP.String()+"/24", "PEER="+peer.VTEP.String(), "VIA="+netlab.Gateway.String(),
			"POD="+m.hostIf("red/a"), "RUN="+run, "SOCKET="+m.CNISocket("n1"), "CONF="+m.conf, "OVS_RUNDIR="+node.OVSRunDir, m.Mark())
		cmd.Env = append(cmd.Env, env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			m.t.Fatalf("%s: %v: %s", part, err, out)
		}
		if part == before && start {
			m.must(m.OVS("n1").StartVswitchd(m.t.Context()))
		}
	}
}

// hostIf is the node's end of a pod's pair.
func (m *machine) hostIf(pod string) string { return m.get(pod).HostInterface }

// well is nil when pods reach what they should.
func (m *machine) well() error {
	ctx, cancel := context.WithTimeout(m.t.Context(), 3*time.Second)
	defer cancel()
	a, b, c := m.get("red/a"), m.get("red/b"), m.get("red/c")
	var g errgroup.Group
	ping := func(from netlab.Pod, what, to string, more ...string) {
		g.Go(func() error {
			if _, err := m.PodExec(ctx, from, append([]string{"ping", "-c1", "-W1", to}, more...)...); err != nil {
				return fmt.Errorf("%s does not reach %s", from, what)
			}
			return nil
		})
	}
	ping(a, "a pod of its node", c.IP.String())
	ping(a, "a pod of another node", b.IP.String())
	ping(a, "a pod of another node with fragments", b.IP.String(), "-s", "2000")
	ping(b, "a pod of the changed node", a.IP.String())
	ping(a, "the outside", netlab.Outside.String())
	g.Go(func() error { return exchangesMuch(ctx, a.Sandbox(), m.much) })
	g.Go(func() error {
		if _, err := m.NodeExec(ctx, "n1", "ping", "-c1", "-W1", a.IP.String()); err != nil {
			return errors.New("the node does not reach its pod")
		}
		return nil
	})
	return g.Wait()
}

// much is how many bytes a pod is to get from the outside, and to send there, within a look: nothing where packets
// arrive, more than what comes through where the long ones of a connection do not.
const much = 1 << 20

// sendsMuch has the outside send that to whoever connects, and take what comes back.
func (l *lab) sendsMuch() netip.AddrPort {
	l.t.Helper()
	at := netip.AddrPortFrom(netlab.Outside, 5001)
	listener, err := ns.ListenTCP(ns.Path(l.UnderlayNetns()), at.String())
	l.must(err)
	l.t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = c.SetDeadline(time.Now().Add(machineTime))
				_, _ = c.Write(make([]byte, much))
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}()
		}
	}()
	return at
}

// exchangesMuch is nil when a pod gets much from there, and sends as much, until ctx ends.
func exchangesMuch(ctx context.Context, sandbox string, with netip.AddrPort) error {
	until, _ := ctx.Deadline()
	c, err := ns.DialTCP(sandbox, with.String(), time.Until(until))
	if err != nil {
		return fmt.Errorf("a pod cannot connect to the outside: %w", err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(until)
	if n, err := io.CopyN(io.Discard, c, much); err != nil {
		return fmt.Errorf("a pod got %d of %d bytes from the outside (%w)", n, much, err)
	}
	if n, err := c.Write(make([]byte, much)); err != nil {
		return fmt.Errorf("a pod sent %d of %d bytes to the outside (%w)", n, much, err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("what a pod sent to the outside did not all get there (%w)", err)
	}
	return nil
}

// ready is nil when n1 says that it is, and the runtime was told so.
func (m *machine) ready() error {
	if err := m.CNIStatus(m.t.Context(), "n1"); err != nil {
		return err
	}
	_, err := os.Stat(m.conf + "/10-k8s-ovs.conflist")
	return err
}

func (m *machine) await(when string, ok func() error) {
	m.t.Helper()
	m.eventuallyEach(machineLooks, when, machineTime, ok)
}

// there waits for the devices that a change is about: the change before it may have them
// made anew.
func there(do string) string {
	wait := ""
	for _, device := range []string{"$DEV", "$UPLINK", "$POD", "tun0", "br-phy"} {
		if strings.Contains(do, device) {
			wait += `for i in $(seq 150); do if ip link show dev ` + device + ` >/dev/null 2>&1; then break; fi; sleep 0.1; done; `
		}
	}
	return wait + do
}

// together reports whether b has a meaning while a lasts: an uplink that has another name
// stays so, and without the node's address, or the device that has it, no route leads to
// the router.
func together(a, b change) bool {
	switch {
	case a.undo == "":
		return true
	case strings.HasPrefix(b.name, a.name):
		return false // the same, for a moment
	case strings.Contains(a.do, "name ens9"):
		return !strings.Contains(b.do, "$UPLINK")
	case strings.Contains(a.do, "$ADDR"), strings.HasSuffix(a.do, " down"):
		return !strings.Contains(b.do+b.undo, "$VIA") && !strings.Contains(b.do, "$ADDR")
	}
	return true
}

// try makes the changes, one after the other, and undoes them in the opposite order.
func (m *machine) try(cs ...change) {
	m.t.Helper()
	for _, c := range cs {
		c.possible(m.t)
	}
	for i, c := range cs {
		m.shell(there(c.do), fmt.Sprintf("SECOND=%t", i > 0))
	}
	settled := time.Now().Add(machineSettles)
	said := ""
	m.await("changed", func() error {
		unreached := m.well()
		why := m.ready()
		if why != nil {
			said = why.Error()
		}
		if unreached != nil && (why == nil || strings.HasSuffix(said, ": ")) {
			return fmt.Errorf("%w, and the node is ready", unreached)
		}
		if one := cs[0]; len(cs) == 1 && one.says != "" && (why == nil || !strings.Contains(said, one.says)) {
			return fmt.Errorf("the node does not name %s: %v", one.says, why)
		}
		if time.Now().Before(settled) {
			return errors.New("it has not settled")
		}
		return nil
	})
	if m.ready() == nil {
		m.newcomer("changed")
	}
	for _, c := range slices.Backward(cs) {
		m.shell(c.undo)
	}
	m.await("undone", func() error { return errors.Join(m.well(), m.ready()) })
	m.newcomer("undone")
	if now := m.agentPID(); now != m.agent || !m.Agent("n1").Alive() {
		m.t.Fatalf("the agent of n1 was process %d, and is %d", m.agent, now)
	}
	if said != "" {
		m.t.Logf("it said: %s", said)
	}
}

// newcomer has a pod come to n1, and go: others reach it, and it them, as soon as its ADD is answered.
func (m *machine) newcomer(when string) {
	m.t.Helper()
	n, err := m.AddPod(m.t.Context(), "n1", "red", "n", netlab.PodOptions{})
	if err != nil {
		m.t.Errorf("%s: n1 is ready, and a pod cannot come: %v", when, err)
		return
	}
	for _, way := range [][2]netlab.Pod{{n, m.get("red/c")}, {n, m.get("red/b")}, {m.get("red/b"), n}} {
		if out, err := m.PodExec(m.t.Context(), way[0], "ping", "-c1", "-W1", way[1].IP.String()); err != nil {
			m.t.Errorf("%s: a pod came to n1, and %s does not reach %s: %v: %s", when, way[0], way[1], err, out)
		}
	}
	m.must(m.DelPod(m.t.Context(), n))
}

// trial is changes one after the other.
type trial []change

func (c trial) String() string {
	var names []string
	for _, one := range c {
		names = append(names, one.name)
	}
	return strings.Join(names, ", then ")
}

// trials are what the flags ask for, in an order that follows from the seed.
func trials(t *testing.T) (all []trial) {
	seed := *machineSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-machine.seed=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	possible := candidates(t)
	for i, k := range random.Perm(len(possible)) {
		if *machineAll || i < machineSome {
			all = append(all, possible[k:k+1])
		}
	}
	for range min(*machinePairs, len(possible)*(len(possible)-1)) {
		// Of few changes perhaps no two go together.
		for range 100 {
			k := random.Perm(len(possible))
			if a, b := possible[k[0]], possible[k[1]]; together(a, b) {
				all = append(all, trial{a, b})
				break
			}
		}
	}
	return all
}

// TestMachine is the machine suite.
func TestMachine(t *testing.T) {
	n := 0
	for some := range slices.Chunk(trials(t), *machineLab) {
		n++
		t.Run(fmt.Sprintf("lab %d", n), func(t *testing.T) {
			t.Parallel()
			var m *machine
			for _, c := range some {
				if m == nil {
					m = upMachine(t)
				}
				if !t.Run(c.String(), func(t *testing.T) { m.in(t).try(c...) }) {
					m = nil // what is left of it proves nothing
				}
			}
		})
	}
}

// in is the machine in a test of its own.
func (m *machine) in(t *testing.T) *machine {
	l := *m.lab
	l.t = t
	return &machine{lab: &l, conf: m.conf, much: m.much, agent: m.agent}
}
