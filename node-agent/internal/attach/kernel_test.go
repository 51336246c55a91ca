package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

var spaces atomic.Int32

// space makes a namespace for the test.
func space(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("attach-test-%d-%d", os.Getpid(), spaces.Add(1))
	if err := ns.Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Delete(name) })
	return name
}

func kernel(t testing.TB) (Netlink, string) {
	t.Helper()
	name := space(t)
	host, err := link.Open(ns.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	return Netlink{Host: host, Shaper: shaping.New(host, slog.New(slog.DiscardHandler))}, name
}

// TestKernel goes through what an Attacher asks of the kernel.
func TestKernel(t *testing.T) {
	k, node := kernel(t)
	pod := space(t)
	at := Attachment{Attachment: request(1).Attachment(), Netns: ns.Path(pod), Addresses: firstPod, MAC: topology.MAC(firstPod[0]), Limits: both(10_000_000)}
	node1500 := theNode
	node1500.MTU = MTU{1500, 1400}
	w := (&Attacher{}).wire(theNode, at)
	differs := func(what string, w Wire, want string) {
		t.Helper()
		diff, err := k.Differences(w)
		shaped, err2 := k.ShapeDifferences(w)
		if err := errors.Join(err, err2); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		got := strings.Join(append(diff, shaped...), "; ")
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: differences %q, want %q", what, got, want)
		}
	}
	same := func(what string, w Wire) {
		t.Helper()
		differs(what, w, "")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time over what was cut off
		must(k.CreateVeth(w))
	}
	if apart, err := k.Configure(w); apart || err != nil {
		t.Fatalf("the only device of a sandbox: apart %t, %v", apart, err)
	}
	must(k.Shape(w))
	same("attached", w)
	grown := (&Attacher{}).wire(node1500, at)
	differs("another MTU", grown, at.HostIf()+" has MTU 1450, not 1500")
	must(k.SetMTU(grown))
	same("grown", grown)
	must(k.SetMTU(w))
	same("shrunk", w)
	if out, err := exec.Command("tc", "-n", pod, "qdisc", "del", "dev", "eth0", "root").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	differs("the pod took its limit off", w, "10000000 bit/s")
	must(k.Shape(w))
	same("put back", w)
	free := w
	free.Limits = limits.Limits{}
	must(k.Shape(free))
	same("no limits", free)
	must(k.Shape(w))
	must(k.Delete(w.HostIf))
	if n, err := k.Sweep(map[string]bool{w.HostIf: true}); n != 0 || err != nil {
		t.Errorf("swept %d, %v of what is to be kept", n, err)
	}
	if n, err := k.Sweep(nil); n != 1 || err != nil {
		t.Errorf("swept %d, %v; want the one that is left", n, err)
	}
	for range 2 {
		must(k.Unshape(w.HostIf))
	}
	if err := k.SetMTU(w); !errors.Is(err, link.ErrNoLink) {
		t.Errorf("MTU of a pair that is gone: %v", err)
	}
	left, err := ns.Output(t.Context(), node, "-br", "link", "show")
	must(err)
	if strings.Contains(left, "ko") {
		t.Errorf("left behind: %s", left)
	}
}

// TestKernelDeleteAll: pairs and what is left of limits go together, also where one is gone
// or nobody's.
func TestKernelDeleteAll(t *testing.T) {
	k, node := kernel(t)
	var names []string
	for i := range 4 {
		at := Attachment{Attachment: request(i).Attachment(), Netns: ns.Path(space(t)), Addresses: firstPod, MAC: topology.MAC(firstPod[0]), Limits: both(10_000_000)}
		w := (&Attacher{}).wire(theNode, at)
		if err := k.CreateVeth(w); err != nil {
			t.Fatal(err)
		}
		if err := k.Shape(w); err != nil {
			t.Fatal(err)
		}
		names = append(names, w.HostIf)
	}
	if err := k.Delete(names[1]); err != nil { // its ifb stays
		t.Fatal(err)
	}
	for range 2 {
		for i, err := range k.DeleteAll(append(names, "kov0123456789ab")) {
			if err != nil {
				t.Errorf("%d: %v", i, err)
			}
		}
	}
	left, err := ns.Output(t.Context(), node, "-br", "link", "show")
	if err != nil || strings.Contains(left, "ko") {
		t.Errorf("left behind: %s, %v", left, err)
	}
	if err := k.Forget(theNode.Gateways[0], firstPod[0]); err != nil {
		t.Error(err)
	}
}

