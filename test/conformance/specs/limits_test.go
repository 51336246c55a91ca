package specs

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// TestLimits: a pod's annotations limit it from the start, and while it runs.
func TestLimits(t *testing.T) {
	c := connectOurs(t)
	tn := c.tenant(t, "limited", nil, node1, node2)
	received := pour(t, tn.pods[0], tn.pods[1])
	annotate := func(p pod, annotation, value string) {
		t.Helper()
		change := annotation + "=" + value
		if value == "" {
			change = annotation + "-"
		}
		mustKubectl(t, "annotate", "--overwrite", "-n", p.Namespace, "pod", p.Name, change)
	}
	rate := func() float64 {
		began, was := time.Now(), received.Load()
		time.Sleep(time.Second)
		return float64(received.Load()-was) * 8 / time.Since(began).Seconds()
	}
	becomes := func(what string, least, most float64) {
		t.Helper()
		eventually(t, settle, what, func() error {
			if r := rate(); r < least || r > most {
				return fmt.Errorf("%.1f Mbit/s", r/1e6)
			}
			return nil
		})
	}

	becomes("no limit", 40e6, 100e9)
	annotate(tn.pods[0], egressAnnotation, "10M")
	becomes("10 Mbit/s sent", 9e6, 11e6)
	annotate(tn.pods[0], egressAnnotation, "20M")
	becomes("20 Mbit/s sent", 18e6, 22e6)
	annotate(tn.pods[1], ingressAnnotation, "10M")
	becomes("10 Mbit/s received", 9e6, 11e6)
	eventually(t, settle, "netns shows both pods", func() error {
		out, err := netns("show", tn.name)
		if err == nil && (!strings.Contains(out, tn.pods[0].Name) || !strings.Contains(out, tn.pods[1].Name)) {
			err = fmt.Errorf("netns show:\n%s", out)
		}
		return err
	})
	annotate(tn.pods[0], egressAnnotation, "")
	annotate(tn.pods[1], ingressAnnotation, "")
	becomes("no limit again", 40e6, 100e9)
}

// TestLimitRefused: a pod whose limit is none does not start, and is told why.
func TestLimitRefused(t *testing.T) {
	c := connectOurs(t)
	namespace := c.namespace(t, "refused", nil)
	_, err := c.CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: map[string]string{
			ingressAnnotation: "10M", "k8s-ovs.io/ingress-burst": "much",
		}},
		Spec: webPod(corev1.PodSpec{NodeName: node1}),
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, settle, "an Event that quotes the value", func() error {
		events, err := c.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=BandwidthRefused"})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if strings.Contains(e.Message, `"much"`) {
				return nil
			}
		}
		return fmt.Errorf("%d Events", len(events.Items))
	})
	mustKubectl(t, "annotate", "-n", namespace, "pod", "web", "k8s-ovs.io/ingress-burst-")
	c.awaitPod(t, namespace, "web")
}

// pour sends over TCP from one pod to another for as long as the spec runs, and
// counts what arrives.
func pour(t *testing.T, from, to pod) (received *atomic.Int64) {
	t.Helper()
	var listener *net.TCPListener
	err := ns.DoPath(to.Sandbox, func() (err error) {
		listener, err = net.ListenTCP("tcp4", nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	sender, err := ns.DialTCP(from.Sandbox, netip.AddrPortFrom(to.IP, port).String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sender.Close() })
	receiver, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = receiver.Close() })
	received = new(atomic.Int64)
	go func() {
		_, _ = io.Copy(sender, endless{}) // until the connection is closed
	}()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := receiver.Read(buf)
			received.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	return received
}

// endless is as many zeros as anybody reads.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
