package kube

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Cluster is what the controller knows of the API server. It is not changed once
// handed out.
type Cluster struct {
	// Namespaces and Nodes by name.
	Namespaces map[string]Namespace
	Nodes      map[string]Node
	// KubernetesService is the address of default/kubernetes.
	KubernetesService netip.Addr
}

// Namespace is a Namespace of the API server.
type Namespace struct {
	Name, UID string
	Created   time.Time
	// Network is the value of [topology.NetworkAnnotation]; nil where there is none.
	Network *string
	// NetID is the value of [topology.NetIDAnnotation].
	NetID       string
	Terminating bool
}

// Node is a Node of the API server.
type Node struct {
	Name, UID string
	Created   time.Time
	// Addresses are its InternalIPs, IPv4 only, in their order.
	Addresses []netip.Addr
	// Every is all addresses that it has by its status, of both families, inside of the
	// cluster and out: InternalIPs first, which are the first Internal of them, and
	// [MaxNodeAddresses] at most. MoreAddresses is how many there are beyond these. Its kubelet
	// says what they are, and nothing is believed of them here.
	Every         []netip.Addr
	Internal      int
	MoreAddresses int
	// PodCIDR is its IPv4 spec.podCIDR; not valid where there is none.
	PodCIDR netip.Prefix
}

// MaxNodeAddresses is how many addresses of a Node count: a kubelet may report any number.
const MaxNodeAddresses = 16

// serviceRetry is the pause between attempts to read default/kubernetes, which
// the API server itself makes when it starts.
const serviceRetry = 2 * time.Second

// WatchCluster tells of namespaces and nodes: all of them when they are first
// known whole, and all anew after each batch of changes. The newest wins: a slow
// reader passes over what is out of date. The channel is closed when ctx ends.
func (c *Client) WatchCluster(ctx context.Context) <-chan Cluster {
	p := newPicture()
	namespaces := newTable(p, toNamespace)
	nodes := newTable(p, toNode)
	out := make(chan Cluster)
	var watches sync.WaitGroup
	watches.Go(func() {
		follow(ctx, c, "namespaces", c.api.Core.Namespaces(), &corev1.Namespace{}, metav1.ListOptions{}, namespaces)
	})
	watches.Go(func() {
		follow(ctx, c, "nodes", c.api.Core.Nodes(), &corev1.Node{}, metav1.ListOptions{}, nodes)
	})
	go func() {
		defer close(out)
		defer watches.Wait()
		own, err := c.kubernetesService(ctx)
		if err != nil {
			return
		}
		var pending Cluster
		var ready chan<- Cluster
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
				p.mu.Lock()
				if namespaces.synced && nodes.synced {
					pending, ready = Cluster{Namespaces: maps.Clone(namespaces.items), Nodes: maps.Clone(nodes.items), KubernetesService: own}, out
				}
				p.mu.Unlock()
			case ready <- pending:
				pending, ready = Cluster{}, nil
			}
		}
	}()
	return out
}

// WatchNodeUID tells the UID of the Node called name, now and whenever it is another
// one: the machine was registered anew. The newest wins. The channel is closed when ctx ends.
func (c *Client) WatchNodeUID(ctx context.Context, name string) <-chan string {
	p := newPicture()
	nodes := newTable(p, func(n *corev1.Node) (string, string) { return n.Name, string(n.UID) })
	out := make(chan string)
	done := make(chan struct{})
	go func() {
		defer close(done)
		follow(ctx, c, "own node", c.api.Core.Nodes(), &corev1.Node{}, named(name), nodes)
	}()
	go func() {
		defer close(out)
		defer func() { <-done }()
		var told, pending string
		var ready chan<- string
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
				p.mu.Lock()
				uid := nodes.items[name]
				p.mu.Unlock()
				ready = nil
				if uid != "" && uid != told {
					pending, ready = uid, out
				}
			case ready <- pending:
				told, ready = pending, nil
			}
		}
	}()
	return out
}

// kubernetesService waits for the address of default/kubernetes, which never
// changes. The only error is that of ctx.
func (c *Client) kubernetesService(ctx context.Context) (netip.Addr, error) {
	for trouble := (backoff.Trouble{}); ; {
		addr, err := c.readKubernetesService(ctx)
		if err == nil {
			return addr, nil
		}
		if ctx.Err() != nil {
			return netip.Addr{}, ctx.Err()
		}
		if trouble.News(err) {
			c.log.Warn("cannot read service default/kubernetes; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return netip.Addr{}, ctx.Err()
		case <-time.After(serviceRetry):
		}
	}
}

func (c *Client) readKubernetesService(ctx context.Context) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.api.Core.Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read service default/kubernetes: %w", err)
	}
	addr, err := netip.ParseAddr(s.Spec.ClusterIP)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("service default/kubernetes: clusterIP %q is not an address", s.Spec.ClusterIP)
	}
	return addr, nil
}

func toNamespace(n *corev1.Namespace) (string, Namespace) {
	out := Namespace{
		Name: n.Name, UID: string(n.UID), Created: n.CreationTimestamp.Time, NetID: n.Annotations[topology.NetIDAnnotation],
		Terminating: n.DeletionTimestamp != nil,
	}
	if network, ok := n.Annotations[topology.NetworkAnnotation]; ok {
		out.Network = &network
	}
	return n.Name, out
}

func toNode(n *corev1.Node) (string, Node) {
	out := Node{Name: n.Name, UID: string(n.UID), Created: n.CreationTimestamp.Time}
	out.addresses(n.Status.Addresses)
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, text := range cidrs {
		if prefix, err := netip.ParsePrefix(text); err == nil && prefix.Addr().Is4() {
			out.PodCIDR = prefix
			break
		}
	}
	return n.Name, out
}

// addresses takes in those of a status.
func (n *Node) addresses(all []corev1.NodeAddress) {
	seen := map[netip.Addr]bool{}
	for _, internal := range []bool{true, false} {
		for _, a := range all {
			ip, err := netip.ParseAddr(a.Address)
			if err != nil || (a.Type == corev1.NodeInternalIP) != internal || seen[ip] {
				continue // a name, or of the other round
			}
			seen[ip] = true
			if len(n.Every) == MaxNodeAddresses {
				n.MoreAddresses++
				continue
			}
			n.Every = append(n.Every, ip)
			if internal {
				n.Internal++
			}
			if internal && tunnel.CheckVTEP(ip) == nil {
				n.Addresses = append(n.Addresses, ip)
			}
		}
	}
}
