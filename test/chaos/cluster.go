package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// cluster is the world: a lab whose programs are those of a Kubernetes cluster, with an API server of the tests.
type cluster struct {
	*netlab.Lab
	api   *kubetest.Server
	bin   string // the folder of the programs
	nodes []string

	mu      sync.Mutex
	servers map[string]*server // of pods, by their names
	made    int                // objects of the API server that need a UID
}

// up starts the lab. When ctx ends it is still there: [cluster.down] removes it.
func up(ctx context.Context, o netlab.Options) (*cluster, error) {
	o.Bare = true // the programs are started below, as those of a cluster
	l, err := netlab.Up(ctx, o)
	if err != nil {
		return nil, err
	}
	c := &cluster{Lab: l, bin: o.BinDir, servers: map[string]*server{}}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.down())
	}
	return c, nil
}

func (c *cluster) start(ctx context.Context) error {
	nodes, err := c.Nodes()
	if err != nil {
		return err
	}
	addresses := map[string]netip.Addr{}
	for _, n := range nodes {
		addresses[n.Name] = n.VTEP
		c.nodes = append(c.nodes, n.Name)
	}
	if c.api, err = kubetest.NewCluster(addresses, "kube-system"); err != nil {
		return err
	}
	for _, name := range namespaces {
		err := c.api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{corev1.LabelMetadataName: name},
		}})
		if err != nil {
			return err
		}
	}
	if err := errors.Join(c.serveAPI(), c.UseKubernetes(true), c.ShowPods(c.api)); err != nil {
		return err
	}
	if err := c.StartInCluster(ctx, c.bin); err != nil {
		return err
	}
	g, starting := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		g.Go(func() error { return c.Agent(n).StartInCluster(starting, c.bin) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return c.startSecond(ctx)
}

// second is the controller beside the one that has etcd in it. When that is killed it comes to lead.
const second = "controller-2"

func (c *cluster) startSecond(ctx context.Context) error {
	return c.StartExtraController(ctx, second, "--kubeconfig", filepath.Join(c.Dir(), "kubeconfig"), "--pod", "kube-system/"+second+"/uid")
}

// down removes all that up made.
func (c *cluster) down() error {
	c.mu.Lock()
	for _, s := range c.servers {
		s.close()
	}
	c.mu.Unlock()
	var away error
	if c.api != nil {
		away = c.api.Away()
	}
	return errors.Join(away, c.Down())
}

func (c *cluster) serveAPI() error {
	l, err := c.ListenAPIServer()
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	c.api.Serve(l)
	return nil
}

// signalAgent signals the agent itself, not what starts it again.
func (c *cluster) signalAgent(node string, sig syscall.Signal) error {
	pid, err := c.Agent(node).Program()
	if err != nil {
		return err
	}
	return unix.Kill(pid, sig)
}

func (c *cluster) ofctl(ctx context.Context, node string, args ...string) error {
	_, err := c.OVS(node).OFCtl(ctx, args...)
	return err
}

// changed is what netns says of a tenant change.
type changed struct {
	Result string
	Nodes  struct{ NotLive []string }
}

// everywhere says that the change is in force on all nodes.
func (c changed) everywhere() bool {
	return (c.Result == "done" || c.Result == "nothingToDo") && len(c.Nodes.NotLive) == 0
}

// netns asks for a tenant change and waits for it.
func (c *cluster) netns(ctx context.Context, args ...string) (r changed, err error) {
	out, err := c.Netns(ctx, append(args, "--output", "json", "--timeout", "20s", "--etcd-prefix", netlab.EtcdPrefix,
		"--etcd-endpoints", "unix://"+filepath.Join(c.DataDir(), options.EtcdSocket))...)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return r, fmt.Errorf("netns %s: %w in %q", strings.Join(args, " "), err, out)
	}
	return r, nil
}

// uid is one that no object had.
func (c *cluster) uid() types.UID {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	return types.UID(fmt.Sprint("chaos-", c.made))
}

// putPolicy makes a policy, or changes it.
func (c *cluster) putPolicy(p policy) error {
	o := p.object()
	if was, there := c.api.Object("networkpolicies", p.namespace, p.name).(*networkingv1.NetworkPolicy); there {
		o.UID = was.UID
	} else {
		o.UID = c.uid()
	}
	return c.api.Put(o)
}

