// Package exits tells whether what pods send to the outside gets out of the node and
// answers get back in ([Check]), whether tunnels' packets get out to other nodes and in from
// them ([Nodes]), and what keeps them back where they do not. It does not go by
// settings alone. It sends packets of its own the way that pods' packets take, out of the
// bridge's gateway port and through the node's routes and everybody's firewall rules, and
// sees whether one comes to where it would leave the node; and it has packets come in where
// answers would, of connections that conntrack was told of, and sees whether one comes to
// where it would be given to the gateway port. There they are counted and dropped. What the node
// sends to pods, what they answer it, and tunnels' packets alike.
//
// A check is nine packets of 42 to 74 bytes and five entries of conntrack for 2 s, and counters that are
// read before and after it (two runs of nft, 5 ms of one processor each: docs/datapaths.md);
// none of them leaves the node, whatever the number of nodes.
package exits

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/rawpacket"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/conntrack"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
)

// Policy is what becomes of a node whose way to the outside is closed, as the check sees it.
type Policy string

const (
	// NotReady takes no more pods.
	NotReady Policy = "not-ready"
	// Warn takes them, and people are told.
	Warn Policy = "warn"
	// Off does not check.
	Off Policy = "off"
)

// Valid reports whether p is one of these.
func (p Policy) Valid() bool { return p == NotReady || p == Warn || p == Off }

// Switch sends frames out of the gateway port.
type Switch interface {
	Send(ctx context.Context, frames ...[]byte) error
}

// Counter is where the packets end: see hostnet.Exit.
type Counter interface {
	Passed(ctx context.Context, way hostnet.Way) (hostnet.Passed, error)
	// Forget has what counts made anew.
	Forget()
}

// Host is the node: its routes and settings, and what packets come in by. [NodeIn] makes one.
type Host interface {
	PathTo(ip netip.Addr) (link.Path, error)
	PathOf(src netip.Addr, device string, ip netip.Addr) (link.Path, error)
	// HopsOf are the next hops among which the kernel shares connections; none where there is but one.
	HopsOf(src netip.Addr, device string, ip netip.Addr) ([]link.Path, error)
	Sysctl(key string) (string, error)
	// NeighbourAnswers is what is known of a neighbour, ProbeNeighbour has it looked up.
	NeighbourAnswers(ip netip.Addr) (known, failed bool, err error)
	ProbeNeighbour(ip netip.Addr) error
	Track(c conntrack.Translated, lasts time.Duration) error
	// Fill is how many connections conntrack knows, and how many it has room for, 0 for any number.
	Fill() (used, size uint64, err error)
	Arrive(by, device string, packets ...[]byte) error
	Call(to netip.AddrPort, tcp bool) (from netip.AddrPort, err error)
}

// Node is the node with its connection table and its traffic control.
type Node struct {
	*link.NS
	conntrack.Table
	tc.Control
}

// NodeIn is the node with that namespace.
func NodeIn(ns *link.NS) Node { return Node{ns, conntrack.In(ns), tc.In(ns)} }

// Device is the one that the check makes, by which its answers come in.
const Device = "k8s-ovs-answers"

// Beyond stands for all that is outside: an address that is routed everywhere and answers
// for nobody's network, of the AS112 project (RFC 7534), so that rules against senders
// that cannot be (RFC 6890) do not concern it. Nothing is sent to it.
var Beyond = netip.AddrFrom4([4]byte{192, 175, 48, 1})

// Gateway is the port that pods' packets leave the bridge by.
type Gateway struct {
	Device string
	// MAC is the device's, From that of what is behind it.
	MAC, From net.HardwareAddr
	// Address is the device's, by which pods know the node.
	Address netip.Addr
	// Subnet is the node's.
	Subnet netip.Prefix
}

// frame is a packet of IPv4 as it would come from behind the gateway.
func (g Gateway) frame(packet []byte) []byte {
	f := append(append(make([]byte, 0, 14+len(packet)), g.MAC...), g.From...)
	f = binary.BigEndian.AppendUint16(f, 0x0800)
	return append(f, packet...)
}

// nobody is the subnet's network address, which no pod has. What the node forwards to pods has
// the last one.
func nobody(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr() }

