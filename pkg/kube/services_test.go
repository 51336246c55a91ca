package kube_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
)

// patience bounds every wait; a condition that holds ends it at once.
const patience = 20 * time.Second

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func next[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-ch:
		if !ok {
			t.Fatal("the channel was closed")
		}
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	panic("unreachable")
}

func p[T any](v T) *T { return &v }

func key(name string) service.Key { return service.Key{Namespace: "a", Name: name} }

func aService(name, vip string, change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: vip, ClusterIPs: []string{vip}, Ports: []corev1.ServicePort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}}},
	}
	if change != nil {
		change(s)
	}
	return s
}

func aSlice(name, of string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "a", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: of}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: p("web"), Protocol: p(corev1.ProtocolTCP), Port: p(int32(8080))}},
		Endpoints:   endpoints,
	}
}

func at(address string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{address}}
}

// serves is a service with one port on vip.
func serves(name, vip string, endpoints ...string) service.Service {
	port := service.Port{VIP: netip.MustParseAddr(vip), Protocol: service.TCP, Port: 80}
	for _, e := range endpoints {
		port.Endpoints = append(port.Endpoints, service.Endpoint{Address: netip.MustParseAddr(e), Port: 8080})
	}
	return service.Service{Key: key(name), Ports: []service.Port{port}}
}

func services(list ...service.Service) map[service.Key]service.Service {
	m := map[service.Key]service.Service{}
	for _, s := range list {
		m[s.Key] = s
	}
	return m
}

func expect(t *testing.T, got, want service.Update) {
	t.Helper()
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Fatalf("update (-want +got):\n%s", diff)
	}
}

// eventually reads updates, merged or not, until what they add up to is want.
func eventually(t *testing.T, ch <-chan service.Update, want map[service.Key]service.Service) {
	t.Helper()
	var got map[service.Key]service.Service
	for timeout := time.After(patience); ; {
		select {
		case u := <-ch:
			if u.Full || got == nil {
				got = map[service.Key]service.Service{}
			}
			for k, s := range u.Services {
				got[k] = s
			}
			if cmp.Equal(want, got, byValue) {
				return
			}
		case <-timeout:
			t.Fatalf("services (-want +got):\n%s", cmp.Diff(want, got, byValue))
		}
	}
}

// watching waits until the fake has n watches: what happens before one begins is
// lost to it.
func watching(t *testing.T, cs *fake.Clientset, n int) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		found := 0
		for _, a := range cs.Actions() {
			if a.GetVerb() == "watch" {
				found++
			}
		}
		if found >= n {
			return
		}
	}
	t.Fatalf("not %d watches", n)
}

func TestWatchServices(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "east"}}}
	east := discoveryv1.Endpoint{Addresses: []string{"10.1.0.1"}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "east"}}}}
	west := discoveryv1.Endpoint{Addresses: []string{"10.1.0.2"}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "west"}}}}
	client, cs := kubetest.New(t, node,
		aService("plain", "10.96.0.1", nil), aSlice("plain-1", "plain", at("10.1.0.5")), aSlice("plain-2", "plain", at("10.1.0.6")),
		aService("zoned", "10.96.0.2", nil), aSlice("zoned-1", "zoned", east, west),
		aService("headless", corev1.ClusterIPNone, nil), aSlice("headless-1", "headless", at("10.1.0.7")),
		aService("other-proxy", "10.96.0.3", func(s *corev1.Service) {
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"}
		}),
		aService("external", "", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }),
	)
	ctx, cancel := context.WithCancel(t.Context())
	updates := client.WatchServices(ctx, "n1")
	expect(t, next(t, updates), service.Update{Full: true, Services: services(
		serves("plain", "10.96.0.1", "10.1.0.5", "10.1.0.6"), serves("zoned", "10.96.0.2", "10.1.0.1"))})
	watching(t, cs, 3)

	slices := cs.DiscoveryV1().EndpointSlices("a")
	must(t, slices.Delete(ctx, "plain-1", metav1.DeleteOptions{}))
	expect(t, next(t, updates), service.Update{Services: services(serves("plain", "10.96.0.1", "10.1.0.6"))})

	// What does not matter to us is no news: the next update is the one after it.
	plain := aService("plain", "10.96.0.1", func(s *corev1.Service) { s.Annotations = map[string]string{"x": "y"} })
	_, err := cs.CoreV1().Services("a").Update(ctx, plain, metav1.UpdateOptions{})
	must(t, err)
	must(t, cs.CoreV1().Services("a").Delete(ctx, "zoned", metav1.DeleteOptions{}))
	expect(t, next(t, updates), service.Update{Services: services(service.Service{Key: key("zoned")})})

	// A slow reader gets it all in one.
	for _, e := range []string{"10.1.0.8", "10.1.0.9"} {
		_, err := slices.Update(ctx, aSlice("plain-2", "plain", at(e)), metav1.UpdateOptions{})
		must(t, err)
	}
	eventually(t, updates, services(serves("plain", "10.96.0.1", "10.1.0.9")))

	cancel()
	for range updates {
	}
}

