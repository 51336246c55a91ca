package specs

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// The specs of this file take a node or the whole network away. By the file's name
// they come last, so that what they leave undone spoils no other.

// TestNodeRemovedAndAdded: a node goes for good, its subnet with it; added again it
// is like new.
func TestNodeRemovedAndAdded(t *testing.T) {
	notShort(t)
	c := connectOurs(t)
	tn := c.tenant(t, "stays", nil, node1)
	if _, err := c.onNode(node2, "kill $(cat /run/kubelet.pid)"); err != nil {
		t.Fatal(err)
	}
	mustKubectl(t, "delete", "node", node2)
	// Its agent may go on and say so, but it has no subnet.
	eventually(t, time.Minute, "the subnet of node2 given back", func() error {
		out, err := netns("nodes")
		for line := range strings.Lines(out) {
			if columns := strings.Fields(line); err == nil && columns[0] == node2 && columns[2] != "-" {
				err = errors.New(line)
			}
		}
		return err
	})
	if _, err := output(exec.Command(filepath.Join(c.scripts, "cluster/kubelet.sh"), node2)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually(t, 3*time.Minute, "node2 Ready", func() error { return nodeReady(t, c, node2) })
	t.Attr(measured, fmt.Sprintf("Ready %v after its kubelet was started", time.Since(begin).Round(100*time.Millisecond)))
	c.createPod(t, tn.name, "web-"+node2, corev1.PodSpec{NodeName: node2})
	tn.pods = append(tn.pods, c.awaitPod(t, tn.name, "web-"+node2))
	eventually(t, settle, "pods of both nodes reach each other", func() error { return reach(t, []*tenant{tn}, together) })
}

func nodeReady(t *testing.T, c *cluster, name string) error {
	node, err := c.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return errors.New("not registered")
	}
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
			return errors.New(condition.Message)
		}
	}
	return nil
}

// TestOpenVSwitchReplaced: what it costs to replace the pod of k8s-ovs-openvswitch of a node, as a rolling update of Open
// vSwitch does: pods of that node lose what they send while no ovs-vswitchd has their flows, and all is as before when
// one has. The agents stay. Not on the userspace datapath: there the node's only way goes with Open vSwitch, kubelet
// cannot tell the API server that the pod has ended, and no other is made.
func TestOpenVSwitchReplaced(t *testing.T) {
	notShort(t)
	c := connectTenants(t)
	if out, err := c.onNode(node2, "ip -o link show br-phy"); err == nil {
		t.Skipf("it would cut the node off (docs/openvswitch.md, \"A rolling update of Open vSwitch\"): %s", strings.TrimSpace(out))
	}
	const interval = 20 * time.Millisecond
	here, other := c.tenant(t, "replaced", nil, node1, node2), c.tenant(t, "beside", nil, node2)
	c.awaitCalm(t)
	run := startProbe(t, append(here.pods, other.pods...), probe.RunOptions{Interval: interval, Protocols: []probe.Protocol{probe.UDP}})
	begin := time.Now()
	selector := []string{"-n", "kube-system", "-l", "app.kubernetes.io/name=k8s-ovs-openvswitch", "--field-selector", "spec.nodeName=" + node2}
	mustKubectl(t, append(append([]string{"delete", "pod"}, selector...), "--timeout=120s")...)
	eventually(t, time.Minute, "the next pod of Open vSwitch", func() error {
		_, err := kubectl(append(append([]string{"wait", "pod", "--for=condition=Ready"}, selector...), "--timeout=60s")...)
		return err
	})
	eventually(t, settle, "pods of both nodes reach each other", func() error { return reach(t, []*tenant{here, other}, apart) })
	report := run.Stop()
	silence := time.Duration(0)
	for _, f := range report.Flows {
		silence = max(silence, time.Duration(f.Lost)*interval)
	}
	t.Attr(measured, fmt.Sprintf("%d of %d messages lost, of one pod to another for %v; %v from the request to when all was as before", report.Lost(), report.Sent(), silence, time.Since(begin).Round(100*time.Millisecond)))
	if n := report.Forbidden(); n > 0 {
		t.Errorf("%d messages arrived that may not: %s", n, report.ForbiddenEvents[0])
	}
	if silence > 20*time.Second {
		t.Errorf("a pod was without network for %v", silence)
	}
}

// TestUninstallAndInstallAgain: without the network no node has a CNI configuration;
// installed again, nodes are Ready and pods start.
func TestUninstallAndInstallAgain(t *testing.T) {
	notShort(t)
	c := connectOurs(t)
	mustKubectl(t, "delete", "-f", c.manifest(), "--timeout=120s")
	for node := range nodeAddress {
		eventually(t, settle, "no CNI configuration on "+node, func() error {
			files, err := c.onNode(node, "ls /etc/cni/net.d")
			if err == nil && strings.TrimSpace(files) != "" {
				err = errors.New(files)
			}
			return err
		})
	}
	mustKubectl(t, "apply", "-f", c.manifest())
	for node := range nodeAddress {
		eventually(t, 2*time.Minute, node+" Ready", func() error { return nodeReady(t, c, node) })
	}
	tn := c.tenant(t, "anew", nil, node1, node2)
	eventually(t, settle, "pods of both nodes reach each other", func() error { return reach(t, []*tenant{tn}, together) })
}