// BenchmarkSetMTU changes the MTU of 250 running pods, half of them with limits.
func BenchmarkSetMTU(b *testing.B) {
	const pods = 250
	k, _ := kernel(b)
	w := newWorld()
	a := New(NewBare(k, w, theNode.Bridge, b.TempDir(), slog.New(slog.DiscardHandler)), w, w, w)
	a.node = &theNode
	for i := range pods {
		at := Attachment{Attachment: cniapi.Attachment{ContainerID: fmt.Sprint("c", i), IfName: "eth0"}, Netns: ns.Path(space(b)), Addresses: firstPod, MAC: topology.MAC(firstPod[0])}
		if i%2 == 0 {
			at.Limits = both(10_000_000)
		}
		wire := a.wire(theNode, at)
		if err := k.CreateVeth(wire); err != nil {
			b.Fatal(err)
		}
		if _, err := a.configure(wire); err != nil {
			b.Fatal(err)
		}
		a.put(at)
	}
	for i := 0; b.Loop(); i++ {
		if err := a.SetMTU(context.Background(), MTU{1400 + i%2*50, 1400 + i%2*50}); err != nil {
			b.Fatal(err)
		}
	}
}

// Several devices in one sandbox: the first default route stays, whoever made it; each
// address answers by its own device; one that goes leaves the others' routes.
func TestSeveralAttachments(t *testing.T) {
	k, _ := kernel(t)
	for name, foreign := range map[string]bool{"ours first": false, "another plugin's first": true} {
		t.Run(name, func(t *testing.T) {
			pod := space(t)
			run := func(lines ...string) {
				t.Helper()
				if err := ns.IP(t.Context(), pod, lines...); err != nil {
					t.Fatal(err)
				}
			}
			show := func(args ...string) string {
				t.Helper()
				out, err := ns.Output(t.Context(), pod, args...)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			if foreign {
				run("link add other0 type veth peer name other1", "link set other0 up", "link set other1 up", "addr add 192.0.2.9/24 dev other0", "route add default via 192.0.2.1")
			}
			wires := map[string]Wire{}
			address := theNode.Gateways[0]
			for i, ifName := range []string{"eth0", "net1", "net2"} {
				address = address.Next()
				at := Attachment{Attachment: cniapi.Attachment{ContainerID: name, IfName: ifName}, Netns: ns.Path(pod), Addresses: []netip.Addr{address}, MAC: topology.MAC(address)}
				w := (&Attacher{}).wire(theNode, at)
				wires[ifName] = w
				if err := k.CreateVeth(w); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if apart, err := k.Configure(w); err != nil || apart != (foreign || i > 0) {
						t.Fatalf("%s: apart %t, %v", ifName, apart, err)
					}
				}
				t.Cleanup(func() { _ = k.Delete(w.HostIf) })
			}
			check := func(when string, left ...string) {
				t.Helper()
				first := "dev eth0"
				if foreign {
					first = "via 192.0.2.1 dev other0"
				}
				if got := show("route", "show", "default"); len(left) > 0 && (strings.Count(got, "default") != 1 || !strings.Contains(got, first)) {
					t.Errorf("%s: default route %q, want %s", when, got, first)
				}
				for _, ifName := range left {
					w := wires[ifName]
					if diff, err := k.Differences(w); err != nil || len(diff) > 0 {
						t.Errorf("%s: %s differs: %v, %v", when, ifName, diff, err)
					}
					if got := show("route", "get", "203.0.113.5", "from", w.Addresses[0].String()); !strings.Contains(got, "dev "+ifName) {
						t.Errorf("%s: an answer of %s leaves by %q", when, ifName, got)
					}
				}
			}
			check("attached", "eth0", "net1", "net2")
			for _, gone := range []string{"net1", "net2"} {
				if err := errors.Join(k.Leave(wires[gone]), k.Delete(wires[gone].HostIf)); err != nil {
					t.Fatal(err)
				}
				if gone == "net1" {
					check("net1 gone", "eth0", "net2")
				}
			}
			check("both gone", "eth0")
			if got := show("rule", "show"); strings.Contains(got, "7700:") != foreign {
				t.Errorf("rules left: %s", got)
			}
		})
	}
}

