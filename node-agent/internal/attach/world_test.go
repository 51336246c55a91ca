package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/shaping"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// world is a kernel, a database and a flow table in memory. Its n-th step
// fails when failAt is n.
type world struct {
	// noDatabase is that Open vSwitch's database does not answer.
	noDatabase bool
	mu         sync.Mutex
	links      map[string]Wire
	// shapes are the limits in force, by host's end; they outlive it.
	shapes map[string]limits.Limits
	// shapedFor is the MTU that they were computed with.
	shapedFor map[string]int
	ports     map[string]ovs.Port
	// open are ports that the switch has not closed though the database has them no more.
	open   map[string]ovs.Port
	config ovs.ConfigNumber
	// noSwitch is that ovs-vswitchd does not answer.
	noSwitch bool
	flows    map[uint32]desired.Attached
	step     int
	failAt   int
	// renumber makes Open vSwitch give other port numbers than asked for.
	renumber bool
	// taken is the number of somebody else's port that asked for none: who asks for it has another one, and
	// this one as soon as ovs-vswitchd reads the configuration again, as is kept in asks.
	taken   uint32
	asks    map[string]uint32
	unknown map[string]bool
	// namespaceUID is that of all namespaces; empty as outside of Kubernetes.
	namespaceUID string
	// asked are the limits of each pod.
	asked map[string]limits.Limits
	// gone are sandboxes that are not there any more, by path.
	gone map[string]bool
	// renamed are the host's ends that somebody gave another name, refused why Open vSwitch takes no
	// port of that name.
	renamed map[string]Wire
	refused map[string]string
	// moved are those that somebody moved into another namespace.
	moved map[string]Wire
	// unnamed are why host's ends cannot have their names back, unset why a sandbox cannot be set up.
	unnamed map[string]error
	unset   map[string]error
	// making runs before a pair is made.
	making func()
	// deleting runs before a port is deleted.
	deleting func()
	// stuck are the host's ends whose devices cannot be changed.
	stuck map[string]error
	// stays are the host's ends that cannot be deleted.
	stays map[string]error
	// remembered is an address whose connections cannot be forgotten.
	remembered netip.Addr
	// unreached is why no flows can be removed.
	unreached error
	// closing runs before the switch is waited for.
	closing func()
	// broken are the moments in which a meter held back what its shape lets pass, a pod
	// came whose address another port still had, or a device outlived its connections.
	broken []string
}

var errInjected = errors.New("injected")

func newWorld() *world {
	return &world{
		renamed: map[string]Wire{}, moved: map[string]Wire{}, refused: map[string]string{},
		links: map[string]Wire{}, shapes: map[string]limits.Limits{}, shapedFor: map[string]int{}, ports: map[string]ovs.Port{}, open: map[string]ovs.Port{}, flows: map[uint32]desired.Attached{},
		unknown: map[string]bool{}, asks: map[string]uint32{}, asked: map[string]limits.Limits{}, stuck: map[string]error{},
	}
}

// enter counts a step and holds the world until the returned function runs.
func (w *world) enter() (func(), error) {
	w.mu.Lock()
	w.step++
	if w.step == w.failAt {
		w.mu.Unlock()
		return nil, errInjected
	}
	return w.mu.Unlock, nil
}

func (w *world) CreateVeth(x Wire) error {
	if w.making != nil {
		w.making()
	}
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	if x.Netns == "/gone" || w.gone[x.Netns] {
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_NETNS: %s: %w", x.Netns, link.ErrNoSandbox)
	}
	if _, away := w.moved[x.HostIf]; away {
		return cniapi.Errorf(cniapi.CodeInvalidEnv, "CNI_IFNAME: %w", link.ErrSandboxLinkExists)
	}
	w.links[x.HostIf] = Wire{Addresses: x.Addresses}
	return nil
}

func (w *world) Stands(netns string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return netns != "/gone" && !w.gone[netns], nil
}

func (w *world) Cut(x Wire) (bool, error) {
	leave, err := w.enter()
	if err != nil {
		return false, err
	}
	defer leave()
	_, away := w.moved[x.HostIf]
	delete(w.moved, x.HostIf)
	return away, nil
}

func (w *world) Configure(x Wire) (apart bool, err error) {
	leave, err := w.enter()
	if err != nil {
		return false, err
	}
	defer leave()
	if err := w.unset[x.Netns]; err != nil {
		return false, err
	}
	x.Limits = limits.Limits{}
	w.links[x.HostIf] = x
	return false, nil
}

