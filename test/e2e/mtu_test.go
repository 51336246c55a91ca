package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

const (
	// encapsulation is what VXLAN over IPv4 takes of each packet, bytes.
	encapsulation = 50
	// follow is how long pods may take to have the cluster's MTU, for half of a test's changes (held). By the agents'
	// regular passes alone, every 5 s and one node after the other, they would take longer.
	follow = 2 * time.Second
	// followAtMost is what a busy machine, or one that is emulated, makes of it.
	followAtMost = 10 * time.Second
	// resent is how long TCP may take to send again what a black hole took for some
	// seconds: each time it waits twice as long, and both ways one after the other.
	resent = 30 * time.Second
	// often has tests wait less for the probes of paths.
	often = "--mtu-probe-interval=500ms"
)

var mtuOf = regexp.MustCompile(`\bmtu (?:lock )?(\d+)`)

// haveMTU says what on the nodes of these pods has not the MTU: both ends of each
// pair, tun0, br0; and no pod's route may have another.
func (l *lab) haveMTU(want int, pods ...netlab.Pod) error {
	ctx := l.t.Context()
	for _, p := range pods {
		node := l.Name() + "-" + p.Node
		for _, at := range []struct {
			netns string
			args  []string
		}{
			{p.Netns, []string{"link", "show", "dev", "eth0"}},
			{p.Netns, []string{"-4", "route", "show"}},
			{node, []string{"link", "show", "dev", p.HostInterface}},
			{node, []string{"link", "show", "dev", "tun0"}},
			{node, []string{"link", "show", "dev", "br0"}},
		} {
			out, err := ns.Output(ctx, at.netns, at.args...)
			if err != nil {
				return err
			}
			found := mtuOf.FindAllStringSubmatch(out, -1)
			if at.args[0] == "link" && len(found) != 1 {
				return fmt.Errorf("%s on %s: %v prints no MTU:\n%s", p, p.Node, at.args, out)
			}
			for _, m := range found {
				if m[1] != strconv.Itoa(want) {
					return fmt.Errorf("%s on %s: %v has MTU %s, want %d", p, p.Node, at.args, m[1], want)
				}
			}
		}
	}
	return nil
}

// waitMTU waits until all pods have an MTU, and full-size packets pass between each
// and the next. It says how long the pods took.
func (l *lab) waitMTU(when string, within time.Duration, want int, pods ...netlab.Pod) time.Duration {
	l.t.Helper()
	began := time.Now()
	l.eventually(when, within, func() error { return l.haveMTU(want, pods...) })
	took := time.Since(began).Round(time.Millisecond)
	l.t.Logf("%s: MTU %d after %s", when, want, took)
	for i, p := range pods {
		to := pods[(i+1)%len(pods)]
		// Single packets may be lost while a device changes its MTU.
		l.eventually(fmt.Sprintf("%s: a packet of %d bytes from %s to %s", when, want, p, to), recovery, func() error {
			out, err := l.pingFull(p, to, want)
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		})
	}
	return took
}

// pingFull sends pings in packets of size bytes that must not be fragmented.
func (l *lab) pingFull(from, to netlab.Pod, size int) (string, error) {
	const headers = 20 + 8 // IPv4, ICMP
	return l.PodExec(l.t.Context(), from, "ping", "-c1", "-W1", "-M", "do", "-s", strconv.Itoa(size-headers), to.IP.String())
}

// spread makes a pod of red on each node and returns them.
func (l *lab) spread() []netlab.Pod {
	l.t.Helper()
	nodes, err := l.Nodes()
	l.must(err)
	names := map[string][]string{}
	for _, n := range nodes {
		names[n.Name] = []string{"red/on-" + n.Name}
	}
	l.pods(names)
	pods, err := l.Pods()
	l.must(err)
	slices.SortFunc(pods, func(a, b netlab.Pod) int { return strings.Compare(a.Node, b.Node) })
	return pods
}