// What somebody changes of the node's ends is put right, a few at a time or all.
func TestMend(t *testing.T) {
	k, node := kernel(t)
	var wires []Wire
	for i := range 3 {
		at := Attachment{Attachment: request(i).Attachment(), Netns: ns.Path(space(t)), Addresses: firstPod, MAC: topology.MAC(firstPod[0])}
		w := (&Attacher{}).wire(theNode, at)
		w.NoOffload = true
		wires = append(wires, w)
		if err := k.CreateVeth(w); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Configure(w); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, wantMended, wantGone []string) {
		t.Helper()
		mended, gone, failed, err := k.Mend(wires)
		if err != nil || len(failed) > 0 || strings.Join(mended, " ") != strings.Join(wantMended, " ") || strings.Join(gone, " ") != strings.Join(wantGone, " ") {
			t.Errorf("%s: mended %v, gone %v, failed %v, %v; want %v, %v", when, mended, gone, failed, err, wantMended, wantGone)
		}
		for _, w := range wires {
			if diff, err := k.Differences(w); len(wantGone) == 0 && (err != nil || len(diff) > 0) {
				t.Errorf("%s: %s differs: %v, %v", when, w.HostIf, diff, err)
			}
		}
	}
	a, b, c := wires[0].HostIf, wires[1].HostIf, wires[2].HostIf
	check("as made", nil, nil)
	sysctl := func(key, value string) func() error {
		return func() error {
			_, err := k.Host.EnsureSysctl("net/ipv4/conf/"+key, value)
			return err
		}
	}
	ip := func(args ...string) func() error {
		return func() error { return ns.IP(t.Context(), node, args...) }
	}
	tool := func(command string) func() error {
		return func() error {
			out, err := exec.CommandContext(t.Context(), "ip", append([]string{"netns", "exec", node}, strings.Fields(command)...)...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", command, err, out)
			}
			return nil
		}
	}
	for when, tt := range map[string]struct {
		do   func() error
		want []string
	}{
		"down":       {ip("link set " + a + " down"), []string{a}},
		"MTU":        {ip("link set " + b + " mtu 1300"), []string{b}},
		"forwarding": {sysctl(c+"/forwarding", "1"), []string{c}},
		"all":        {sysctl("all/forwarding", "1"), []string{a, b, c}},
		"a queue":    {tool("tc qdisc replace dev " + c + " root tbf rate 1kbit burst 1540 latency 1ms"), []string{c}},
		"merging":    {tool("ethtool -K " + b + " gro on"), []string{b}},
		"ARP":        {sysctl(a+"/arp_ignore", "0"), []string{a}},
		"a bridge":   {ip("link add host0 type bridge", "link set "+a+" master host0", "link set "+c+" master host0"), []string{a, c}},
		"a name":     {ip("link set "+b+" down", "link set "+b+" name foo", "link set foo up"), []string{b}},
		"all names":  {ip("link set "+a+" down", "link set "+a+" name foo", "link set "+c+" down", "link set "+c+" name bar"), []string{a, c}},
	} {
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		check(when, tt.want, nil)
		check("after "+when, nil, nil)
	}
	// One that does not take the node's MTU is put right in all else.
	if err := ip("link set " + b + " mtu 1300 down")(); err != nil {
		t.Fatal(err)
	}
	keeps := wires[1]
	keeps.MTU = 0
	mended, _, failed, err := k.Mend([]Wire{keeps})
	if l, _, _ := k.Host.Link(b); err != nil || len(failed) > 0 || !slices.Equal(mended, []string{b}) || !l.Up || l.MTU != 1300 {
		t.Errorf("mended %v, failed %v, %v: %+v; want it up, with its MTU", mended, failed, err, l)
	}
	if err := k.Delete(b); err != nil {
		t.Fatal(err)
	}
	check("deleted", nil, []string{b})
	// A pod's own device may say what it likes of its other end: a device of the node's that leads to
	// another sandbox is not taken for it.
	mac := topology.MAC(firstPod[0]).String()
	forger, other := filepath.Base(wires[1].Netns), space(t)
	for _, in := range [][2]string{
		{node, "link add other0 index 7777 type veth peer name eth0 index 4242 netns " + other},
		{forger, "link add eth0 index 4242 address " + mac + " type veth peer name x0 index 7777"},
	} {
		if err := ns.IP(t.Context(), in[0], in[1]); err != nil {
			t.Fatal(err)
		}
	}
	check("forged", nil, []string{b})
	// Nor does a device of another kind keep other pods' from being mended.
	for _, kind := range []string{"ifb", "bridge"} {
		if err := errors.Join(
			ns.IP(t.Context(), forger, "link del eth0", "link add eth0 address "+mac+" type "+kind),
			ns.IP(t.Context(), node, "link set "+a+" down", "link set "+a+" name foo"),
		); err != nil {
			t.Fatal(err)
		}
		check("a "+kind+" in its place", []string{a}, []string{b})
	}
	// A pair of another address is somebody else's: the path of a sandbox may lead to theirs by now.
	if err := errors.Join(
		ns.IP(t.Context(), forger, "link del eth0"),
		ns.IP(t.Context(), node, "link add veth0 type veth peer name eth0 address 02:42:ac:11:00:02 netns "+forger),
	); err != nil {
		t.Fatal(err)
	}
	check("somebody else's", nil, []string{b})
	if named, failed, err := k.Name(wires); len(named)+len(failed) > 0 || err != nil {
		t.Errorf("named %v, failed %v, %v", named, failed, err)
	}
}

