package specs

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

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
