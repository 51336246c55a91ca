// Package attach connects pods to the bridge and takes them off it: a veth
// into the sandbox, an address, a port of the bridge, flows. It owns the list of
// what is attached on this node.
//
// The order of an attachment is such that whatever is interrupted leaves
// something that DEL, GC or the next start finds: the lease first, the port with
// its external_ids before the answer. A detachment goes the other way, flows
// first: from then on nothing reaches the address.
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowtable"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Kernel makes and removes the pod's devices.
type Kernel interface {
	// CreateVeth makes the pair, its end in the sandbox not yet configured.
	CreateVeth(w Wire) error
	// Configure sets up the sandbox: address, routes, neighbour, offloads.
	Configure(w Wire) error
	// Delete removes the pair; one that is gone is no error.
	Delete(hostIf string) error
	// Forget ends what the node's NAT remembers of connections from the address.
	Forget(address netip.Addr) error
	// Exists reports whether the host's end is there: it goes with its sandbox.
	Exists(hostIf string) (bool, error)
	// Differences says how the sandbox differs from w.
	Differences(w Wire) ([]string, error)
}

// Wire is what a pod's devices should be.
type Wire struct {
	HostIf  string
	Netns   string
	IfName  string
	Address netip.Addr
	Gateway netip.Addr
	// MTU of both ends, bytes.
	MTU int
	// NoOffload turns checksum and segmentation offload off in the sandbox: the
	// userspace datapath reads packets before a device would have finished them.
	NoOffload bool
}

// Ports is the part of Open vSwitch's database that pod ports live in.
type Ports interface {
	AddPort(ctx context.Context, bridge string, spec ovs.PortSpec) error
	WaitOfport(ctx context.Context, name string) (uint32, error)
	DeletePort(ctx context.Context, bridge, name string) error
	Ports(bridge string) ([]ovs.Port, error)
}

// Flows is the bridge's flow table.
type Flows interface {
	Attach(ctx context.Context, a desired.Attached) error
	Detach(ctx context.Context, address netip.Addr) error
	Check(ctx context.Context, address netip.Addr) ([]string, error)
}

// Tenants knows the namespaces.
type Tenants interface {
	// WaitKnown returns when the namespace has a confirmed netID, or why it has none.
	WaitKnown(ctx context.Context, namespace string) error
}

// Node is what attachments need to know about the node.
type Node struct {
	Bridge   string
	Subnet   netip.Prefix
	Gateway  netip.Addr
	MTU      int
	Datapath string
}

// Attacher attaches pods. It serves nothing until [Attacher.Start].
type Attacher struct {
	kernel  Kernel
	ports   Ports
	flows   Flows
	tenants Tenants
	log     *slog.Logger

	// repairing excludes requests while a port is being put back, so that nothing
	// detached comes back.
	repairing sync.RWMutex

	mu   sync.Mutex
	node *Node
	pool *ipam.Pool
	// notReady says why nothing is served, as long as it is not nil.
	notReady error
	list     map[cniapi.Attachment]Attachment
}

// New makes an Attacher that refuses everything until it is started.
func New(kernel Kernel, ports Ports, flows Flows, tenants Tenants, log *slog.Logger) *Attacher {
	return &Attacher{
		kernel: kernel, ports: ports, flows: flows, tenants: tenants, log: log,
		notReady: errors.New("the agent is starting"), list: map[cniapi.Attachment]Attachment{},
	}
}

// SetReady says that nothing keeps the agent from serving (nil), or what does.
func (a *Attacher) SetReady(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.notReady = why
}

// SetMTU changes the MTU of pods that are attached from now on.
func (a *Attacher) SetMTU(mtu int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.node != nil {
		a.node.MTU = mtu
	}
}

// List is everything attached, in order of address.
func (a *Attacher) List() []Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.list), func(x, y Attachment) int { return x.Address.Compare(y.Address) })
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
	a.repairing.RLock()
	defer a.repairing.RUnlock()
	node, pool, err := a.ready()
	if err != nil {
		return nil, err
	}
	if at, ok := a.find(req.Attachment()); ok {
		return a.again(node, at, req)
	}
	if err := a.tenants.WaitKnown(ctx, req.PodNamespace); err != nil {
		return nil, err
	}
	at := Attachment{
		Attachment: req.Attachment(), Netns: req.Netns, Network: req.NetworkName, Namespace: req.PodNamespace, Pod: req.PodName,
	}
	if at.Address, err = pool.Allocate(at.lease()); err != nil {
		var full *ipam.FullError
		if errors.As(err, &full) {
			return nil, cniapi.Errorf(cniapi.CodeTryAgain, "pod %s/%s: %w", at.Namespace, at.Pod, err)
		}
		return nil, err
	}
	at.Port = bridge.PodOfport(node.Subnet, at.Address)
	if err := a.connect(ctx, node, &at); err != nil {
		// Cleaning up gets its own time: the request's may be over.
		if cleanErr := a.disconnect(context.WithoutCancel(ctx), node, pool, at); cleanErr != nil {
			a.log.Error("a pod that could not be attached is not wholly cleaned up; GC or the next start does it", "sandbox", at.Netns, "error", cleanErr)
		}
		return nil, fmt.Errorf("attach %s/%s: %w", at.Namespace, at.Pod, err)
	}
	a.put(at)
	a.log.Debug("attached", "tenant", at.Namespace, "pod", at.Pod, "address", at.Address, "ofport", at.Port, "sandbox", at.Netns)
	return result(node, at), nil
}

