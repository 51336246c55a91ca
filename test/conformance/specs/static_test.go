package specs

import (
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// TestStaticPodsOfKubelets: with a kubelet's own credentials nobody makes pods that Services and policies of
// tenants choose; the control plane's static pods are shown, and those where an admin allows it.
func TestStaticPodsOfKubelets(t *testing.T) {
	c := connectOurs(t)
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.run, "pki", node2+".kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	kubelet, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	node, err := c.CoreV1().Nodes().Get(t.Context(), node2, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	static := func(namespace, name string, onHost bool, labels map[string]string) error {
		_, err := kubelet.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: name + "-" + node2, Labels: labels, Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "spec"},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node2, UID: node.UID, Controller: &yes}},
			},
			Spec: corev1.PodSpec{NodeName: node2, HostNetwork: onHost, Containers: []corev1.Container{{Name: "c", Image: "spec.invalid/never-pulled"}}},
		}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	const why = "this one runs, and nobody sees it"
	closed := c.namespace(t, "static-closed", nil)
	labelled := func(name, value string) string {
		t.Helper()
		namespace := c.namespace(t, name, nil)
		label := []byte(`{"metadata":{"labels":{"k8s-ovs.io/static-pods":"` + value + `"}}}`)
		if _, err := c.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		return namespace
	}
	open, other := labelled("static-open", "allowed"), labelled("static-other", "no")
	dns := map[string]string{"k8s-app": "kube-dns"}
	for what, err := range map[string]error{
		"a tenant's namespace":                  static(closed, "a", false, map[string]string{"role": "frontend"}),
		"a tenant's namespace, on the host":     static(closed, "b", true, nil),
		"a namespace with another word":         static(other, "c", false, nil),
		"kube-system, as cluster DNS":           static("kube-system", "e", false, dns),
		"kube-system, as cluster DNS, on hosts": static("kube-system", "f", true, dns),
	} {
		if err := refusedFor(err, why); err != nil {
			t.Errorf("a static pod in %s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"kube-system, on the pod network": static("kube-system", "d", false, map[string]string{"k8s-app": "kube-proxy"}),
		"kube-system, on the host":        static("kube-system", "g", true, map[string]string{"component": "etcd", "tier": "control-plane"}),
		"a namespace that allows":         static(open, "h", false, map[string]string{"role": "frontend"}),
	} {
		if err != nil {
			t.Errorf("a static pod in %s: %v", what, err)
		}
	}
	// Others make pods as ever.
	_, err = c.CoreV1().Pods(closed).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "usual", Labels: dns}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "spec.invalid/never-pulled"}}},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Errorf("a pod that no node makes: %v", err)
	}
}
