package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// CNI error codes (specification 1.1.0, section "Error").
const (
	invalidEnvironment = 4

	tryAgainLater = 11
	notAvailable  = 50
)

// codeOf is the code of a CNI error; 0 for none.
func codeOf(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// TestAddResult: what ADD returns is what the pod has.
func TestAddResult(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 1})
	p, err := l.NewSandbox("n1", "red", "a", netlab.PodOptions{})
	l.must(err)
	r, err := l.CNIAdd(t.Context(), p)
	l.must(err)
	if len(r.IPs) != 1 || len(r.Routes) == 0 {
		t.Fatalf("result %+v: want one address and a default route", r)
	}
	ip := netip.MustParsePrefix(r.IPs[0].Address.String()).Addr()
	gateway := netip.MustParseAddr(r.IPs[0].Gateway.String())
	if gateway != netip.MustParseAddr("172.11.0.1") || !netip.MustParsePrefix("172.11.0.0/22").Contains(ip) {
		t.Errorf("address %s, gateway %s: want some of n1's subnet", ip, gateway)
	}
	b := ip.As4()
	mac := fmt.Sprintf("0a:58:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
	i := slices.IndexFunc(r.Interfaces, func(i *types100.Interface) bool { return i.Sandbox == p.Sandbox() })
	if i < 0 {
		t.Fatalf("result has no interface in the sandbox: %+v", r.Interfaces)
	}
	if got := r.Interfaces[i]; got.Name != "eth0" || got.Mac != mac || got.Mtu != 1450 {
		t.Errorf("interface %+v, want eth0, %s, MTU 1450 (1500 less VXLAN's 50)", got, mac)
	}
	for _, end := range r.Interfaces {
		if end.Sandbox != "" {
			continue
		}
		if out := l.node("n1", "ip", "-o", "link", "show", "dev", end.Name); end.Mac == "" || !strings.Contains(out, "link/ether "+end.Mac) {
			t.Errorf("the host's end of the pair is %+v in the result; it has %s", end, out)
		}
	}
	if want := i; r.IPs[0].Interface == nil || *r.IPs[0].Interface != want {
		t.Errorf("the address belongs to interface %v, want %d", r.IPs[0].Interface, want)
	}
	link, err := l.PodExec(t.Context(), p, "ip", "-o", "link", "show", "dev", "eth0")
	l.must(err)
	addr, err := l.PodExec(t.Context(), p, "ip", "-o", "-4", "addr", "show", "dev", "eth0")
	l.must(err)
	route, err := l.PodExec(t.Context(), p, "ip", "-4", "route", "show", "default")
	l.must(err)
	for text, want := range map[string]string{link: mac, addr: ip.String() + "/32", route: "via " + gateway.String()} {
		if !strings.Contains(text, want) {
			t.Errorf("pod has %q, want %s in it", text, want)
		}
	}
	if !strings.Contains(link, "mtu 1450") {
		t.Errorf("pod's link: %s, want MTU 1450", link)
	}
	l.must(l.CNICheck(t.Context(), p))
}

// TestAddAndDelTwice: a second ADD does not disturb the first; DEL succeeds
// however often it comes and whatever is gone already, and leaves nothing.
func TestAddAndDelTwice(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a"}, "n2": {"red/b"}})
	ctx := t.Context()
	flows, ports := l.flows("n1"), l.ports("n1")

	p := l.pod("n1", "red/c")
	withC := l.flows("n1")
	if r, err := l.CNIAdd(ctx, p); err == nil {
		if got := netip.MustParsePrefix(r.IPs[0].Address.String()).Addr(); got != p.IP {
			t.Errorf("second ADD gives %s, the pod has %s", got, p.IP)
		}
	}
	if err := diffFlows(withC, l.flows("n1")); err != nil {
		t.Errorf("the second ADD changed flows:\n%v", err)
	}
	l.requireMatrix("after a second ADD", everybody)

	for _, way := range []struct {
		name   string
		before func(p netlab.Pod)
	}{
		{"plainly", func(netlab.Pod) {}},
		{"without sandbox", func(p netlab.Pod) { l.must(l.DeleteSandbox(p)) }},
		{"without interface", func(p netlab.Pod) { l.must(ns.IP(ctx, p.Netns, "link del dev eth0")) }},
		{"without OVS port", func(p netlab.Pod) {
			_, err := l.OVS("n1").VSCtl(ctx, "--if-exists", "del-port", "br0", p.HostInterface)
			l.must(err)
		}},
	} {
		way.before(p)
		for i := range 3 {
			if err := l.CNIDel(ctx, p); err != nil {
				t.Errorf("DEL no. %d %s: %v", i+1, way.name, err)
			}
		}
		l.must(l.ForgetPod(p))
		l.waitFlows("flows after DEL "+way.name, "n1", flows, 10*time.Second)
		l.waitPorts("ports after DEL "+way.name, "n1", ports)
		l.requireMatrix("after DEL "+way.name, everybody)
		p = l.pod("n1", "red/c") // for the next way
	}
	never, err := l.NewSandbox("n1", "red", "never-added", netlab.PodOptions{})
	l.must(err)
	l.must(l.CNIDel(ctx, never))
}

