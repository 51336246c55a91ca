package underlay

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// withLender is an agent that starts anew, with somebody who lends.
func (n *node) withLender(state, boot string) *Lender {
	cfg := Config{Datapath: ovs.DatapathNetdev, StateDir: state, BootID: boot}
	cfg.Lender = NewLender(cfg, n.ns)
	n.setup = New(cfg, n.ns, n.client)
	return cfg.Lender
}

// state4 is [node.state] without what the kernel makes of IPv6 a moment later.
func (n *node) state4() string {
	n.t.Helper()
	return show(n.t, n.name, "-4 route show table all") + addresses(show(n.t, n.name, "-4 addr show"))
}

// looksLong has a lender see for long enough that nobody serves the bridge.
func (n *node) looksLong(l *Lender) {
	n.t.Helper()
	begin := time.Now()
	for _, now := range []time.Time{begin, begin.Add(lendAfter)} {
		if err := l.look(now); err != nil {
			n.t.Fatal(err)
		}
	}
}

// TestLent: while ovs-vswitchd is away, ended in order or crashed, the uplink has the node's addresses and routes; when
// it serves again the bridge has them as before, also with an agent that came meanwhile.
func TestLent(t *testing.T) {
	for _, crash := range []bool{true, false} {
		t.Run(fmt.Sprintf("crash=%t", crash), func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			state := t.TempDir()
			lender := n.withLender(state, "1")
			ip(t, n.name, "addr add 198.51.100.7/24 dev eth0", "route add 203.0.113.64/26 via 192.0.2.254", "addr add 2001:db8::1/64 dev eth0 nodad")
			n.ensure(true)
			before := n.state4()
			for round := range 3 {
				n.vswitch.KillVswitchd()
				if !crash {
					ip(t, n.name, "link del br-phy") // as one does that ends in order
				}
				if err := lender.look(time.Now()); err != nil {
					t.Fatal(err)
				}
				n.has("away for a moment", "-4 addr show dev eth0", nil, []string{"192.0.2.1"})
				for range 2 {
					n.looksLong(lender)
					n.has("lent", "route show", []string{"default via 192.0.2.254 dev eth0", "203.0.113.64/26 via 192.0.2.254 dev eth0"}, []string{"br-phy"})
					n.has("lent", "-4 addr show", []string{"192.0.2.1/24 brd 192.0.2.255 scope global eth0", "198.51.100.7/24 brd 198.51.100.255 scope global eth0"}, nil)
				}
				n.has("lent", "-6 addr show dev eth0", []string{"2001:db8::1/64"}, nil)
				if got := n.pings(3, "203.0.113.1"); got != 3 {
					t.Errorf("%d answers to 3 packets of a node that ovs-vswitchd left", got)
				}
				lent := n.state4()
				if round == 1 {
					lender = n.withLender(state, "1")
				}
				if _, _, err := n.setup.Ensure(within(t, 200*time.Millisecond)); err == nil {
					t.Error("there is an underlay without ovs-vswitchd")
				}
				if after := n.state4(); after != lent {
					t.Errorf("without ovs-vswitchd something was changed:\n%s\n%s", lent, after)
				}
				n.vswitch.StartVswitchd()
				n.ensure(true)
				n.ensure(false)
				if after := n.state4(); after != before {
					t.Errorf("round %d, before:\n%s\nafter:\n%s", round, before, after)
				}
				n.has("back", "-6 addr show dev br-phy", []string{"2001:db8::1/64"}, nil)
				if got := n.reaches("203.0.113.1"); got != 5 {
					t.Errorf("%d answers to 5 packets after ovs-vswitchd is back", got)
				}
				n.looksLong(lender)
				n.ensure(false)
			}
		})
	}
}

