package specs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

const (
	image = "registry.k8s.io/e2e-test-images/agnhost:2.56"
	// patience of one request; more than a busy machine needs.
	patience = 2 * time.Second
	// Ports of every test pod, and those of the service in front of them.
	podHTTP, podUDP         = 8080, 8081
	serviceHTTP, serviceUDP = "80", "81"
)

// grace of pods in seconds. With 0 the API server forgets a pod before its node has
// taken it down.
var grace int64 = 1

// pod is a running one that answers with its name.
type pod struct{ probe.Endpoint }

// tenant is a namespace with a service "web" and, usually, a pod on each node.
type tenant struct {
	name    string
	pods    []pod
	service string // address
}

func podsOf(tenants []*tenant) (pods []pod) {
	for _, tn := range tenants {
		pods = append(pods, tn.pods...)
	}
	return pods
}

// tenant makes one with a pod on each of the nodes and waits until they are Ready.
func (c *cluster) tenant(t *testing.T, name string, annotations map[string]string, nodes ...string) *tenant {
	t.Helper()
	tn := &tenant{name: c.namespace(t, name, annotations)}
	tn.service = c.service(t, tn.name, corev1.ServiceSpec{Selector: map[string]string{"app": "web"}})
	for _, node := range nodes {
		c.createPod(t, tn.name, "web-"+node, corev1.PodSpec{NodeName: node})
	}
	for _, node := range nodes {
		tn.pods = append(tn.pods, c.awaitPod(t, tn.name, "web-"+node))
	}
	awaitServices(t, tn)
	return tn
}

// awaitServices waits until all of the tenants' pods reach all of their services: a pod
// is Ready before Kubernetes names it as an endpoint, and kube-proxy, where it serves
// them, follows that after a second or so.
func awaitServices(t *testing.T, tenants ...*tenant) {
	t.Helper()
	eventually(t, settle, "services with their endpoints", func() error { return reachServices(tenants, together) })
}

// createPod makes a pod of the service "web"; spec says where.
func (c *cluster) createPod(t *testing.T, namespace, name string, spec corev1.PodSpec) {
	t.Helper()
	_, err := c.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       webPod(spec),
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// webPod fills in what makes a pod answer.
func webPod(spec corev1.PodSpec) corev1.PodSpec {
	spec.TerminationGracePeriodSeconds = &grace
	spec.Containers = []corev1.Container{{
		Name: "web", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
		Args: []string{"netexec", fmt.Sprintf("--http-port=%d", podHTTP), fmt.Sprintf("--udp-port=%d", podUDP)},
		ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(podHTTP)},
		}},
	}}
	return spec
}

// awaitPod waits until a pod is Ready and finds its sandbox.
func (c *cluster) awaitPod(t *testing.T, namespace, name string) pod {
	t.Helper()
	var ready pod
	eventually(t, 2*time.Minute, "pod "+namespace+"/"+name+" Ready", func() error {
		p, err := c.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !podReady(p) {
			return errors.New("not Ready")
		}
		sandbox, err := c.sandbox(p.Spec.NodeName, string(p.UID))
		ready = pod{probe.Endpoint{Namespace: namespace, Name: name, Node: p.Spec.NodeName, IP: mustAddr(t, p.Status.PodIP), Sandbox: sandbox}}
		return err
	})
	return ready
}

// service makes the service "web" of a namespace; spec says what is special.
func (c *cluster) service(t *testing.T, namespace string, spec corev1.ServiceSpec) (address string) {
	t.Helper()
	spec.Ports = []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: intstr.FromInt32(podHTTP)},
		{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 81, TargetPort: intstr.FromInt32(podUDP)},
	}
	s, err := c.CoreV1().Services(namespace).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Spec.ClusterIP
}

// http asks who answers at address ("1.2.3.4:80").
func (p pod) http(address string) (who string, err error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return ns.DialTCP(p.Sandbox, address, patience)
		},
	}}
	return hostname(&client, address)
}

func hostname(client *http.Client, address string) (string, error) {
	resp, err := client.Get("http://" + address + "/hostname")
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// udp asks who answers at address.
func (p pod) udp(address string) (who string, err error) {
	conn, err := ns.ListenUDP(p.Sandbox, ":0")
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	return askUDP(conn, address)
}

// askUDP sends one datagram and waits for its answer.
func askUDP(conn *net.UDPConn, address string) (string, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return "", err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := conn.WriteToUDPAddrPort([]byte("hostname\n"), to); err != nil {
		return "", err
	}
	answer := make([]byte, 256)
	n, _, err := conn.ReadFromUDPAddrPort(answer)
	return string(answer[:n]), err
}

// startProbe has pods of one namespace talk to each other, and no others, until its Stop.
func startProbe(t *testing.T, pods []pod, o probe.RunOptions) *probe.Run {
	t.Helper()
	var endpoints []probe.Endpoint
	for _, p := range pods {
		endpoints = append(endpoints, p.Endpoint)
	}
	prober, err := probe.Open(endpoints)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := prober.Close(); err != nil {
			t.Error(err)
		}
	})
	return prober.Start(probe.Exactly(func(from, to probe.Endpoint) bool { return from.Namespace == to.Namespace }), o)
}

// reach checks who reaches whom, by pod address (ping, UDP, TCP) and by service
// (TCP, UDP): every pair must be as allowed says of the two namespaces.
func reach(t *testing.T, tenants []*tenant, allowed func(from, to string) bool) error {
	t.Helper()
	var endpoints []probe.Endpoint
	for _, tn := range tenants {
		for _, p := range tn.pods {
			endpoints = append(endpoints, p.Endpoint)
		}
	}
	prober, err := probe.Open(endpoints)
	if err != nil {
		return err
	}
	services := make(chan error, 1)
	go func() { services <- reachServices(tenants, allowed) }()
	result, err := prober.Matrix(t.Context(), []probe.Protocol{probe.Ping, probe.UDP, probe.TCP}, probe.MatrixOptions{Wait: patience / 2})
	if err = errors.Join(err, prober.Close(), <-services); err != nil {
		return err
	}
	return result.Check(func(from, to probe.Endpoint) bool { return allowed(from.Namespace, to.Namespace) })
}

func reachServices(tenants []*tenant, allowed func(from, to string) bool) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	ask := func(from pod, to *tenant, protocol, address string, by func(string) (string, error)) {
		wg.Go(func() {
			who, err := by(address)
			if (err == nil) == allowed(from.Namespace, to.name) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, fmt.Errorf("%s to service %s/web by %s: answer %q, error %v", from, to.name, protocol, who, err))
		})
	}
	for _, from := range tenants {
		for _, p := range from.pods {
			for _, to := range tenants {
				ask(p, to, "TCP", net.JoinHostPort(to.service, serviceHTTP), p.http)
				ask(p, to, "UDP", net.JoinHostPort(to.service, serviceUDP), p.udp)
			}
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

func apart(from, to string) bool { return from == to }

func together(string, string) bool { return true }
