package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/kubetest"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// web is the address of service red/web, TCP and UDP.
const web = "10.96.10.1:80"

// cluster is a lab whose agents watch an API server.
type cluster struct {
	*lab
	api *kubetest.Server
}

// inCluster makes the lab's agents, with the records and pods that there are, those
// of a Kubernetes cluster with service red/web, and waits until they serve it.
func (l *lab) inCluster(endpoints ...string) *cluster {
	l.t.Helper()
	c := &cluster{l, kubetest.NewServer()}
	l.must(c.api.Put(c.service()))
	c.endpoints(endpoints...)
	c.serveAPI()
	l.t.Cleanup(func() { _ = c.api.Away() })
	l.must(l.UseKubernetes(true))
	l.must(l.ShowPods(c.api))
	for _, node := range []string{"n1", "n2"} {
		l.must(c.api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}))
		l.must(l.Agent(node).Restart(l.t.Context()))
	}
	for _, p := range append([]string{"red/a"}, endpoints...) {
		c.answers(l.get(p))
	}
	return c
}

func (c *cluster) serveAPI() {
	c.t.Helper()
	listener, err := c.ListenAPIServer()
	c.must(err)
	c.api.Serve(listener)
}

func (c *cluster) service() *corev1.Service {
	vip := netip.MustParseAddrPort(web).Addr().String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "red", Name: "web"},
		Spec: corev1.ServiceSpec{ClusterIP: vip, Ports: []corev1.ServicePort{
			{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80},
		}},
	}
}

// endpoints makes these pods the service's.
func (c *cluster) endpoints(pods ...string) {
	c.t.Helper()
	port, tcp, udp := int32(8080), corev1.ProtocolTCP, corev1.ProtocolUDP
	names := []string{"tcp", "udp"}
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "red", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &names[0], Protocol: &tcp, Port: &port}, {Name: &names[1], Protocol: &udp, Port: &port}},
	}
	for _, p := range pods {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{c.get(p).IP.String()}})
	}
	c.must(c.api.Put(s))
}

// waitGroups waits until a node has the service with so many endpoints in its flows,
// and packets follow them.
func (c *cluster) waitGroups(node string, endpoints int) {
	c.t.Helper()
	c.waitBuckets(node, 2*endpoints) // one group for each of two ports
}

// waitBuckets waits until a node has so many endpoints of service ports in its flows,
// and packets follow them.
func (c *cluster) waitBuckets(node string, buckets int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%s has %d endpoints of service ports", node, buckets), 30*time.Second, func() error {
		out, err := c.OVS(node).OFCtl(c.t.Context(), "dump-groups", "br0")
		if err != nil {
			return err
		}
		if n := strings.Count(out, "bucket="); n != buckets {
			return fmt.Errorf("%d buckets in\n%s", n, out)
		}
		return nil
	})
	// A round of comparing what the datapath cached may have begun before.
	for range 2 {
		_, err := c.OVS(node).AppCtl(c.t.Context(), "revalidator/wait")
		c.must(err)
	}
}

// answers has a pod answer on TCP and UDP port 8080: over TCP with its name and then
// with what comes, over UDP with its name and what came.
func (l *lab) answers(p netlab.Pod) {
	l.t.Helper()
	at := netip.AddrPortFrom(p.IP, 8080).String()
	tcp, err := ns.ListenTCP(p.Sandbox(), at)
	l.must(err)
	udp, err := ns.ListenUDP(p.Sandbox(), at)
	l.must(err)
	l.t.Cleanup(func() { _, _ = tcp.Close(), udp.Close() })
	go func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				fmt.Fprintf(conn, "%s\n", p)
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteToUDPAddrPort(fmt.Appendf(nil, "%s\n%s", p, buf[:n]), from)
		}
	}()
}

// refused and nothing stand for a server's name.
const refused, nothing = "refused", "nothing"

// dial connects a pod to the service and says who answers.
func (c *cluster) dial(from string) (net.Conn, string) {
	c.t.Helper()
	conn, err := ns.DialTCP(c.get(from).Sandbox(), web, time.Second)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, refused
	}
	if err != nil {
		return nil, nothing
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	line := make([]byte, 100)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := conn.Read(line)
	if err != nil {
		return nil, nothing
	}
	return conn, strings.TrimSpace(string(line[:n]))
}

// requireAnswers fails the test unless connections from a pod to the service are
// answered by exactly these.
func (c *cluster) requireAnswers(when, from string, want ...string) {
	c.t.Helper()
	seen := map[string]bool{}
	for range 20 * len(want) {
		_, who := c.dial(from)
		seen[who] = true
		if who == nothing {
			break // each takes its time
		}
	}
	for _, w := range want {
		if !seen[w] {
			c.t.Errorf("%s: %s is not answered by %s but by %v", when, from, w, seen)
		}
		delete(seen, w)
	}
	if len(seen) > 0 {
		c.t.Errorf("%s: %s is answered by %v, besides %v", when, from, seen, want)
	}
}

// echo reports whether an open connection works.
func echo(conn net.Conn) bool {
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	_, err := conn.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	return err == nil
}

