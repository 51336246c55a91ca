// Package specs holds what a cluster with k8s-ovs must do beyond the upstream
// conformance specs: tenants, and life under change.
//
// The specs run against the cluster that `make conformance` starts, in the
// network namespace of its fabric: KUBECONFIG names the cluster, RUN its folder,
// TOOLS its programs, CONFORMANCE the folder of the scripts. Sockets of probes are
// opened in the pods' own namespaces, so no probe depends on what it probes.
package specs

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// networkAnnotation of a Namespace names the network that it is on.
	networkAnnotation = "k8s-ovs.io/network"
	// netIDAnnotation of a Namespace is what the controller gave it.
	netIDAnnotation = "k8s-ovs.io/netid"
	// measured is the attribute of a spec that the results show beside it.
	measured = "measured"
	// settle is how long a change may take until it holds on every node.
	settle = 20 * time.Second
	poll   = 200 * time.Millisecond
)

// node1 also runs the control plane.
const node1, node2 = "node1", "node2"

var nodeAddress = map[string]string{node1: "192.168.60.11", node2: "192.168.60.12"}

// cluster is the running one.
type cluster struct {
	kubernetes.Interface
	run, scripts string
}

// connect finds the cluster, or skips the spec.
func connect(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{run: os.Getenv("RUN"), scripts: os.Getenv("CONFORMANCE")}
	if c.run == "" || c.scripts == "" {
		t.Skip("needs the cluster of `make conformance`")
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 100, 200
	if c.Interface, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	return c
}

// connectOurs is connect for specs that another network cannot pass.
func connectOurs(t *testing.T) *cluster {
	t.Helper()
	c := connect(t)
	if network := os.Getenv("CNI"); network != "k8s-ovs" {
		t.Skipf("is about k8s-ovs; the cluster's network is %s", network)
	}
	return c
}

// Overlays that specs other than their own heed.
const (
	singleTenant      = "single-tenant"
	kubeProxyServices = "kube-proxy-services"
)

// connectTenants is connectOurs for specs that need more than one tenant.
func connectTenants(t *testing.T) *cluster {
	t.Helper()
	c := connectOurs(t)
	if overlay() == singleTenant {
		t.Skip("is about tenants; the cluster's network has one")
	}
	return c
}

// overlay is which of overlays/ the network is from, if any.
func overlay() string { return os.Getenv("OVERLAY") }

// connectOverlay is connect for a spec about an overlay.
func connectOverlay(t *testing.T, name string) *cluster {
	t.Helper()
	c := connectOurs(t)
	if overlay() != name {
		t.Skipf("is about overlays/%s: only `make conformance-overlays` runs it", name)
	}
	return c
}

// notShort skips a spec that takes long.
func notShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long: only `make conformance` runs it")
	}
}

// eventually waits until check returns nil.
func eventually(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(poll) {
		err := check()
		if err == nil {
			return
		}
		if time.Since(begin) > within {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// kubectl runs it as an operator would.
func kubectl(args ...string) (string, error) {
	return output(exec.Command("kubectl", args...))
}

func mustKubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := kubectl(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// netns runs the CLI in the controller's pod.
func netns(args ...string) (string, error) {
	return kubectl(append([]string{"-n", "kube-system", "exec", "deploy/k8s-ovs-controller", "--", "netns"}, args...)...)
}

// onNode runs a shell command on a node.
func (c *cluster) onNode(node, command string) (string, error) {
	return output(exec.Command(filepath.Join(c.scripts, "cluster/node"), node, "sh", "-c", command))
}

func (c *cluster) manifest() string {
	return filepath.Join(c.scripts, "../../manifests/k8s-ovs-openvswitch.yaml")
}

func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out), nil
}

// namespace makes one that the end of the spec deletes.
func (c *cluster) namespace(t *testing.T, name string, annotations map[string]string) string {
	t.Helper()
	ns, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-", Annotations: annotations},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete namespace %s: %v", ns.Name, err)
		}
	})
	return ns.Name
}

// annotate sets a Namespace's network; an empty one removes the annotation.
func (c *cluster) annotate(t *testing.T, namespace, network string) {
	t.Helper()
	change := networkAnnotation + "=" + network
	if network == "" {
		change = networkAnnotation + "-"
	}
	mustKubectl(t, "annotate", "--overwrite", "namespace", namespace, change)
}

// sandbox is the file of a running pod's network namespace as this process sees
// it. The pod's processes are found by its cgroup.
func (c *cluster) sandbox(node, uid string) (string, error) {
	cgroups, err := os.ReadFile(filepath.Join(c.run, node, "cgroups"))
	if err != nil {
		return "", err
	}
	_, folder, _ := strings.Cut(strings.SplitN(string(cgroups), "\n", 2)[0], " ")
	procs, err := filepath.Glob(filepath.Join(folder, "kubepods/besteffort/pod"+uid, "*/cgroup.procs"))
	if err != nil {
		return "", err
	}
	for _, file := range procs {
		pids, err := os.ReadFile(file)
		if pid, _, found := strings.Cut(string(pids), "\n"); err == nil && found {
			return "/proc/" + pid + "/ns/net", nil
		}
	}
	return "", fmt.Errorf("no process of pod %s on %s", uid, node)
}

// podReady reports whether a pod is Ready and has its address.
func podReady(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || p.Status.PodIP == "" {
		return false
	}
	for _, condition := range p.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func mustAddr(t *testing.T, s string) netip.Addr {
	t.Helper()
	a, err := netip.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
