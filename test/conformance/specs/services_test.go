package specs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

const (
	apiService = "10.96.0.1:443"
	dnsService = "10.96.0.10:53"
)

// TestEveryTenantReachesAPIAndDNS from every node.
func TestEveryTenantReachesAPIAndDNS(t *testing.T) {
	c := connect(t)
	for _, p := range c.tenant(t, "any", nil, node1, node2).pods {
		t.Run("from "+p.Node, func(t *testing.T) {
			client := http.Client{Timeout: patience, Transport: &http.Transport{
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // whether it answers is the question
				DialContext: func(context.Context, string, string) (net.Conn, error) {
					return ns.DialTCP(p.Sandbox, apiService, patience)
				},
			}}
			resp, err := client.Get("https://kubernetes.default.svc/version")
			if err != nil {
				t.Error(err)
			} else {
				_ = resp.Body.Close()
			}
			for _, network := range []string{"udp", "tcp"} {
				if addrs, err := p.lookup(t.Context(), network, "kubernetes.default.svc.cluster.local."); err != nil || !slices.Equal(addrs, []string{"10.96.0.1"}) {
					t.Errorf("DNS by %s: kubernetes.default is %v, %v", network, addrs, err)
				}
			}
		})
	}
}

// lookup asks the cluster DNS from a pod.
func (p pod) lookup(ctx context.Context, network, name string) ([]string, error) {
	resolver := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (conn net.Conn, err error) {
		if network == "tcp" {
			return ns.DialTCP(p.Sandbox, dnsService, patience)
		}
		err = ns.DoPath(p.Sandbox, func() error {
			conn, err = net.Dial("udp", dnsService)
			return err
		})
		return conn, err
	}}
	return resolver.LookupHost(ctx, name)
}

// TestNodePortLeadsIntoTenant: from outside of the cluster, by every node, to a pod
// on this node or the other one.
func TestNodePortLeadsIntoTenant(t *testing.T) {
	c := connect(t)
	tn := c.tenant(t, "public", nil, node2)
	s, err := c.CoreV1().Services(tn.name).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Spec.Type = corev1.ServiceTypeNodePort
	if s, err = c.CoreV1().Services(tn.name).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for node, address := range nodeAddress {
		eventually(t, settle, "TCP by "+node, func() error {
			_, err := hostname(&client, fmt.Sprintf("%s:%d", address, s.Spec.Ports[0].NodePort))
			return err
		})
		eventually(t, settle, "UDP by "+node, func() error {
			conn, err := net.ListenUDP("udp4", nil)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			_, err = askUDP(conn, fmt.Sprintf("%s:%d", address, s.Spec.Ports[1].NodePort))
			return err
		})
	}
}

// TestSessionAffinity: a client keeps its endpoint while there is one.
func TestSessionAffinity(t *testing.T) {
	c := connect(t)
	tn := &tenant{name: c.namespace(t, "sticky", nil)}
	address := c.service(t, tn.name, corev1.ServiceSpec{
		Selector: map[string]string{"app": "web"}, SessionAffinity: corev1.ServiceAffinityClientIP,
	}) + ":" + serviceHTTP
	names := []string{"web-1", "web-2", "web-3"}
	for i, name := range names {
		c.createPod(t, tn.name, name, corev1.PodSpec{NodeName: []string{node1, node2}[i%2]})
	}
	for _, name := range names {
		tn.pods = append(tn.pods, c.awaitPod(t, tn.name, name))
	}
	client := tn.pods[0]
	var chosen string
	eventually(t, settle, "the service answers", func() (err error) {
		chosen, err = client.http(address)
		return err
	})
	for range 20 {
		if who, err := client.http(address); err != nil || who != chosen {
			t.Fatalf("the client of %s got %q, %v", chosen, who, err)
		}
	}
	if chosen == client.Name {
		return // the client cannot outlive its endpoint
	}
	mustKubectl(t, "-n", tn.name, "delete", "pod", chosen, "--now")
	eventually(t, settle, "another endpoint answers", func() error {
		who, err := client.http(address)
		if err == nil && who == chosen {
			err = errors.New("the deleted pod answers")
		}
		return err
	})
}

// TestUDPFlowMovesToNextEndpoint: one socket, whose endpoint goes away.
func TestUDPFlowMovesToNextEndpoint(t *testing.T) {
	c := connect(t)
	tn := c.tenant(t, "datagrams", nil, node1)
	client := tn.pods[0]
	// The client's own pod does not serve.
	mustKubectl(t, "-n", tn.name, "label", "pod", client.Name, "app-")
	for name, node := range map[string]string{"a": node1, "b": node2} {
		c.createPod(t, tn.name, name, corev1.PodSpec{NodeName: node})
	}
	for _, name := range []string{"a", "b"} {
		c.awaitPod(t, tn.name, name)
	}
	conn, err := ns.ListenUDP(client.Sandbox, ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	address := tn.service + ":" + serviceUDP
	var first string
	eventually(t, settle, "a or b answers", func() (err error) {
		if first, err = askUDP(conn, address); err == nil && first == client.Name {
			err = errors.New("the client itself answers")
		}
		return err
	})
	begin := time.Now()
	mustKubectl(t, "-n", tn.name, "delete", "pod", first, "--now")
	eventually(t, settle, "the other one answers the same socket", func() error {
		who, err := askUDP(conn, address)
		if err == nil && who == first {
			err = errors.New("the deleted pod answers")
		}
		return err
	})
	t.Attr(measured, fmt.Sprintf("answered %v after the deletion began", time.Since(begin).Round(time.Millisecond)))
}
