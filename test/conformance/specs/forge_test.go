package specs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// TestTunnelsAreNoEndpoints: a tenant's service with a node port, whose endpoints are
// nodes' ports for tunnels, gets nothing into another tenant, neither by another node nor
// by the pod's own; the nodes count it.
func TestTunnelsAreNoEndpoints(t *testing.T) {
	c := connectTenants(t)
	red := c.tenant(t, "forger", nil, node1)
	blue := c.tenant(t, "victim", nil, node1, node2)
	ears := map[string]*wire.Port{}
	for _, p := range blue.pods {
		port, err := wire.Open(p.Sandbox, "eth0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = port.Close() })
		ears[p.Node] = port
	}
	ports := map[string]string{} // by the node that is the endpoint
	for _, node := range []string{node1, node2} {
		ports[node] = c.tunnelService(t, red.name, "tunnel-"+node, nodeAddress[node])
	}
	before := map[string]float64{node1: c.forged(t, node1), node2: c.forged(t, node2)}
	vni := c.netID(t, blue.name)
	attempt := func(round int) {
		for target, port := range ports {
			for via, address := range nodeAddress {
				for _, vni := range []uint32{0, vni} {
					mark := fmt.Sprintf("forged by %s to %s, VNI %d, round %d;", via, target, vni, round)
					victim, partner := blue.on(target), blue.on(map[string]string{node1: node2, node2: node1}[target])
					inner := wire.Ethernet(topology.MAC(victim.IP), topology.MAC(partner.IP), wire.TypeIPv4,
						wire.IPv4(partner.IP, victim.IP, wire.ProtoUDP, wire.UDP(1000, 9, []byte(mark))))
					red.pods[0].send(t, net.JoinHostPort(address, port), wire.VXLAN(vni, inner))
				}
			}
		}
	}
	// kube-proxy takes a moment to follow a new service; every node's counter shows that
	// it has, and what the firewall has dropped will not arrive any more.
	round := 0
	eventually(t, settle, "forged packets are dropped and counted on both nodes", func() error {
		round++
		attempt(round)
		var errs []error
		for node, was := range before {
			if c.forged(t, node) == was {
				errs = append(errs, fmt.Errorf("%s has counted none", node))
			}
		}
		return errors.Join(errs...)
	})
	attempt(0)
	eventually(t, settle, "the victims still reach each other", func() error { return reach(t, []*tenant{blue}, together) })
	for node, port := range ears {
		if port.Saw("forged by ") {
			t.Errorf("forged packets have reached the pod on %s", node)
		}
	}
}

// on is the tenant's pod on a node.
func (tn *tenant) on(node string) pod {
	return tn.pods[slices.IndexFunc(tn.pods, func(p pod) bool { return p.Node == node })]
}

// send sends one datagram from a pod, from a port of its own.
func (p pod) send(t *testing.T, to string, payload []byte) {
	t.Helper()
	err := ns.DoPath(p.Sandbox, func() error {
		conn, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		_, err = conn.Write(payload)
		return errors.Join(err, conn.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tunnelService makes a service without selector whose endpoint, by hand, is a node's
// port for tunnels, and returns its node port. Where a policy of the cluster refuses such
// endpoints, as it should, it is taken away until they are made: what is behind it must hold too.
func (c *cluster) tunnelService(t *testing.T, namespace, name, node string) (nodePort string) {
	t.Helper()
	s, err := c.CoreV1().Services(namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 53}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	port, udp, portName := int32(wire.VXLANPort), corev1.ProtocolUDP, "udp"
	create := func() error {
		_, err := c.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{node}}},
			Ports:       []discoveryv1.EndpointPort{{Name: &portName, Protocol: &udp, Port: &port}},
		}, metav1.CreateOptions{})
		return err
	}
	err = create()
	if apierrors.IsForbidden(err) {
		t.Logf("refused, as it should be: %v", err)
		c.withoutPolicies(t, func() { eventually(t, settle, "the slice without policies", create) })
	} else if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(int(s.Spec.Ports[0].NodePort))
}

// withoutPolicies runs fn while none of our admission policies is in force.
func (c *cluster) withoutPolicies(t *testing.T, fn func()) {
	t.Helper()
	bindings := c.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	all, err := bindings.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all.Items {
		if !strings.HasPrefix(b.Spec.PolicyName, "k8s-ovs-") {
			continue
		}
		if err := bindings.Delete(t.Context(), b.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		defer func() {
			b.ObjectMeta = metav1.ObjectMeta{Name: b.Name, Labels: b.Labels, Annotations: b.Annotations}
			if _, err := bindings.Create(context.WithoutCancel(t.Context()), &b, metav1.CreateOptions{}); err != nil {
				t.Errorf("put policy binding %s back: %v", b.Name, err)
			}
		}()
	}
	fn()
}

// forged is how many forged tunnel packets a node's firewall has counted.
func (c *cluster) forged(t *testing.T, node string) float64 {
	t.Helper()
	out, err := c.onNode(node, "nft list counter ip k8s-ovs forged-tunnel")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(out)
	n, err := strconv.ParseFloat(fields[slices.Index(fields, "packets")+1], 64)
	if err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	return n
}

// netID is what a namespace travels under.
func (c *cluster) netID(t *testing.T, namespace string) uint32 {
	t.Helper()
	n, err := c.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.ParseUint(n.Annotations[netIDAnnotation], 10, 32)
	if err != nil {
		t.Fatalf("namespace %s: %v", namespace, err)
	}
	return uint32(id)
}
