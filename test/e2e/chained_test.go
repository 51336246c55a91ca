package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// chained is one way of using a plugin of the reference set behind ours, and what it
// comes to. Each is a row of the table in docs/cni.md.
type chained struct {
	plugin netlab.Plugin
	pod    netlab.Interface
	// add and check are what the errors of ADD and CHECK say; empty where they succeed.
	add, check string
	// cutOff is that the pod reaches nobody.
	cutOff bool
	// further is that the pod has an interface of ours before that with the plugin.
	further bool
	// has is a command in the pod and what it prints.
	has  []string
	want string
}

var chains = map[string]chained{
	"tuning, sysctl": {
		plugin: netlab.Plugin{"type": "tuning", "sysctl": map[string]string{"net.ipv4.conf.IFNAME.arp_ignore": "1"}},
		has:    []string{"cat", "/proc/sys/net/ipv4/conf/eth0/arp_ignore"}, want: "1\n",
	},
	"tuning, promisc, allmulti, txQLen": {
		plugin: netlab.Plugin{"type": "tuning", "promisc": true, "allmulti": true, "txQLen": 500},
		has:    []string{"ip", "link", "show", "eth0"}, want: "ALLMULTI,PROMISC",
	},
	"tuning, mac": {
		plugin: netlab.Plugin{"type": "tuning", "mac": "02:00:00:00:00:77"},
		check:  "another plugin gave eth0 the hardware address 02:00:00:00:00:77", cutOff: true,
	},
	"tuning, mac that the pod asks for": {
		plugin: netlab.Plugin{"type": "tuning", "capabilities": map[string]bool{"mac": true}},
		pod:    netlab.Interface{Args: [][2]string{{"MAC", "02:00:00:00:00:77"}}},
		add:    "CNI_ARGS: MAC: 02:00:00:00:00:77 cannot be had",
	},
	"tuning, mtu": {
		plugin: netlab.Plugin{"type": "tuning", "mtu": 1300},
		check:  "eth0 has MTU 1300, not 1450", has: []string{"ip", "link", "show", "eth0"}, want: "mtu 1300",
	},
	"bandwidth, to the pod": {
		plugin: netlab.Plugin{"type": "bandwidth", "ingressRate": 10_000_000, "ingressBurst": 10_000_000},
		add:    "create qdisc: file exists",
	},
	"bandwidth, from the pod only": {
		plugin: netlab.Plugin{"type": "bandwidth", "egressRate": 10_000_000, "egressBurst": 10_000_000},
	},
	"bandwidth, pods without limits": {
		plugin: netlab.Plugin{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}},
	},
	"portmap": {
		plugin: netlab.Plugin{"type": "portmap", "snat": true, "capabilities": map[string]bool{"portMappings": true}},
		pod: netlab.Interface{Capabilities: map[string]any{"portMappings": []map[string]any{
			{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
		}}},
	},
	"firewall": {
		plugin: netlab.Plugin{"type": "firewall", "backend": "iptables"},
	},
	"firewall, ingressPolicy": {
		plugin: netlab.Plugin{"type": "firewall", "backend": "iptables", "ingressPolicy": "isolated"},
	},
	"sbr": {
		plugin: netlab.Plugin{"type": "sbr"},
		check:  "the route to 0.0.0.0/0 through eth0 is missing", cutOff: true,
	},
	"sbr, behind a further interface": {
		plugin: netlab.Plugin{"type": "sbr"}, further: true,
		has: []string{"ip", "-4", "route", "show", "table", "100"}, want: "dev net1",
	},
}

// needReference skips the test where the plugins of others are not beside ours.
func needReference(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(binDir, name)); err != nil {
			t.Skipf("%v: `make reference` builds it (without NETLAB_BIN the tests do themselves)", err)
		}
	}
}

// TestChainedPlugins: what docs/cni.md says of plugins behind ours is so: each works, or
// ADD or CHECK says why not; DEL leaves nothing in any case.
func TestChainedPlugins(t *testing.T) {
	long(t)
	needReference(t, "tuning", "bandwidth", "portmap", "firewall", "sbr")
	l := up(t, netlab.Options{})
	ctx := t.Context()
	peer := l.pod("n2", "red/peer")
	ports, flows := l.ports("n1"), l.flows("n1")
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		l.chain(ctx, name, chains[name], peer)
		l.waitPorts(name+": ports after DEL", "n1", ports)
		l.waitFlows(name+": flows after DEL", "n1", flows, 10*time.Second)
		if links := l.hostEnds("n1"); len(links) > 0 {
			t.Errorf("%s: devices after DEL: %s", name, links)
		}
	}
}