// The node's zone decides about hints: when it comes late, all is told anew.
func TestZoneChange(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	east := discoveryv1.Endpoint{Addresses: []string{"10.1.0.1"}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "east"}}}}
	west := discoveryv1.Endpoint{Addresses: []string{"10.1.0.2"}, Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "west"}}}}
	client, cs := kubetest.New(t, node, aService("zoned", "10.96.0.2", nil), aSlice("zoned-1", "zoned", east, west))
	updates := client.WatchServices(t.Context(), "n1")
	expect(t, next(t, updates), service.Update{Full: true, Services: services(serves("zoned", "10.96.0.2", "10.1.0.1", "10.1.0.2"))})
	watching(t, cs, 3)
	node = node.DeepCopy()
	node.Labels = map[string]string{corev1.LabelTopologyZone: "west"}
	_, err := cs.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{})
	must(t, err)
	expect(t, next(t, updates), service.Update{Full: true, Services: services(serves("zoned", "10.96.0.2", "10.1.0.2"))})
}

func TestServiceFields(t *testing.T) {
	tests := map[string]struct {
		service *corev1.Service
		slice   *discoveryv1.EndpointSlice
		want    service.Service
	}{
		"affinity": {
			service: aService("s", "10.96.0.1", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }),
			slice:   aSlice("s-1", "s", at("10.1.0.1")),
			want: service.Service{Key: key("s"), Affinity: 3 * time.Hour, Ports: []service.Port{
				{VIP: netip.MustParseAddr("10.96.0.1"), Protocol: service.TCP, Port: 80, Endpoints: []service.Endpoint{{Address: netip.MustParseAddr("10.1.0.1"), Port: 8080}}}}},
		},
		"affinity timeout": {
			service: aService("s", "10.96.0.1", func(s *corev1.Service) {
				s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: p(int32(10))}}
				s.Spec.Ports[0].Protocol = corev1.ProtocolUDP
			}),
			want: service.Service{Key: key("s"), Affinity: 10 * time.Second, Ports: []service.Port{{VIP: netip.MustParseAddr("10.96.0.1"), Protocol: service.UDP, Port: 80}}},
		},
		"dual stack": {
			service: aService("s", "10.96.0.1", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"fd00::1", "10.96.0.1"} }),
			want:    serves("s", "10.96.0.1"),
		},
		"names that look like addresses": {
			service: aService("s", "10.96.0.1", nil),
			slice: func() *discoveryv1.EndpointSlice {
				s := aSlice("s-1", "s", at("10.1.0.1"))
				s.AddressType = discoveryv1.AddressTypeFQDN
				return s
			}(),
			want: serves("s", "10.96.0.1"),
		},
		"IPv6 endpoints": {
			service: aService("s", "10.96.0.1", nil),
			slice: func() *discoveryv1.EndpointSlice {
				s := aSlice("s-1", "s", at("fd00::7"))
				s.AddressType = discoveryv1.AddressTypeIPv6
				return s
			}(),
			want: serves("s", "10.96.0.1"),
		},
		"not ready": {
			service: aService("s", "10.96.0.1", nil),
			slice:   aSlice("s-1", "s", discoveryv1.Endpoint{Addresses: []string{"10.1.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: p(false)}}),
			want:    serves("s", "10.96.0.1"),
		},
		"still serving": {
			service: aService("s", "10.96.0.1", nil),
			slice: aSlice("s-1", "s", discoveryv1.Endpoint{Addresses: []string{"10.1.0.1"},
				Conditions: discoveryv1.EndpointConditions{Ready: p(false), Serving: p(true), Terminating: p(true)}}),
			want: serves("s", "10.96.0.1", "10.1.0.1"),
		},
		"a port that is none": {
			service: aService("s", "10.96.0.1", nil),
			slice: func() *discoveryv1.EndpointSlice {
				s := aSlice("s-1", "s", at("10.1.0.1"))
				s.Ports[0].Port = p(int32(1<<16 + 22))
				return s
			}(),
			want: serves("s", "10.96.0.1"),
		},
		"local": {
			service: aService("s", "10.96.0.1", func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = p(corev1.ServiceInternalTrafficPolicyLocal) }),
			slice: aSlice("s-1", "s", discoveryv1.Endpoint{Addresses: []string{"10.1.0.1"}, NodeName: p("n1")},
				discoveryv1.Endpoint{Addresses: []string{"10.1.0.2"}, NodeName: p("n2")}),
			want: serves("s", "10.96.0.1", "10.1.0.1"),
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			client, cs := kubetest.New(t, test.service)
			if test.slice != nil {
				must(t, cs.Tracker().Add(test.slice))
			}
			expect(t, next(t, client.WatchServices(t.Context(), "n1")), service.Update{Full: true, Services: services(test.want)})
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestServicesOfNamespaceKept: the services of a namespace are told with no more flows than all of them may have, whatever
// they name. What was told stays, what comes gets what is left, and more when others go. Other namespaces do not notice.
func TestServicesOfNamespaceKept(t *testing.T) {
	const ports, endpoints = 400, 300
	wide := func(namespace, name, vip string) (*corev1.Service, *discoveryv1.EndpointSlice) {
		s, slice := aService(name, vip, nil), aSlice(name+"-1", name)
		s.Namespace, slice.Namespace, s.Spec.Ports, slice.Ports = namespace, namespace, nil, nil
		for i := range ports {
			port := fmt.Sprint("p", i)
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: port, Protocol: corev1.ProtocolTCP, Port: int32(1 + i)})
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: p(port), Protocol: p(corev1.ProtocolTCP), Port: p(int32(1 + i))})
		}
		for i := range endpoints {
			slice.Endpoints = append(slice.Endpoints, at(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}).String()))
		}
		return s, slice
	}
	var objects []runtime.Object
	for i, name := range []string{"a/one", "a/two", "a/three", "b/one"} {
		namespace, name, _ := strings.Cut(name, "/")
		s, slice := wide(namespace, name, fmt.Sprint("10.96.0.", 1+i))
		objects = append(objects, s, slice)
	}
	client, cs := kubetest.New(t, append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})...)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ch := client.WatchServices(ctx, "n1")

	served := map[string]int{} // ports with endpoints
	take := func() {
		for key, s := range next(t, ch).Services {
			served[key.String()] = 0
			for _, port := range s.Ports {
				if len(port.Endpoints) > 0 {
					served[key.String()]++
				}
			}
		}
	}
	take()
	const each = 2 + 2*endpoints
	left := (service.MostKeptOfNamespace - 2*ports*each) / each
	if diff := cmp.Diff(map[string]int{"a/one": ports, "a/three": ports, "a/two": left, "b/one": ports}, served); diff != "" {
		t.Fatalf("ports with endpoints (-want +got)\n%s", diff)
	}
	watching(t, cs, 3)
	if err := cs.CoreV1().Services("a").Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	take()
	if diff := cmp.Diff(map[string]int{"a/one": 0, "a/three": ports, "a/two": ports, "b/one": ports}, served); diff != "" {
		t.Fatalf("one goes: ports with endpoints (-want +got)\n%s", diff)
	}
	// It comes again, and takes nothing from what is there.
	s, _ := wide("a", "one", "10.96.0.1")
	if _, err := cs.CoreV1().Services("a").Create(ctx, s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	take()
	if diff := cmp.Diff(map[string]int{"a/one": left, "a/three": ports, "a/two": ports, "b/one": ports}, served); diff != "" {
		t.Fatalf("it comes again: ports with endpoints (-want +got)\n%s", diff)
	}
}
