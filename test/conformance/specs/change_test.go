package specs

import (
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

var webLabels = map[string]string{"app": "web"}

func webTemplate() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: webLabels}, Spec: webPod(corev1.PodSpec{})}
}

// TestStatefulSetPodKeepsItsName: the name of a pod that was replaced leads to the
// new one, from every node.
func TestStatefulSetPodKeepsItsName(t *testing.T) {
	c := connect(t)
	tn := c.tenant(t, "stateful", nil, node1, node2)
	ctx := t.Context()
	_, err := c.CoreV1().Services(tn.name).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "web"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	replicas := int32(1)
	_, err = c.AppsV1().StatefulSets(tn.name).Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec:       appsv1.StatefulSetSpec{ServiceName: "db", Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: webLabels}, Template: webTemplate()},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("db-0.db.%s.svc.cluster.local.", tn.name)
	check := func(member pod) {
		for _, client := range tn.pods {
			// CoreDNS may say the old address as long as it caches, 30 s.
			eventually(t, time.Minute, client.Name+" reaches db-0 by name", func() error {
				addrs, err := client.lookup(ctx, "udp", name)
				if err != nil {
					return err
				}
				if addrs[0] != member.IP.String() {
					return fmt.Errorf("the name is %v, the pod %s", addrs, member.IP)
				}
				who, err := client.http(fmt.Sprintf("%s:%d", addrs[0], podHTTP))
				if err == nil && who != "db-0" {
					err = fmt.Errorf("%q answers", who)
				}
				return err
			})
		}
	}
	check(c.awaitPod(t, tn.name, "db-0"))
	mustKubectl(t, "-n", tn.name, "delete", "pod", "db-0")
	check(c.awaitPod(t, tn.name, "db-0"))
}

// TestAgentRollingUpdateLosesNothing: every message that pods send each other, on
// and between the nodes, arrives while all agents are replaced.
func TestAgentRollingUpdateLosesNothing(t *testing.T) {
	c := connectTenants(t)
	tn := c.tenant(t, "traffic", nil, node1, node2)
	c.createPod(t, tn.name, "third", corev1.PodSpec{NodeName: node1})
	stranger := c.tenant(t, "stranger", nil, node2)
	pods := append(append(tn.pods, c.awaitPod(t, tn.name, "third")), stranger.pods...)
	c.awaitCalm(t)
	run := startProbe(t, pods, probe.RunOptions{Protocols: []probe.Protocol{probe.Ping, probe.UDP, probe.Stream}})
	begin := time.Now()
	_, err := kubectl("-n", "kube-system", "rollout", "restart", "daemonset/k8s-ovs-agent")
	if err == nil {
		_, err = kubectl("-n", "kube-system", "rollout", "status", "daemonset/k8s-ovs-agent", "--timeout=180s")
	}
	report := run.Stop()
	if err = errors.Join(err, report.Err()); err != nil {
		t.Error(err)
		logs, err := kubectl("-n", "kube-system", "logs", "-l", "app.kubernetes.io/name=k8s-ovs-agent", "--prefix", "--tail=-1")
		t.Logf("what the new agents say (%v):\n%s", err, logs)
	}
	t.Attr(measured, fmt.Sprintf("%d of %d messages lost in %v", report.Lost(), report.Sent(), time.Since(begin).Round(time.Second)))
}

// awaitCalm waits until no pod is on its way out. Open vSwitch without its kernel
// module drops packets for milliseconds while it takes a port away, and that is
// not what the spec is about.
func (c *cluster) awaitCalm(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, "pods of earlier specs are gone", func() error {
		namespaces, err := c.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, n := range namespaces.Items {
			if n.DeletionTimestamp != nil {
				return fmt.Errorf("namespace %s is being deleted", n.Name)
			}
		}
		pods, err := c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.DeletionTimestamp != nil {
				return fmt.Errorf("%s/%s is being deleted", p.Namespace, p.Name)
			}
		}
		return nil
	})
}

// TestHundredPodsAtOnce: all become Ready, all addresses are distinct, all answer.
func TestHundredPodsAtOnce(t *testing.T) {
	notShort(t)
	c := connect(t)
	const pods = 100
	tn := c.tenant(t, "hundred", nil, node1)
	replicas := int32(pods)
	begin := time.Now()
	_, err := c.AppsV1().Deployments(tn.name).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "many"},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: webLabels}, Template: webTemplate()},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	addresses := map[string]string{}
	eventually(t, 5*time.Minute, "all pods Ready", func() error {
		list, err := c.CoreV1().Pods(tn.name).List(t.Context(), metav1.ListOptions{LabelSelector: "pod-template-hash"})
		if err != nil {
			return err
		}
		clear(addresses)
		for _, p := range list.Items {
			if podReady(&p) {
				addresses[p.Status.PodIP] = p.Name
			}
		}
		if len(addresses) != pods {
			return fmt.Errorf("%d Ready with an address of their own", len(addresses))
		}
		return nil
	})
	t.Attr(measured, fmt.Sprintf("all Ready after %v", time.Since(begin).Round(100*time.Millisecond)))
	for address, name := range addresses {
		if who, err := tn.pods[0].http(fmt.Sprintf("%s:%d", address, podHTTP)); err != nil || who != name {
			t.Errorf("%s at %s: %q answers, %v", name, address, who, err)
		}
	}
	if err := c.AppsV1().Deployments(tn.name).Delete(t.Context(), "many", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Minute, "all pods gone", func() error {
		list, err := c.CoreV1().Pods(tn.name).List(t.Context(), metav1.ListOptions{LabelSelector: "pod-template-hash"})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are there", len(list.Items))
		}
		return err
	})
}
