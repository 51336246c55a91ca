package underlay

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// again is an agent that starts anew, after another start of the machine or not.
func (n *node) again(state, boot string) {
	n.setup = New(Config{Datapath: ovs.DatapathNetdev, StateDir: state, BootID: boot}, n.ns, n.client)
}

// refused checks that Ensure refuses, says why and changes nothing.
func (n *node) refused(why string) {
	n.t.Helper()
	before := n.state()
	for range 2 {
		if _, _, err := n.setup.Ensure(within(n.t, 5*time.Second)); err == nil || !strings.Contains(err.Error(), why) {
			n.t.Errorf("error %v, want %q in it", err, why)
		}
	}
	if after := n.state(); after != before {
		n.t.Errorf("a refusal changed something:\n%s\n%s", before, after)
	}
}

func (n *node) state() string {
	n.t.Helper()
	return show(n.t, n.name, "route show table all") + addresses(show(n.t, n.name, "-4 addr show")) + n.vswitch.VSCtl("list-br")
}

// has checks what `ip` shows.
func (n *node) has(when, args string, want, not []string) {
	n.t.Helper()
	got := show(n.t, n.name, args)
	for _, w := range want {
		if !strings.Contains(got, w) {
			n.t.Errorf("%s: ip %s lacks %q:\n%s", when, args, w, got)
		}
	}
	for _, w := range not {
		if strings.Contains(got, w) {
			n.t.Errorf("%s: ip %s still has %q:\n%s", when, args, w, got)
		}
	}
}

// reboot leaves of Open vSwitch what is on disk, and no device of it; the commands are
// what the machine's own configuration does meanwhile.
func (n *node) reboot(state, boot string, commands ...string) {
	n.t.Helper()
	n.stopVswitchd("br-phy")
	ip(n.t, n.name, commands...)
	n.vswitch.StartVswitchd()
	n.again(state, boot)
}

// What somebody changes while the device stands is followed, and not put back when the
// device has to be made anew.
func TestOwnerWins(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	n.again(state, "1")
	n.ensure(true)
	ip(t, n.name, "addr add 192.0.2.200/32 dev br-phy")
	n.ensure(false)
	ip(t, n.name, "addr del 192.0.2.200/32 dev br-phy", "addr add 192.0.2.201/32 dev br-phy",
		"route add default via 192.0.2.253", "route del default via 192.0.2.254 metric 100", "route add 198.51.100.0/24 via 192.0.2.254")
	for range 2 {
		n.ensure(false)
	}
	gone := []string{"via 192.0.2.254 dev br-phy proto dhcp", "192.0.2.200"}
	n.has("changed", "route show", []string{"default via 192.0.2.253", "198.51.100.0/24"}, gone)
	n.has("changed", "-4 addr show", []string{"192.0.2.201"}, gone)
	for _, boot := range []string{"1", "2"} {
		n.reboot(state, boot)
		n.ensure(true)
		n.ensure(false)
		n.has("made anew", "route show", []string{"default via 192.0.2.253", "198.51.100.0/24"}, gone)
		// A VRRP address may be another machine's by now: its daemon puts it back.
		n.has("made anew", "-4 addr show", []string{"192.0.2.1/24"}, []string{"192.0.2.201", "192.0.2.200"})
	}
	// An agent that was away while all this happened.
	ip(t, n.name, "route del 198.51.100.0/24")
	n.again(state, "2")
	n.ensure(false)
	n.has("while no agent ran", "route show", nil, []string{"198.51.100.0/24"})
}