// chain attaches one pod with the plugin behind ours, looks at it, and detaches it.
func (l *lab) chain(ctx context.Context, name string, c chained, peer netlab.Pod) {
	l.t.Helper()
	p, err := l.NewSandbox("n1", "red", "chained", netlab.PodOptions{})
	l.must(err)
	if !c.further {
		c.pod.Name = "eth0"
		l.chainIn(ctx, name, c, p, peer)
		l.must(l.ForgetPod(p))
		return
	}
	own, err := l.Runtime("n1", "k8s-ovs", l.OwnPlugin("n1"))
	l.must(err)
	first := netlab.Interface{Name: "eth0"}
	_, err = own.Add(ctx, p, first)
	l.must(err)
	c.pod.Name = "net1"
	l.chainIn(ctx, name, c, p, peer)
	_, err = l.PodExec(ctx, p, "ping", "-c", "1", "-W", "1", peer.IP.String())
	if err := errors.Join(err, own.Check(ctx, p, first)); err != nil {
		l.t.Errorf("%s: the first interface after DEL of the further one: %v", name, err)
	}
	l.must(own.Del(ctx, p, first))
	l.must(l.ForgetPod(p))
}

// chainIn is [lab.chain] in a sandbox, with the interface c.pod.
func (l *lab) chainIn(ctx context.Context, name string, c chained, p, peer netlab.Pod) {
	l.t.Helper()
	c.plugin = maps.Clone(c.plugin)
	c.plugin["dataDir"] = l.t.TempDir() // tuning's
	r, err := l.Runtime("n1", "chained", l.OwnPlugin("n1"), c.plugin)
	l.must(err)
	result, err := r.Add(ctx, p, c.pod)
	l.says(name+": ADD", err, c.add)
	if err == nil {
		l.says(name+": CHECK", r.Check(ctx, p, c.pod), c.check)
		ping := []string{"ping", "-c", "1", "-W", "1", peer.IP.String()}
		if c.further {
			ping = append(ping, "-I", addressOf(result).String())
		}
		_, err := l.PodExec(ctx, p, ping...)
		if (err != nil) != c.cutOff {
			l.t.Errorf("%s: the pod's ping: %v; want it cut off: %v", name, err, c.cutOff)
		}
		if c.has != nil {
			out, err := l.PodExec(ctx, p, c.has...)
			l.must(err)
			if !strings.Contains(out, c.want) {
				l.t.Errorf("%s: %s in the pod: %s; want %q", name, strings.Join(c.has, " "), out, c.want)
			}
		}
	}
	for range 2 {
		if err := r.Del(ctx, p, c.pod); err != nil {
			l.t.Errorf("%s: %v", name, err)
		}
	}
}

// says compares an error with what it should say; nothing for none.
func (l *lab) says(what string, err error, want string) {
	l.t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		l.t.Errorf("%s: %v; want %q", what, err, want)
	}
}

// addressOf is the address in a CNI result.
func addressOf(r *types100.Result) netip.Addr {
	return netip.MustParsePrefix(r.IPs[0].Address.String()).Addr()
}

// hostEnds are the node's ends of pods' wires.
func (l *lab) hostEnds(node string) []string {
	l.t.Helper()
	out, err := l.NodeExec(context.WithoutCancel(l.t.Context()), node, "ip", "-br", "link", "show", "type", "veth")
	l.must(err)
	var ends []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "kov") {
			ends = append(ends, strings.Fields(line)[0])
		}
	}
	return ends
}

// TestChainedTable: each row of the table in docs/cni.md is tested, and each test has its row.
func TestChainedTable(t *testing.T) {
	text, err := os.ReadFile("../../docs/cni.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| behind k8s-ovs |")
	table, _, _ = strings.Cut(table, "\n\n")
	var rows []string
	for _, m := range regexp.MustCompile("(?m)^\\| (`[^|]*) \\|").FindAllStringSubmatch(table, -1) {
		rows = append(rows, strings.ReplaceAll(m[1], "`", ""))
	}
	slices.Sort(rows)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(chains)), rows); diff != "" {
		t.Errorf("(-tested +documented)\n%s", diff)
	}
}