// TestLentToNobody: what somebody wants otherwise is not lent.
func TestLentToNobody(t *testing.T) {
	for name, tt := range map[string]struct {
		crash bool
		boot  string
		does  []string
		where string // the address is, afterwards
	}{
		"taken from the bridge":      {true, "1", []string{"addr del 192.0.2.1/24 dev br-phy"}, ""},
		"bridge set down":            {true, "1", []string{"link set br-phy down"}, "br-phy"},
		"given to another device":    {false, "1", []string{"link add other0 type bridge", "addr add 192.0.2.1/24 dev other0"}, "other0"},
		"another start of a machine": {false, "2", nil, ""},
		"the uplink has others":      {false, "1", []string{"addr add 198.51.100.7/24 dev eth0"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			state := t.TempDir()
			n.withLender(state, "1")
			n.ensure(true)
			n.vswitch.KillVswitchd()
			if !tt.crash {
				ip(t, n.name, "link del br-phy")
			}
			ip(t, n.name, tt.does...)
			before := n.state4()
			n.looksLong(n.withLender(state, tt.boot))
			if after := n.state4(); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if l, ok, err := n.ns.AddressOwner(netip.MustParseAddr("192.0.2.1")); err != nil || ok != (tt.where != "") || l.Name != tt.where {
				t.Errorf("the address is on %q (%t, %v), want %q", l.Name, ok, err, tt.where)
			}
		})
	}
}

// TestLentOnce: what somebody does with an address that was lent is not undone, by the same agent nor by the next one; by
// the same one also where the state directory cannot be written. When the bridge was served again, the uplink is lent its
// addresses again.
func TestLentOnce(t *testing.T) {
	for _, full := range []bool{false, true} {
		t.Run(fmt.Sprintf("full=%t", full), func(t *testing.T) {
			n := newNode(t, newWire(t), 1)
			state := t.TempDir()
			lender := n.withLender(state, "1")
			n.ensure(true)
			if full {
				unwritable(t, state)
			}
			again := func() *Lender {
				if !full {
					return n.withLender(state, "1")
				}
				return lender
			}
			n.stopVswitchd("br-phy")
			n.looksLong(again())
			for _, commands := range [][]string{
				{"addr del 192.0.2.1/24 dev eth0"},
				{"addr add 192.0.2.77/24 dev eth0", "route add default via 192.0.2.254"},
			} {
				ip(t, n.name, commands...)
				before := n.state4()
				for range 2 {
					n.looksLong(again())
				}
				if after := n.state4(); after != before {
					t.Errorf("%v, before:\n%s\nafter:\n%s", commands, before, after)
				}
			}
			lender = again()
			n.vswitch.StartVswitchd()
			n.ensure(true)
			n.has("back", "-4 addr show dev br-phy", []string{"192.0.2.77"}, []string{"192.0.2.1/24"})
			for range 2 {
				n.stopVswitchd("br-phy")
				n.looksLong(lender)
				n.has("lent again", "-4 addr show dev eth0", []string{"192.0.2.77"}, []string{"192.0.2.1/24"})
				n.vswitch.StartVswitchd()
				n.ensure(true)
			}
		})
	}
}

// TestLentHalf: one that ended half-way is gone on with; a route that needs an address which stays on the bridge that a
// crash left behind stays there; a copy that was deleted is there again when it is needed.
func TestLentHalf(t *testing.T) {
	n := newNode(t, newWire(t), 1)
	state := t.TempDir()
	lender := n.withLender(state, "1")
	n.ensure(true)
	ip(t, n.name, "addr add 10.0.0.5/24 dev br-phy", "route add 10.1.0.0/16 via 10.0.0.1")
	if err := os.Remove(filepath.Join(state, memoryFile)); err != nil {
		t.Fatal(err)
	}
	n.ensure(false)
	before := n.state4()
	for range 2 {
		n.vswitch.KillVswitchd()
		ip(t, n.name, "addr add 192.0.2.1/24 dev eth0") // and nothing more
		n.looksLong(lender)
		n.has("lent", "route show", []string{"default via 192.0.2.254 dev eth0", "10.1.0.0/16 via 10.0.0.1 dev br-phy"}, []string{"default via 192.0.2.254 dev br-phy"})
		n.has("lent", "-4 addr show dev br-phy", []string{"10.0.0.5/24"}, []string{"192.0.2.1/24"})
		if got := n.pings(3, "203.0.113.1"); got != 3 {
			t.Errorf("%d answers to 3 packets of a node that ovs-vswitchd left", got)
		}
		n.vswitch.StartVswitchd()
		n.ensure(true)
		if after := n.state4(); sorted(after) != sorted(before) {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
}

func sorted(text string) string {
	return strings.Join(slices.Sorted(slices.Values(strings.Fields(text))), " ")
}
