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
// vSwitch does, also by force, and together with the agent: pods of that node lose what they send while no ovs-vswitchd
// has their flows, and all is as before when one has. The node itself can be reached meanwhile, on the userspace datapath
// too, where its address is on one of the bridges: else nothing would make the next pod.
func TestOpenVSwitchReplaced(t *testing.T) {
	notShort(t)
	c := connectTenants(t)
	here, other := c.tenant(t, "replaced", nil, node1, node2), c.tenant(t, "beside", nil, node2)
	var costs []string
	defer func() { t.Attr(measured, strings.Join(costs, "; ")) }()
	for _, way := range []struct {
		name, which string
		force       bool
	}{
		{"deleted", "app.kubernetes.io/name=k8s-ovs-openvswitch", false},
		{"deleted by force", "app.kubernetes.io/name=k8s-ovs-openvswitch", true},
		{"deleted with the agent's", "app.kubernetes.io/name in (k8s-ovs-openvswitch, k8s-ovs-agent)", false},
	} {
		t.Run(way.name, func(t *testing.T) {
			costs = append(costs, way.name+": "+c.openVSwitchReplaced(t, way.which, way.force, []*tenant{here, other}))
		})
	}
}

// openVSwitchReplaced deletes pods of k8s-ovs on node2, that of Open vSwitch among them, and returns what that costs.
func (c *cluster) openVSwitchReplaced(t *testing.T, which string, force bool, tenants []*tenant) (costs string) {
	t.Helper()
	const interval = 20 * time.Millisecond
	c.awaitCalm(t)
	run := startProbe(t, podsOf(tenants), probe.RunOptions{Interval: interval, Protocols: []probe.Protocol{probe.UDP}})
	begin := time.Now()
	daemon := func() (string, error) { return c.onNode(node2, "cat /run/openvswitch/ovs-vswitchd.pid") }
	before, err := daemon()
	if err != nil {
		t.Fatal(err)
	}
	selector := []string{"-n", "kube-system", "-l", which, "--field-selector", "spec.nodeName=" + node2}
	remove := append(append([]string{"delete", "pod"}, selector...), "--timeout=180s")
	if force {
		remove = append(remove, "--force", "--grace-period=0")
	}
	mustKubectl(t, remove...)
	eventually(t, 2*time.Minute, "the next ovs-vswitchd", func() error {
		// By force the next pod comes while the one before is still ending.
		now, err := daemon()
		if err == nil && now == before {
			err = errors.New("it is the one before")
		}
		return err
	})
	eventually(t, 2*time.Minute, "the next pods", func() error {
		_, err := kubectl(append(append([]string{"wait", "pod", "--for=condition=Ready"}, selector...), "--timeout=60s")...)
		return err
	})
	eventually(t, settle, "pods of both nodes reach each other", func() error { return reach(t, tenants, apart) })
	report := run.Stop()
	silence := time.Duration(0)
	for _, f := range report.Flows {
		silence = max(silence, time.Duration(f.Lost)*interval)
	}
	if n := report.Forbidden(); n > 0 {
		t.Errorf("%d messages arrived that may not: %s", n, report.ForbiddenEvents[0])
	}
	if silence > 30*time.Second {
		t.Errorf("a pod was without network for %v", silence)
	}
	return fmt.Sprintf("one pod to another lost for %v, all as before after %v", silence, time.Since(begin).Round(100*time.Millisecond))
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