const (
	// domain and https are the ports whose answers firewalls without a memory let in (RFC 1035,
	// RFC 9000, RFC 9110). See hostnet.Exit for what is made of an error about one.
	domain, https = 53, 443
	// Ports from firstPort on are those that programs send from (ip_local_port_range).
	firstPort, ports = 32768, 28000
)

func (g Gateway) way() hostnet.Way { return hostnet.Way{Gateway: g.Device, Probe: nobody(g.Subnet)} }

// Check is the check of one node. One goroutine may use it at a time.
type Check struct {
	host    Host
	counter Counter
	log     *slog.Logger
	file    File
	// seen is what file says, and what was seen since. unsaved is that file could not be
	// told.
	seen    Seen
	unsaved bool
	// asked are routers that have not answered, since when.
	asked map[netip.Addr]time.Time
	said  said
	// patience is how long a packet may take from where it is sent to the counter.
	patience, pause time.Duration
}

const (
	// patience is long on purpose: ovs-vswitchd and the kernel need less than a
	// millisecond, on a machine that is not overloaded.
	patience = 500 * time.Millisecond
	pause    = 20 * time.Millisecond
	// attempts are how often packets are sent before a way counts as closed.
	attempts = 2
	// tracked is how long conntrack knows the connections that are answered.
	tracked = 2 * time.Second
)

// New makes a Check that remembers in file.
func New(host Host, counter Counter, file File, log *slog.Logger) *Check {
	return &Check{host: host, counter: counter, file: file, log: log, asked: map[netip.Addr]time.Time{}, said: said{}, patience: patience, pause: pause}
}

// Outside is nil where pods' packets get out of the node and answers come back, where what
// keeps them back is none of this node's doing, or where the node leads nowhere and never
// did; and where the node and its pods reach each other. Else it says what keeps packets back
// and what to do.
func (c *Check) Outside(ctx context.Context, sw Switch, gw Gateway) error {
	c.recall()
	way, err := c.leads(gw)
	switch {
	case errors.Is(err, link.ErrNoRoute):
		if c.seen.Led {
			return fmt.Errorf("the node has lost its default route: pods reach nothing outside; put it back (ip route add default via ROUTER), or delete %s where the node is to have none", c.file.path)
		}
		way = link.Path{}
	case err != nil:
		return err
	default:
		if !c.seen.Led {
			c.seen.Led = true
			c.remember()
		}
		if err := c.answers(ctx, c.routers(gw, way)); err != nil {
			return err
		}
	}
	var got passes
	for attempt := range attempts {
		if attempt > 0 {
			c.counter.Forget() // somebody may have flushed it
		}
		now, err := c.try(ctx, sw, gw, way)
		if err != nil {
			return err
		}
		if got = got.or(now); got == all {
			return nil
		}
	}
	return c.explain(gw, way, got)
}

// passes are the ways that are open: from pods to the outside and back, from the node to its pods and back.
type passes struct{ out, back, toPods, fromPods bool }

var all = passes{true, true, true, true}

func (p passes) or(q passes) passes {
	return passes{p.out || q.out, p.back || q.back, p.toPods || q.toPods, p.fromPods || q.fromPods}
}

// leads is where pods' packets go that are for the outside; where rules of routing stop them,
// where the node's own go.
func (c *Check) leads(gw Gateway) (link.Path, error) {
	if way, err := c.host.PathOf(nobody(gw.Subnet), gw.Device, Beyond); err == nil {
		return way, nil
	}
	return c.host.PathTo(Beyond)
}

