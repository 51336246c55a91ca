package kube

import (
	"context"
	"math"
	"net/netip"
	"sync"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

const (
	// Services with the first label are another proxy's, slices with the second
	// belong to services without an address (well-known labels of Kubernetes).
	notOtherProxies = "!service.kubernetes.io/service-proxy-name"
	notHeadless     = "!service.kubernetes.io/headless"
)

type serviceTable = table[*corev1.Service, service.Key, service.Spec]
type sliceTable = table[*discoveryv1.EndpointSlice, service.Key, service.Slice]
type zoneTable = table[*corev1.Node, string, string]

// serviceFeed is the picture that WatchServices tells of.
type serviceFeed struct {
	*picture
	node     string
	services *serviceTable
	slices   *sliceTable
	zones    *zoneTable
	// of has the slices of each service, by their own names.
	of map[service.Key]map[service.Key]service.Slice
	// touched are the services to tell anew; all of them when full.
	touched map[service.Key]struct{}
	full    bool
	kept    kept
}

// WatchServices tells what the node called nodeName should serve: all services
// at first, when they and their endpoints are known, and then those that changed.
// To a slow reader changes come merged. The channel is closed when ctx ends.
//
// Services without a cluster address are left out, and those that are labelled
// as another proxy's.
func (c *Client) WatchServices(ctx context.Context, nodeName string) <-chan service.Update {
	f := newServiceFeed(nodeName)
	out := make(chan service.Update)
	var watches sync.WaitGroup
	watches.Go(func() {
		follow(ctx, c, "services", c.api.Core.Services(""), &corev1.Service{}, metav1.ListOptions{LabelSelector: notOtherProxies}, f.services)
	})
	watches.Go(func() {
		follow(ctx, c, "endpointslices", c.api.Discovery.EndpointSlices(""), &discoveryv1.EndpointSlice{}, metav1.ListOptions{LabelSelector: notOtherProxies + "," + notHeadless}, f.slices)
	})
	watches.Go(func() {
		follow(ctx, c, "node", c.api.Core.Nodes(), &corev1.Node{}, named(nodeName), f.zones)
	})
	go func() {
		defer close(out)
		defer watches.Wait()
		f.tell(ctx, out)
	}()
	return out
}

func newServiceFeed(node string) *serviceFeed {
	f := &serviceFeed{picture: newPicture(), node: node, of: map[service.Key]map[service.Key]service.Slice{}, touched: map[service.Key]struct{}{}, full: true, kept: newKept()}
	f.services = newTable(f.picture, toSpec)
	f.services.noted = func(key service.Key, _, _ *service.Spec) { f.touched[key] = struct{}{} }
	f.slices = newTable(f.picture, toSlice)
	f.slices.noted = f.noteSlice
	f.zones = newTable(f.picture, func(n *corev1.Node) (string, string) { return n.Name, n.Labels[corev1.LabelTopologyZone] })
	f.zones.noted = func(string, *string, *string) { f.full = true }
	return f
}

func (f *serviceFeed) noteSlice(key service.Key, old, fresh *service.Slice) {
	if old != nil {
		delete(f.of[old.Service], key)
		if len(f.of[old.Service]) == 0 {
			delete(f.of, old.Service)
		}
		f.touched[old.Service] = struct{}{}
	}
	if fresh != nil {
		if f.of[fresh.Service] == nil {
			f.of[fresh.Service] = map[service.Key]service.Slice{}
		}
		f.of[fresh.Service][key] = *fresh
		f.touched[fresh.Service] = struct{}{}
	}
}

// tell sends updates until ctx ends.
func (f *serviceFeed) tell(ctx context.Context, out chan<- service.Update) {
	var pending service.Update
	var ready chan<- service.Update
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
			if f.merge(&pending) {
				ready = out
			}
		case ready <- pending:
			pending, ready = service.Update{}, nil
		}
	}
}

// merge adds what changed to u; false when there is nothing to tell yet.
func (f *serviceFeed) merge(u *service.Update) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.services.synced || !f.slices.synced || !f.zones.synced {
		return false
	}
	if f.full {
		*u = service.Update{Full: true, Services: make(map[service.Key]service.Service, len(f.services.items))}
		for key := range f.services.items {
			f.touched[key] = struct{}{}
		}
	}
	if u.Services == nil {
		u.Services = map[service.Key]service.Service{}
	}
	tell := func(key service.Key) {
		s := f.serve(key)
		if u.Full && len(s.Ports) == 0 {
			delete(u.Services, key)
			return
		}
		u.Services[key] = s
	}
	before := map[string]int{} // of the namespaces that may change
	for key := range f.touched {
		before[key.Namespace] = f.kept.ofNamespace[key.Namespace]
	}
	for _, key := range f.kept.inTurn(f.touched) {
		tell(key)
	}
	for _, key := range f.kept.waiting(before) {
		if f.kept.left(key) > 0 {
			tell(key)
		}
	}
	clear(f.touched)
	f.full = false
	return u.Full || len(u.Services) > 0
}

