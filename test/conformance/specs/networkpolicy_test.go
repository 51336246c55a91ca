package specs

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestNetworkPolicy: a policy isolates pods and lets in whom it names, as labels of running pods
// change; the kubelet's probes go on; nobody is told that it is not enforced.
func TestNetworkPolicy(t *testing.T) {
	c := connectOurs(t)
	tn := c.tenant(t, "policed", nil, node1, node2)
	client, server := tn.pods[0], tn.pods[1]
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "friends"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
				{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"friend": "yes"}}},
			}}},
		},
	}
	policy, err := c.NetworkingV1().NetworkPolicies(tn.name).Create(t.Context(), policy, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(server.IP, podHTTP).String()
	becomes := func(what string, allowed bool) {
		t.Helper()
		eventually(t, settle, what, func() error {
			who, err := client.http(at)
			if (err == nil) != allowed {
				return fmt.Errorf("answer %q, error %v", who, err)
			}
			return nil
		})
	}
	befriend := func(change string) {
		t.Helper()
		_, err := c.CoreV1().Pods(tn.name).Patch(t.Context(), client.Name, types.MergePatchType, []byte(change), metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	becomes("isolated", false)
	befriend(`{"metadata":{"labels":{"friend":"yes"}}}`)
	becomes("a friend", true)
	befriend(`{"metadata":{"labels":{"friend":null}}}`)
	becomes("a friend no longer", false)

	// Every second its own node asks a pod whether it is Ready, which is not a policy's to refuse.
	newcomer := "web-late"
	c.createPod(t, tn.name, newcomer, corev1.PodSpec{NodeName: node1})
	late := c.awaitPod(t, tn.name, newcomer)
	result, err := probe.Matrix(t.Context(), []probe.Endpoint{client.Endpoint, server.Endpoint, late.Endpoint}, []probe.Protocol{probe.Ping, probe.UDP, probe.TCP})
	if err == nil {
		err = result.Check(func(_, _ probe.Endpoint) bool { return false })
	}
	if err != nil {
		t.Errorf("pods that are isolated: %v", err)
	}
	for _, p := range []pod{client, server, late} {
		now, err := c.CoreV1().Pods(tn.name).Get(t.Context(), p.Name, metav1.GetOptions{})
		if err == nil && !podReady(now) {
			err = errors.New("it is not Ready")
		}
		if err != nil {
			t.Errorf("%s is isolated: %v", p, err)
		}
	}
	events, err := c.CoreV1().Events(tn.name).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(policy.UID)})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		t.Errorf("Event %s: %s", e.Reason, e.Message)
	}
	if err := c.NetworkingV1().NetworkPolicies(tn.name).Delete(t.Context(), policy.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	becomes("without policy", true)
}