// several is one attachment of the sandbox that TestSeveralNetworks makes.
type several struct {
	runtime *netlab.Runtime
	iface   netlab.Interface
	address netip.Addr
	gateway string
	// foreign is that another plugin made it.
	foreign bool
}

// TestSeveralNetworks: what multus makes: two attachments of the same network in one
// sandbox, and one beside another plugin's, in both orders; with the plugin sbr behind the
// further one too. Each address answers, also after a restart of the agent; a repeated ADD
// and CHECK find all as it should be; a change of MTU reaches all; DEL of one leaves the
// others' ways.
func TestSeveralNetworks(t *testing.T) {
	long(t)
	needReference(t, "bridge", "host-local", "sbr")
	l := up(t, netlab.Options{})
	peer := l.pod("n2", "red/peer")
	foreign := func(network, subnet string, routes ...map[string]string) *netlab.Runtime {
		r, err := l.Runtime("n1", network, netlab.Plugin{
			"type": "bridge", "bridge": "cni-" + network, "isGateway": true,
			"ipam": map[string]any{"type": "host-local", "subnet": subnet, "routes": routes, "dataDir": t.TempDir()},
		})
		l.must(err)
		return r
	}
	first, second := foreign("first", "192.168.77.0/24", map[string]string{"dst": "0.0.0.0/0"}), foreign("second", "192.168.78.0/24")
	ours, err := l.Runtime("n1", "k8s-ovs", l.OwnPlugin("n1"))
	l.must(err)
	sbr, err := l.Runtime("n1", "sbr", l.OwnPlugin("n1"), netlab.Plugin{"type": "sbr"})
	l.must(err)
	for name, order := range map[string][]*netlab.Runtime{
		"twice ours": {ours, ours}, "ours first": {ours, second}, "ours second": {first, ours}, "ours twice, second": {first, ours, ours},
		"sbr behind the second of ours": {ours, sbr, ours}, "sbr behind ours second": {first, sbr},
	} {
		l.severalIn(name, order, []*netlab.Runtime{first, second}, peer)
	}
	l.secondDefault(ours, first)
	l.eventually("the devices go", 10*time.Second, func() error {
		if ends := l.hostEnds("n1"); len(ends) > 0 {
			return fmt.Errorf("left: %s", ends)
		}
		return nil
	})
}

func (l *lab) severalIn(name string, order, foreign []*netlab.Runtime, peer netlab.Pod) {
	l.t.Helper()
	ctx := l.t.Context()
	p, err := l.NewSandbox("n1", "red", "several", netlab.PodOptions{})
	l.must(err)
	var all []several
	for i, r := range order {
		s := several{runtime: r, iface: netlab.Interface{Name: "net" + strconv.Itoa(i)}, foreign: slices.Contains(foreign, r)}
		result, err := r.Add(ctx, p, s.iface)
		l.must(err)
		s.address, s.gateway = addressOf(result), result.IPs[0].Gateway.String()
		all = append(all, s)
	}
	sound := func(when string) {
		l.t.Helper()
		for _, s := range all {
			if err := s.runtime.Check(ctx, p, s.iface); err != nil {
				l.t.Errorf("%s, %s: %v", name, when, err)
			}
			l.addressAnswers(fmt.Sprintf("%s, %s: %s of %s", name, when, s.address, s.iface.Name), p, peer, s)
		}
	}
	sound("after ADD")
	l.must(l.Agent("n1").Restart(ctx))
	l.eventually("the agent is ready", 20*time.Second, func() error { return l.CNIStatus(ctx, "n1") })
	sound("after a restart")
	for _, s := range all {
		if s.foreign {
			continue // bridge refuses
		}
		again, err := s.runtime.Add(ctx, p, s.iface)
		l.must(err)
		if got := addressOf(again); got != s.address {
			l.t.Errorf("%s: a repeated ADD gives %s, not %s", name, got, s.address)
		}
	}
	sound("after a repeated ADD")
	for _, mtu := range []int{1400, 1500} {
		for _, node := range []string{"n1", "n2"} {
			l.must(l.SetMTU(ctx, node, mtu))
		}
		for _, s := range all {
			if !s.foreign {
				l.eventually(fmt.Sprintf("%s: MTU of %s", name, s.iface.Name), 20*time.Second, func() error { return interfaceHasMTU(ctx, p, s.iface.Name, mtu-vxlanOverhead) })
			}
		}
		sound(fmt.Sprintf("with MTU %d below", mtu))
	}
	for len(all) > 0 {
		l.must(all[0].runtime.Del(ctx, p, all[0].iface))
		all = all[1:]
		for _, s := range all {
			l.addressAnswers(fmt.Sprintf("%s: %s after DEL of one before it", name, s.iface.Name), p, peer, s)
		}
	}
	l.must(l.ForgetPod(p))
}

