package kubetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
)

// write does what programs ask for: create, update (whole, or a subresource of a
// CertificateSigningRequest), merge patches, an applied status of a ClusterNetworkPolicy, and
// delete.
func (s *Server) write(q request, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // whoever sent it is gone
	}
	switch r.Method {
	case http.MethodPost:
		s.create(q, r, body)
	case http.MethodPut:
		s.update(q, body)
	case http.MethodPatch:
		if q.resource == clusterPolicies && q.part == "status" && r.Header.Get("Content-Type") == string(types.ApplyYAMLPatchType) {
			s.applyStatus(q, body)
			return
		}
		s.patch(q, body)
	case http.MethodDelete:
		s.remove(q)
	default:
		q.writer.fail(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, r.Method)
	}
}

// decode is the object in body; nil after a failure was told.
func decode(q request, body []byte) object {
	o, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	it, ok := o.(object)
	if err != nil || !ok {
		q.writer.fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, fmt.Sprintf("body: %v", err))
		return nil
	}
	if it.GetNamespace() == "" {
		it.SetNamespace(q.namespace)
	}
	return it
}

// keep makes o what there is, with the lock held, and answers with it.
func (s *Server) keep(q request, o object) {
	c, err := changeOf(o)
	if err != nil {
		q.writer.fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	s.put(c)
	q.writer.one(o)
}

func (s *Server) create(q request, r *http.Request, body []byte) {
	o := decode(q, body)
	if o == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.objects[q.resource][keyOf(o)]; there {
		q.writer.fail(http.StatusConflict, metav1.StatusReasonAlreadyExists, fmt.Sprintf("%s %q already exists", q.resource, o.GetName()))
		return
	}
	o.SetUID(types.UID("made-" + strconv.Itoa(len(s.log))))
	if csr, ok := o.(*certificatesv1.CertificateSigningRequest); ok {
		csr.Spec.Username, csr.Spec.Extra, csr.Status = "", nil, certificatesv1.CertificateSigningRequestStatus{}
		if s.Who != nil {
			username, extra := s.Who(r)
			csr.Spec.Username, csr.Spec.Extra = username, map[string]certificatesv1.ExtraValue{}
			for key, values := range extra {
				csr.Spec.Extra[key] = values
			}
		}
	}
	s.keep(q, o)
}

func (s *Server) update(q request, body []byte) {
	o := decode(q, body)
	if o == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, there := s.objects[q.resource][keyOf(o)]
	switch {
	case !there:
		q.writer.fail(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", q.resource, o.GetName()))
		return
	case o.GetResourceVersion() != "" && o.GetResourceVersion() != old.GetResourceVersion():
		q.writer.fail(http.StatusConflict, metav1.StatusReasonConflict, fmt.Sprintf("%s %q was changed meanwhile", q.resource, o.GetName()))
		return
	}
	o.SetUID(old.GetUID())
	if csr, ok := o.(*certificatesv1.CertificateSigningRequest); ok {
		was := old.DeepCopyObject().(*certificatesv1.CertificateSigningRequest)
		switch q.part {
		case "approval":
			was.Status.Conditions = csr.Status.Conditions
		case "status":
			was.Status = csr.Status
		}
		o = was
	}
	s.keep(q, o)
}

// patch merges (RFC 7396).
func (s *Server) patch(q request, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, there := s.objects[q.resource][q.namespace+"/"+q.name]
	if !there {
		q.writer.fail(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", q.resource, q.name))
		return
	}
	merged, err := mergeJSON(old, body)
	if err != nil {
		q.writer.fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	if o := decode(q, merged); o != nil {
		s.keep(q, o)
	}
}

func mergeJSON(o object, patch []byte) ([]byte, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var is, with map[string]any
	if err := json.Unmarshal(data, &is); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(patch, &with); err != nil {
		return nil, err
	}
	merge(is, with)
	return json.Marshal(is)
}

func merge(is, with map[string]any) {
	for key, value := range with {
		inner, deep := value.(map[string]any)
		have, had := is[key].(map[string]any)
		switch {
		case value == nil:
			delete(is, key)
		case deep && had:
			merge(have, inner)
		default:
			is[key] = value
		}
	}
}

func (s *Server) remove(q request) {
	s.mu.Lock()
	o, there := s.objects[q.resource][q.namespace+"/"+q.name]
	s.mu.Unlock()
	if !there {
		q.writer.fail(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", q.resource, q.name))
		return
	}
	if err := s.Delete(o); err != nil {
		q.writer.fail(http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
		return
	}
	q.writer.one(o)
}
