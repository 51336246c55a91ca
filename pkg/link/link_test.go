package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

// space makes a namespace for the test and opens it.
func space(t testing.TB) *NS {
	t.Helper()
	n, err := Open(ns.Path(nstest.New(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func nameOf(n *NS) string { return strings.TrimPrefix(n.Path(), ns.Dir+"/") }

func ip(t testing.TB, n *NS, args string) string {
	t.Helper()
	return nstest.Run(t, nameOf(n), "ip "+args)
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var (
	podMAC = net.HardwareAddr{0x0a, 0x58, 172, 11, 0, 5}
	gwMAC  = net.HardwareAddr{0x0a, 0x58, 172, 11, 0, 1}
	pod    = SandboxSpec{
		Name: "eth0", MAC: podMAC, MTU: 1450, Address: netip.MustParseAddr("172.11.0.5"),
		Gateway: netip.MustParseAddr("172.11.0.1"), GatewayMAC: gwMAC, OffloadsOff: true,
	}
	pair = VethSpec{PeerName: "eth0", MAC: podMAC, MTU: 1450}
)

func TestOpenWhatIsNotANamespace(t *testing.T) {
	plain := t.TempDir() + "/plain"
	noErr(t, os.WriteFile(plain, nil, 0o600))
	loop := filepath.Join(t.TempDir(), "loop")
	noErr(t, os.Symlink(loop, loop))
	for _, path := range []string{"/nonexistent/x", plain, "/proc/self/ns/mnt", plain + "/below", loop, "/" + strings.Repeat("a", 300)} {
		if _, err := Open(path); !errors.Is(err, ErrNoSandbox) || !strings.Contains(err.Error(), path) {
			t.Errorf("Open(%s): %v; want ErrNoSandbox that names it", path, err)
		}
	}
}

func TestSame(t *testing.T) {
	a, b := space(t), space(t)
	again := must(Open(a.Path()))(t)
	defer again.Close()
	current := must(Current())(t)
	defer current.Close()
	for _, c := range []struct {
		a, b *NS
		want bool
	}{{a, again, true}, {a, b, false}, {a, current, false}, {current, current, true}} {
		if got, err := c.a.Same(c.b); err != nil || got != c.want {
			t.Errorf("Same(%s, %s) = %t, %v; want %t", c.a.path, c.b.path, got, err, c.want)
		}
	}
}

// Do is inside, and no thread stays inside after it.
func TestDoComesHome(t *testing.T) {
	n := space(t)
	inode := func(path string) (s string) { s, _ = os.Readlink(path); return }
	home := inode("/proc/thread-self/ns/net")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := n.Do(func() error {
				if here := inode("/proc/thread-self/ns/net"); here == home {
					return errors.New("fn runs in the home namespace")
				}
				return errors.New("from fn")
			})
			if err == nil || err.Error() != "from fn" {
				t.Error(err)
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if here := inode("/proc/thread-self/ns/net"); here != home {
				t.Errorf("a thread was left in %s", here)
			}
		})
	}
	wg.Wait()
	// All threads but those given up: the helper that makes namespaces for tests
	// leaves the first thread, which cannot end, where it was.
	tasks, err := os.ReadDir("/proc/self/task")
	noErr(t, err)
	inside := inode(fmt.Sprintf("/proc/self/fd/%d", n.file.Fd()))
	for _, task := range tasks {
		if here := inode("/proc/self/task/" + task.Name() + "/ns/net"); here == inside && task.Name() != fmt.Sprint(os.Getpid()) {
			t.Errorf("thread %s is left in %s", task.Name(), here)
		}
	}
}

func TestVethAndSandbox(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	host, ok, err := node.Link("ovs1")
	noErr(t, err)
	if !ok || host.MTU != 1450 || !host.Up || host.Type != "veth" {
		t.Errorf("host end %+v", host)
	}
	inside, ok, err := sandbox.Link("eth0")
	noErr(t, err)
	if !ok || inside.MTU != 1450 || inside.MAC.String() != podMAC.String() {
		t.Errorf("inner end %+v", inside)
	}
	for range 2 {
		l, err := sandbox.ConfigureSandbox(pod)
		noErr(t, err)
		if d := cmp.Diff([]netip.Prefix{netip.MustParsePrefix("172.11.0.5/32")}, l.Addresses, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" || l.Index != inside.Index {
			t.Errorf("configured %+v: %s", l, d)
		}
	}
	diffs, err := sandbox.CheckSandbox(pod)
	noErr(t, err)
	if len(diffs) != 0 {
		t.Errorf("check after configure: %v", diffs)
	}
	// What iproute2 sees.
	routes := ip(t, sandbox, "-4 route show")
	for _, want := range []string{"default via 172.11.0.1 dev eth0", "172.11.0.1 dev eth0 proto static scope link"} {
		if !strings.Contains(routes, want) {
			t.Errorf("routes lack %q:\n%s", want, routes)
		}
	}
	if neigh := ip(t, sandbox, "neigh show dev eth0"); !strings.Contains(neigh, "172.11.0.1 lladdr 0a:58:ac:0b:00:01 PERMANENT") {
		t.Errorf("neighbours: %s", neigh)
	}
	if lo := ip(t, sandbox, "-4 addr show lo"); !strings.Contains(lo, "127.0.0.1") {
		t.Errorf("lo: %s", lo)
	}
	for range 2 {
		noErr(t, node.DeleteVeth("ovs1"))
	}
	if ok, _ := sandbox.LinkExists("eth0"); ok {
		t.Error("the inner end outlived the outer")
	}
}

// The routes of a second device stand apart. Packets from its address use them, and so does
// who names the device: also the kernel, which looks for the gateway of a route that
// another plugin adds. Nothing stays, even where others removed a part before.
func TestSecondDeviceStandsApart(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	_, err := sandbox.ConfigureSandbox(pod)
	noErr(t, err)
	before := ip(t, sandbox, "-4 rule")
	pair2, second := pair, pod
	pair2.PeerName, second.Name, second.Address = "eth1", "eth1", netip.MustParseAddr("172.11.0.6")
	noErr(t, node.CreateVeth("ovs2", sandbox, pair2))
	for range 2 {
		_, err = sandbox.ConfigureSandbox(second)
		noErr(t, err)
	}
	for _, way := range []string{"from 172.11.0.6", "oif eth1"} {
		if got := ip(t, sandbox, "route get 192.0.2.1 "+way); !strings.Contains(got, "via 172.11.0.1 dev eth1") {
			t.Errorf("%s: %s", way, got)
		}
	}
	if got := ip(t, sandbox, "route get 192.0.2.1"); !strings.Contains(got, "via 172.11.0.1 dev eth0") {
		t.Errorf("packets from nowhere: %s", got)
	}
	ip(t, sandbox, "route add default via 172.11.0.1 dev eth1 table 100")
	ip(t, sandbox, "rule del from 172.11.0.6")
	noErr(t, node.DeleteVeth("ovs2"))
	for range 2 {
		noErr(t, sandbox.LeaveSandbox("eth1", second.Address))
	}
	if diff := cmp.Diff(before, ip(t, sandbox, "-4 rule")); diff != "" {
		t.Errorf("rules that stay (-before +after):\n%s", diff)
	}
}

// A device that goes leaves those rules alone that another has made which got its name.
func TestLeaveSandboxWhoseNameIsTaken(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	_, err := sandbox.ConfigureSandbox(pod)
	noErr(t, err)
	pair2, second, third := pair, pod, pod
	pair2.PeerName, second.Name, third.Name = "eth1", "eth1", "eth1"
	second.Address, third.Address = netip.MustParseAddr("172.11.0.6"), netip.MustParseAddr("172.11.0.7")
	noErr(t, node.CreateVeth("ovs2", sandbox, pair2))
	_, err = sandbox.ConfigureSandbox(second)
	noErr(t, err)
	noErr(t, node.DeleteVeth("ovs2"))
	noErr(t, node.CreateVeth("ovs3", sandbox, pair2))
	_, err = sandbox.ConfigureSandbox(third)
	noErr(t, err)
	noErr(t, sandbox.LeaveSandbox("eth1", second.Address))
	for _, way := range []string{"from 172.11.0.7", "oif eth1"} {
		if got := ip(t, sandbox, "route get 192.0.2.1 "+way); !strings.Contains(got, "via 172.11.0.1 dev eth1") {
			t.Errorf("%s: %s", way, got)
		}
	}
	if n := strings.Count(ip(t, sandbox, "-4 rule"), "lookup 77"); n != 2 {
		t.Errorf("%d rules, want the two of the device that came:\n%s", n, ip(t, sandbox, "-4 rule"))
	}
}

func TestVethNamesTaken(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	other := space(t)
	if err := node.CreateVeth("ovs1", other, pair); !errors.Is(err, ErrLinkExists) || !strings.Contains(err.Error(), "ovs1") {
		t.Errorf("host name taken: %v", err)
	}
	if err := node.CreateVeth("ovs2", sandbox, pair); !errors.Is(err, ErrSandboxLinkExists) || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("sandbox name taken: %v", err)
	}
	if ok, _ := node.LinkExists("ovs2"); ok {
		t.Error("a failed CreateVeth left its host end")
	}
	ip(t, node, "link add br9 type bridge")
	if err := node.DeleteVeth("br9"); err == nil || !strings.Contains(err.Error(), "bridge") {
		t.Errorf("DeleteVeth of a bridge: %v", err)
	}
}

// The userspace datapath gives the kernel a copy of each frame: it must not act on it.
func TestHostEndIsQuiet(t *testing.T) {
	node, sandbox := space(t), space(t)
	_, err := node.EnsureSysctl("net/ipv4/ip_forward", "1")
	noErr(t, err)
	ip(t, node, "addr add 192.0.2.1/24 dev lo")
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	for key, want := range map[string]string{
		"net/ipv6/conf/ovs1/disable_ipv6": "1", "net/ipv4/conf/ovs1/arp_ignore": "8",
		"net/ipv4/conf/ovs1/forwarding": "0", "net/ipv4/conf/ovs1/rp_filter": "1",
	} {
		if got, err := node.Sysctl(key); err != nil || got != want {
			t.Errorf("%s = %s, %v; want %s", key, got, err, want)
		}
	}
	// A pod that asks for the node's address on its own wire gets no answer.
	ip(t, sandbox, "link set eth0 up")
	ip(t, sandbox, "addr add 192.0.2.9/24 dev eth0")
	out, err := exec.Command("ip", "netns", "exec", nameOf(sandbox), "ping", "-c1", "-W1", "192.0.2.1").CombinedOutput()
	if err == nil {
		t.Errorf("the node answered the pod past the switch: %s", out)
	}
	noErr(t, node.Loud("ovs1"))
	if out, err := exec.Command("ip", "netns", "exec", nameOf(sandbox), "ping", "-c1", "-W1", "192.0.2.1").CombinedOutput(); err != nil {
		// It was quiet because of the settings, not because nothing works.
		ip(t, node, "route add 192.0.2.9 dev ovs1")
		if out2, err := exec.Command("ip", "netns", "exec", nameOf(sandbox), "ping", "-c1", "-W1", "192.0.2.1").CombinedOutput(); err != nil {
			t.Errorf("no answer after Loud either, so the test proves nothing: %s %s", out, out2)
		}
	}
}

func TestCheckSandboxNamesDifferences(t *testing.T) {
	tests := []struct {
		name, break_, want string
	}{
		{"down", "link set eth0 down", "eth0 is down"},
		{"mtu", "link set eth0 mtu 1400", "MTU 1400, not 1450"},
		{"mac", "link set eth0 address 0a:58:00:00:00:09", "hardware address 0a:58:00:00:00:09"},
		{"address gone", "addr del 172.11.0.5/32 dev eth0", "addresses [], not 172.11.0.5/32"},
		{"second address", "addr add 172.11.0.6/32 dev eth0", "172.11.0.6/32"},
		{"route's mtu", "route replace default via 172.11.0.1 dev eth0 proto static mtu 1300", "route to 0.0.0.0/0 through eth0 has MTU 1300, not 0"},
		{"route gone", "route del default", "route to 0.0.0.0/0 through eth0 is missing"},
		{"neighbour gone", "neigh del 172.11.0.1 dev eth0", "neighbour entry of gateway 172.11.0.1"},
		{"device gone", "link del eth0", "device eth0 is missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			node, sandbox := space(t), space(t)
			noErr(t, node.CreateVeth("ovs1", sandbox, pair))
			_, err := sandbox.ConfigureSandbox(pod)
			noErr(t, err)
			ip(t, sandbox, tt.break_)
			diffs, err := sandbox.CheckSandbox(pod)
			noErr(t, err)
			if text := strings.Join(diffs, "; "); !strings.Contains(text, tt.want) {
				t.Errorf("differences %q lack %q", text, tt.want)
			}
			if tt.name == "device gone" {
				if _, err := sandbox.ConfigureSandbox(pod); !errors.Is(err, ErrNoLink) {
					t.Errorf("configuring without a device: %v", err)
				}
				return
			}
			// Configuring again mends it, except for what somebody has added.
			_, err = sandbox.ConfigureSandbox(pod)
			noErr(t, err)
			diffs, err = sandbox.CheckSandbox(pod)
			noErr(t, err)
			if len(diffs) != 0 && tt.name != "second address" {
				t.Errorf("after configuring again: %v", diffs)
			}
		})
	}
}

func TestEnsure(t *testing.T) {
	n := space(t)
	ip(t, n, "link add v0 type veth peer name v1")
	ip(t, n, "link set v1 up")
	via := netip.MustParseAddr("169.254.77.1")
	steps := []struct {
		what string
		do   func() (bool, error)
		see  string // command
		want string
	}{
		{"up", func() (bool, error) { return n.SetUp("v0") }, "link show v0", "UP"},
		{"mtu", func() (bool, error) { return n.SetMTU("v0", 1400) }, "link show v0", "mtu 1400"},
		{"mac", func() (bool, error) { return n.SetMAC("v0", gwMAC) }, "link show v0", "0a:58:ac:0b:00:01"},
		{"address", func() (bool, error) { return n.EnsureAddress("v0", netip.MustParsePrefix("172.11.0.1/32")) }, "addr show v0", "172.11.0.1/32"},
		{"neighbour", func() (bool, error) { return n.EnsureNeighbour("v0", via, podMAC) }, "neigh show", "169.254.77.1 dev v0 lladdr 0a:58:ac:0b:00:05 PERMANENT"},
		{"route", func() (bool, error) {
			return n.EnsureRoute("v0", Route{Dst: netip.MustParsePrefix("172.11.0.0/16"), Via: via, OnLink: true, Src: netip.MustParseAddr("172.11.0.1"), MTU: 1300})
		}, "route show", "172.11.0.0/16 via 169.254.77.1 dev v0 proto static src 172.11.0.1 onlink mtu 1300"},
		{"route replaced", func() (bool, error) {
			return n.EnsureRoute("v0", Route{Dst: netip.MustParsePrefix("172.11.0.0/16"), Via: via, OnLink: true, MTU: 1350})
		}, "route show", "172.11.0.0/16 via 169.254.77.1 dev v0 proto static onlink mtu 1350"},
		{"sysctl", func() (bool, error) { return n.EnsureSysctl("net/ipv4/conf/v0/rp_filter", "2") }, "route show", ""},
	}
	for _, s := range steps {
		for round, want := range []bool{true, false} {
			if changed, err := s.do(); err != nil || changed != want {
				t.Errorf("%s, time %d: changed %t, %v; want %t", s.what, round+1, changed, err, want)
			}
		}
		if got := ip(t, n, s.see); !strings.Contains(strings.Join(strings.Fields(got), " "), s.want) {
			t.Errorf("%s: ip %s lacks %q:\n%s", s.what, s.see, s.want, got)
		}
	}
	if _, err := n.SetUp("absent"); !errors.Is(err, ErrNoLink) {
		t.Errorf("absent device: %v", err)
	}
	if _, err := n.EnsureSysctl("net/ipv4/conf/absent/rp_filter", "2"); !errors.Is(err, ErrNoSysctl) {
		t.Errorf("setting of an absent device: %v", err)
	}
}

func TestPathsAndOwners(t *testing.T) {
	n := space(t)
	for _, c := range []string{
		"link add v0 mtu 1400 type veth peer name v1", "link set v0 up", "link set v1 up",
		"addr add 192.0.2.7/24 dev v0", "addr add 192.0.2.8/24 dev v0",
		"route add default via 192.0.2.1 dev v0 src 192.0.2.8 metric 50", "route add 198.51.100.0/24 via 192.0.2.2 dev v0 mtu 1300",
		"link add v2 type veth peer name v3", "link set v2 up", "link set v3 up", "addr add 203.0.113.1/24 dev v2", "route add default via 203.0.113.9 dev v2 metric 100",
	} {
		ip(t, n, c)
	}
	l, ok, err := n.AddressOwner(netip.MustParseAddr("192.0.2.8"))
	if err != nil || !ok || l.Name != "v0" || len(l.Addresses) != 2 {
		t.Errorf("owner %+v, %t, %v", l, ok, err)
	}
	if _, ok, err := n.AddressOwner(netip.MustParseAddr("192.0.2.99")); ok || err != nil {
		t.Errorf("owner of nobody's address: %t, %v", ok, err)
	}
	l, src, ok, err := n.DefaultRoute()
	if err != nil || !ok || l.Name != "v0" || src != netip.MustParseAddr("192.0.2.8") {
		t.Errorf("default route by %s from %s, %t, %v", l.Name, src, ok, err)
	}
	for dst, want := range map[string]int{"192.0.2.50": 1400, "198.51.100.1": 1300, "8.8.8.8": 1400} {
		p, err := n.PathTo(netip.MustParseAddr(dst))
		if err != nil || p.MTU != want || p.Link.Name != "v0" {
			t.Errorf("path to %s: %+v, %v; want MTU %d by v0", dst, p, err, want)
		}
	}
}

// What a device has can be put on another, also the default route, in any state.
func TestConfigMovesToAnotherDevice(t *testing.T) {
	n := space(t)
	for _, c := range []string{
		"link add v0 type veth peer name v1", "link set v0 up", "link set v1 up", "link add v2 type veth peer name v3", "link set v3 up",
		"addr add 192.0.2.7/24 dev v0", "addr add 192.0.2.8/32 dev v0", "route add 198.18.0.1 dev v0", "route add 198.18.1.0/24 via 198.18.0.1 dev v0",
		"route add default via 192.0.2.1 dev v0 metric 100 mtu 1400 proto dhcp",
	} {
		ip(t, n, c)
	}
	saved := must(n.ReadConfig("v0"))(t)
	decoded, err := DecodeConfig(saved.Encode())
	noErr(t, err)
	compare := cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}
	if d := cmp.Diff(saved, decoded, compare); d != "" {
		t.Errorf("JSON loses something:\n%s", d)
	}
	before := ip(t, n, "route show dev v0")
	for _, want := range []bool{true, false} {
		if changed, err := n.ApplyConfig("v2", decoded); err != nil || changed != want {
			t.Errorf("apply: changed %t, %v; want %t", changed, err, want)
		}
	}
	noErr(t, n.RemoveConfig("v0", saved))
	noErr(t, n.RemoveConfig("v0", saved))
	_, err = n.ApplyConfig("v2", decoded)
	noErr(t, err)
	if after := ip(t, n, "route show dev v2"); after != before {
		t.Errorf("routes before:\n%safter:\n%s", before, after)
	}
	if left := ip(t, n, "-4 addr show v0") + ip(t, n, "route show dev v0"); left != "" {
		t.Errorf("left on v0: %s", left)
	}
}