// client is a pod's UDP socket to the service.
func (c *cluster) client(from string) net.Conn {
	c.t.Helper()
	var conn net.Conn
	c.must(ns.DoPath(c.get(from).Sandbox(), func() (err error) { conn, err = net.Dial("udp4", web); return err }))
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask sends a datagram and says who answers it.
func ask(conn net.Conn, i int) string {
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	text := fmt.Sprint(i)
	if _, err := conn.Write([]byte(text)); err != nil {
		return refused
	}
	buf := make([]byte, 2048)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nothing
		}
		if who, answer, _ := strings.Cut(string(buf[:n]), "\n"); answer == text {
			return who
		}
	}
}

// TestServices: a service is its tenant's, with those who join, and its endpoints
// may go.
func TestServices(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/near", "blue/a"}, "n2": {"red/far"}})
	c := l.inCluster("red/near", "red/far")
	c.requireAnswers("own tenant", "red/a", "red/near", "red/far")
	c.requireAnswers("own endpoint", "red/near", "red/near", "red/far")
	c.requireAnswers("another tenant", "blue/a", nothing)

	c.netns("join", "blue", "red")
	conn, who := c.dial("blue/a")
	if conn == nil || !echo(conn) {
		t.Fatalf("after blue has joined red it is answered by %s", who)
	}
	datagrams := c.client("blue/a")
	if who := ask(datagrams, 0); who == nothing || who == refused {
		t.Errorf("after blue has joined red, UDP: %s", who)
	}
	c.netns("isolate", "blue")
	if echo(conn) {
		t.Error("an open connection of blue's to red's service outlives its isolation")
	}
	if who := ask(datagrams, 1); who != nothing {
		t.Errorf("isolated blue, UDP: answered by %s", who)
	}
	c.requireAnswers("isolated again", "blue/a", nothing)

	// The endpoint of a client over UDP goes.
	udp := c.client("red/a")
	stays := map[string]string{"red/near": "red/far", "red/far": "red/near"}[ask(udp, 0)]
	if stays == "" {
		t.Fatal("no answer over UDP")
	}
	c.endpoints(stays)
	c.waitGroups("n1", 1)
	c.requireAnswers("one endpoint is gone", "red/a", stays)
	l.eventually("the client of the endpoint that is gone has the other one", 10*time.Second, func() error {
		if who := ask(udp, 1); who != stays {
			return fmt.Errorf("it has %s", who)
		}
		return nil
	})
	c.endpoints()
	c.waitGroups("n1", 0)
	c.requireAnswers("no endpoint is left", "red/a", refused)
	c.endpoints("red/near")
	c.waitGroups("n1", 1)
	c.requireAnswers("one is back", "red/a", "red/near")
	c.must(c.api.Delete(c.service()))
	c.waitGroups("n1", 0)
	c.requireAnswers("the service is gone", "red/a", refused)
}

// TestServicesOutlive: services work while agents restart and while the API server
// is away, also for an agent that starts meanwhile; what changed is made up for.
func TestServicesOutlive(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/near"}, "n2": {"red/far"}})
	c := l.inCluster("red/near", "red/far")
	conn, who := c.dial("red/a")
	if conn == nil {
		t.Fatalf("red/web: %s", who)
	}
	flows := l.flows("n1")
	stop := c.talk("red/a", 8)
	for range 3 {
		l.must(l.Agent("n1").Restart(t.Context()))
	}
	l.must(l.Agent("n2").Restart(t.Context()))
	if sent, lost := stop(); lost > 0 || sent == 0 {
		t.Errorf("%d of %d datagrams lost while agents restarted", lost, sent)
	}
	if !echo(conn) {
		t.Error("an open connection ended when agents restarted")
	}
	l.waitFlows("flows after restarts", "n1", flows, 10*time.Second)

	l.must(c.api.Away())
	stop = c.talk("red/a", 8)
	l.must(l.Agent("n1").Kill())
	l.must(l.Agent("n1").StartUnready(t.Context()))
	l.eventually("the agent can attach pods without the API server", 30*time.Second, func() error {
		if l.metric("n1", "k8s_ovs_ready") != 1 {
			return l.Agent("n1").Ready(t.Context())
		}
		return nil
	})
	c.requireAnswers("API server away", "red/a", "red/near", "red/far")
	if sent, lost := stop(); lost > 0 || sent == 0 {
		t.Errorf("%d of %d datagrams lost while the agent started without the API server", lost, sent)
	}
	if !echo(conn) {
		t.Error("an open connection ended when the agent started without the API server")
	}
	l.waitFlows("flows without the API server", "n1", flows, 10*time.Second)
	l.pod("n1", "red/new")

	c.endpoints("red/far")
	c.serveAPI()
	c.waitGroups("n1", 1)
	c.requireAnswers("API server back", "red/a", "red/far")
	l.eventually("the agent is ready", 10*time.Second, func() error { return l.Agent("n1").Ready(t.Context()) })
}

// talk has n clients of a pod ask the service over UDP, again and again.
func (c *cluster) talk(from string, n int) (stop func() (sent, lost int)) {
	c.t.Helper()
	var clients sync.WaitGroup
	end := make(chan struct{})
	var mu sync.Mutex
	var sent, lost int
	for range n {
		conn := c.client(from)
		clients.Go(func() {
			for i := 0; ; i++ {
				who := ask(conn, i)
				mu.Lock()
				sent++
				if who == nothing || who == refused {
					lost++
				}
				mu.Unlock()
				select {
				case <-end:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
	return func() (int, int) {
		close(end)
		clients.Wait()
		return sent, lost
	}
}
