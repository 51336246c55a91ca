package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

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