// TestMTUFollows: the nodes' links have different MTUs, and they change. All pods have the
// least, less the tunnel's headers, in time; a connection that transfers all the
// time is not broken.
func TestMTUFollows(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 5, AgentArgs: []string{often}})
	pods := l.spread()
	l.waitMTU("at first", followAtMost, 1500-encapsulation, pods...)
	l.answers(pods[4])
	f := l.flood("tcp4", pods[0], pods[4].IP.String()+port, offered)
	var took []time.Duration
	for _, c := range []struct {
		node           string
		underlay, want int
	}{
		{"n1", 9000, 1500}, {"n2", 9000, 1500}, {"n3", 1460, 1460}, {"n4", 1400, 1400}, {"n5", 1280, 1280},
		{"n5", 9000, 1400}, {"n4", 9000, 1460}, {"n3", 9000, 9000}, {"n1", 1500, 1500}, {"n1", 9000, 9000},
	} {
		l.must(l.SetMTU(t.Context(), c.node, c.underlay))
		took = append(took, l.waitMTU(fmt.Sprintf("%s has %d", c.node, c.underlay), followAtMost, c.want-encapsulation, pods...))
		l.moves("the connection", f, 1e6, 5*time.Second)
	}
	l.held("pods have the MTU that a link's change leaves them", took, follow, followAtMost)
	p := l.pod("n3", "red/new")
	if err := l.haveMTU(9000-encapsulation, p); err != nil || p.MTU != 9000-encapsulation {
		t.Errorf("a new pod has MTU %d: %v", p.MTU, err)
	}
}

// TestMTUBlackHole: the underlay drops what is too large and does not say so. That
// is found, said, and pods are clamped to what passes; when the path is mended they grow again.
func TestMTUBlackHole(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 3, AgentArgs: []string{often}})
	pods := l.spread()
	l.waitMTU("at first", followAtMost, 1450, pods...)
	l.answers(pods[1])
	f := l.flood("tcp4", pods[0], pods[1].IP.String()+port, offered)
	const found = 10 * time.Second // with the default interval it is less than 30 s
	for _, narrow := range []int{1400, 1320} {
		l.must(l.Narrow(t.Context(), "n2", narrow))
		l.waitMTU(fmt.Sprintf("above %d is lost", narrow), found, narrow-encapsulation, pods...)
		l.moves("the connection", f, 1e6, resent)
		l.blackHoles(1, "n1", "n3")
		l.blackHoles(2, "n2")
		if out := l.netns("nodes"); !strings.Contains(out, "black hole") {
			t.Errorf("netns nodes does not tell of the black hole:\n%s", out)
		}
	}
	l.must(l.Narrow(t.Context(), "n2", 0))
	l.waitMTU("mended", found, 1450, pods...)
	l.blackHoles(0, "n1", "n2", "n3")
}

// blackHoles waits until each node counts so many peers behind a black hole.
func (l *lab) blackHoles(want float64, nodes ...string) {
	l.t.Helper()
	for _, node := range nodes {
		l.eventually(fmt.Sprintf("%s sees %v black holes", node, want), 10*time.Second, func() error {
			if got := l.metric(node, "k8s_ovs_mtu_black_holes"); got != want {
				return fmt.Errorf("it sees %v", got)
			}
			return nil
		})
	}
}

// TestMTUReport: a black hole that is only to be reported clamps nobody, but who sends
// what is too large for that path is told.
func TestMTUReport(t *testing.T) {
	l := up(t, netlab.Options{AgentArgs: []string{often, "--mtu-on-blackhole=report"}})
	pods := l.spread()
	l.waitMTU("at first", followAtMost, 1450, pods...)
	l.must(l.Narrow(t.Context(), "n2", 1400))
	l.blackHoles(1, "n1", "n2")
	for i, p := range pods {
		l.eventually(p.String()+" is told of the path's MTU", 10*time.Second, func() error {
			out, err := l.pingFull(p, pods[1-i], 1450)
			if err == nil || !regexp.MustCompile(`mtu ?[=:] ?1350`).MatchString(out+err.Error()) {
				return fmt.Errorf("%v\n%s", err, out)
			}
			return nil
		})
		if out, err := l.pingFull(p, pods[1-i], 1350); err != nil {
			t.Errorf("packets of 1350 bytes do not pass: %v\n%s", err, out)
		}
	}
	if err := l.haveMTU(1450, pods...); err != nil {
		t.Errorf("though it was only to be reported: %v", err)
	}
	l.answers(pods[1])
	f := l.flood("tcp4", pods[0], pods[1].IP.String()+port, offered)
	l.moves("a connection over the narrow path", f, 1e6, resent)
}

