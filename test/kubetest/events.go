package kubetest

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Events are those that programs have sent, in order of name. One that was sent
// again has a higher count.
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
