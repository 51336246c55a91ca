package underlay

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// scene is what the machine looks like now, as far as it matters to where the node's
// address belongs on the userspace datapath.
type scene struct {
	vtep netip.Addr
	// memory is nil where nothing is remembered.
	memory *memory
	// row says that the remembered bridge, or the one to be made, is in the database.
	row bool
	// local is the bridge's local port, device its incarnation; nil where there is none yet.
	local  *link.Link
	device string
	// uplink is the device that leads outside, under the name that it has now, or what it
	// has become a port of; nil where there is none.
	uplink *link.Link
	// owner is the device that has the address; the local port where several have it. nil: nobody.
	owner *link.Link
	// given is the bridge of somebody else whose local port owner is.
	given bool
}

// step is what is to be done about a scene.
type step int

const (
	// stay: all stands as it should; take in what somebody changed.
	stay step = iota
	// adopt: the address is on a bridge that somebody else made.
	adopt
	// move: make the owner an uplink, and its configuration that of the bridge.
	move
	// rebuild: the bridge's record is gone; make it again of the memory.
	rebuild
	// restore: the local port was made anew; give it what went with the old one.
	restore
	// refuse: nothing can be done; why says what people can.
	refuse
)

// verdict is a step with its reason.
type verdict struct {
	step step
	why  string
}

// decide is the whole rule of where the node's address belongs. Who owns the machine
// wins: an address that is on another device was put there on purpose, one that was
// taken away while its device stood is not put back.
func (c scene) decide() verdict {
	if c.memory == nil {
		return c.first()
	}
	name := c.memory.Bridge
	elsewhere := c.owner != nil && (c.local == nil || c.owner.Index != c.local.Index)
	if c.memory.Uplink == "" {
		return c.givenBridge(elsewhere)
	}
	if elsewhere && c.given {
		return verdict{step: adopt}
	}
	if elsewhere && !(c.uplink != nil && c.owner.Index == c.uplink.Index) {
		return verdict{step: move}
	}
	switch {
	case c.uplink == nil:
		return verdict{refuse, fmt.Sprintf("bridge %s leads nowhere: its uplink %s is gone; bring the device back, or give the node address %s to the device that is the uplink now", name, c.memory.Uplink, c.vtep)}
	case !c.row:
		return verdict{step: rebuild}
	case elsewhere: // the machine configured the uplink itself, as it does at boot
		return verdict{step: move}
	case c.local == nil:
		return verdict{step: restore}
	case c.owner != nil:
		return verdict{step: stay}
	case c.memory.Device == c.device:
		return verdict{refuse, fmt.Sprintf("somebody took the node address %s from %s: put it back (ip address add %s/LENGTH dev %s), or give it to the device that should have it", c.vtep, name, c.vtep, name)}
	}
	return verdict{step: restore}
}

// waits reports whether ovs-vswitchd has to serve the local port of the remembered bridge before a
// step: until then there is nothing to be done, and nothing to undo.
func (c scene) waits(s step) bool {
	return (s == restore || s == move) && c.row && c.memory != nil && (c.local == nil || !isServed(*c.local))
}

// first is the verdict where nothing is remembered.
func (c scene) first() verdict {
	switch {
	case c.owner == nil:
		return verdict{refuse, fmt.Sprintf("no network device has the node address %s; give the address of this node with --node-ip", c.vtep)}
	case c.given:
		return verdict{step: adopt}
	case c.local != nil && c.owner.Index == c.local.Index:
		return verdict{refuse, fmt.Sprintf("the node address %s is on %s, which was left by a bridge whose record in Open vSwitch is lost, and nothing remembers its uplink; give the address to the uplink (ip address add %s/LENGTH dev UPLINK) and delete %s (ip link delete %s)", c.vtep, c.owner.Name, c.vtep, c.owner.Name, c.owner.Name)}
	}
	return verdict{step: move}
}

// givenBridge is the verdict on a bridge that somebody else made, and keeps.
func (c scene) givenBridge(elsewhere bool) verdict {
	switch {
	case elsewhere && c.given:
		return verdict{step: adopt}
	case elsewhere:
		return verdict{step: move}
	case !c.row:
		return c.first()
	case c.local == nil:
		return verdict{step: restore}
	case c.owner != nil:
		return verdict{step: adopt}
	case c.memory.Device == c.device:
		return verdict{refuse, fmt.Sprintf("somebody took the node address %s from bridge %s: put it back", c.vtep, c.memory.Bridge)}
	}
	return verdict{step: restore}
}

func hasAddress(c link.Config, ip netip.Addr) bool {
	return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == ip })
}

func has(l link.Link, ip netip.Addr) bool {
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == ip })
}