// try sends packets each way, and waits until one of each has passed. Of a way that leads nowhere, and of answers
// that cannot be had, it says that they are open.
func (c *Check) try(ctx context.Context, sw Switch, gw Gateway, way link.Path) (passes, error) {
	before, err := c.counter.Passed(ctx, gw.way())
	if err != nil {
		return passes{}, err
	}
	frames, called, err := c.call(gw)
	if err != nil {
		return passes{}, err
	}
	leads, answered := way.Link.Name != "", false
	if leads {
		frames = append(frames, outward(gw, way)...)
	}
	if err := sw.Send(ctx, frames...); err != nil {
		return passes{}, err
	}
	if leads {
		answered = c.answer(gw, way)
	}
	// Each look is a run of nft, so the pauses grow.
	pauses := backoff.Pauses{First: c.pause, Last: c.patience}
	for deadline := time.Now().Add(c.patience); ; {
		now, err := c.counter.Passed(ctx, gw.way())
		if err != nil {
			return passes{}, err
		}
		got := passes{
			out: !leads || now.Out > before.Out, back: !answered || now.Back > before.Back,
			toPods: now.ToPods > before.ToPods, fromPods: !called || now.FromPods > before.FromPods,
		}
		// Somebody has connections known elsewhere than where these answers belong.
		got.back = got.back || got.out && now.Tracked == before.Tracked
		got.fromPods = got.fromPods || got.toPods && now.ToPodsTracked == before.ToPodsTracked
		left := time.Until(deadline)
		if got == all || left <= 0 {
			return got, nil
		}
		select {
		case <-time.After(min(pauses.Next(), left)):
		case <-ctx.Done():
			return passes{}, ctx.Err()
		}
	}
}

// outward are what a pod would send outside. A node may keep pods from its own link, or from all else: either is a way out.
func outward(gw Gateway, way link.Path) (frames [][]byte) {
	to := []netip.Addr{Beyond}
	if way.Via.IsValid() {
		to = append(to, way.Via)
	}
	for _, ip := range to {
		frames = append(frames, gw.frame(rawpacket.Datagram(netip.AddrPortFrom(gw.way().Probe, hostnet.Discard), netip.AddrPortFrom(ip, hostnet.Discard))))
	}
	return frames
}

// answer has three answers come in where they would, from Beyond and from the router, of
// different ports, and of UDP and TCP: rules against senders that cannot be, about a port and
// about a protocol may stop any of them. The router's proves nothing where the node's own packets leave by another device
// than pods', which is what firewalls that look for the way back go by. It reports false where
// that cannot be had.
func (c *Check) answer(gw Gateway, way link.Path) bool {
	router := Beyond
	if own, err := c.host.PathTo(Beyond); way.Via.IsValid() && err == nil && own.Link.Name == way.Link.Name {
		router = way.Via
	}
	err := fs.ErrExist
	for range attempts { // a pod, or the look before, may have such a connection: another port then
		if errors.Is(err, fs.ErrExist) {
			err = c.answerFrom(gw, way, conntrack.Translated{To: netip.AddrPortFrom(Beyond, domain)}, conntrack.Translated{To: netip.AddrPortFrom(router, https)},
				conntrack.Translated{To: netip.AddrPortFrom(Beyond, https), TCP: true})
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		c.once("it is not known whether answers from outside come back to pods: the node cannot have packets arrive that nobody sent", err)
	}
	return err == nil
}

// answerFrom has whoever was asked answer a pod.
func (c *Check) answerFrom(gw Gateway, way link.Path, asked ...conntrack.Translated) error {
	to := Beyond
	if way.Via.IsValid() {
		to = way.Via
	}
	own, err := c.host.PathTo(to)
	if err != nil {
		return err
	}
	if !own.Src.IsValid() {
		return fmt.Errorf("the node has no address on the way to %s", to)
	}
	port := firstPort + uint16(rand.N(ports))
	var packets [][]byte
	for _, a := range asked {
		a.From, a.As = netip.AddrPortFrom(gw.way().Probe, port), netip.AddrPortFrom(own.Src, port)
		if err := c.host.Track(a, tracked); err != nil {
			return err
		}
		if a.TCP {
			packets = append(packets, rawpacket.Acknowledgment(a.To, a.As, hostnet.Sequence))
		} else {
			packets = append(packets, rawpacket.Datagram(a.To, a.As))
		}
	}
	return c.host.Arrive(Device, way.Link.Name, packets...)
}

// once logs what stays true as long as the agent runs.
func (c *Check) once(what string, why error) { c.said.once(c.log, what, why) }

// said is what was logged, once each.
type said map[string]bool

func (s said) once(log *slog.Logger, what string, why error) {
	if text := what + why.Error(); !s[text] {
		s[text] = true
		log.Warn(what, "error", why)
	}
}
