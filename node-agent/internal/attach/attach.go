// Package attach connects pods to the bridge and takes them off it: a veth
// into the sandbox, an address, a port of the bridge, flows. It owns the list of
// what is attached on this node.
//
// The order of an attachment is such that whatever is interrupted leaves
// something that DEL, GC or the next start finds: the lease first, then the port
// with its external_ids, then the devices. A detachment goes the other way, flows
// first: from then on nothing reaches the address. The rest of it follows after the
// answer, of several pods in one go: see [Attacher.Del].
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/batch"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Kernel makes and removes the pod's devices.
type Kernel interface {
	// CreateVeth makes the pair, ready for limits, its end in the sandbox not yet
	// configured.
	CreateVeth(w Wire) error
	// Configure sets up the sandbox: address, routes, neighbour, offloads. It reports
	// whether the routes stand apart: see Apart.
	Configure(w Wire) (apart bool, err error)
	// Mend puts right what others changed of the host's ends, and returns which it mended,
	// which are gone, and why single ones could not be: what pods do is in failed, never in err.
	Mend(wires []Wire) (mended, gone []string, failed map[string]error, err error)
	// Name gives host's ends back their names that somebody changed; it returns as Mend does.
	Name(wires []Wire) (named []string, failed map[string]error, err error)
	// Apart reports whether another device of the sandbox has the default route.
	Apart(w Wire) (bool, error)
	// HostMAC is the hardware address of the host's end.
	HostMAC(hostIf string) (net.HardwareAddr, error)
	// Leave takes out of the sandbox what does not go with the device; a sandbox that is
	// gone is no error.
	Leave(w Wire) error
	// Delete removes the pair; one that is gone is no error.
	Delete(hostIf string) error
	// DeleteAll removes pairs, and what of their limits does not go with them; one error
	// for each.
	DeleteAll(hostIfs []string) []error
	// Forget ends what the node's NAT remembers of connections from the addresses.
	Forget(addresses ...netip.Addr) error
	// Exists reports whether the host's end is there: it goes with its sandbox.
	Exists(hostIf string) (bool, error)
	// Stands reports whether there is a sandbox at the path.
	Stands(netns string) (bool, error)
	// Cut removes the sandbox's end of a pair whose other end is not in the node's namespace,
	// and reports whether there was one.
	Cut(w Wire) (bool, error)
	// Differences says how the pair differs from w, its limits aside.
	Differences(w Wire) ([]string, error)
	// SetMTU brings w's MTU and RouteMTU to a pair that is in use, and the rates of
	// its limits, which follow from it.
	SetMTU(w Wire) error
	Shaping
}

// Wire is what a pod's devices should be.
type Wire struct {
	HostIf string
	Netns  string
	IfName string
	MAC    net.HardwareAddr
	// Addresses and Gateways are of the same families, in the same order.
	Addresses, Gateways []netip.Addr
	// MTU of both ends and RouteMTU of what the pod sends, bytes.
	MTU, RouteMTU int
	Limits        limits.Limits
	// NoOffload turns checksum and segmentation offload off in the sandbox, and receive offload of the host's end: the
	// userspace datapath reads packets before a device would have finished them, and none that is longer than the MTU.
	NoOffload bool
}

// Ports is the part of Open vSwitch's database that pod ports live in.
type Ports interface {
	AddPort(ctx context.Context, bridge string, spec ovs.PortSpec) error
	WaitOfport(ctx context.Context, name string) (uint32, error)
	DeletePort(ctx context.Context, bridge, name string) error
	// DeletePorts removes several, and says what to wait for until the switch has
	// closed them; 0 where there were none.
	DeletePorts(ctx context.Context, bridge string, names []string) (ovs.ConfigNumber, error)
	WaitApplied(ctx context.Context, config ovs.ConfigNumber) error
	// Sync waits until ovs-vswitchd has taken the database in.
	Sync(ctx context.Context) error
	Ports(bridge string) ([]ovs.Port, error)
	SetPortExternalIDs(ctx context.Context, name string, ids map[string]string) error
	ShareQoS(ctx context.Context, bridge, kind string, ports []string) (changed bool, err error)
	// MendPorts makes ports that are there what specs say.
	MendPorts(ctx context.Context, bridge string, specs []ovs.PortSpec) error
}