// TestAgentBeforeSwitch: an agent that is there before ovs-vswitchd sees the bridge's device
// the moment it is made, and ovs-vswitchd goes on to change it: no route is lost by that, be
// it that the machine gave the uplink its configuration at boot or that it is the bridge's.
func TestAgentBeforeSwitch(t *testing.T) {
	for name, commands := range map[string][]string{
		"restore": nil,
		"move":    {"addr add 192.0.2.1/24 dev eth0", "route add default via 192.0.2.254 metric 100 proto dhcp"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			state := t.TempDir()
			n.again(state, "1")
			n.ensure(true)
			for _, boot := range []string{"2", "3", "4"} {
				n.stopVswitchd("br-phy")
				if commands != nil {
					ip(t, n.name, commands...)
				}
				n.again(state, boot)
				done := make(chan error, 1)
				go func() {
					_, _, err := n.setup.Ensure(within(t, 20*time.Second))
					done <- err
				}()
				n.vswitch.StartVswitchd()
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
				n.has("boot "+boot, "route show", []string{"default via 192.0.2.254 dev br-phy", "192.0.2.0/24 dev br-phy"}, []string{"dev eth0"})
				n.ensure(false)
			}
		})
	}
}

// The address taken away while its device stands: said, not undone, and over as soon as
// it is back.
func TestAddressTaken(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.setup = New(Config{Datapath: ovs.DatapathNetdev, NodeIP: netip.MustParseAddr("192.0.2.1"), StateDir: t.TempDir(), BootID: "1"}, n.ns, n.client)
	n.ensure(true)
	ip(t, n.name, "addr del 192.0.2.1/24 dev br-phy")
	n.refused("somebody took the node address 192.0.2.1 from br-phy")
	ip(t, n.name, "addr add 192.0.2.1/24 dev br-phy", "route add default via 192.0.2.254")
	n.ensure(false)
	ip(t, n.name, "link set br-phy down")
	n.refused("br-phy, which has the node address 192.0.2.1, is down")
	ip(t, n.name, "link set br-phy up", "route add default via 192.0.2.254")
	n.ensure(false)
	if got := n.reaches("203.0.113.1"); got != 5 {
		t.Errorf("%d answers to 5 packets", got)
	}
}

// The uplink under another name, live and over a reboot, with the machine's own
// configuration on it or without.
func TestUplinkRenamed(t *testing.T) {
	rename := []string{"link set eth0 down", "link set eth0 name ens9", "link set ens9 up"}
	configured := append(slices.Clone(rename), "addr add 192.0.2.1/24 dev ens9", "route add default via 192.0.2.254 metric 7")
	for name, tt := range map[string]struct {
		boot     string
		commands []string
	}{"live": {"1", rename}, "at boot": {"2", rename}, "at boot, configured": {"2", configured}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			state := t.TempDir()
			n.again(state, "1")
			n.ensure(true)
			if tt.boot == "1" {
				ip(t, n.name, tt.commands...)
			} else {
				n.reboot(state, tt.boot, tt.commands...)
			}
			if u := n.ensure(true); u.Uplink != "ens9" || u.Link != "br-phy" {
				t.Errorf("underlay %+v", u)
			}
			n.ensure(false)
			if got := strings.Fields(n.vswitch.VSCtl("list-ports", "br-phy")); !slices.Equal(got, []string{"ens9"}) {
				t.Errorf("ports of br-phy: %v", got)
			}
			if got := n.reaches("203.0.113.1"); got != 5 {
				t.Errorf("%d answers to 5 packets", got)
			}
		})
	}
}

// The uplink becomes a port of a bridge of the kernel.
func TestUplinkIntoBridge(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.again(t.TempDir(), "1")
	n.ensure(true)
	ip(t, n.name, "link add name host0 type bridge", "link set host0 up", "link set eth0 master host0")
	if u := n.ensure(true); u.Uplink != "host0" {
		t.Errorf("underlay %+v", u)
	}
	n.ensure(false)
	if got := n.reaches("203.0.113.1"); got != 5 {
		t.Errorf("%d answers to 5 packets", got)
	}
}

