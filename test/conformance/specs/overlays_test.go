package specs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// TestSingleTenant: all pods reach all, whatever an annotation says, and netns says why
// it has nothing to join.
func TestSingleTenant(t *testing.T) {
	c := connectOverlay(t, singleTenant)
	all := []*tenant{
		c.tenant(t, "one", nil, node1, node2),
		c.tenant(t, "other", map[string]string{networkAnnotation: "of-its-own"}, node1, node2),
	}
	if err := reach(t, all, together); err != nil {
		t.Error(err)
	}
	if out, err := netns("join", all[0].name, all[1].name); err == nil || !strings.Contains(out, "single tenant") {
		t.Errorf("want a refusal that says single tenant, got %v: %s", err, out)
	}
}

// TestKubeProxyServices: the bridge knows no service; what kube-proxy translates comes
// back to it and is checked, which the specs about tenants show.
func TestKubeProxyServices(t *testing.T) {
	c := connectOverlay(t, kubeProxyServices)
	tn := c.tenant(t, "proxied", nil, node1, node2)
	for _, p := range tn.pods {
		if _, err := p.http(tn.service + ":" + serviceHTTP); err != nil {
			t.Errorf("%s to its service: %v", p, err)
		}
		groups, err := c.onNode(p.Node, "ovs-ofctl -O OpenFlow14 dump-groups br0")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(groups, "group_id") {
			t.Errorf("the bridge of %s balances services:\n%s", p.Node, groups)
		}
	}
}

// TestNodeSubnets: nodes have the subnets that kube-controller-manager gave them.
func TestNodeSubnets(t *testing.T) {
	c := connectOverlay(t, "node-subnets")
	tn := c.tenant(t, "placed", nil, node1, node2)
	listed, err := netns("nodes")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range tn.pods {
		node, err := c.CoreV1().Nodes().Get(t.Context(), p.Node, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		subnet, err := netip.ParsePrefix(node.Spec.PodCIDR)
		if err != nil {
			t.Fatalf("spec.podCIDR of %s: %v", p.Node, err)
		}
		if !subnet.Contains(p.IP) || !strings.Contains(listed, subnet.String()) {
			t.Errorf("%s of %s has address %s, spec.podCIDR is %s; netns nodes says\n%s", p.Name, p.Node, p.IP, subnet, listed)
		}
	}
}

// TestLeadingControllerDies: two controllers run on one etcd, one leads. When it dies
// without a word the other one answers.
func TestLeadingControllerDies(t *testing.T) {
	c := connectOverlay(t, "external-etcd")
	red, blue := c.tenant(t, "red", nil, node1, node2), c.tenant(t, "blue", nil, node1, node2)
	all := []*tenant{red, blue}
	var pods map[string]string // by node
	bothReady := func() error {
		list, err := c.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=k8s-ovs-controller"})
		if err != nil {
			return err
		}
		pods = map[string]string{}
		for _, p := range list.Items {
			if podReady(&p) {
				pods[p.Spec.NodeName] = p.Name
			}
		}
		if len(pods) != len(nodeAddress) {
			return fmt.Errorf("controllers are Ready on %d nodes", len(pods))
		}
		return nil
	}
	leader := func() (node string, err error) {
		for n := range pods {
			m, e := c.controllerMetrics(n)
			if e == nil && strings.Contains(m, "\nk8s_ovs_controller_leader 1\n") {
				if node != "" {
					return "", errors.New("two controllers lead")
				}
				node = n
			}
		}
		if node == "" {
			err = errors.New("no controller leads")
		}
		return node, err
	}
	eventually(t, settle, "two controllers", bothReady)
	var was string
	eventually(t, settle, "a leader", func() (err error) { was, err = leader(); return err })
	killed := pods[was]
	delete(pods, was)
	var now int64
	if err := c.CoreV1().Pods("kube-system").Delete(t.Context(), killed, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	eventually(t, settle, "the other one leads", func() error { _, err := leader(); return err })
	if err := reach(t, all, apart); err != nil {
		t.Error(err)
	}
	c.annotate(t, red.name, "both-"+red.name)
	c.annotate(t, blue.name, "both-"+red.name)
	eventually(t, settle, "joined by the new leader", func() error { return reach(t, all, together) })
	eventually(t, settle, "two controllers again", bothReady)
}

// controllerMetrics is what the controller on a node shows there.
func (c *cluster) controllerMetrics(node string) (string, error) { return c.metrics(node, 9466) }

// metrics is what a program on a node shows at that port there.
func (c *cluster) metrics(node string, port int) (string, error) {
	data, err := os.ReadFile(filepath.Join(c.run, node, "pid1"))
	if err != nil {
		return "", err
	}
	pid, _, _ := strings.Cut(string(data), " ")
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			return ns.DialTCP("/proc/"+pid+"/ns/net", address, patience)
		},
	}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