// TestMTUNodes: one node that lags behind is named; it counts while its agent is
// away, and no more when the node is gone. What is asked for above what links carry is
// clamped, with one warning.
func TestMTUNodes(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 3, AgentArgs: []string{often, "--mtu=8950"}})
	pods := l.spread()
	l.waitMTU("asked for 8950", followAtMost, 1450, pods...)
	log, err := l.Agent("n1").Log()
	l.must(err)
	warned := slices.DeleteFunc(strings.Split(log, "\n"), func(line string) bool {
		return !strings.Contains(line, "level=WARN") || !strings.Contains(line, "--mtu")
	})
	if len(warned) != 1 || !strings.Contains(warned[0], "1450") || !strings.Contains(warned[0], "8950") {
		t.Errorf("--mtu=8950 with links of 1500 warns %d times: %v", len(warned), warned)
	}
	l.must(l.SetMTU(t.Context(), "n3", 1400))
	l.waitMTU("n3 lags behind", followAtMost, 1350, pods...)
	l.eventually("netns nodes names n3", 5*time.Second, func() error {
		out := l.netns("nodes")
		for _, line := range strings.Split(out, "\n") {
			if strings.Contains(line, "n3") && strings.Contains(line, "1350") && strings.Contains(line, "lags") {
				return nil
			}
		}
		return fmt.Errorf("it says\n%s", out)
	})
	for node, want := range map[string]float64{"n1": 0, "n2": 0, "n3": 1} {
		if got := l.metric(node, "k8s_ovs_mtu_holds_cluster_back"); got != want {
			t.Errorf("mtu_holds_cluster_back of %s is %v, want %v", node, got, want)
		}
	}
	l.must(l.Agent("n3").Kill())
	l.must(l.Agent("n1").Restart(t.Context()))
	l.waitMTU("the agent of n3 is away", followAtMost, 1350, pods...)
	l.must(l.SetMTU(t.Context(), "n2", 1460))
	c := l.etcd()
	l.eventually("n2 says what it carries", 5*time.Second, func() error {
		r, err := c.Get(t.Context(), networkKey+"/mtu/198.18.0.2")
		if err != nil || len(r.Kvs) != 1 || !strings.Contains(string(r.Kvs[0].Value), `"Carries":1410`) {
			return fmt.Errorf("its record: %v, %v", r, err)
		}
		return nil
	})
	l.waitMTU("n2 has 1460 meanwhile", followAtMost, 1350, pods...)
	l.must(l.RemoveNode("n3"))
	_, err = c.Delete(t.Context(), networkKey+"/subnets/198.18.0.3")
	l.must(err)
	l.waitMTU("n3 is gone", followAtMost, 1410, pods[:2]...)
}

// TestMTUUplinks: the link that carries the tunnels is found where it is a bridge, and where
// the default route leaves by another.
func TestMTUUplinks(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Bare: true, Nodes: 3})
	ctx := t.Context()
	l.must(l.StartController(ctx))
	l.bridgeUplink("n1", false)
	l.bridgeUplink("n3", true)
	l.must(ns.IP(ctx, l.Name()+"-n2",
		"link add name other type veth peer name far",
		"link set dev other mtu 9000 up", "link set dev far up",
		"addr add 192.0.2.1/24 dev other",
		// A node whose router is nobody is not ready.
		"neigh add 192.0.2.254 lladdr 02:00:00:00:02:54 dev other nud permanent",
		"route replace default via 192.0.2.254 dev other"))
	l.must(l.SetAgentArgs("n2", often))
	l.must(l.Agent("n1").Start(ctx))
	l.must(l.Agent("n2").Start(ctx))
	l.must(l.Agent("n3").Start(ctx))
	pods := l.spread()
	l.waitMTU("at first", followAtMost, 1450, pods...)
	var took []time.Duration
	for _, c := range []struct {
		node           string
		underlay, want int
	}{{"n1", 1400, 1350}, {"n2", 1380, 1330}, {"n1", 1500, 1330}, {"n3", 1350, 1300}, {"n2", 1500, 1300}, {"n3", 1500, 1450}} {
		l.must(l.SetMTU(ctx, c.node, c.underlay))
		took = append(took, l.waitMTU(fmt.Sprintf("%s has %d", c.node, c.underlay), followAtMost, c.want, pods...))
	}
	l.held("pods have the MTU that a link's change leaves them", took, follow, followAtMost)
}

