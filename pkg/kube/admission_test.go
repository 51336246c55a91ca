package kube_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

func TestPutConfigMap(t *testing.T) {
	const ref = "kube-system/guards"
	client, cs := kubetest.New(t)
	put := func(data map[string]string, want bool) {
		t.Helper()
		wrote, err := client.PutConfigMap(t.Context(), ref, data)
		if err != nil || wrote != want {
			t.Errorf("wrote: %v, %v, want %v", wrote, err, want)
		}
		m, err := cs.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "guards", metav1.GetOptions{})
		must(t, err)
		if diff := cmp.Diff(data, m.Data); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	put(map[string]string{"a": "1", "b": "2"}, true)
	put(map[string]string{"a": "1", "b": "2"}, false)
	m, err := cs.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "guards", metav1.GetOptions{})
	must(t, err)
	m.Labels = map[string]string{"somebody": "else"}
	_, err = cs.CoreV1().ConfigMaps("kube-system").Update(t.Context(), m, metav1.UpdateOptions{})
	must(t, err)
	put(map[string]string{"a": "3"}, true)
	if m, err = cs.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "guards", metav1.GetOptions{}); err != nil || m.Labels["somebody"] != "else" {
		t.Errorf("labels of others are gone: %v, %v", m, err)
	}
	if _, err := client.PutConfigMap(t.Context(), "nonsense", nil); err == nil {
		t.Error("a name that is none was taken")
	}
}

func TestPolicyAbsent(t *testing.T) {
	client, cs := kubetest.New(t)
	expect := func(what, want string) {
		t.Helper()
		if got, err := client.PolicyAbsent(t.Context(), "p"); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", what, got, err, want)
		}
	}
	admission := cs.AdmissionregistrationV1()
	expect("nothing", "there is no ValidatingAdmissionPolicy p")
	_, err := admission.ValidatingAdmissionPolicies().Create(t.Context(), &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}}, metav1.CreateOptions{})
	must(t, err)
	expect("no binding", "there is no ValidatingAdmissionPolicyBinding p")
	b := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: "p", ValidationActions: []admissionv1.ValidationAction{admissionv1.Audit},
	}}
	_, err = admission.ValidatingAdmissionPolicyBindings().Create(t.Context(), b, metav1.CreateOptions{})
	must(t, err)
	expect("a binding that only writes down", "ValidatingAdmissionPolicyBinding p does not refuse anything")
	b.Spec.ValidationActions = []admissionv1.ValidationAction{admissionv1.Deny}
	_, err = admission.ValidatingAdmissionPolicyBindings().Update(t.Context(), b, metav1.UpdateOptions{})
	must(t, err)
	expect("in force", "")
}
