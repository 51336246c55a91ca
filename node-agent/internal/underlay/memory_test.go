package underlay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// unwritable has no file in the state directory replaced until again is called, as on a disk that is full.
func unwritable(t *testing.T, state string) (again func()) {
	t.Helper()
	var taken []string
	for _, file := range []string{memoryFile, mergingFile} {
		// What is written beside the file: see package atomicfile.
		dir := filepath.Join(state, "."+file+".new")
		if err := os.MkdirAll(filepath.Join(dir, "taken"), 0o700); err != nil {
			t.Fatal(err)
		}
		taken = append(taken, dir)
	}
	return func() {
		t.Helper()
		for _, dir := range taken {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRecord: what is set counts whatever the disk does, is said once, and is written when that is possible again.
func TestRecord(t *testing.T) {
	var said bytes.Buffer
	cfg := Config{StateDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&said, nil))}
	r := newRecord[memory](cfg, memoryFile)
	if got := r.get(); got != nil {
		t.Errorf("of nothing there is %+v", got)
	}
	want := memory{Bridge: "br-phy", VTEP: netip.MustParseAddr("192.0.2.1"), Lent: true}
	next := func() *memory { return newRecord[memory](cfg.withDefaults(), memoryFile).get() }
	equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

	again := unwritable(t, cfg.StateDir)
	r.set(&want)
	for range 3 {
		r.flush()
		if d := cmp.Diff(&want, r.get(), equal); d != "" {
			t.Errorf("on a full disk (-want +got):\n%s", d)
		}
	}
	if got := next(); got != nil {
		t.Fatalf("the disk is not full: %+v", got)
	}
	if got := strings.Count(said.String(), "cannot be written"); got != 1 {
		t.Errorf("said %d times:\n%s", got, said.String())
	}
	again()
	r.flush()
	if d := cmp.Diff(&want, next(), equal); d != "" {
		t.Errorf("the next agent (-want +got):\n%s", d)
	}
	if !strings.Contains(said.String(), "on disk again") {
		t.Errorf("that it is over is not said:\n%s", said.String())
	}
	r.set(nil)
	if got := next(); got != nil {
		t.Errorf("after it was forgotten: %+v", got)
	}
	// One that cannot be read is not deleted for that.
	path := filepath.Join(cfg.StateDir, memoryFile)
	if err := os.WriteFile(path, []byte("half a fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	r = newRecord[memory](cfg, memoryFile)
	for range 2 {
		if got := r.get(); got != nil {
			t.Errorf("of half a file there is %+v", got)
		}
		r.flush()
	}
	if _, err := os.Stat(path); err != nil || strings.Count(said.String(), "cannot be read") != 1 {
		t.Errorf("%v:\n%s", err, said.String())
	}
}

// TestPresences: what an agent that starts knows, by which of the files and the database's row are there, and what
// the uplink has when the node leaves.
func TestPresences(t *testing.T) {
	for presence := range 8 {
		file, row, merging := presence&1 != 0, presence&2 != 0, presence&4 != 0
		t.Run(fmt.Sprintf("file=%t,row=%t,merging=%t", file, row, merging), func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			state := t.TempDir()
			n.withLender(state, "1")
			n.ethtool("eth0", "gro", "on")
			n.ensure(true)
			mac := n.setup.record.get().UplinkMAC
			for name, stays := range map[string]bool{memoryFile: file, mergingFile: merging} {
				if stays {
					continue
				}
				if err := os.Remove(filepath.Join(state, name)); err != nil {
					t.Fatal(err)
				}
			}
			if !row {
				n.vswitch.VSCtl("del-br", "br-phy")
				if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			n.withLender(state, "1")
			m, there, err := n.setup.remembered()
			if err != nil || there != row || (m != nil) != (file || row) {
				t.Fatalf("%+v, in the database %t, %v", m, there, err)
			}
			if m != nil && (m.Uplink != "eth0" || m.VTEP.String() != "192.0.2.1" || !hasAddress(m.Config, m.VTEP) || (m.UplinkMAC == mac) != file) {
				t.Errorf("%+v", m)
			}
			if got := len(n.setup.merging.stopped()) == 1; got != merging {
				t.Errorf("features that are known: %v", n.setup.merging.stopped())
			}
			if err := n.setup.Remove(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			if l, _, err := n.ns.AddressOwner(netip.MustParseAddr("192.0.2.1")); err != nil || (l.Name == "eth0") != (m != nil) {
				t.Errorf("the address is on %q, %v", l.Name, err)
			}
			if m != nil && n.pings(3, "203.0.113.1") != 3 {
				t.Error("packets of the node that left have no answers")
			}
			n.merging("after Remove", "eth0", map[bool]string{true: "rx-gro"}[merging])
			n.nothingLeft(state)
		})
	}
}

// nothingLeft checks that a node which left the network has no bridge of its own and no file.
func (n *node) nothingLeft(state string) {
	n.t.Helper()
	if left, err := os.ReadDir(state); err != nil || len(left) > 0 {
		n.t.Errorf("files are left: %v, %v", left, err)
	}
	if bridges := n.vswitch.VSCtl("list-br"); strings.Contains(bridges, "br-phy") {
		n.t.Errorf("bridges are left: %s", bridges)
	}
}

// TestRowIsNewer: where the database says something else than the file, an older agent ran meanwhile, or the file could
// not be written. The file keeps what the database does not know.
func TestRowIsNewer(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	n.withLender(state, "1")
	n.ensure(true)
	want := *n.setup.record.get()
	want.Lent = true
	path := filepath.Join(state, memoryFile)
	for _, uplink := range []string{"eth0", "eth9"} {
		older := want
		older.Uplink, older.VTEP, older.Device = uplink, netip.MustParseAddr("192.0.2.99"), "1/1"
		older.Config.Addresses, older.Config.Routes = nil, nil
		data, err := json.Marshal(older)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		n.withLender(state, "1")
		got, _, err := n.setup.remembered()
		if err != nil {
			t.Fatal(err)
		}
		if uplink != want.Uplink {
			want.UplinkMAC = ""
		}
		if d := cmp.Diff(want, *got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
			t.Errorf("file of uplink %s (-want +got):\n%s", uplink, d)
		}
		n.ensure(false)
	}
}

// TestRowsOfOthers: what a bridge of somebody's remembers from the time when it had the address does not stand for the
// one that this package made, whose row is gone: that is made anew.
func TestRowsOfOthers(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	n.withLender(state, "1")
	n.ensure(true)
	stale := *n.setup.record.get()
	stale.Uplink, stale.Bridge = "", "br-zz"
	n.vswitch.VSCtl("add-br", "br-zz", "--", "set", "bridge", "br-zz", "datapath_type=netdev")
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := n.client.SetExternalIDs(within(t, 5*time.Second), "br-zz", stale.ids()); err != nil {
		t.Fatal(err)
	}
	n.vswitch.VSCtl("del-br", "br-phy")
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.withLender(state, "1")
	m, row, err := n.setup.remembered()
	if err != nil || m == nil || m.Bridge != "br-phy" || m.Uplink != "eth0" || row {
		t.Errorf("it remembers %+v, in a row: %t, %v", m, row, err)
	}
	if u := n.ensure(true); u.Link != "br-phy" || u.Uplink != "eth0" {
		t.Errorf("underlay %+v", u)
	}
}

// TestForget: what docs/troubleshooting.md says has the agent that starts next forget, and it takes the bridge as it is.
func TestForget(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	n.withLender(state, "1")
	n.ensure(true)
	if err := os.Remove(filepath.Join(state, memoryFile)); err != nil {
		t.Fatal(err)
	}
	n.vswitch.VSCtl("remove", "bridge", "br-phy", "external_ids", keyConfig, keyVTEP)
	if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.withLender(state, "1")
	if m, _, err := n.setup.remembered(); m != nil || err != nil {
		t.Errorf("it remembers %+v, %v", m, err)
	}
	if u := n.ensure(false); u.Link != "br-phy" || u.Uplink != "eth0" {
		t.Errorf("underlay %+v", u)
	}
	if m := n.setup.record.get(); m == nil || m.Bridge != "br-phy" || len(m.Config.Addresses) != 1 {
		t.Errorf("it remembers %+v by then", m)
	}
}

// TestUnsavedIsShared: what the disk had no room for is known to each Setup of the agent.
func TestUnsavedIsShared(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	again := unwritable(t, state)
	lender := n.withLender(state, "1")
	n.ethtool("eth0", "gro", "on")
	n.ensure(true)
	n.merging("moved", "eth0", "")
	n.setup = New(Config{Datapath: ovs.DatapathNetdev, StateDir: state, BootID: "1", Lender: lender}, n.ns, n.client)
	if err := n.setup.Remove(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.merging("after Remove", "eth0", "rx-gro")
	again()
	n.nothingLeft(state)
}

// toOwnBridge is somebody who gives the address to a bridge of his own, be it with the uplink or with a patch to br-phy.
func (n *node) toOwnBridge(patch bool) {
	n.t.Helper()
	n.vswitch.VSCtl("add-br", "br-zz", "--", "set", "bridge", "br-zz", "datapath_type=netdev")
	if patch {
		n.vswitch.VSCtl("add-port", "br-zz", "to-phy", "--", "set", "interface", "to-phy", "type=patch", "options:peer=to-zz",
			"--", "add-port", "br-phy", "to-zz", "--", "set", "interface", "to-zz", "type=patch", "options:peer=to-phy")
	} else {
		n.vswitch.VSCtl("del-port", "br-phy", "eth0", "--", "add-port", "br-zz", "eth0")
	}
	ip(n.t, n.name, "addr del 192.0.2.1/24 dev br-phy", "link set br-zz up", "addr add 192.0.2.1/24 dev br-zz", "route add default via 192.0.2.254")
	if err := n.client.Sync(within(n.t, 5*time.Second)); err != nil {
		n.t.Fatal(err)
	}
}

// TestOwnBridgeStays: an address that somebody gave to a bridge of his own is there and nowhere else when the node has
// left, whether or not an agent saw that he did.
func TestOwnBridgeStays(t *testing.T) {
	for _, patch := range []bool{false, true} {
		for _, seen := range []bool{false, true} {
			t.Run(fmt.Sprintf("patch=%t,seen=%t", patch, seen), func(t *testing.T) {
				n := newNode(t, newWire(t), 1)
				state := t.TempDir()
				n.withLender(state, "1")
				n.ethtool("eth0", "gro", "on")
				n.ensure(true)
				n.toOwnBridge(patch)
				if seen {
					for range 2 {
						if u := n.ensure(false); u.Link != "br-zz" || u.Uplink != "" {
							t.Errorf("underlay %+v", u)
						}
					}
					n.merging("a port of either bridge", "eth0", "")
					if ids := n.vswitch.VSCtl("get", "bridge", "br-phy", "external_ids"); strings.Contains(ids, "192.0.2.1") {
						t.Errorf("br-phy remembers what it has no more: %s", ids)
					}
				}
				before := n.state4()
				n.withLender(state, "1")
				if err := n.setup.Remove(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
				if after := n.state4(); after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
				if got := n.reaches("203.0.113.1"); got != 5 {
					t.Errorf("%d answers to 5 packets", got)
				}
				n.merging("after Remove", "eth0", "rx-gro")
				if patch {
					if ids := n.vswitch.VSCtl("--columns=external_ids", "list", "bridge"); strings.Contains(ids, "k8s-ovs") {
						t.Errorf("bridges have what was remembered: %s", ids)
					}
					n.vswitch.VSCtl("del-br", "br-phy")
				}
				n.nothingLeft(state)
			})
		}
	}
}

// TestOwnBridgeAndBack: an address that comes back from there to br-phy makes that this package's bridge again.
func TestOwnBridgeAndBack(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	n.withLender(state, "1")
	n.ensure(true)
	n.toOwnBridge(true)
	n.ensure(false)
	ip(t, n.name, "addr del 192.0.2.1/24 dev br-zz", "addr add 192.0.2.1/24 dev br-phy", "route add default via 192.0.2.254")
	for range 2 {
		if u := n.ensure(false); u.Link != "br-phy" || u.Uplink != "eth0" {
			t.Errorf("underlay %+v", u)
		}
	}
}

// TestRemoveFindsUplink: under the name that it has by then; where it is gone all stays.
func TestRemoveFindsUplink(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	n.withLender(state, "1")
	n.ensure(true)
	ip(t, n.name, "link set eth0 down", "link set eth0 name ens9", "link set ens9 up")
	n.withLender(state, "1")
	if err := n.setup.Remove(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	n.has("given back", "-4 addr show dev ens9", []string{"192.0.2.1/24"}, nil)
	n.has("given back", "route show", []string{"default via 192.0.2.254 dev ens9"}, []string{"br-phy"})
	n.nothingLeft(state)

	n.withLender(state, "1")
	n.ensure(true)
	ip(t, n.name, "link del ens9")
	before := n.state()
	if err := n.setup.Remove(within(t, 5*time.Second)); err == nil || !strings.Contains(err.Error(), "its uplink ens9 is gone") {
		t.Errorf("without an uplink: %v", err)
	}
	if after := n.state(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestRemoveLeavesTheOwners: what somebody did with the address before the node leaves is not undone by that.
func TestRemoveLeavesTheOwners(t *testing.T) {
	for name, tt := range map[string]struct {
		boot  string
		does  func(n *node, l *Lender)
		where string // the address is, afterwards
	}{
		"nothing, while the device is away": {"1", func(n *node, _ *Lender) { n.stopVswitchd("br-phy") }, "eth0"},
		"nothing, and a boot":               {"2", func(n *node, _ *Lender) { n.stopVswitchd("br-phy") }, "eth0"},
		"taken from the bridge":             {"1", func(n *node, _ *Lender) { ip(n.t, n.name, "addr del 192.0.2.1/24 dev br-phy") }, ""},
		"another address at a boot":         {"2", func(n *node, _ *Lender) { n.stopVswitchd("br-phy"); ip(n.t, n.name, "addr add 192.0.2.99/24 dev eth0") }, ""},
		"taken from the uplink when lent": {"1", func(n *node, l *Lender) {
			n.stopVswitchd("br-phy")
			n.looksLong(l)
			ip(n.t, n.name, "addr del 192.0.2.1/24 dev eth0")
		}, ""},
		"given to a device that is no switch": {"1", func(n *node, _ *Lender) {
			ip(n.t, n.name, "addr del 192.0.2.1/24 dev br-phy", "link add other0 type bridge", "addr add 192.0.2.1/24 dev other0")
		}, "other0"},
		"another address and its routes": {"1", func(n *node, _ *Lender) {
			ip(n.t, n.name, "addr add 10.0.0.5/24 dev br-phy", "route add 10.1.0.0/16 via 10.0.0.1")
			n.ensure(false)
		}, "eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			state := t.TempDir()
			lender := n.withLender(state, "1")
			n.ensure(true)
			tt.does(n, lender)
			n.withLender(state, tt.boot)
			if err := n.setup.Remove(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			if l, ok, err := n.ns.AddressOwner(netip.MustParseAddr("192.0.2.1")); err != nil || ok != (tt.where != "") || l.Name != tt.where {
				t.Errorf("the address is on %q (%t, %v), want %q", l.Name, ok, err, tt.where)
			}
			if tt.where == "eth0" {
				n.has("left", "route show", []string{"default via 192.0.2.254 dev eth0"}, []string{"default via 192.0.2.254 dev br-phy"})
			}
			n.nothingLeft(state)
		})
	}
}
