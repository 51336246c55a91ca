// Package exits tells whether what pods send to the outside gets out of the node, and
// what keeps it back where it does not. It does not go by settings alone: it sends a
// packet of its own the way that pods' packets take, out of the bridge's gateway port
// and through the node's routes and everybody's firewall rules, and sees whether it
// comes to where it would leave the node. There it is counted and dropped.
//
// A check is one packet of 42 bytes, and a counter that is read before and after it (two
// runs of nft, 5 ms of one processor each: docs/datapaths.md); nothing leaves the node,
// whatever the number of nodes. What keeps answers back it does not see.
package exits

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/toobig"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
)

// Switch sends a frame out of the gateway port.
type Switch interface {
	Send(ctx context.Context, frame []byte) error
}

// Counter is where the packets end: see hostnet.Exit.
type Counter interface {
	Passed(ctx context.Context, probe netip.Addr) (uint64, error)
}

// Host is what is asked of the node about the reason.
type Host interface {
	// NextHop is where the default route leads; via is not valid where that is the link.
	NextHop() (via netip.Addr, device string, ok bool, err error)
	Sysctl(key string) (string, error)
	// NeighbourAnswers is what is known of a neighbour, ProbeNeighbour has it looked up.
	NeighbourAnswers(ip netip.Addr) (known, failed bool, err error)
	ProbeNeighbour(ip netip.Addr) error
}

// Gateway is the port that pods' packets leave the bridge by.
type Gateway struct {
	Device string
	// MAC is the device's, From that of what is behind it.
	MAC, From net.HardwareAddr
	// Subnet is the node's.
	Subnet netip.Prefix
}

// Check is the check of one node. One goroutine may use it at a time.
type Check struct {
	host    Host
	counter Counter
	// had is that the node had a default route before: one that never had one reaches
	// nothing outside on purpose.
	had bool
	// router is the next hop that has answered.
	router netip.Addr
	// asked is one that has not, since when.
	asked netip.Addr
	since time.Time
	// patience is how long a packet may take from the bridge to the counter.
	patience, pause time.Duration
}

const (
	// patience is long on purpose: ovs-vswitchd and the kernel need less than a
	// millisecond, on a machine that is not overloaded.
	patience = 500 * time.Millisecond
	pause    = 20 * time.Millisecond
	// routerPatience is how long a router may take to answer at first.
	routerPatience = 3 * time.Second
	// attempts are the packets sent before the way counts as closed.
	attempts = 2
)

// New makes a Check.
func New(host Host, counter Counter) *Check {
	return &Check{host: host, counter: counter, patience: patience, pause: pause}
}

// Outside is nil where pods' packets get out of the node, or where the node itself leads
// nowhere and never did; else it says what keeps them back and what to do.
func (c *Check) Outside(ctx context.Context, sw Switch, gw Gateway) error {
	via, device, ok, err := c.host.NextHop()
	if err != nil {
		return err
	}
	if !ok {
		if c.had {
			return fmt.Errorf("the node has lost its default route: pods reach nothing outside; put it back (ip route add default via ROUTER)")
		}
		return nil
	}
	c.had = true
	if err := c.answers(via, device); err != nil {
		return err
	}
	if !via.IsValid() {
		via = netip.AddrFrom4([4]byte{192, 0, 2, 1}) // whatever is behind the device; RFC 5737
	}
	probe := last(gw.Subnet)
	for range attempts {
		passed, err := c.try(ctx, sw, frame(gw, probe, via), probe)
		if passed || err != nil {
			return err
		}
	}
	return c.explain(gw.Device, device)
}

// answers is nil unless the router of the default route is one that has never answered: a
// wrong one. One that did is away, which is none of this node's doing.
func (c *Check) answers(via netip.Addr, device string) error {
	if !via.IsValid() || via == c.router {
		return nil
	}
	known, failed, err := c.host.NeighbourAnswers(via)
	if err != nil {
		return err
	}
	if known {
		c.router = via
		return nil
	}
	if via != c.asked {
		c.asked, c.since = via, time.Now()
	}
	// The kernel asks three times, a second apart, says that it failed, and begins anew.
	if err := c.host.ProbeNeighbour(via); err != nil {
		return err
	}
	if failed || time.Since(c.since) > routerPatience {
		return fmt.Errorf("the router %s of the default route does not answer on %s, and never has: pods reach nothing outside; give the default route the right one (ip route replace default via ROUTER)", via, device)
	}
	return nil
}

// try sends one packet and waits for it.
func (c *Check) try(ctx context.Context, sw Switch, frame []byte, probe netip.Addr) (bool, error) {
	before, err := c.counter.Passed(ctx, probe)
	if err != nil {
		return false, err
	}
	if err := sw.Send(ctx, frame); err != nil {
		return false, err
	}
	// Each look is a run of nft, so the pauses grow.
	pauses := backoff.Pauses{First: c.pause, Last: c.patience}
	for deadline := time.Now().Add(c.patience); ; {
		now, err := c.counter.Passed(ctx, probe)
		if err != nil || now > before {
			return err == nil, err
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		if !pauses.Wait(ctx) {
			return false, ctx.Err()
		}
	}
}

// explain looks for what keeps packets from gateway to the device outside.
func (c *Check) explain(gateway, outside string) error {
	const lost = "what pods send to the outside does not get out of the node"
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/" + gateway + "/forwarding"} {
		if value, err := c.host.Sysctl(key); err == nil && value != "1" {
			return fmt.Errorf("%s: %s is %s; set it to 1", lost, key, value)
		}
	}
	return fmt.Errorf("%s: somebody's firewall or routing rules keep packets from %s to %s back; where a FORWARD chain drops by default, have it accept what comes from and goes to %s (iptables -I FORWARD -i %s -j ACCEPT; iptables -I FORWARD -o %s -j ACCEPT, or the same in nft list ruleset)", lost, gateway, outside, gateway, gateway, gateway)
}

// last is the subnet's last address, which no pod has.
func last(subnet netip.Prefix) netip.Addr {
	b := subnet.Masked().Addr().As4()
	host := uint32(1)<<(32-subnet.Bits()) - 1
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|host)
	return netip.AddrFrom4(b)
}

// discard is the UDP port whose packets mean nothing (RFC 863).
const discard = 9

// frame is an empty UDP datagram from a pod that is none.
func frame(gw Gateway, from, to netip.Addr) []byte {
	const ethernet, ip, udp = 14, 20, 8
	f := make([]byte, ethernet+ip+udp)
	copy(f, gw.MAC)
	copy(f[6:], gw.From)
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	h := f[ethernet:]
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:], ip+udp)
	h[8], h[9] = 64, 17
	src, dst := from.As4(), to.As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	binary.BigEndian.PutUint16(h[10:], toobig.Checksum(h[:ip]))
	u := h[ip:]
	binary.BigEndian.PutUint16(u, discard)
	binary.BigEndian.PutUint16(u[2:], discard)
	binary.BigEndian.PutUint16(u[4:], udp) // a checksum of zero is none (RFC 768)
	return f
}