// serve is what this node serves of a service; without ports when it is gone.
func (f *serviceFeed) serve(key service.Key) service.Service {
	spec, ok := f.services.items[key]
	if !ok {
		f.kept.note(service.Service{Key: key})
		return service.Service{Key: key}
	}
	slices := make([]service.Slice, 0, len(f.of[key]))
	for _, s := range f.of[key] {
		slices = append(slices, s)
	}
	s := service.For(spec, slices, service.Node{Name: f.node, Zone: f.zones.items[f.node]}, f.kept.room(key))
	f.kept.note(s)
	return s
}

func toSpec(s *corev1.Service) (service.Key, service.Spec) {
	key := service.Key{Namespace: s.Namespace, Name: s.Name}
	spec := service.Spec{Key: key, UID: string(s.UID)}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return key, spec
	}
	for _, text := range clusterIPs(s) {
		// A service without an address says None.
		if vip, err := netip.ParseAddr(text); err == nil {
			spec.VIPs = append(spec.VIPs, vip)
		}
	}
	for _, p := range s.Spec.Ports {
		if protocol, ok := protocols[p.Protocol]; ok {
			spec.Ports = append(spec.Ports, service.PortSpec{Name: p.Name, Protocol: protocol, Port: uint16(p.Port)})
		}
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		spec.Affinity = affinity(s.Spec.SessionAffinityConfig)
	}
	spec.InternalLocal = s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	return key, spec
}

func clusterIPs(s *corev1.Service) []string {
	if len(s.Spec.ClusterIPs) > 0 {
		return s.Spec.ClusterIPs
	}
	return []string{s.Spec.ClusterIP}
}

func affinity(c *corev1.SessionAffinityConfig) time.Duration {
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

// protocols by their names; the API server fills in TCP where none is given.
var protocols = map[corev1.Protocol]service.Protocol{
	"": service.TCP, corev1.ProtocolTCP: service.TCP, corev1.ProtocolUDP: service.UDP, corev1.ProtocolSCTP: service.SCTP,
}

func toSlice(s *discoveryv1.EndpointSlice) (service.Key, service.Slice) {
	key := service.Key{Namespace: s.Namespace, Name: s.Name}
	slice := service.Slice{Service: service.Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}, Name: s.Name}
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return key, slice // names, which may look like addresses
	}
	for _, p := range s.Ports {
		// A slice without a port number stands for all ports, which no service port is.
		// The API server does not look at the number.
		protocol, ok := protocols[value(p.Protocol, corev1.ProtocolTCP)]
		if ok && p.Port != nil && *p.Port > 0 && *p.Port <= math.MaxUint16 {
			slice.Ports = append(slice.Ports, service.SlicePort{Name: value(p.Name, ""), Protocol: protocol, Port: uint16(*p.Port)})
		}
	}
	for _, e := range s.Endpoints {
		// All addresses of an endpoint are one pod's; consumers use the first (API reference).
		if len(e.Addresses) == 0 {
			continue
		}
		addr, err := netip.ParseAddr(e.Addresses[0])
		if err != nil || !service.Serves(addr) {
			continue // a name; or it would be kept for nothing
		}
		slice.Endpoints = append(slice.Endpoints, toEndpoint(addr, e))
	}
	return key, slice
}

func toEndpoint(addr netip.Addr, e discoveryv1.Endpoint) service.SliceEndpoint {
	// Unknown readiness counts as ready, unknown serving as readiness (API reference).
	ready := value(e.Conditions.Ready, true)
	out := service.SliceEndpoint{
		Address: addr, Node: shared(value(e.NodeName, "")),
		Ready: ready, Serving: value(e.Conditions.Serving, ready), Terminating: value(e.Conditions.Terminating, false),
	}
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			out.ForZones = append(out.ForZones, shared(z.Name))
		}
		for _, n := range e.Hints.ForNodes {
			out.ForNodes = append(out.ForNodes, shared(n.Name))
		}
	}
	return out
}

// value is what p points at, or what stands for nothing.
func value[T any](p *T, none T) T {
	if p == nil {
		return none
	}
	return *p
}

// shared is s, kept once however many endpoints name it.
func shared(s string) string { return unique.Make(s).Value() }