// TestCheck: CHECK succeeds for a pod that is as it should be and fails when
// somebody has changed its sandbox, its port or its flows.
func TestCheck(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	l.pod("n1", "red/other")
	for _, damage := range []struct {
		name string
		do   func(p netlab.Pod)
	}{
		{"address", func(p netlab.Pod) { l.must(ns.IP(ctx, p.Netns, "addr flush dev eth0")) }},
		{"default route", func(p netlab.Pod) { l.must(ns.IP(ctx, p.Netns, "route del default")) }},
		{"link down", func(p netlab.Pod) { l.must(ns.IP(ctx, p.Netns, "link set dev eth0 down")) }},
		{"MAC", func(p netlab.Pod) { l.must(ns.IP(ctx, p.Netns, "link set dev eth0 address 02:00:00:00:00:99")) }},
		{"interface", func(p netlab.Pod) { l.must(ns.IP(ctx, p.Netns, "link del dev eth0")) }},
		{"OVS port", func(p netlab.Pod) {
			_, err := l.OVS("n1").VSCtl(ctx, "del-port", "br0", p.HostInterface)
			l.must(err)
		}},
	} {
		t.Run(damage.name, func(t *testing.T) {
			p := l.pod("n1", "red/a")
			if err := l.CNICheck(ctx, p); err != nil {
				t.Errorf("CHECK of a sound pod: %v", err)
			}
			damage.do(p)
			if err := l.CNICheck(ctx, p); err == nil {
				t.Errorf("CHECK succeeds though the %s is wrong", damage.name)
			} else {
				t.Log(err)
			}
			l.must(l.DelPod(ctx, p))
		})
	}
	t.Run("flows", func(t *testing.T) {
		p := l.pod("n1", "red/a")
		// The agent puts flows right by itself: CHECK must be quicker at least once.
		for range 10 {
			_, err := l.OVS("n1").OFCtl(ctx, "del-flows", "br0")
			l.must(err)
			if err := l.CNICheck(ctx, p); err != nil {
				t.Log(err)
				l.eventually("CHECK after the repair", 10*time.Second, func() error { return l.CNICheck(ctx, p) })
				return
			}
		}
		t.Error("CHECK succeeds ten times without any flow")
	})
	gone, err := l.NewSandbox("n1", "red", "never-added", netlab.PodOptions{})
	l.must(err)
	if err := l.CNICheck(ctx, gone); err == nil {
		t.Error("CHECK of a pod that was never added succeeds")
	}
}

// TestGC: what the runtime no longer lists goes: port, address, flows. What it
// lists stays untouched.
func TestGC(t *testing.T) {
	l := up(t, netlab.Options{HostSubnetLength: 3})
	ctx := t.Context()
	l.pods(map[string][]string{"n1": {"red/a", "red/b"}, "n2": {"red/c"}})
	flows, ports := l.flows("n1"), l.ports("n1")
	// Three more: one whose sandbox is gone, one whose is there, one in another tenant.
	for _, name := range []string{"red/gone", "red/there", "blue/gone"} {
		p := l.pod("n1", name)
		if p.Name == "gone" {
			l.must(l.DeleteSandbox(p))
		}
	}
	var stay []netlab.Pod
	for _, name := range []string{"red/a", "red/b"} {
		stay = append(stay, l.get(name))
	}
	run := l.runBetween(probe.Exactly(everybody), l.get("red/a"), l.get("red/b"), l.get("red/c"))
	l.traffic(run, 20)
	l.must(l.CNIGC(ctx, "n1", stay))
	l.traffic(run, 20)
	if err := run.Stop().Err(); err != nil {
		t.Errorf("GC disturbed pods that stay: %v", err)
	}
	l.waitFlows("flows after GC", "n1", flows, 10*time.Second)
	l.waitPorts("ports after GC", "n1", ports)
	for _, name := range []string{"red/gone", "red/there", "blue/gone"} {
		l.must(l.ForgetPod(l.get(name)))
	}
	for i := range 3 { // all three addresses are free again
		l.pod("n1", fmt.Sprintf("red/new%d", i))
	}
	l.requireMatrix("after GC", everybody)
}

