package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// policies are those of a kustomization, by name.
func policies(objects []runtime.Object) map[string]*admissionv1.ValidatingAdmissionPolicy {
	all := map[string]*admissionv1.ValidatingAdmissionPolicy{}
	for _, o := range objects {
		if p, ok := o.(*admissionv1.ValidatingAdmissionPolicy); ok {
			all[p.Name] = p
		}
	}
	return all
}

// Every variant has every policy, in force: it refuses, also what it cannot judge, and
// its parameters are there.
func TestManifestsPolicies(t *testing.T) {
	want := policies(decode(t, "policy"))
	for _, k := range kustomizations(t) {
		objects := decode(t, k)
		have := policies(objects)
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s (-policy +here):\n%s", k, diff)
		}
		bound := map[string]bool{}
		for _, o := range objects {
			b, ok := o.(*admissionv1.ValidatingAdmissionPolicyBinding)
			if !ok {
				continue
			}
			p := have[b.Spec.PolicyName]
			if b.Name != b.Spec.PolicyName || p == nil {
				t.Errorf("%s: binding %s is of policy %s", k, b.Name, b.Spec.PolicyName)
				continue
			}
			bound[b.Name] = true
			if !slices.Equal(b.Spec.ValidationActions, []admissionv1.ValidationAction{admissionv1.Deny}) || p.Spec.FailurePolicy == nil || *p.Spec.FailurePolicy != admissionv1.Fail {
				t.Errorf("%s: %s does not refuse", k, b.Name)
			}
			if (p.Spec.ParamKind == nil) != (b.Spec.ParamRef == nil) {
				t.Errorf("%s: %s has parameters, or has none, in the policy only", k, b.Name)
			}
			if r := b.Spec.ParamRef; r != nil && (*r.ParameterNotFoundAction != admissionv1.DenyAction || !slices.ContainsFunc(objects, func(o runtime.Object) bool {
				m, ok := o.(*corev1.ConfigMap)
				// What the controller fills in must not be emptied by the next apply.
				return ok && m.Name == r.Name && m.Namespace == r.Namespace && len(m.Data) == 0
			})) {
				t.Errorf("%s: %s does without its parameters", k, b.Name)
			}
		}
		for name := range have {
			if !bound[name] {
				t.Errorf("%s: nothing binds policy %s", k, name)
			}
		}
	}
}

// Both kinds of endpoints are judged alike, and messages say whom to ask.
func TestManifestsPoliciesAlike(t *testing.T) {
	all := policies(decode(t, "policy"))
	variables := func(policy string) map[string]string {
		out := map[string]string{}
		for _, v := range all[policy].Spec.Variables {
			out[v.Name] = v.Expression
		}
		delete(out, "addresses")
		return out
	}
	if diff := cmp.Diff(variables("k8s-ovs-endpointslices"), variables("k8s-ovs-endpoints")); diff != "" {
		t.Errorf("(-slices +Endpoints)\n%s", diff)
	}
	for name, p := range all {
		for _, v := range p.Spec.Validations {
			text := v.Message + v.MessageExpression
			asks := strings.Contains(text, "cluster admin") && strings.Contains(text, "k8s-ovs.io")
			if !asks && !strings.Contains(text, "controller") {
				t.Errorf("%s says neither whom to ask nor for whom it is: %s", name, text)
			}
		}
	}
}

// The rights that policies ask for are those that the roles beside them give, but for
// those that nobody has at first.
func TestManifestsRights(t *testing.T) {
	objects := decode(t, "policy")
	given := map[string]bool{"externalips use": true, "networks join": true}
	for _, o := range objects {
		if r, ok := o.(*rbacv1.ClusterRole); ok {
			for _, rule := range r.Rules {
				given[rule.Resources[0]+" "+rule.Verbs[0]] = true
			}
		}
	}
	asked := map[string]bool{}
	note := func(expression string) {
		for _, check := range strings.Split(expression, "authorizer.group('k8s-ovs.io').resource('")[1:] {
			resource, rest, _ := strings.Cut(check, "'")
			_, rest, _ = strings.Cut(rest, ".check('")
			verb, _, _ := strings.Cut(rest, "'")
			asked[resource+" "+verb] = true
		}
	}
	for _, p := range policies(objects) {
		for _, c := range p.Spec.MatchConditions {
			note(c.Expression)
		}
		for _, v := range p.Spec.Validations {
			note(v.Expression)
		}
	}
	if diff := cmp.Diff(given, asked); diff != "" {
		t.Errorf("(-given +asked)\n%s", diff)
	}
}
