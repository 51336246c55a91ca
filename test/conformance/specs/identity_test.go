package specs

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeletRestores is within what a kubelet puts its Node's addresses right: it looks
// every 10 s.
const kubeletRestores = time.Minute

// TestNodeKeepsItsPlace: whoever has the credentials of a node's kubelet gets neither
// the place in the network of another node nor that of an address that is nobody's.
func TestNodeKeepsItsPlace(t *testing.T) {
	c := connectOurs(t)
	tn := c.tenant(t, "placed", nil, node1, node2)
	before, thief := places(t), c.kubelet(t, node2)
	const nobodys = "192.168.60.66"
	for _, claim := range []struct{ address, reason string }{
		{nodeAddress[node1], "NodeRefused"},
		{nobodys, "NodeAddressWaiting"},
	} {
		began := time.Now()
		eventually(t, settle, "Event "+claim.reason+" about "+claim.address, func() error {
			// Again and again: the kubelet puts it right.
			if err := claimAddress(t, thief, node2, claim.address); err != nil {
				return err
			}
			return c.nodeEvent(t, node2, claim.reason, claim.address, began)
		})
		if err := reach(t, []*tenant{tn}, together); err != nil {
			t.Errorf("while %s claims %s: %v", node2, claim.address, err)
		}
		eventually(t, kubeletRestores, node2+" with its own address", func() error {
			node, err := c.CoreV1().Nodes().Get(t.Context(), node2, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, a := range node.Status.Addresses {
				if a.Type == corev1.NodeInternalIP && a.Address == nodeAddress[node2] {
					return nil
				}
			}
			return fmt.Errorf("it has %v", node.Status.Addresses)
		})
		if diff := cmp.Diff(before, places(t)); diff != "" {
			t.Errorf("places in the network after %s claimed %s (-before +after):\n%s", node2, claim.address, diff)
		}
	}
}

// kubelet is a client with the credentials of a node's kubelet.
func (c *cluster) kubelet(t *testing.T, node string) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.run, "pki", node+".kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// claimAddress writes into a Node that it has the address.
func claimAddress(t *testing.T, kubelet kubernetes.Interface, node, address string) error {
	t.Helper()
	patch := fmt.Appendf(nil, `{"status":{"addresses":[{"type":"InternalIP","address":%q},{"type":"Hostname","address":%q}]}}`, address, node)
	_, err := kubelet.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// nodeEvent is nil when there is an Event about the node that says so, from after began.
func (c *cluster) nodeEvent(t *testing.T, node, reason, say string, began time.Time) error {
	t.Helper()
	events, err := c.CoreV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + node})
	if err != nil {
		return err
	}
	for _, e := range events.Items {
		// Times of Events are whole seconds.
		if e.Reason == reason && strings.Contains(e.Message, say) && !e.LastTimestamp.Time.Before(began.Truncate(time.Second)) {
			return nil
		}
	}
	return errors.New("no such Event")
}

// places are the nodes' addresses and subnets, as the records have them.
func places(t *testing.T) map[string]string {
	t.Helper()
	out, err := netns("nodes", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct{ Node, Address, Subnet string }
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	found := map[string]string{}
	for _, r := range rows {
		found[r.Address] = r.Node + " " + r.Subnet
	}
	return found
}