func (w *world) Name(wires []Wire) (named []string, failed map[string]error, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	failed = map[string]error{}
	for _, x := range wires {
		if why := w.unnamed[x.HostIf]; why != nil {
			failed[x.HostIf] = why
			continue
		}
		if l, ok := w.renamed[x.HostIf]; ok {
			w.links[x.HostIf] = l
			delete(w.renamed, x.HostIf)
			named = append(named, x.HostIf)
		}
	}
	return named, failed, nil
}

func (w *world) Mend(wires []Wire) (mended, gone []string, failed map[string]error, err error) {
	mended, failed, _ = w.Name(wires)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range wires {
		if _, ok := w.links[x.HostIf]; !ok && failed[x.HostIf] == nil {
			gone = append(gone, x.HostIf)
		}
	}
	return mended, gone, failed, nil
}

func (w *world) Sync(ctx context.Context) error { return w.WaitApplied(ctx, 0) }

// move has somebody move a host's end into another namespace.
func (w *world) move(hostIf string) {
	w.moved[hostIf] = w.links[hostIf]
	delete(w.links, hostIf)
}

// hostMAC is that of every pair's end on the node.
var hostMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func (w *world) HostMAC(hostIf string) (net.HardwareAddr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.links[hostIf]; !ok {
		return nil, link.ErrNoLink
	}
	return hostMAC, nil
}

func (w *world) Apart(Wire) (bool, error) { return false, nil }

func (w *world) Leave(Wire) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	leave()
	return nil
}

func (w *world) SetMTU(x Wire) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	have, ok := w.links[x.HostIf]
	if !ok {
		return link.ErrNoLink
	}
	have.MTU, have.RouteMTU = x.MTU, x.RouteMTU
	w.links[x.HostIf] = have
	w.shapedFor[x.HostIf] = x.MTU
	w.behind(x.HostIf)
	return w.stuck[x.HostIf]
}

// narrow changes the MTU of every pair by hand.
func (w *world) narrow(mtu int) {
	for name, l := range w.links {
		l.MTU = mtu
		w.links[name] = l
	}
}

func (w *world) Shape(x Wire) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	if _, ok := w.links[x.HostIf]; !ok {
		return link.ErrNoLink
	}
	if err := w.stuck[x.HostIf]; err != nil {
		return err
	}
	w.shapes[x.HostIf], w.shapedFor[x.HostIf] = x.Limits, x.MTU
	if x.Limits == (limits.Limits{}) {
		delete(w.shapes, x.HostIf)
	}
	w.behind(x.HostIf)
	return nil
}

// behind notes when a pod's meter is narrower than its shape.
func (w *world) behind(hostIf string) {
	var meter desired.Meter
	if l := w.links[hostIf]; len(l.Addresses) > 0 {
		meter = w.flowsOf(l.Addresses[0]).Meter
	}
	shape := shaping.Meter(w.shapes[hostIf].Egress, w.shapedFor[hostIf])
	if w.shapedFor[hostIf] > 0 && meter != wider(meter, shape) {
		w.broken = append(w.broken, fmt.Sprintf("%s: meter %+v, shape %+v", hostIf, meter, shape))
	}
}

func (w *world) Unshape(hostIf string) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	delete(w.shapes, hostIf)
	delete(w.shapedFor, hostIf)
	return nil
}

func (w *world) Sweep(keep map[string]bool) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for name := range w.shapes {
		if _, there := w.links[name]; !there && !keep[name] {
			delete(w.shapes, name)
			n++
		}
	}
	return n, nil
}

func (w *world) ShapeDifferences(x Wire) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.links[x.HostIf]; !ok {
		return nil, link.ErrNoLink
	}
	if w.shapes[x.HostIf] != x.Limits {
		return []string{"the limits differ"}, nil
	}
	return nil, nil
}

func (w *world) Counters(x Wire) (shaping.Counters, error) {
	return shaping.Counters{Egress: shaping.Direction{Bytes: x.Limits.Egress.Rate}}, w.stuck[x.HostIf]
}

func (w *world) Limits(_ context.Context, req cniapi.Request) (limits.Limits, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.asked[req.PodName]
	if l.Egress.Rate == 1 {
		return l, errors.New("1 bit/s is no rate")
	}
	return l, nil
}

func (w *world) Delete(hostIf string) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	delete(w.links, hostIf)
	return nil
}

