package kubetest

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	npav1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"
)

const clusterPolicies = "clusternetworkpolicies"

// ClusterPolicyVersions are those in which a Server serves ClusterNetworkPolicies at first.
var ClusterPolicyVersions = []string{"v1beta1", "v1alpha2"}

func init() { utilruntime.Must(npav1beta1.Install(scheme.Scheme)) }

// DefineClusterPolicies says in which versions ClusterNetworkPolicies are served from now on.
// Without any there is no definition of them: those that there are go, and watches end.
func (s *Server) DefineClusterPolicies(versions ...string) {
	s.mu.Lock()
	var gone []object
	if len(versions) == 0 {
		for _, o := range s.objects[clusterPolicies] {
			gone = append(gone, o)
		}
	}
	s.mu.Unlock()
	for _, o := range gone {
		utilruntime.Must(s.Delete(o)) // of a kind that the server has
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.defined = versions
	s.tellAll()
}

// serves reports whether the version of what is asked for is served.
func (s *Server) serves(q request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return q.resource != clusterPolicies || slices.Contains(s.defined, q.version)
}

// PutClusterPolicy makes the ClusterNetworkPolicy called name, or changes it, to what spec
// says in YAML, as people write it. Its status stays.
func (s *Server) PutClusterPolicy(name, spec string) error {
	p := &npav1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		return fmt.Errorf("spec of ClusterNetworkPolicy %s: %w", name, err)
	}
	c, err := changeOf(p)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.UID, p.Generation = types.UID("policy-"+strconv.Itoa(len(s.log))), 1
	if was, there := s.objects[clusterPolicies][keyOf(p)].(*npav1beta1.ClusterNetworkPolicy); there {
		p.UID, p.Generation, p.Status = was.UID, was.Generation+1, *was.Status.DeepCopy()
	}
	s.put(c)
	return nil
}

// DeleteClusterPolicy deletes the ClusterNetworkPolicy called name.
func (s *Server) DeleteClusterPolicy(name string) error {
	return s.Delete(&npav1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

// ClusterPolicy is the ClusterNetworkPolicy called name; nil for none. It is not to be changed.
func (s *Server) ClusterPolicy(name string) *npav1beta1.ClusterNetworkPolicy {
	p, _ := s.Object(clusterPolicies, "", name).(*npav1beta1.ClusterNetworkPolicy)
	return p
}

// applyStatus takes in the conditions of a ClusterNetworkPolicy that somebody has, beside those
// of others.
func (s *Server) applyStatus(q request, body []byte) {
	var with npav1beta1.ClusterNetworkPolicy
	if err := yaml.UnmarshalStrict(body, &with); err != nil {
		q.writer.fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, there := s.objects[q.resource][q.namespace+"/"+q.name].(*npav1beta1.ClusterNetworkPolicy)
	switch {
	case !there:
		q.writer.fail(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", q.resource, q.name))
		return
	case with.UID != "" && with.UID != old.UID:
		q.writer.fail(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "metadata.uid: field is immutable")
		return
	}
	fresh := old.DeepCopy()
	for _, c := range with.Status.Conditions {
		meta.RemoveStatusCondition(&fresh.Status.Conditions, c.Type)
		fresh.Status.Conditions = append(fresh.Status.Conditions, c)
	}
	s.keep(q, fresh)
}

// define answers whoever makes a CustomResourceDefinition: the server knows that of
// ClusterNetworkPolicy, without looking into it.
func (s *Server) define(w *writer, r *http.Request) {
	s.mu.Lock()
	there := len(s.defined) > 0
	s.mu.Unlock()
	if there {
		w.fail(http.StatusConflict, metav1.StatusReasonAlreadyExists, "this definition is there")
		return
	}
	s.DefineClusterPolicies(ClusterPolicyVersions...)
	w.w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	_, _ = io.Copy(w.w, r.Body) // whoever asked may be gone
}

// inVersion is an object, or a list of some, as it is shown in a version of its API.
func inVersion(o runtime.Object, version string) (runtime.Object, error) {
	o = o.DeepCopyObject()
	set := func(o runtime.Object) error {
		gvk := o.GetObjectKind().GroupVersionKind()
		gvk.Version = version
		o.GetObjectKind().SetGroupVersionKind(gvk)
		return nil
	}
	if meta.IsListType(o) {
		if err := meta.EachListItem(o, set); err != nil {
			return nil, err
		}
	}
	return o, set(o)
}