// again answers a repeated ADD: the same, as long as it is the same sandbox.
func (a *Attacher) again(node Node, at Attachment, req cniapi.Request) (*cniapi.Result, error) {
	if at.Netns != req.Netns || at.Namespace != req.PodNamespace || at.Pod != req.PodName {
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
	return result(node, at), nil
}

// connect makes the flows, the port and the devices of at, in the order that
// lets ovs-vswitchd's main thread do it all in one go. It looks at all its ports (10 ms
// with 200) for every new device and every change of the database, and meanwhile it
// takes nothing:
//
//   - flows come first, as the port's number is asked for;
//   - the port comes before its device: the one look that it causes finds the
//     device, which is there within the millisecond that this look takes to get to
//     it. Should it not be, the device itself causes a second look. The other way
//     round there are always two, one after the other.
//
// The opening of the device then runs beside the sandbox's set-up.
func (a *Attacher) connect(ctx context.Context, node Node, at *Attachment) error {
	if at.Port != 0 {
		if err := a.flows.Attach(ctx, at.attached()); err != nil {
			return classify(err)
		}
	}
	spec := ovs.PortSpec{Name: at.HostIf(), OfportRequest: at.Port, ExternalIDs: at.externalIDs()}
	if err := a.ports.AddPort(ctx, node.Bridge, spec); err != nil {
		return classify(err)
	}
	wire := a.wire(node, *at)
	if err := a.kernel.CreateVeth(wire); err != nil {
		return err
	}
	configured := make(chan error, 1)
	go func() { configured <- a.kernel.Configure(wire) }()
	port, err := a.ports.WaitOfport(ctx, at.HostIf())
	if err := errors.Join(err, <-configured); err != nil {
		return err
	}
	if port == at.Port {
		return nil
	}
	at.Port = port
	return classify(a.flows.Attach(ctx, at.attached()))
}

// Del detaches. What is gone already is no error.
func (a *Attacher) Del(ctx context.Context, req cniapi.Request) error {
	a.repairing.RLock()
	defer a.repairing.RUnlock()
	node, pool, err := a.known()
	if err != nil {
		return err
	}
	at, ok := a.find(req.Attachment())
	if !ok {
		// Nothing is known of it: a lease or a device may still be there.
		if lease, leased := pool.Lookup(req.Attachment()); leased {
			at = fromLease(lease)
		} else {
			at = Attachment{Attachment: req.Attachment()}
		}
	}
	if err := a.disconnect(ctx, node, pool, at); err != nil {
		return fmt.Errorf("detach %s: %w", req.Attachment(), err)
	}
	if ok {
		a.remove(at.Attachment)
		a.log.Debug("detached", "tenant", at.Namespace, "pod", at.Pod, "address", at.Address, "sandbox", at.Netns)
	}
	return nil
}

// known is as ready, but holds while only the serving of ADD is off: DEL needs
// no more than the node's own state.
func (a *Attacher) known() (Node, *ipam.Pool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.node == nil {
		return Node{}, nil, cniapi.Errorf(cniapi.CodeTryAgain, "the agent cannot detach pods yet: %w", a.notReady)
	}
	return *a.node, a.pool, nil
}

// disconnect removes what there is of at: flows, port, devices, lease.
func (a *Attacher) disconnect(ctx context.Context, node Node, pool *ipam.Pool, at Attachment) error {
	if at.Address.IsValid() {
		if err := a.flows.Detach(ctx, at.Address); err != nil {
			return classify(err)
		}
	}
	if err := a.ports.DeletePort(ctx, node.Bridge, at.HostIf()); err != nil {
		return err
	}
	forgotten := make(chan error, 1)
	go func() {
		if at.Address.IsValid() {
			forgotten <- a.kernel.Forget(at.Address)
			return
		}
		forgotten <- nil
	}()
	if err := errors.Join(a.kernel.Delete(at.HostIf()), <-forgotten); err != nil {
		return err
	}
	pool.Release(at.Attachment)
	return nil
}

// Check compares the attachment with what it should be: sandbox, port, flows.
func (a *Attacher) Check(ctx context.Context, req cniapi.Request) error {
	node, _, err := a.ready()
	if err != nil {
		return err
	}
	at, ok := a.find(req.Attachment())
	if !ok {
		return cniapi.Errorf(cniapi.CodeUnknownContainer, "attachment %s is not known on this node", req.Attachment())
	}
	var diff []string
	if at.Netns != req.Netns {
		diff = append(diff, fmt.Sprintf("CNI_NETNS is %s, it was attached in %s", req.Netns, at.Netns))
	}
	diff = append(diff, previous(req.PrevResult, at)...)
	sandbox, err := a.kernel.Differences(a.wire(node, at))
	if err != nil {
		return err
	}
	diff = append(diff, sandbox...)
	port, err := a.checkPort(ctx, node, at)
	if err != nil {
		return err
	}
	diff = append(diff, port...)
	flows, err := a.flows.Check(ctx, at.Address)
	if err != nil {
		return classify(err)
	}
	diff = append(diff, flows...)
	if len(diff) > 0 {
		return cniapi.Errorf(cniapi.CodeInternal, "attachment %s is not as it should be: %s", at.Attachment, strings.Join(diff, "; "))
	}
	return nil
}

func (a *Attacher) checkPort(ctx context.Context, node Node, at Attachment) ([]string, error) {
	ports, err := a.ports.Ports(node.Bridge)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(ports, func(p ovs.Port) bool { return p.Name == at.HostIf() })
	if i < 0 {
		return []string{fmt.Sprintf("bridge %s has no port %s", node.Bridge, at.HostIf())}, nil
	}
	var diff []string
	p := ports[i]
	if p.Error != "" {
		diff = append(diff, fmt.Sprintf("port %s: %s", p.Name, p.Error))
	}
	if p.Ofport == 0 && p.Error == "" {
		// Just attached: ovs-vswitchd writes the number last.
		if p.Ofport, err = a.ports.WaitOfport(ctx, p.Name); err != nil {
			return nil, err
		}
	}
	if p.Ofport != at.Port {
		diff = append(diff, fmt.Sprintf("port %s has number %d, not %d", p.Name, p.Ofport, at.Port))
	}
	want := at.externalIDs()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if p.ExternalIDs[key] != want[key] {
			diff = append(diff, fmt.Sprintf("port %s: external_ids:%s is %q, not %q", p.Name, key, p.ExternalIDs[key], want[key]))
		}
	}
	return diff, nil
}

