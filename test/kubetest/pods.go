package kubetest

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// PutPod makes a pod that runs on a node what is given.
func (s *Server) PutPod(namespace, name, uid, node string, annotations map[string]string) error {
	p := pod(namespace, name, node)
	p.UID, p.Annotations = types.UID(uid), maps.Clone(annotations)
	return s.Put(p)
}

// DeletePod takes the pod away.
func (s *Server) DeletePod(namespace, name, node string) error {
	return s.Delete(pod(namespace, name, node))
}

func pod(namespace, name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.PodSpec{NodeName: node}}
}
