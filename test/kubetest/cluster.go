package kubetest

import (
	"net"
	"net/http"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NewCluster makes a server that is away until Serve and has what a cluster has before its
// first pod: nodes with their addresses, these namespaces, and the service that stands for the API server. It knows
// nodes' agents by the addresses that they ask from, as a real one knows them by their tokens.
func NewCluster(nodes map[string]netip.Addr, namespaces ...string) (*Server, error) {
	s := NewServer()
	s.Who = func(r *http.Request) (string, map[string][]string) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		for name, address := range nodes {
			if address.String() == host {
				return "system:serviceaccount:kube-system:k8s-ovs-agent", map[string][]string{
					"authentication.kubernetes.io/node-name": {name}, "authentication.kubernetes.io/node-uid": {"uid-" + name}, "authentication.kubernetes.io/pod-uid": {"agent-" + name},
				}
			}
		}
		return "somebody", nil
	}
	for name, address := range nodes {
		err := s.Put(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address.String()}}},
		})
		if err != nil {
			return nil, err
		}
	}
	for _, name := range namespaces {
		if err := s.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}}); err != nil {
			return nil, err
		}
	}
	return s, s.Put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}})
}