// object is the policy as people write it.
func (p policy) object() *networkingv1.NetworkPolicy {
	o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: p.name}, Spec: networkingv1.NetworkPolicySpec{PodSelector: byApp(p.app)}}
	if p.ingress.isolates {
		o.Spec.PolicyTypes = append(o.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		for _, r := range p.ingress.rules {
			o.Spec.Ingress = append(o.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers(), Ports: r.ports()})
		}
	}
	if p.egress.isolates {
		o.Spec.PolicyTypes = append(o.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		for _, r := range p.egress.rules {
			o.Spec.Egress = append(o.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: r.peers(), Ports: r.ports()})
		}
	}
	return o
}

func byApp(app string) metav1.LabelSelector {
	if app == "" {
		return metav1.LabelSelector{}
	}
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

func (r rule) peers() []networkingv1.NetworkPolicyPeer {
	pods := byApp(r.app)
	p := networkingv1.NetworkPolicyPeer{PodSelector: &pods}
	switch r.namespace {
	case "":
	case anyNamespace:
		p.NamespaceSelector = &metav1.LabelSelector{}
	default:
		p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: r.namespace}}
	}
	return []networkingv1.NetworkPolicyPeer{p}
}

func (r rule) ports() []networkingv1.NetworkPolicyPort {
	if r.transport == "" {
		return nil
	}
	protocol := corev1.Protocol(r.transport)
	return []networkingv1.NetworkPolicyPort{{Protocol: &protocol}}
}

func (c *cluster) takePolicy(p policy) error {
	return c.api.Delete(p.object())
}

// serviceName is that of a namespace's service, servicePort and serverPort its port and that of its endpoints.
const (
	serviceName = "web"
	servicePort = 80
	serverPort  = 8080
)

// serviceAddress is that of a namespace's service.
func serviceAddress(namespace string) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 10, byte(1 + slices.Index(namespaces, namespace))}), servicePort)
}

func (c *cluster) putService(namespace string) error {
	return c.api.Put(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: serviceName},
		Spec: corev1.ServiceSpec{ClusterIP: serviceAddress(namespace).Addr().String(), Ports: []corev1.ServicePort{
			{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: servicePort}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: servicePort},
		}},
	})
}

func slice(namespace string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: serviceName + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: serviceName}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
}

func (c *cluster) takeService(namespace string) error {
	return errors.Join(c.api.Delete(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: serviceName}}), c.api.Delete(slice(namespace)))
}

// putEndpoints does what Kubernetes' own controller does: services have the pods that are there and have the label.
func (c *cluster) putEndpoints(s state) error {
	pods, err := c.Pods()
	if err != nil {
		return err
	}
	port, tcp, udp := int32(serverPort), corev1.ProtocolTCP, corev1.ProtocolUDP
	names := []string{"tcp", "udp"}
	for namespace, app := range s.services {
		slice := slice(namespace)
		slice.Ports = []discoveryv1.EndpointPort{{Name: &names[0], Protocol: &tcp, Port: &port}, {Name: &names[1], Protocol: &udp, Port: &port}}
		for _, p := range pods {
			if is, there := s.pods[p.String()]; there && p.Namespace == namespace && is.app == app {
				slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{p.IP.String()}})
			}
		}
		if err := c.api.Put(slice); err != nil {
			return err
		}
	}
	return nil
}

// patience is how long anything may take that takes some milliseconds where the machine is idle and nothing is
// broken. It bounds a run that hangs; nothing is measured by it.
const patience = 2 * time.Minute

// until calls ok until it returns nil, or ctx ends.
func until(ctx context.Context, what string, pause time.Duration, ok func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not in %s: %w", what, patience, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// sleep returns after d, or with an error when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ready is nil when controller and agents say that they are.
func (c *cluster) ready(ctx context.Context, nodes ...string) error {
	for _, n := range nodes {
		if err := c.Agent(n).Ready(ctx); err != nil {
			return fmt.Errorf("the agent of %s: %w", n, err)
		}
	}
	return nil
}

// keepLogs copies the programs' logs to a folder that outlives the lab.
func (c *cluster) keepLogs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	procs, err := c.Processes()
	for _, p := range procs {
		data, e := os.ReadFile(p.Log)
		if e == nil {
			e = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(p.Name, "/", "-")+".log"), data, 0o644)
		}
		err = errors.Join(err, e)
	}
	for _, n := range c.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // the run's own has ended
		flows, e := c.OVS(n).OFCtl(ctx, "dump-flows", "br0")
		cancel()
		if e == nil {
			e = os.WriteFile(filepath.Join(dir, n+"-flows.txt"), []byte(flows), 0o644)
		}
		err = errors.Join(err, e)
	}
	return err
}