// bridgeUplink puts a node's address on a bridge that has its link, before its
// agent is started: one of Linux, or of Open vSwitch.
func (l *lab) bridgeUplink(node string, ofOVS bool) {
	l.t.Helper()
	ctx := l.t.Context()
	netns, address := l.Name()+"-"+node, l.vtep(node)
	args := []string{often}
	if ofOVS {
		mac, err := ns.Output(ctx, netns, "-br", "link", "show", "dev", "eth0")
		l.must(err)
		datapath := "netdev"
		if os.Getenv("NETLAB_DATAPATH") == "system" {
			datapath = "system"
		}
		_, err = l.OVS(node).VSCtl(ctx, "add-br", "host0", "--", "set", "Bridge", "host0", "datapath_type="+datapath,
			"other_config:hwaddr="+strings.Fields(mac)[2], "--", "add-port", "host0", "eth0")
		l.must(err)
		args = append(args, "--vtep-bridge=host0")
	} else {
		l.must(ns.IP(ctx, netns, "link add name host0 type bridge stp_state 0 mcast_snooping 0", "link set dev eth0 master host0"))
	}
	l.must(ns.IP(ctx, netns,
		"addr flush dev eth0",
		fmt.Sprintf("addr add %s/24 dev host0", address),
		"link set dev host0 up",
		fmt.Sprintf("route add default via %s", netlab.Gateway)))
	l.must(ns.Do(netns, func() error { return ns.TxChecksumOff("host0") }))
	l.must(l.SetAgentArgs(node, args...))
}

// TestMTUStacked: nodes whose VTEP is on a VLAN of a bond, on a bridge over a VLAN, and
// on a VLAN. They move there under the agents' eyes; what is below counts, not only the
// device that has the address.
func TestMTUStacked(t *testing.T) {
	needKernelDatapath(t, "bonds and VLANs are not in every kernel")
	l := up(t, netlab.Options{Nodes: 3, AgentArgs: []string{often}})
	pods := l.spread()
	l.waitMTU("plain links", followAtMost, 1450, pods...)
	vlan := []string{"link add link eth0 name eth0.7 type vlan id 7", "link set eth0.7 up"}
	for node, s := range map[string]struct {
		top   string
		lines []string
	}{
		"n1": {"bond0.7", []string{
			"link add bond0 type bond mode active-backup miimon 100", "link set eth0 down", "link set eth0 master bond0", "link set bond0 up",
			"link add link bond0 name bond0.7 type vlan id 7", "link set bond0.7 up",
		}},
		"n2":  {"uplink", append(vlan, "link add uplink type bridge", "link set eth0.7 master uplink", "link set uplink up")},
		"n3":  {"eth0.7", vlan},
		"ctl": {"eth0.7", vlan},
	} {
		netns := l.Name() + "-" + node
		addr, err := ns.Output(t.Context(), netns, "-4", "-o", "addr", "show", "dev", "eth0")
		l.must(err)
		ip := regexp.MustCompile(`inet (\S+)`).FindStringSubmatch(addr)
		if ip == nil {
			t.Fatalf("%s has no address: %q", node, addr)
		}
		l.must(ns.IP(t.Context(), netns, append(s.lines, "addr flush dev eth0", "addr add "+ip[1]+" dev "+s.top)...))
		if node != "ctl" {
			l.must(ns.IP(t.Context(), netns, "route replace default via "+netlab.Gateway.String()))
		}
	}
	l.waitMTU("stacked", followAtMost, 1450, pods...)
	var took []time.Duration
	for _, c := range []struct {
		when, node, line string
		want             int
	}{
		{"the bond's port has 1400", "n1", "link set eth0 mtu 1400", 1400},
		{"the VLAN below the bridge has 1380", "n2", "link set eth0.7 mtu 1380", 1380},
		{"the card of the VLAN has 1360", "n3", "link set eth0 mtu 1360", 1360},
		{"the bond's port has 1500 again", "n1", "link set eth0 mtu 1500", 1360},
		{"the VLAN below the bridge has 1500 again", "n2", "link set eth0.7 mtu 1500", 1360},
	} {
		l.must(ns.IP(t.Context(), l.Name()+"-"+c.node, c.line))
		took = append(took, l.waitMTU(c.when, followAtMost, c.want-encapsulation, pods...))
	}
	l.held("pods have the MTU that a change below the VTEP leaves them", took, follow, followAtMost)
	l.must(ns.IP(t.Context(), l.Name()+"-n3", "link set eth0 mtu 1500", "link set eth0.7 mtu 1500"))
	l.waitMTU("the card of the VLAN has 1500 again", followAtMost, 1450, pods...)
}