// previous compares what the runtime remembers of ADD with what is.
func previous(prev *cniapi.PrevResult, at Attachment) []string {
	if prev == nil {
		return nil
	}
	want := netip.PrefixFrom(at.Address, 32)
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface < len(prev.Interfaces) {
			if f := prev.Interfaces[*ip.Interface]; f.Name != at.IfName || f.Sandbox == "" {
				continue // another plugin's
			}
		}
		if ip.Address.Addr() == want.Addr() {
			return nil
		}
	}
	return []string{fmt.Sprintf("prevResult does not have the address %s of %s", want, at.IfName)}
}

// GC detaches everything of the network that the runtime no longer lists.
func (a *Attacher) GC(ctx context.Context, req cniapi.Request) error {
	a.repairing.RLock()
	defer a.repairing.RUnlock()
	node, pool, err := a.known()
	if err != nil {
		return err
	}
	valid := map[cniapi.Attachment]bool{}
	for _, v := range req.ValidAttachments {
		valid[v] = true
	}
	var errs []error
	drop := func(at Attachment) {
		if valid[at.Attachment] || at.Network != req.NetworkName {
			return
		}
		if err := a.disconnect(ctx, node, pool, at); err != nil {
			errs = append(errs, fmt.Errorf("collect %s: %w", at.Attachment, err))
			return
		}
		a.remove(at.Attachment)
		a.log.Info("collected: the runtime no longer lists it", "tenant", at.Namespace, "pod", at.Pod, "address", at.Address)
	}
	for _, at := range a.List() {
		drop(at)
	}
	for _, lease := range pool.Leases() {
		if _, attached := a.find(lease.Attachment()); !attached {
			drop(fromLease(lease))
		}
	}
	return errors.Join(errs...)
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
		HostIf: at.HostIf(), Netns: at.Netns, IfName: at.IfName, Address: at.Address, Gateway: node.Gateway,
		MTU: node.MTU, NoOffload: node.Datapath == ovs.DatapathNetdev,
	}
}

func result(node Node, at Attachment) *cniapi.Result {
	return &cniapi.Result{
		HostIfName: at.HostIf(), SandboxIfName: at.IfName, MAC: cniapi.MAC(topology.MAC(at.Address)), Sandbox: at.Netns,
		Address: netip.PrefixFrom(at.Address, at.Address.BitLen()), Gateway: node.Gateway,
		Routes: []cniapi.Route{
			{Dst: netip.PrefixFrom(node.Gateway, node.Gateway.BitLen())},
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: node.Gateway},
		},
		MTU: node.MTU,
	}
}

// classify gives what will pass by itself the code that says so.
func classify(err error) error {
	if errors.Is(err, flowtable.ErrDisconnected) || errors.Is(err, flowtable.ErrNotReady) || errors.Is(err, ovs.ErrDisconnected) {
		return cniapi.Errorf(cniapi.CodeTryAgain, "%w", err)
	}
	return err
}
