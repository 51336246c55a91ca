package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PutConfigMap makes data all that the ConfigMap ref (NAMESPACE/NAME) has, whether
// or not there is one. It reports whether it had to write.
func (c *Client) PutConfigMap(ctx context.Context, ref string, data map[string]string) (bool, error) {
	namespace, name, err := ParseRef(ref)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	configMaps := c.api.Core.ConfigMaps(namespace)
	have, err := configMaps.Get(ctx, name, metav1.GetOptions{})
	switch err = classify(err); {
	case errors.Is(err, ErrNotFound):
		_, err = configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data}, metav1.CreateOptions{})
	case err != nil:
	case maps.Equal(have.Data, data) && len(have.BinaryData) == 0:
		return false, nil
	default:
		// On the version that was read: labels and annotations are others'.
		have.Data, have.BinaryData = data, nil
		_, err = configMaps.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return false, fmt.Errorf("write ConfigMap %s: %w", ref, classify(err))
	}
	return true, nil
}

// PolicyAbsent says why the ValidatingAdmissionPolicy of this name refuses
// nothing: it is not there, or no binding of its name has it refuse; "" where it is in
// force. An API server that knows no such policies has none.
func (c *Client) PolicyAbsent(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.api.Admission.ValidatingAdmissionPolicies().Get(ctx, name, metav1.GetOptions{})
	switch err = classify(err); {
	case errors.Is(err, ErrNotFound):
		return fmt.Sprintf("there is no ValidatingAdmissionPolicy %s", name), nil
	case err != nil:
		return "", fmt.Errorf("read ValidatingAdmissionPolicy %s: %w", name, err)
	}
	b, err := c.api.Admission.ValidatingAdmissionPolicyBindings().Get(ctx, name, metav1.GetOptions{})
	switch err = classify(err); {
	case errors.Is(err, ErrNotFound):
		return fmt.Sprintf("there is no ValidatingAdmissionPolicyBinding %s", name), nil
	case err != nil:
		return "", fmt.Errorf("read ValidatingAdmissionPolicyBinding %s: %w", name, err)
	case b.Spec.PolicyName != name || !slices.Contains(b.Spec.ValidationActions, admissionv1.Deny):
		return fmt.Sprintf("ValidatingAdmissionPolicyBinding %s does not refuse anything", name), nil
	}
	return "", nil
}