// TestAgentDown: without its agent the plugin says so, with the codes of the
// specification, and leaves nothing; afterwards all goes on.
func TestAgentDown(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	l.must(l.CNIStatus(ctx, "n1"))
	p := l.pod("n1", "red/a")
	l.must(l.Agent("n1").Stop())
	if err := l.CNIStatus(ctx, "n1"); codeOf(err) != notAvailable {
		t.Errorf("STATUS without agent: %v (code %d), want code %d", err, codeOf(err), notAvailable)
	}
	_, err := l.AddPod(ctx, "n1", "red", "b", netlab.PodOptions{})
	if codeOf(err) != tryAgainLater || !strings.Contains(err.Error(), "agent") {
		t.Errorf("ADD without agent: %v (code %d), want code %d and a word of the agent", err, codeOf(err), tryAgainLater)
	}
	if err := l.CNIDel(ctx, p); codeOf(err) != tryAgainLater {
		t.Errorf("DEL without agent: %v (code %d), want code %d so that the runtime comes again", err, codeOf(err), tryAgainLater)
	}
	l.must(l.Agent("n1").Start(ctx))
	l.must(l.CNIStatus(ctx, "n1"))
	l.must(l.CNICheck(ctx, p))
	l.must(l.DelPod(ctx, p))
}

// TestSandboxByOtherPaths: runtimes name one sandbox in several ways, and what they name
// is compared, not how. The node's own is none.
func TestSandboxByOtherPaths(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	r, err := l.Runtime("n1", "k8s-ovs", l.OwnPlugin("n1"))
	l.must(err)
	p, err := l.NewSandbox("n1", "red", "a", netlab.PodOptions{})
	l.must(err)
	inside := exec.Command("ip", "netns", "exec", p.Netns, "sleep", "infinity")
	l.must(inside.Start())
	defer func() { _ = inside.Process.Kill(); _ = inside.Wait() }()
	process := fmt.Sprintf("/proc/%d/ns/net", inside.Process.Pid)
	l.eventually("a process in the sandbox", 10*time.Second, func() error {
		a, err := os.Stat(process)
		if err != nil {
			return err
		}
		b, err := os.Stat(p.Sandbox())
		if err == nil && !os.SameFile(a, b) {
			return errors.New("it is not inside yet")
		}
		return err
	})
	paths := []string{"/run/netns/" + p.Netns, "/var/run/netns/" + p.Netns, process}
	for _, first := range paths {
		result, err := r.Add(ctx, p, netlab.Interface{Name: "eth0", Netns: first})
		l.must(err)
		for _, other := range paths {
			i := netlab.Interface{Name: "eth0", Netns: other}
			if err := r.Check(ctx, p, i); err != nil {
				t.Errorf("attached as %s, CHECK as %s: %v", first, other, err)
			}
			again, err := r.Add(ctx, p, i)
			if err != nil {
				t.Errorf("attached as %s, ADD again as %s: %v", first, other, err)
			} else if diff := cmp.Diff(result.IPs, again.IPs); diff != "" {
				t.Errorf("attached as %s, ADD again as %s (-first +again):\n%s", first, other, diff)
			}
		}
		l.must(r.Del(ctx, p, netlab.Interface{Name: "eth0", Netns: first}))
	}
	node, err := l.Node("n1")
	l.must(err)
	agent, err := l.Agent("n1").Get()
	l.must(err)
	for _, own := range []string{ns.Path(node.Netns), fmt.Sprintf("/proc/%d/ns/net", agent.PID), "/proc/self/ns/net"} {
		_, err := r.Add(ctx, p, netlab.Interface{Name: "eth7", Netns: own})
		if codeOf(err) != invalidEnvironment || !strings.Contains(err.Error(), "host's network namespace") {
			t.Errorf("ADD into %s: %v (code %d); want code %d", own, err, codeOf(err), invalidEnvironment)
		}
		l.must(r.Del(ctx, p, netlab.Interface{Name: "eth7", Netns: own}))
	}
	l.must(l.ForgetPod(p))
}

// TestRuntimesNames: pods and namespaces as runtimes' own tests and tools call them are
// attached, and their namespaces are tenants like any other.
func TestRuntimesNames(t *testing.T) {
	l := up(t, netlab.Options{})
	const crio = "redhat.test.crio"
	l.pods(map[string][]string{
		"n1": {crio + "/create-PodSandbox-with-hostname0A1b", "red/zealous_Noether.1"}, "n2": {crio + "/podsandbox1", "red/b"},
	})
	apart := tenants{crio: "1", "red": "2"}
	l.requireMatrix("apart", apart.allowed)
	l.netns("join", crio, "red")
	l.waitMatrix("joined", 10*time.Second, apart.with(crio, "2").allowed)
	l.must(l.Agent("n1").Restart(t.Context()))
	l.requireMatrix("after a restart", apart.with(crio, "2").allowed)
}