// TestCut: the pod's end goes whose other end somebody moved away, so that a pair can be made anew; no other device does.
func TestCut(t *testing.T) {
	k, node := kernel(t)
	pod, elsewhere := space(t), space(t)
	mac := topology.MAC(firstPod[0])
	w := (&Attacher{}).wire(theNode, Attachment{Attachment: request(1).Attachment(), Netns: ns.Path(pod), Addresses: firstPod, MAC: mac})
	run := func(in string, lines ...string) {
		t.Helper()
		if err := ns.IP(t.Context(), in, lines...); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(when string, want bool) {
		t.Helper()
		if did, err := k.Cut(w); did != want || err != nil {
			t.Errorf("%s: cut %t, %v", when, did, err)
		}
	}
	if err := k.CreateVeth(w); err != nil {
		t.Fatal(err)
	}
	cut("as made", false)
	run(node, "link set "+w.HostIf+" down", "link set "+w.HostIf+" name foo")
	cut("renamed", false)
	run(node, "link set foo name "+w.HostIf, "link set "+w.HostIf+" netns "+elsewhere)
	if err := k.CreateVeth(w); !errors.Is(err, link.ErrSandboxLinkExists) {
		t.Errorf("made beside: %v", err)
	}
	cut("moved", true)
	if there, err := ns.Output(t.Context(), elsewhere, "-br", "link", "show"); err != nil || strings.Contains(there, w.HostIf) {
		t.Errorf("elsewhere is %s, %v", there, err)
	}
	cut("gone", false)
	for _, device := range []string{"type veth peer name x0 address 02:00:00:00:00:02", "address " + mac.String() + " type ifb"} {
		run(pod, "link add eth0 "+device)
		cut(device, false)
		run(pod, "link del eth0")
	}
	if err := k.CreateVeth(w); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]bool{w.Netns: true, ns.Path(node): false, "/run/netns/none": false, "/etc/passwd": false} {
		if stands, err := k.Stands(path); stands != want || err != nil {
			t.Errorf("%s stands: %t, %v", path, stands, err)
		}
	}
}

// TestForeignSandbox: a path that leads to the node itself is the caller's mistake; one
// that leads nowhere, or where nobody may go, keeps no pod from going.
func TestForeignSandbox(t *testing.T) {
	k, node := kernel(t)
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{ns.Path(node), "/var" + ns.Path(node), loop, "/proc/0/ns/net"} {
		w := (&Attacher{}).wire(theNode, Attachment{Attachment: request(1).Attachment(), Netns: path, Addresses: firstPod, MAC: topology.MAC(firstPod[0])})
		if err := k.CreateVeth(w); cniapi.AsError(err).Code != cniapi.CodeInvalidEnv || !strings.Contains(err.Error(), "CNI_NETNS") {
			t.Errorf("%s: %v; want code %d that names CNI_NETNS", path, err, cniapi.CodeInvalidEnv)
		}
		if err := k.Leave(w); err != nil {
			t.Errorf("%s keeps a pod from going: %v", path, err)
		}
	}
}