// secondDefault: another plugin that brings a default route beside ours is told of by CHECK,
// and keeps its route when the MTU of pods changes.
func (l *lab) secondDefault(ours, foreign *netlab.Runtime) {
	l.t.Helper()
	ctx := l.t.Context()
	p, err := l.NewSandbox("n1", "red", "several", netlab.PodOptions{})
	l.must(err)
	mine, theirs := netlab.Interface{Name: "net0"}, netlab.Interface{Name: "net1"}
	_, err = ours.Add(ctx, p, mine)
	l.must(err)
	_, err = foreign.Add(ctx, p, theirs)
	l.must(err)
	l.says("CHECK beside another default route", ours.Check(ctx, p, mine), "another device has a default route beside that through net0")
	for _, mtu := range []int{1400, 1500} {
		for _, node := range []string{"n1", "n2"} {
			l.must(l.SetMTU(ctx, node, mtu))
		}
		l.eventually("MTU of net0", 20*time.Second, func() error { return interfaceHasMTU(ctx, p, "net0", mtu-vxlanOverhead) })
	}
	for _, s := range []string{"net0", "net1"} {
		out, err := ns.Output(ctx, p.Netns, "-4", "route", "show", "default", "dev", s)
		l.must(err)
		if strings.Count(out, "default") != 1 {
			l.t.Errorf("default routes of %s after changes of the MTU: %q, want one", s, out)
		}
	}
	l.must(foreign.Del(ctx, p, theirs))
	l.must(ours.Check(ctx, p, mine))
	l.must(ours.Del(ctx, p, mine))
	l.must(l.ForgetPod(p))
}

// vxlanOverhead is what pods' MTU is less than that of the underlay, bytes.
const vxlanOverhead = 50

// interfaceHasMTU says what of a pod's interface, its routes in whichever table included,
// has another MTU.
func interfaceHasMTU(ctx context.Context, p netlab.Pod, name string, want int) error {
	for _, args := range [][]string{{"link", "show", "dev", name}, {"-4", "route", "show", "table", "all", "dev", name}} {
		out, err := ns.Output(ctx, p.Netns, args...)
		if err != nil {
			return err
		}
		for _, m := range mtuOf.FindAllStringSubmatch(out, -1) {
			if m[1] != strconv.Itoa(want) {
				return fmt.Errorf("%v of %s: MTU %s, want %d", args, p, m[1], want)
			}
		}
	}
	return nil
}

// addressAnswers requires that the address of s answers: a pod of another node, also who
// binds to the interface, or, for an attachment of another plugin, its gateway on the node.
func (l *lab) addressAnswers(what string, p, peer netlab.Pod, s several) {
	l.t.Helper()
	ctx := l.t.Context()
	if s.foreign {
		if _, err := l.NodeExec(ctx, "n1", "ping", "-c", "1", "-W", "2", s.address.String()); err != nil {
			l.t.Errorf("%s: %v", what, err)
		}
		return
	}
	_, err := l.PodExec(ctx, peer, "ping", "-c", "1", "-W", "2", s.address.String())
	for _, from := range []string{s.address.String(), s.iface.Name} {
		if err == nil {
			_, err = l.PodExec(ctx, p, "ping", "-c", "1", "-W", "2", "-I", from, peer.IP.String())
		}
	}
	if err != nil {
		l.t.Errorf("%s: %v", what, err)
	}
}
