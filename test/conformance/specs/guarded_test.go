package specs

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// event waits for an Event with these words, of this reason.
func (c *cluster) event(t *testing.T, namespace, reason, words string) {
	t.Helper()
	eventually(t, settle, "Event "+reason, func() error {
		list, err := c.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason})
		if err != nil {
			return err
		}
		var have []string
		for _, e := range list.Items {
			if strings.Contains(e.Message, words) {
				return nil
			}
			have = append(have, e.Message)
		}
		return fmt.Errorf("want one that says %q, there are %q", words, have)
	})
}

// TestEndpointsLeftOut: what the API server lets an admin write is left out by the
// nodes all the same, and the Service says so; its other endpoints serve.
func TestEndpointsLeftOut(t *testing.T) {
	c := connectOurs(t)
	tn := c.tenant(t, "left-out", nil, node1, node2)
	at := int32(4789)
	var ports []discoveryv1.EndpointPort
	for name, protocol := range map[string]corev1.Protocol{"http": corev1.ProtocolTCP, "udp": corev1.ProtocolUDP} {
		ports = append(ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &at})
	}
	ready := true
	_, err := c.DiscoveryV1().EndpointSlices(tn.name).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "by-hand", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports,
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"239.1.2.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}},
			{Addresses: []string{"10.128.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.event(t, tn.name, "EndpointsLeftOut", "10.128.0.1:4789 (gateway) is left out: no pod is sent there, nor to 3 more")
	for _, p := range tn.pods {
		flows, err := c.onNode(p.Node, "ovs-ofctl -O OpenFlow14 dump-flows br0; ovs-ofctl -O OpenFlow14 dump-groups br0")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []string{"239.1.2.3", "nw_src=10.128.0.1,", "10.128.0.1:4789"} {
			if strings.Contains(flows, a) {
				t.Errorf("the bridge of %s knows %s as an endpoint", p.Node, a)
			}
		}
		if overlay() == kubeProxyServices {
			continue // it chooses among all of them
		}
		for range 20 {
			if _, err := p.http(tn.service + ":" + serviceHTTP); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		}
	}
}

// TestPolicyTakenAway: the controller says that endpoints by hand are not guarded, and
// stops saying so when the policy is back.
func TestPolicyTakenAway(t *testing.T) {
	notShort(t)
	c := connectOurs(t)
	const policy = "k8s-ovs-endpointslices"
	mustKubectl(t, "delete", "validatingadmissionpolicybinding", policy)
	policies := filepath.Join(c.scripts, "../../manifests/policy")
	t.Cleanup(func() { mustKubectl(t, "apply", "-k", policies) })
	// It looks when it begins to lead, and every few minutes.
	restart := func() { mustKubectl(t, "-n", "kube-system", "rollout", "restart", "deploy/k8s-ovs-controller") }
	absent := func(want string) {
		t.Helper()
		eventually(t, 2*settle, want+" policies are absent", func() error {
			var last error
			for node := range nodeAddress {
				m, err := c.controllerMetrics(node)
				if err != nil {
					last = err
					continue
				}
				if strings.Contains(m, "\nk8s_ovs_controller_leader 1\n") && strings.Contains(m, "\nk8s_ovs_controller_policies_absent "+want+"\n") {
					return nil
				}
				last = errors.New("not what the leading controller shows")
			}
			return last
		})
	}
	restart()
	absent("1")
	c.event(t, "kube-system", "NotGuarded", "there is no ValidatingAdmissionPolicyBinding "+policy)
	mustKubectl(t, "apply", "-k", policies)
	restart()
	absent("0")
}