// portQoS is the QoS type of pod ports: with any other, or none, Open vSwitch
// removes the qdiscs that shape a pod when it starts or looks at its port anew.
const portQoS = "linux-noop"

// Flows is the bridge's flow table.
type Flows interface {
	Attach(ctx context.Context, a desired.Attached) error
	// Detach fails with [flowstore.ErrDisconnected] or [flowstore.ErrNotReady] where the
	// switch may still have the flows; they go when it is there again.
	Detach(ctx context.Context, port uint32, mac net.HardwareAddr) error
	Check(ctx context.Context, port uint32) ([]string, error)
}

// Tenants knows the namespaces.
type Tenants interface {
	// WaitKnown returns when the namespace has a confirmed netID, or why it has none. The UID is
	// that of the Kubernetes Namespace; empty outside of Kubernetes.
	WaitKnown(ctx context.Context, namespace string) (uid string, err error)
}

// Node is what attachments need to know about the node.
type Node struct {
	Bridge string
	// Subnets are one, or one of IPv4 and then one of IPv6; Gateways are its own addresses
	// in them.
	Subnets  []netip.Prefix
	Gateways []netip.Addr
	MTU      MTU
	Datapath string
}

// has reports whether addresses are of the node's subnets, each of its own.
func (n Node) has(addresses []netip.Addr) bool {
	for i, a := range addresses {
		if i >= len(n.Subnets) || !n.Subnets[i].Contains(a) {
			return false
		}
	}
	return true
}

// Attacher attaches pods. It serves nothing until [Attacher.Start].
type Attacher struct {
	kernel  Kernel
	ports   Ports
	flows   Flows
	tenants Tenants
	limiter Limiter
	// bare detaches, also as long as there is no node.
	bare Bare
	log  *slog.Logger
	// observer is nil where nobody asks.
	observer Observer
	policies Policies

	// devices bounds how many pods' devices are made at once.
	devices slots
	// leaving are off the network; what is left of them is removed later.
	leaving *leaving
	// turns lets changes of one attachment follow each other, so that nothing
	// detached comes back.
	turns turns

	mu   sync.Mutex
	node *Node
	pool *ipam.Pool
	// notReady says why nothing is served, as long as it is not nil.
	notReady error
	list     map[cniapi.Attachment]Attachment
	// arriving are those that are not in the list yet.
	arriving map[cniapi.Attachment]*arrival
	// maxPods is how many pods a namespace may have here; 0 for any number.
	maxPods int
	// queues gives each pod its class on the uplink.
	queues func(Attachment) uint32
	// examined is that what a crash has left half done was looked for.
	examined bool
	// unshaped is what was last said to keep limits from being put right.
	unshaped string
}

// New makes an Attacher that refuses everything but DEL and GC until it is started. bare
// is what it detaches with.
func New(bare Bare, flows Flows, tenants Tenants, limiter Limiter) *Attacher {
	a := &Attacher{
		bare: bare, kernel: bare.kernel, ports: bare.ports, flows: flows, tenants: tenants, limiter: limiter, log: bare.log, leaving: newLeaving(), devices: make(slots, devicesAtOnce),
		notReady: errors.New("the agent is starting"), list: map[cniapi.Attachment]Attachment{}, arriving: map[cniapi.Attachment]*arrival{},
		queues: func(Attachment) uint32 { return 0 }, policies: noPolicies{},
	}
	a.leaving.downs, a.leaving.closes = batch.New(waitersAtOnce, a.downAll), batch.New(waitersAtOnce, a.closeAll)
	return a
}

// SetObserver makes o be told how long the steps of ADD and DEL take. It is called before
// anything is served.
func (a *Attacher) SetObserver(o Observer) { a.observer = o }

// SetMaxPods makes n the number of pods that a namespace may have on this node; 0 for as
// many as there are addresses. Those that it has already stay.
func (a *Attacher) SetMaxPods(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.maxPods = n
}

// SetReady says that nothing keeps the agent from serving (nil), or what does.
func (a *Attacher) SetReady(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.notReady = why
}

// List is everything attached, in order of address.
func (a *Attacher) List() []Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.list), func(x, y Attachment) int { return slices.CompareFunc(x.Addresses, y.Addresses, netip.Addr.Compare) })
}