func (w *world) DeleteAll(hostIfs []string) []error {
	errs := make([]error, len(hostIfs))
	for i, name := range hostIfs {
		leave, err := w.enter()
		if err != nil {
			errs[i] = err
			continue
		}
		if errs[i] = w.stays[name]; errs[i] != nil {
			leave()
			continue
		}
		delete(w.links, name)
		delete(w.shapes, name)
		delete(w.shapedFor, name)
		leave()
	}
	return errs
}

func (w *world) Forget(addresses ...netip.Addr) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	for _, address := range addresses {
		for name, l := range w.links {
			if slices.Contains(l.Addresses, address) {
				w.broken = append(w.broken, fmt.Sprintf("%s may begin connections after those from %s are forgotten", name, address))
			}
		}
		if address == w.remembered {
			return fmt.Errorf("the connections of %s stay", address)
		}
	}
	return nil
}

func (w *world) Exists(hostIf string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.links[hostIf]
	return ok, nil
}

func (w *world) Differences(x Wire) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x.Limits = limits.Limits{}
	if !reflect.DeepEqual(w.links[x.HostIf], x) {
		return []string{"the sandbox differs"}, nil
	}
	return nil, nil
}

func (w *world) AddPort(_ context.Context, bridge string, spec ovs.PortSpec) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	number := spec.OfportRequest
	for name, p := range w.open {
		if name == spec.Name || p.ExternalIDs[keyAddress] == spec.ExternalIDs[keyAddress] {
			w.broken = append(w.broken, fmt.Sprintf("%s comes while %s with address %s is still open", spec.Name, name, p.ExternalIDs[keyAddress]))
		}
	}
	if w.renumber {
		number += 1000
	}
	if number == w.taken {
		w.asks[spec.Name], number = number, number+1
	}
	why := w.refused[spec.Name]
	if why != "" {
		number = 0
	}
	w.ports[spec.Name] = ovs.Port{Bridge: bridge, Name: spec.Name, Ofport: number, OfportRequest: spec.OfportRequest, Error: why, ExternalIDs: spec.ExternalIDs, QoS: &ovs.QoS{Type: spec.SharedQoS}}
	return nil
}

func (w *world) SetPortExternalIDs(_ context.Context, name string, ids map[string]string) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	p, ok := w.ports[name]
	if !ok {
		return ovs.ErrNoPort
	}
	p.ExternalIDs = maps.Clone(p.ExternalIDs)
	maps.Copy(p.ExternalIDs, ids)
	maps.DeleteFunc(p.ExternalIDs, func(_, v string) bool { return v == "" })
	w.ports[name] = p
	return nil
}

func (w *world) ShareQoS(_ context.Context, _, kind string, ports []string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range ports {
		p := w.ports[name]
		p.QoS = &ovs.QoS{Type: kind}
		w.ports[name] = p
	}
	return len(ports) > 0, nil
}

func (w *world) MendPorts(_ context.Context, _ string, specs []ovs.PortSpec) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	for _, spec := range specs {
		if p, ok := w.ports[spec.Name]; ok {
			ids := maps.Clone(p.ExternalIDs)
			if ids == nil {
				ids = map[string]string{}
			}
			maps.Copy(ids, spec.ExternalIDs)
			maps.DeleteFunc(ids, func(_, v string) bool { return v == "" })
			p.ExternalIDs, p.Policed, p.Type = ids, p.Policed && !spec.NotPoliced, spec.Type
			if spec.OfportRequest != 0 {
				p.OfportRequest = spec.OfportRequest
			}
			if spec.Plain {
				p.MTURequest, p.Options = 0, nil
			}
			w.ports[spec.Name] = p
		}
	}
	return nil
}

func (w *world) WaitOfport(_ context.Context, name string) (uint32, error) {
	leave, err := w.enter()
	if err != nil {
		return 0, err
	}
	defer leave()
	if p := w.ports[name]; p.Ofport == 0 && p.Error != "" {
		return 0, &ovs.PortError{Port: name, Text: p.Error}
	}
	return w.ports[name].Ofport, nil
}

func (w *world) DeletePort(_ context.Context, _, name string) error {
	if w.deleting != nil {
		w.deleting()
	}
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	if w.noDatabase {
		return ovs.ErrDisconnected
	}
	delete(w.ports, name)
	return nil
}

// DeletePorts leaves the ports to the switch, which closes them when it is waited for.
func (w *world) DeletePorts(_ context.Context, _ string, names []string) (ovs.ConfigNumber, error) {
	leave, err := w.enter()
	if err != nil {
		return 0, err
	}
	defer leave()
	if w.noDatabase {
		return 0, ovs.ErrDisconnected
	}
	for _, name := range names {
		if p, there := w.ports[name]; there {
			w.open[name] = p
			w.config++
		}
		delete(w.ports, name)
	}
	return w.config, nil
}

