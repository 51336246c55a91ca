package specs

//lint:file-ignore SA1019 somebody may still write Endpoints

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestEndpointsPolicy: with manifests/policy nobody writes addresses of pods as
// endpoints by hand. Services with a selector, and endpoints elsewhere, go on.
func TestEndpointsPolicy(t *testing.T) {
	c := connectOurs(t)
	policy := filepath.Join(c.scripts, "../../manifests/policy")
	mustKubectl(t, "apply", "-k", policy)
	t.Cleanup(func() {
		if _, err := kubectl("delete", "-k", policy); err != nil {
			t.Error(err)
		}
	})
	const inPodNetwork, elsewhere = "10.128.0.9", "192.0.2.1"
	for what, write := range map[string]func(namespace, name, address string) error{
		"an EndpointSlice": func(namespace, name, address string) error {
			_, err := c.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Name: name}, AddressType: discoveryv1.AddressTypeIPv4,
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}},
			}, metav1.CreateOptions{})
			return err
		},
		"Endpoints": func(namespace, name, address string) error {
			_, err := c.CoreV1().Endpoints(namespace).Create(t.Context(), &corev1.Endpoints{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Subsets:    []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: address}}, Ports: []corev1.EndpointPort{{Port: podHTTP}}}},
			}, metav1.CreateOptions{})
			return err
		},
	} {
		namespace := c.namespace(t, "by-hand", nil)
		attempt := 0
		// The API server takes a moment to follow a new policy.
		eventually(t, settle, what+" with an address of the pod network is refused", func() error {
			attempt++
			err := write(namespace, fmt.Sprintf("inside-%d", attempt), inPodNetwork)
			if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "give the Service a selector") {
				return nil
			}
			return fmt.Errorf("attempt %d: %v", attempt, err)
		})
		if err := write(namespace, "outside", elsewhere); err != nil {
			t.Errorf("%s with an address elsewhere: %v", what, err)
		}
	}
	tn := c.tenant(t, "guarded", nil, node1)
	eventually(t, settle, "a service with a selector serves", func() error {
		_, err := tn.pods[0].http(tn.service + ":" + serviceHTTP)
		return err
	})
}

// TestNetworkPolicyEvent: who writes a NetworkPolicy is told that it is not enforced.
func TestNetworkPolicyEvent(t *testing.T) {
	c := connectOurs(t)
	namespace := c.namespace(t, "policy", nil)
	policy, err := c.NetworkingV1().NetworkPolicies(namespace).Create(t.Context(), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny-all"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, settle, "an Event about the policy", func() error {
		events, err := c.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=NetworkPolicyNotEnforced"})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.UID == policy.UID && e.InvolvedObject.APIVersion == "networking.k8s.io/v1" && e.Type == corev1.EventTypeWarning {
				return nil
			}
		}
		return fmt.Errorf("%d other Events", len(events.Items))
	})
}