// ready is the node and the pool, or the error for the runtime.
func (a *Attacher) ready() (Node, *ipam.Pool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.notReady != nil || a.node == nil {
		return Node{}, nil, cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot attach pods yet: %w", a.notReady)
	}
	return *a.node, a.pool, nil
}

func (a *Attacher) find(key cniapi.Attachment) (Attachment, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.list[key]
	return at, ok
}

func (a *Attacher) put(at Attachment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list[at.Attachment] = at
}

func (a *Attacher) remove(key cniapi.Attachment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.list, key)
}

// Add attaches a pod. It leaves everything, or nothing.
func (a *Attacher) Add(ctx context.Context, req cniapi.Request) (*cniapi.Result, error) {
	end, err := a.turns.take(ctx, req.Attachment())
	if err != nil {
		return nil, err
	}
	defer end()
	node, pool, err := a.ready()
	if err != nil {
		return nil, err
	}
	if err := a.left(ctx, req); err != nil {
		return nil, err
	}
	if at, ok := a.find(req.Attachment()); ok {
		return a.again(node, at, req)
	}
	namespaceUID, err := a.namespaceOf(ctx, req)
	if err != nil {
		return nil, err
	}
	at := Attachment{
		Attachment: req.Attachment(), Netns: req.Netns, Network: req.NetworkName, Namespace: req.PodNamespace, Pod: req.PodName,
		UIDs: UIDs{Namespace: namespaceUID, Pod: req.PodUID},
	}
	arrived, err := a.expect(at)
	if err != nil {
		return nil, err
	}
	defer arrived()
	defer a.leaving.begin()()
	if at.Limits, err = a.limiter.Limits(ctx, req); err != nil {
		return nil, err
	}
	lease, err := a.lease(ctx, pool, at)
	if err != nil {
		return nil, err
	}
	at.Addresses, at.MAC = lease.Addresses, net.HardwareAddr(lease.MAC)
	at.Port = at.wants(node)
	a.policies.Enter(ctx, at, req.PodUID)
	if err = a.connect(ctx, node, &at); err == nil {
		err = a.observe(AddNews, func() (err error) {
			node, err = a.arrive(ctx, at, node.MTU)
			return err
		})
	}
	if err == nil {
		_ = a.observe(AddRules, func() error { a.policies.Await(ctx, at); return nil })
	} else {
		a.remove(at.Attachment)
		// Cleaning up gets its own time: the request's may be over.
		if cleanErr := a.disconnect(context.WithoutCancel(ctx), pool, at); cleanErr != nil {
			a.log.Error("a pod that could not be attached is not wholly cleaned up; GC or the next start does it", "sandbox", at.Netns, "error", cleanErr)
		}
		return nil, fmt.Errorf("attach %s/%s: %w", at.Namespace, at.Pod, err)
	}
	a.log.Debug("attached", "tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses, "ofport", at.Port, "sandbox", at.Netns)
	return result(node, at), nil
}

// lease takes an address. Where none is left, those of pods that are leaving are to be had
// at once.
func (a *Attacher) lease(ctx context.Context, pool *ipam.Pool, at Attachment) (lease ipam.Lease, err error) {
	var full *ipam.FullError
	var storage *ipam.StorageError
	err = a.observe(AddLease, func() (err error) {
		lease, err = pool.Allocate(at.lease())
		if errors.As(err, &full) && a.leaving.count() > 0 {
			if err := a.finish(ctx); err != nil {
				a.log.Warn("pods that are leaving still have their addresses, and no other is left", "error", err)
			}
			lease, err = pool.Allocate(at.lease())
		}
		return err
	})
	if errors.As(err, &full) || errors.As(err, &storage) {
		return lease, cniapi.Errorf(cniapi.CodeTryAgain, "pod %s/%s: %w", at.Namespace, at.Pod, err)
	}
	return lease, err
}

// again answers a repeated ADD: the same, as long as it is the same sandbox.
func (a *Attacher) again(node Node, at Attachment, req cniapi.Request) (*cniapi.Result, error) {
	if !sameSandbox(at.Netns, req.Netns) || at.Namespace != req.PodNamespace || at.Pod != req.PodName {
		return nil, cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_CONTAINERID %s with CNI_IFNAME %s is attached already, as pod %s/%s in %s", at.ContainerID, at.IfName, at.Namespace, at.Pod, at.Netns).
			WithDetails("DEL it first")
	}
	diff, err := a.kernel.Differences(a.wire(node, at))
	if err != nil {
		return nil, err
	}
	if len(diff) > 0 {
		return nil, cniapi.Errorf(cniapi.CodeTryAgain, "attachment %s is there already and not as it should be: %s", at.Attachment, diff[0]).
			WithDetails("DEL it first")
	}
	if at.apart, err = a.kernel.Apart(a.wire(node, at)); err != nil {
		return nil, err
	}
	if at.hostMAC, err = a.kernel.HostMAC(at.HostIf()); err != nil {
		return nil, err
	}
	return result(node, at), nil
}

// connect makes the flows, the port and the devices of at, so that ovs-vswitchd's main
// thread does it all in one go. It looks at all its ports (10 ms with 200) for every new
// device and every change of the database, and meanwhile it takes nothing. So flows, which
// may have to wait for a look that others caused, are asked for beside all else, as the
// port's number is known before: what a port without flows sends is dropped.
func (a *Attacher) connect(ctx context.Context, node Node, at *Attachment) error {
	var wanted desired.Attached
	told, pod := make(chan error, 1), *at
	go func() {
		err := a.arm(ctx, pod)
		if wanted = a.attached(node, pod); err == nil && wanted.Port != 0 {
			err = a.observe(AddFlows, func() error { return a.flows.Attach(ctx, wanted) })
		}
		told <- err
	}()
	port, err := a.plug(ctx, node, at)
	if err := errors.Join(err, classify(<-told)); err != nil {
		return err
	}
	at.told = wanted
	if port == at.Port {
		return nil
	}
	at.Port = port
	return classify(a.tell(ctx, at, a.attached(node, *at)))
}

// arm has the rules in the switch that must be there before the pod's flows.
func (a *Attacher) arm(ctx context.Context, at Attachment) error {
	if err := a.observe(AddArmed, func() error { return a.policies.Arm(ctx, at) }); err != nil {
		return cniapi.Errorf(cniapi.CodeTryAgain, "%w", err)
	}
	return nil
}

// known is as ready, but holds while only the serving of ADD is off.
func (a *Attacher) known() (Node, *ipam.Pool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.node == nil {
		return Node{}, nil, cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot detach pods yet: %w", a.notReady)
	}
	return *a.node, a.pool, nil
}

// Status is nil when ADD can be served.
func (a *Attacher) Status(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.notReady == nil {
		return nil
	}
	return cniapi.Errorf(cniapi.CodeNotAvailable, "pods cannot be attached: %w", a.notReady)
}

func (a *Attacher) wire(node Node, at Attachment) Wire {
	return Wire{
		HostIf: at.HostIf(), Netns: at.Netns, IfName: at.IfName,
		MAC: at.MAC, Addresses: at.Addresses, Gateways: node.Gateways[:len(at.Addresses)],
		MTU: node.MTU.Device, RouteMTU: node.MTU.Route, Limits: at.Limits, NoOffload: node.Datapath == ovs.DatapathNetdev,
	}
}

// attached is what flows need to know.
func (a *Attacher) attached(node Node, at Attachment) desired.Attached {
	a.mu.Lock()
	queue := a.queues
	a.mu.Unlock()
	return desired.Attached{
		Port: at.Port, Namespace: at.Namespace, NamespaceUID: at.UIDs.Namespace, MAC: at.MAC, Addresses: at.Addresses,
		Meter: shaping.Meter(at.Limits.Egress, node.MTU.Device), Queue: queue(at), Policy: a.policies.Selection(at),
	}
}

// tell makes the flows of at what is wanted. Without a number it has none yet.
func (a *Attacher) tell(ctx context.Context, at *Attachment, wanted desired.Attached) (err error) {
	if wanted.Port != 0 {
		err = a.flows.Attach(ctx, wanted)
	}
	if err == nil {
		at.told = wanted
	}
	return err
}

// classify gives what will pass by itself the code that says so.
func classify(err error) error {
	var full *ovs.StorageError
	if errors.As(err, &full) || errors.Is(err, flowstore.ErrDisconnected) || errors.Is(err, flowstore.ErrNotReady) || errors.Is(err, ovs.ErrDisconnected) {
		return cniapi.Errorf(cniapi.CodeTryAgain, "%w", err)
	}
	return err
}
