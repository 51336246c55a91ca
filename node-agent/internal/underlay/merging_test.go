package underlay

import (
	"bytes"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// ethtool switches a feature as a tuning tool does.
func (n *node) ethtool(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", append([]string{"netns", "exec", n.name, "ethtool", "-K"}, args...)...).CombinedOutput(); err != nil {
		n.t.Fatalf("ethtool -K %v: %v: %s", args, err, out)
	}
}

// merging checks what a device merges.
func (n *node) merging(when, device, want string) {
	n.t.Helper()
	on, _, err := n.ns.Merging(device)
	if err != nil || strings.Join(on, " ") != want {
		n.t.Errorf("%s: %s merges by %v (%v), want %q", when, device, on, err, want)
	}
}

// bulk has the wire send that many bytes of TCP to the node's address, and returns how many came
// within that time.
func (n *node) bulk(wire string, size int, within time.Duration) int {
	n.t.Helper()
	listener, err := ns.ListenTCP(ns.Path(n.name), "192.0.2.1:8000")
	if err != nil {
		n.t.Fatal(err)
	}
	defer listener.Close()
	got := make(chan int)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			got <- 0
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(within))
		came, _ := io.Copy(io.Discard, c)
		got <- int(came)
	}()
	c, err := ns.DialTCP(ns.Path(wire), "192.0.2.1:8000", 5*time.Second)
	if err != nil {
		n.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(within))
	_, _ = c.Write(make([]byte, size))
	_ = c.Close()
	return <-got
}

// TestMergingUplink: TCP in bulk gets into a node whose uplink merged what it receives, be it from
// the start or switched on later; whoever has the uplink afterwards has it as it was.
func TestMergingUplink(t *testing.T) {
	const size = 16 << 20
	wire := newWire(t)
	n := newNode(t, wire, 1)
	// As what a card puts on a wire; a veth whose peer could segment itself merges nothing.
	for _, device := range []string{"wire", "port1"} {
		if err := ns.Do(wire, func() error { return ns.TxChecksumOff(device) }); err != nil {
			t.Fatal(err)
		}
	}
	state := t.TempDir()
	n.again(state, "1")
	n.ethtool("eth0", "gro", "on")
	n.ensure(true)
	n.merging("after the move", "eth0", "")
	whole := func(when string) {
		t.Helper()
		if got := n.bulk(wire, size, 30*time.Second); got != size {
			t.Errorf("%s: %d of %d bytes came in", when, got, size)
		}
	}
	whole("after the move")
	n.ensure(false)
	const dropped = "Dropped packet: Too big" // lib/netdev-linux.c
	if strings.Contains(n.vswitch.Log(), dropped) {
		t.Error("packets were dropped although nothing merges them")
	}
	// A tool that tunes devices.
	n.ethtool("eth0", "gro", "on")
	got := n.bulk(wire, size, time.Second)
	if !strings.Contains(n.vswitch.Log(), dropped) {
		t.Error("ovs-vswitchd takes in what an uplink has merged: this test shows nothing")
	}
	t.Logf("an uplink that merges let %d of %d bytes in within a second", got, size)
	n.ensure(true)
	n.merging("after a tool", "eth0", "")
	whole("after a tool")
	n.again(state, "1") // an agent that starts anew knows what was on
	n.ensure(false)
	if err := n.setup.Remove(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.merging("after Remove", "eth0", "rx-gro")
	if _, err := os.Stat(filepath.Join(state, mergingFile)); err == nil {
		t.Error("the file stays")
	}
}

// TestMergingGivenBack: also where the move fails, and where Open vSwitch has ended first.
func TestMergingGivenBack(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	lender := n.withLender(state, "1")
	n.ethtool("eth0", "gro", "on")
	if _, err := n.setup.merging.stop("eth0"); err != nil {
		t.Fatal(err)
	}
	n.merging("stopped", "eth0", "")
	config, err := n.ns.ReadWhole("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.setup.rollback("eth0", config, false); err != nil {
		t.Fatal(err)
	}
	n.merging("after the rollback", "eth0", "rx-gro")
	n.ensure(true)
	n.vswitch.KillVswitchd()
	n.looksLong(lender)
	n.merging("lent", "eth0", "")
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	NewLender(Config{StateDir: copied, BootID: "2"}, n.ns).ResumeMerging() // another start of the machine
	n.merging("another device of that index", "eth0", "")
	NewLender(Config{StateDir: state, BootID: "1"}, n.ns).ResumeMerging()
	n.merging("after the node left", "eth0", "rx-gro")
}

// TestMergingBelow: what the uplink stands on receives its packets, and may merge them; a device
// that is no part of it any more has back what it had.
func TestMergingBelow(t *testing.T) {
	wire := newWire(t)
	n := newNode(t, wire, 1)
	n.again(t.TempDir(), "1")
	ip(t, n.name, "link set eth0 address 02:00:00:00:00:01", "link add name host0 type bridge", "addr flush dev eth0", "link set eth0 master host0", "link set host0 up",
		"addr add 192.0.2.1/24 dev host0", "route add default via 192.0.2.254",
		"link add more0 address 02:00:00:00:00:02 type veth peer name more1", "link set more0 master host0")
	n.ethtool("eth0", "gro", "on")
	n.ethtool("more0", "gro", "on")
	n.ensure(true)
	for _, device := range []string{"eth0", "more0"} {
		n.merging("ports", device, "")
	}
	ip(t, n.name, "link set more0 nomaster")
	n.ensure(false)
	n.merging("taken out", "more0", "rx-gro")
	n.merging("still a port", "eth0", "")
}

// TestMergingOfGivenBridge: on a bridge that somebody else made it is said, once, and left.
func TestMergingOfGivenBridge(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.vswitch.VSCtl("add-br", "br-ex", "--", "set", "bridge", "br-ex", "datapath_type=netdev", "--", "add-port", "br-ex", "eth0")
	ip(t, n.name, "addr flush dev eth0", "link set br-ex up", "addr add 192.0.2.1/24 dev br-ex", "route add default via 192.0.2.254")
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	n.setup = New(Config{Datapath: ovs.DatapathNetdev, NodeIP: netip.MustParseAddr("192.0.2.1"), Logger: slog.New(slog.NewTextHandler(&said, nil))}, n.ns, n.client)
	n.ensure(false)
	if said.Len() > 0 {
		t.Errorf("where nothing merges: %s", said.String())
	}
	n.ethtool("eth0", "gro", "on")
	for range 3 {
		n.ensure(false)
	}
	n.merging("given", "eth0", "rx-gro")
	if got := strings.Count(said.String(), "eth0: rx-gro"); got != 1 || !strings.Contains(said.String(), "ethtool -K DEVICE gro off") {
		t.Errorf("said %d times:\n%s", got, said.String())
	}
}