// A machine with another network: what is remembered is not imposed on it.
func TestMachineChanged(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	n.again(state, "1")
	n.ensure(true)
	n.reboot(state, "2", "link del eth0", "link add eth7 type veth peer name wire7", "link set wire7 up", "link set eth7 up")
	n.setup = New(Config{Datapath: ovs.DatapathNetdev, NodeIP: netip.MustParseAddr("192.0.2.1"), StateDir: state, BootID: "2"}, n.ns, n.client)
	n.refused("its uplink eth0 is gone")
	ip(t, n.name, "addr add 192.0.2.1/24 dev eth7", "addr add 203.0.113.7/24 dev wire7", "route add default via 192.0.2.7 dev eth7", "route add 198.51.100.0/24 via 203.0.113.8 dev wire7")
	if u := n.ensure(true); u.Uplink != "eth7" {
		t.Errorf("underlay %+v", u)
	}
	n.ensure(false)
	n.has("on another device", "route show", []string{"default via 192.0.2.7 dev br-phy", "198.51.100.0/24 via 203.0.113.8 dev wire7"}, []string{"192.0.2.254"})
	// A default route out of another device is not taken over when the bridge is made anew.
	ip(t, n.name, "route replace default via 203.0.113.9 dev wire7")
	n.ensure(false)
	n.reboot(state, "3")
	n.ensure(true)
	n.has("made anew", "route show", []string{"default via 203.0.113.9 dev wire7"}, []string{"default via 192.0.2.7"})
}

// A lease that is renewed on the uplink: address and routes come there again, with
// another gateway.
func TestLeaseRenewed(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	n.again(t.TempDir(), "1")
	n.ensure(true)
	ip(t, n.name, "addr add 192.0.2.1/24 dev eth0", "route add default via 192.0.2.253 dev eth0 metric 50", "addr add 192.0.2.200/32 dev eth0")
	n.ensure(true)
	n.ensure(false)
	n.has("renewed", "route show", []string{"default via 192.0.2.253 dev br-phy"}, []string{"192.0.2.254", "eth0"})
	n.has("renewed", "-4 addr show dev eth0", []string{"192.0.2.200/32"}, []string{"192.0.2.1/"})
}

// Open vSwitch's database is lost, or somebody deletes the bridge while ovs-vswitchd is
// down: the bridge is made anew of the copy, whatever is left of its device.
func TestDatabaseLost(t *testing.T) {
	for name, left := range map[string]bool{"device left": true, "device gone": false} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			state := t.TempDir()
			n.again(state, "1")
			n.ensure(true)
			want := n.state()
			if left {
				n.vswitch.KillVswitchd()
			} else {
				n.stopVswitchd("br-phy")
			}
			n.vswitch.VSCtl("--no-wait", "del-br", "br-phy")
			n.vswitch.StartVswitchd()
			if err := n.client.Sync(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			n.again(state, "1")
			if u := n.ensure(true); u.Link != "br-phy" || u.Uplink != "eth0" {
				t.Errorf("underlay %+v", u)
			}
			n.ensure(false)
			if got := n.state(); got != want {
				t.Errorf("before:\n%s\nafter:\n%s", want, got)
			}
			if got := n.reaches("203.0.113.1"); got != 5 {
				t.Errorf("%d answers to 5 packets", got)
			}
		})
	}
}

