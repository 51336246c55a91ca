// Package kubetest gives tests a client of an API server that is not there.
// The fake refuses little: it checks no objects, selects no fields in watches and
// does not make default/kubernetes.
package kubetest

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
)

// definitionsResource is CustomResourceDefinitions, which every API server knows.
var definitionsResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// New makes a client of a fake clientset that holds objects.
func New(t testing.TB, objects ...runtime.Object) (*kube.Client, *fake.Clientset) {
	t.Helper()
	cs := fake.NewClientset(objects...)
	policies := dynamicfake.NewSimpleDynamicClient(scheme.Scheme)
	c := kube.New(kube.Interfaces{
		Core: cs.CoreV1(), Discovery: cs.DiscoveryV1(), Apps: cs.AppsV1(),
		ClusterPolicies: func(string) dynamic.ResourceInterface {
			return policies.Resource(kinds[clusterPolicies].GroupVersion().WithResource(clusterPolicies))
		},
		Definitions: dynamicfake.NewSimpleDynamicClient(runtime.NewScheme()).Resource(definitionsResource),
		Networking:  cs.NetworkingV1(), Admission: cs.AdmissionregistrationV1(), Certificates: cs.CertificatesV1(), Clientset: cs,
		Pods:   func(namespace string) kube.PodMetadata { return podMetadata{cs.CoreV1().Pods(namespace)} },
		Placed: cs.CoreV1().Pods(""),
	}, nil)
	t.Cleanup(c.Close)
	return c, cs
}

// Open serves s and makes a real client of it, over HTTP.
func Open(t testing.TB, s *Server) *kube.Client {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(l)
	t.Cleanup(func() { _ = s.Away() })
	file := filepath.Join(t.TempDir(), "kubeconfig")
	conf := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://" + l.Addr().String() + "'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := kube.Open(kube.Config{Kubeconfig: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