func (w *world) WaitApplied(context.Context, ovs.ConfigNumber) error {
	if w.closing != nil {
		w.closing()
	}
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	if w.noSwitch {
		return errors.New("ovs-vswitchd is away")
	}
	clear(w.open)
	for name, number := range w.asks {
		p := w.ports[name]
		p.Ofport = number
		w.ports[name] = p
	}
	clear(w.asks)
	return nil
}

func (w *world) Ports(string) ([]ovs.Port, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noDatabase {
		return nil, ovs.ErrDisconnected
	}
	var out []ovs.Port
	for _, p := range w.ports {
		out = append(out, p)
	}
	return out, nil
}

func (w *world) Attach(_ context.Context, a desired.Attached) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	maps.DeleteFunc(w.flows, func(_ uint32, other desired.Attached) bool { return other.Shares(a) })
	w.flows[a.Port] = a
	for name, l := range w.links {
		if slices.Equal(a.Addresses, l.Addresses) {
			w.behind(name)
		}
	}
	return nil
}

// flowsOf are those for an address.
func (w *world) flowsOf(address netip.Addr) desired.Attached {
	for _, a := range w.flows {
		if slices.Contains(a.Addresses, address) {
			return a
		}
	}
	return desired.Attached{}
}

func (w *world) Detach(_ context.Context, port uint32, mac net.HardwareAddr) error {
	leave, err := w.enter()
	if err != nil {
		return err
	}
	defer leave()
	if w.unreached != nil {
		return w.unreached
	}
	if bytes.Equal(w.flows[port].MAC, mac) {
		delete(w.flows, port)
	}
	return nil
}

func (w *world) Check(_ context.Context, port uint32) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.flows[port]; !ok {
		return []string{"flow is missing"}, nil
	}
	return nil, nil
}

func (w *world) WaitKnown(_ context.Context, namespace string) (string, error) {
	if w.unknown[namespace] {
		return "", cniapi.Errorf(cniapi.CodeTryAgain, "namespace %s has no netID", namespace)
	}
	return w.namespaceUID, nil
}

// finished removes what is left of pods that were detached.
func finished(t *testing.T, a *Attacher) {
	t.Helper()
	if err := a.finish(t.Context()); err != nil || a.leaving.count() > 0 {
		t.Errorf("%d are still leaving: %v", a.leaving.count(), err)
	}
}

// empty says what is left in the world.
func (w *world) empty(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.links)+len(w.shapes)+len(w.ports)+len(w.open)+len(w.flows) > 0 {
		t.Errorf("left behind: links %v, shapes %v, ports %v, open %v, flows %v", w.links, w.shapes, w.ports, w.open, w.flows)
	}
}

var theNode = Node{
	Bridge: "br0", Subnets: []netip.Prefix{netip.MustParsePrefix("172.11.0.0/29")}, Gateways: []netip.Addr{netip.MustParseAddr("172.11.0.1")}, MTU: MTU{1450, 1450}, Datapath: ovs.DatapathNetdev,
}

// firstPod are the addresses of the first pod.
var firstPod = []netip.Addr{netip.MustParseAddr("172.11.0.2")}

func start(t *testing.T, w *world, dir string) *Attacher {
	t.Helper()
	a := New(NewBare(w, w, theNode.Bridge, dir, slog.New(slog.DiscardHandler)), w, w, w)
	attached, err := a.Start(context.Background(), theNode, dir, "boot")
	if err != nil {
		t.Fatal(err)
	}
	clear(w.flows) // the flow table removes what it is not told of
	for _, at := range attached {
		w.flows[at.Port] = at
	}
	a.SetReady(nil)
	return a
}

func request(n int) cniapi.Request {
	return cniapi.Request{
		ContainerID: fmt.Sprintf("c%d", n), IfName: "eth0", Netns: fmt.Sprintf("/run/netns/p%d", n),
		PodNamespace: "a", PodName: fmt.Sprintf("p%d", n), NetworkName: "net",
	}
}

// withUID is a request for a pod of Kubernetes.
func withUID(n int) cniapi.Request {
	r := request(n)
	r.PodUID = fmt.Sprintf("uid%d", n)
	return r
}

// both are limits of both directions.
func both(rate uint64) limits.Limits {
	return limits.Limits{Ingress: limits.Limit{Rate: rate}, Egress: limits.Limit{Rate: rate}}
}