// Nothing is taken away silently: IPv6 and other tables move too, and what cannot move is
// refused before anything is touched.
func TestWholeConfigurationMoves(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	ip(t, n.name, "addr add 2001:db8::1/64 dev eth0 nodad", "route add default via 2001:db8::254 dev eth0", "addr add 192.0.2.77/24 dev eth0",
		"route add default via 192.0.2.254 dev eth0 table 100", "rule add from 192.0.2.77 lookup 100", "addr add 192.0.2.78/32 dev eth0")
	ip(t, n.name, "rule add iif eth0 lookup 100 priority 999")
	n.refused("routing rule 999 names it")
	ip(t, n.name, "rule del priority 999")
	state := t.TempDir()
	n.again(state, "1")
	moved := func(when, dev string) {
		t.Helper()
		n.has(when, "-6 addr show dev "+dev, []string{"2001:db8::1/64"}, nil)
		n.has(when, "-6 route show", []string{"default via 2001:db8::254 dev " + dev, "2001:db8::/64 dev " + dev}, nil)
		n.has(when, "route show table 100", []string{"default via 192.0.2.254 dev " + dev}, nil)
		n.has(when, "-4 addr show dev "+dev, []string{"192.0.2.77/24"}, nil)
	}
	n.ensure(true)
	n.ensure(false)
	moved("moved", "br-phy")
	n.has("moved", "-4 addr show dev eth0", []string{"192.0.2.78/32"}, []string{"192.0.2.77"})
	n.reboot(state, "1")
	n.ensure(true)
	moved("made anew", "br-phy")
	n.ensure(false)
	if err := n.setup.Remove(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	moved("given back", "eth0")
}

func TestDecide(t *testing.T) {
	vtep := netip.MustParseAddr("192.0.2.1")
	local, eth0, ens9 := &link.Link{Name: "br-phy", Index: 5}, &link.Link{Name: "eth0", Index: 2}, &link.Link{Name: "ens9", Index: 3}
	own := &memory{Bridge: "br-phy", VTEP: vtep, Uplink: "eth0", Device: "1/5"}
	older := &memory{Bridge: "br-phy", VTEP: vtep, Uplink: "eth0"}
	given := &memory{Bridge: "br-phy", VTEP: vtep, Device: "1/5"}
	for name, tt := range map[string]struct {
		scene scene
		want  step
	}{
		"fresh":                          {scene{owner: eth0}, move},
		"fresh, nobody has it":           {scene{}, refuse},
		"fresh, on a given bridge":       {scene{owner: local, local: local, given: true, row: true}, adopt},
		"left by a lost bridge":          {scene{owner: local, local: local}, refuse},
		"all well":                       {scene{memory: own, row: true, local: local, device: "1/5", uplink: eth0, owner: local}, stay},
		"from an older release":          {scene{memory: older, row: true, local: local, device: "1/5", uplink: eth0, owner: local}, stay},
		"older release, address gone":    {scene{memory: older, row: true, local: local, device: "1/5", uplink: eth0}, restore},
		"address taken":                  {scene{memory: own, row: true, local: local, device: "1/5", uplink: eth0}, refuse},
		"device made anew":               {scene{memory: own, row: true, local: local, device: "1/9", uplink: eth0}, restore},
		"rebooted":                       {scene{memory: own, row: true, local: local, device: "2/5", uplink: eth0}, restore},
		"rebooted, uplink configured":    {scene{memory: own, row: true, local: local, device: "2/5", uplink: eth0, owner: eth0}, move},
		"ovs-vswitchd is late":           {scene{memory: own, row: true, uplink: eth0}, restore},
		"uplink gone, address stands":    {scene{memory: own, row: true, local: local, device: "1/5", owner: local}, refuse},
		"uplink gone, nobody has it":     {scene{memory: own, row: true, local: local, device: "2/5"}, refuse},
		"uplink gone, address elsewhere": {scene{memory: own, row: true, local: local, device: "2/5", owner: ens9}, move},
		"address elsewhere":              {scene{memory: own, row: true, local: local, device: "1/5", uplink: eth0, owner: ens9}, move},
		"on a given bridge by now":       {scene{memory: own, row: true, local: local, device: "1/5", uplink: eth0, owner: ens9, given: true}, adopt},
		"record lost, device left":       {scene{memory: own, local: local, device: "1/5", uplink: eth0, owner: local}, rebuild},
		"record lost, device gone":       {scene{memory: own, uplink: eth0}, rebuild},
		"given, all well":                {scene{memory: given, row: true, local: local, device: "1/5", owner: local, given: true}, adopt},
		"given, made anew":               {scene{memory: given, row: true, local: local, device: "1/9"}, restore},
		"given, address taken":           {scene{memory: given, row: true, local: local, device: "1/5"}, refuse},
		"given, address elsewhere":       {scene{memory: given, row: true, local: local, device: "1/5", owner: eth0}, move},
	} {
		tt.scene.vtep = vtep
		if got := tt.scene.decide(); got.step != tt.want || (got.why == "") != (tt.want != refuse) {
			t.Errorf("%s: %+v, want step %d", name, got, tt.want)
		}
	}
}
