package specs

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestTenants is the life of two namespaces, each step on from the one before.
// A third one stays apart from both throughout.
func TestTenants(t *testing.T) {
	c := connectTenants(t)
	red, blue := c.tenant(t, "red", nil, node1, node2), c.tenant(t, "blue", nil, node1, node2)
	other := c.tenant(t, "other", nil, node2)
	all := []*tenant{red, blue, other}
	joined := func(from, to string) bool { return from == to || from != other.name && to != other.name }
	becomes := func(t *testing.T, what string, allowed func(from, to string) bool) {
		t.Helper()
		eventually(t, settle, what, func() error { return reach(t, all, allowed) })
	}

	t.Run("apart from the first packet", func(t *testing.T) {
		if err := reach(t, all, apart); err != nil {
			t.Error(err)
		}
	})
	t.Run("joined by the annotation", func(t *testing.T) {
		c.annotate(t, red.name, "shared-"+red.name)
		c.annotate(t, blue.name, "shared-"+red.name)
		becomes(t, "joined", joined)
	})
	t.Run("netns refuses what an annotation says", func(t *testing.T) {
		out, err := netns("isolate", red.name)
		if err == nil || !strings.Contains(out, networkAnnotation) || !strings.Contains(out, "--force") {
			t.Errorf("want a refusal that names the annotation and --force, got %v: %s", err, out)
		}
		becomes(t, "still joined", joined)
	})
	t.Run("split by netns with --force", func(t *testing.T) {
		if _, err := netns("isolate", "--force", red.name); err != nil {
			t.Fatal(err)
		}
		becomes(t, "split", apart)
	})
	t.Run("a new annotation ends what was forced", func(t *testing.T) {
		c.annotate(t, red.name, "again-"+red.name)
		c.annotate(t, blue.name, "again-"+red.name)
		becomes(t, "joined", joined)
	})
	t.Run("split by removing the annotation", func(t *testing.T) {
		c.annotate(t, red.name, "")
		c.annotate(t, blue.name, "")
		becomes(t, "split", apart)
	})
	t.Run("joined by netns", func(t *testing.T) {
		if _, err := netns("join", red.name, blue.name); err != nil {
			t.Fatal(err)
		}
		becomes(t, "joined", joined)
	})
	t.Run("split by netns", func(t *testing.T) {
		if _, err := netns("isolate", red.name); err != nil {
			t.Fatal(err)
		}
		becomes(t, "split", apart)
	})
	t.Run("global by the annotation", func(t *testing.T) {
		c.annotate(t, red.name, "global")
		becomes(t, "global", func(from, to string) bool { return from == to || from == red.name || to == red.name })
	})
	t.Run("isolated again", func(t *testing.T) {
		c.annotate(t, red.name, "")
		becomes(t, "isolated", apart)
	})
}

// TestAnnotationBeforeFirstPod: a namespace that is made with an annotation is on
// that network from its pods' first packet.
func TestAnnotationBeforeFirstPod(t *testing.T) {
	c := connectTenants(t)
	first := c.tenant(t, "first", nil)
	network := map[string]string{networkAnnotation: first.name}
	c.annotate(t, first.name, first.name)
	c.createPod(t, first.name, "web-"+node1, corev1.PodSpec{NodeName: node1})
	second := c.tenant(t, "second", network, node2)
	first.pods = []pod{c.awaitPod(t, first.name, "web-"+node1)}
	awaitServices(t, first, second)
	if err := reach(t, []*tenant{first, second}, together); err != nil {
		t.Error(err)
	}
}

// TestIsolatedTenantIsOutOfReach: no detour leads into another tenant.
func TestIsolatedTenantIsOutOfReach(t *testing.T) {
	c := connectTenants(t)
	inside := c.tenant(t, "inside", nil, node1, node2)
	outside := c.tenant(t, "outside", nil, node1, node2)
	byHand := handMade(t, c, outside.name, inside.pods)

	// Whether the service works at all shows in the tenant that owns the pods.
	for _, p := range inside.pods {
		if _, err := p.http(inside.service + ":" + serviceHTTP); err != nil {
			t.Errorf("%s to its own service: %v", p, err)
		}
	}
	for _, p := range outside.pods {
		t.Run("from "+p.Node, func(t *testing.T) {
			t.Parallel()
			var wg sync.WaitGroup
			defer wg.Wait()
			refused := func(what, address string, ask func(string) (string, error)) {
				wg.Go(func() {
					if who, err := ask(address); err == nil {
						t.Errorf("%s (%s) is answered by %q", what, address, who)
					}
				})
			}
			for _, to := range inside.pods {
				refused("pod "+to.Name+", TCP", fmt.Sprintf("%s:%d", to.IP, podHTTP), p.http)
				refused("pod "+to.Name+", UDP", fmt.Sprintf("%s:%d", to.IP, podUDP), p.udp)
			}
			for what, address := range map[string]string{"its service": inside.service, "own service with its pods as endpoints": byHand} {
				refused(what+", TCP", address+":"+serviceHTTP, p.http)
				refused(what+", UDP", address+":"+serviceUDP, p.udp)
			}
		})
	}
}

// handMade makes a service in namespace whose endpoints are pods of another
// tenant, written by hand. It has an endpoint of its own tenant first, which shows
// when nodes serve it.
func handMade(t *testing.T, c *cluster, namespace string, pods []pod) (address string) {
	t.Helper()
	ctx := t.Context()
	s, err := c.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "by-hand"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
			{Name: "http", Port: 80}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 81},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "by-hand", Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{slicePort("http", corev1.ProtocolTCP, podHTTP), slicePort("udp", corev1.ProtocolUDP, podUDP)},
	}
	own := c.awaitPod(t, namespace, "web-"+node1)
	slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{own.IP.String()}}}
	if slice, err = c.DiscoveryV1().EndpointSlices(namespace).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	client := c.awaitPod(t, namespace, "web-"+node2)
	served := func() error {
		_, err := client.http(s.Spec.ClusterIP + ":" + serviceHTTP)
		return err
	}
	eventually(t, settle, "the hand-made service answers with an endpoint of its own tenant", served)

	slice.Endpoints = nil
	for _, p := range pods {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{p.IP.String()}})
	}
	if _, err = c.DiscoveryV1().EndpointSlices(namespace).Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, settle, "the hand-made service is answered by its own tenant no more", func() error {
		if served() == nil {
			return errors.New("it answers")
		}
		return nil
	})
	return s.Spec.ClusterIP
}

func slicePort(name string, protocol corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
}

// TestNamespaceMadeAgainGetsNewNetID: a namespace of the same name is another tenant.
func TestNamespaceMadeAgainGetsNewNetID(t *testing.T) {
	c := connectTenants(t)
	namespaces := c.CoreV1().Namespaces()
	netID := func(name string) (id string) {
		eventually(t, settle, "netID of "+name, func() error {
			ns, err := namespaces.Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if id = ns.Annotations[netIDAnnotation]; id == "" {
				return errors.New("no annotation " + netIDAnnotation)
			}
			return nil
		})
		return id
	}
	name := c.namespace(t, "again", nil)
	before := netID(name)
	mustKubectl(t, "delete", "namespace", name, "--timeout=60s")
	if _, err := namespaces.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if after := netID(name); after == before {
		t.Errorf("namespace %s has netID %s again", name, after)
	}
}
