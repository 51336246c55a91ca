package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

// cluster is the lab with agents that watch an API server.
type cluster struct {
	*bench
	api *kubetest.Server
	// made counts the services for traffic.
	made int
}

// inCluster calls f while the lab's agents are those of a Kubernetes cluster; the
// API server is this program's.
func (b *bench) inCluster(ctx context.Context, f func(*cluster) error) (err error) {
	c := &cluster{bench: b, api: kubetest.NewServer()}
	listener, err := b.lab.ListenAPIServer()
	if err != nil {
		return err
	}
	c.api.Serve(listener)
	defer func() { err = errors.Join(err, c.api.Away()) }()
	if err := b.lab.UseKubernetes(true); err != nil {
		return err
	}
	for _, node := range []string{"n1", "n2"} {
		if err := c.api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}); err != nil {
			return err
		}
		if err := b.lab.Agent(node).Restart(ctx); err != nil {
			return err
		}
	}
	if err := f(c); err != nil {
		return err
	}
	if err := b.lab.UseKubernetes(false); err != nil {
		return err
	}
	for _, node := range []string{"n1", "n2"} {
		if err := b.leaveCluster(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// leaveCluster starts a node's agent outside of Kubernetes with none of the cluster's services in
// the switch: it knows of none, and leaves those of before as they are.
func (b *bench) leaveCluster(ctx context.Context, node string) error {
	a := b.lab.Agent(node)
	if err := a.Kill(); err != nil {
		return err
	}
	for _, what := range []string{"del-flows", "del-groups"} {
		if _, err := b.lab.OVS(node).OFCtl(ctx, what, "br0"); err != nil {
			return err
		}
	}
	return a.Start(ctx)
}

// alone stops n2's agent, which would share the machine with n1's: what one does
// about services, all do.
func (c *cluster) alone() error { return c.lab.Agent("n2").Stop() }

const (
	manyServices     = 2000
	serviceEndpoints = 10
	// serviceNamespaces have them in turn.
	serviceNamespaces = 100
	servicesSize      = "2,000 services with 10 endpoints each"
)

var (
	serviceAddresses = netip.MustParseAddr("10.97.0.1")
	// endpointAddresses are in the cluster network, where no node has a subnet yet.
	endpointAddresses = netip.MustParseAddr("172.24.0.1")
	// freshAddresses are those of endpoints that come later.
	freshAddresses = netip.MustParseAddr("172.28.0.1")
)

// nth is the address n after another.
func nth(from netip.Addr, n int) string {
	b := from.As4()
	at := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	at += uint32(n)
	return netip.AddrFrom4([4]byte{byte(at >> 24), byte(at >> 16), byte(at >> 8), byte(at)}).String()
}

func serviceNamespace(i int) string { return fmt.Sprintf("services%d", i%serviceNamespaces) }

// putServices makes manyServices in the API, and records of their namespaces.
func (c *cluster) putServices(ctx context.Context) error {
	if err := c.namespaces(ctx, serviceNamespaces, serviceNamespace); err != nil {
		return err
	}
	for i := range manyServices {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: serviceNamespace(i), Name: fmt.Sprintf("s%d", i)},
			Spec:       corev1.ServiceSpec{ClusterIP: nth(serviceAddresses, i), Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}}},
		}
		if err := c.api.Put(s); err != nil {
			return err
		}
		var endpoints []string
		for e := range serviceEndpoints {
			endpoints = append(endpoints, nth(endpointAddresses, i*serviceEndpoints+e))
		}
		if err := c.putEndpoints(i, endpoints); err != nil {
			return err
		}
	}
	return nil
}

// putEndpoints makes the addresses the endpoints of service i.
func (c *cluster) putEndpoints(i int, addresses []string) error {
	return c.api.Put(slice(serviceNamespace(i), fmt.Sprintf("s%d", i), addresses, endpointPort("", corev1.ProtocolTCP, 8080)))
}

func endpointPort(name string, protocol corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
}

// slice is the endpoints of a service, with what an API server has of each.
func slice(namespace, name string, addresses []string, ports ...discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name + "-x7k2p", UID: "5b5c1a9e-3d55-4a43-9b9e-000000000000",
			Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"},
		},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports,
	}
	yes, no, node := true, false, "n2"
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: name + "-" + a, UID: "0b1e54a4-3c60-4d9c-8f7c-000000000000"},
		})
	}
	return s
}

// namespaces makes records of n namespaces, and returns when n1 has them.
func (c *cluster) namespaces(ctx context.Context, n int, name func(int) string) error {
	r, err := c.records()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	node, err := c.lab.Node("n1")
	if err != nil {
		return err
	}
	var names []string
	for i := range n {
		names = append(names, name(i))
		if _, err := r.put(ctx, "netnamespaces", name(i), topology.Namespace{NetName: name(i)}); err != nil {
			return err
		}
	}
	return r.waitApplied(ctx, node, names, func(ids map[netid.ID]int) bool { return len(ids) == n })
}

// removeNamespaces removes the records of namespaces whose names begin with prefix.
func (c *cluster) removeNamespaces(ctx context.Context, prefix string) error {
	r, err := c.records()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	_, err = r.Delete(ctx, key("netnamespaces", prefix), clientv3.WithPrefix())
	return err
}

// waitServed waits until a node has n services in its flows.
func (c *cluster) waitServed(ctx context.Context, node string, n int) error {
	return wait(ctx, fmt.Sprintf("%s has %d services in its flows", node, n), func() (bool, error) {
		have, err := c.gauge(ctx, node, "k8s_ovs_services")
		return have == float64(n), err
	})
}

// gauge is a metric without labels of a node's agent.
func (b *bench) gauge(ctx context.Context, node, name string) (float64, error) {
	text, err := b.lab.Agent(node).Metrics(ctx)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("%s's agent has no metric %s", node, name)
}

// flowCount is how many flows n1's br0 has.
func (b *bench) flowCount(ctx context.Context) (int, error) {
	out, err := b.lab.OVS("n1").OFCtl(ctx, "dump-aggregate", "br0")
	if err != nil {
		return 0, err
	}
	_, count, _ := strings.Cut(out, "flow_count=")
	return strconv.Atoi(strings.TrimSpace(count))
}