// TestDeaf: a device that looks up neighbours, unless somebody has told it not to.
func TestDeaf(t *testing.T) {
	n := space(t)
	ip(t, n, "link add v0 type veth peer name v1")
	deaf := func(name string) bool { return must(n.Existing(name))(t).Deaf }
	for _, want := range []bool{false, true, false} {
		if want {
			ip(t, n, "link set v0 arp off")
		}
		if got := deaf("v0"); got != want {
			t.Errorf("v0 is deaf: %t, want %t", got, want)
		}
		ip(t, n, "link set v0 arp on")
	}
	if deaf("lo") {
		t.Error("lo has no neighbours to look up, and is deaf")
	}
}

func TestSubscribe(t *testing.T) {
	n := space(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	events := must(n.Subscribe(ctx))(t)
	for _, c := range []string{"link add v0 type veth peer name v1", "addr add 192.0.2.7/24 dev v0", "link set v0 up", "route add 198.18.0.1 dev v0"} {
		for len(events) > 0 {
			<-events
		}
		ip(t, n, c)
		if _, open := <-events; !open {
			t.Fatalf("%s was not reported", c)
		}
	}
	cancel()
	for range events { // closed at the end
	}
}

func TestHasGenericFamily(t *testing.T) {
	n := must(Current())(t)
	defer n.Close()
	if ok, err := n.HasGenericFamily("nlctrl"); err != nil || !ok {
		t.Errorf("nlctrl, which every kernel has: %t, %v", ok, err)
	}
	if ok, err := n.HasGenericFamily("no-such-family"); err != nil || ok {
		t.Errorf("no-such-family: %t, %v", ok, err)
	}
}

// BenchmarkSandbox is the kernel's part of an ADD: open the namespace, make the
// pair, configure it; and of a DEL.
func BenchmarkSandbox(b *testing.B) {
	node, sandbox := space(b), space(b)
	var add, del time.Duration
	for b.Loop() {
		t0 := time.Now()
		s := must(Open(sandbox.Path()))(b)
		noErr(b, node.CreateVeth("ovs1", s, pair))
		_, err := s.ConfigureSandbox(pod)
		noErr(b, err)
		noErr(b, s.Close())
		t1 := time.Now()
		noErr(b, node.DeleteVeth("ovs1"))
		add, del = add+t1.Sub(t0), del+time.Since(t1)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(add.Microseconds())/1e3/float64(b.N), "add-ms")
	b.ReportMetric(float64(del.Microseconds())/1e3/float64(b.N), "del-ms")
}
