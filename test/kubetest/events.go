package kubetest

import (
	"io"
	"net/http"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
)

// Events are those that programs have sent, in order of name. One that was sent
// again, with a higher count, is here as it was at first.
func (s *Server) Events() []*corev1.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var events []*corev1.Event
	for _, o := range s.objects["events"] {
		events = append(events, o.(*corev1.Event))
	}
	slices.SortFunc(events, func(a, b *corev1.Event) int { return strings.Compare(keyOf(a), keyOf(b)) })
	return events
}

// write takes in an Event; programs write nothing else here.
func (s *Server) write(q request, r *http.Request) {
	switch {
	case q.resource == "events" && r.Method == http.MethodPost:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // whoever sent it is gone
		}
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		if err == nil {
			err = s.Put(o)
		}
		if err != nil {
			q.writer.fail(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
			return
		}
		q.writer.one(o)
	case q.resource == "events" && r.Method == http.MethodPatch:
		s.get(q)
	default:
		q.writer.fail(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, "the test's API server is for reading")
	}
}
