package specs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

const (
	system       = "kube-system"
	agentAccount = "k8s-ovs-agent"
	etcdObject   = "k8s-ovs-etcd"
	// lockedOut is how long a node that was deleted may still get in.
	lockedOut = time.Minute
)

// asKubeconfig is a client by the credentials of a kubeconfig of the cluster.
func (c *cluster) asKubeconfig(t *testing.T, name string) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.run, "pki", name+".kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	return client(t, config)
}

// asAgent is a client by the token of the agents' service account that is bound to a pod:
// what whoever has the pod's node has.
func (c *cluster) asAgent(t *testing.T, p *corev1.Pod) kubernetes.Interface {
	t.Helper()
	token, err := c.CoreV1().ServiceAccounts(system).CreateToken(t.Context(), agentAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c.withToken(t, token.Status.Token)
}

func (c *cluster) withToken(t *testing.T, token string) kubernetes.Interface {
	t.Helper()
	admin, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.run, "pki", "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken = token
	return client(t, config)
}

func client(t *testing.T, config *rest.Config) kubernetes.Interface {
	t.Helper()
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return api
}

// agentOn is the agent's pod on a node.
func (c *cluster) agentOn(t *testing.T, node string) *corev1.Pod {
	t.Helper()
	pods, err := c.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=k8s-ovs-agent", FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("agent of %s: %v, %v", node, pods, err)
	}
	return &pods.Items[0]
}

// userOf is whom etcd knows a node's agent as.
func (c *cluster) userOf(t *testing.T, node string) string {
	t.Helper()
	n, err := c.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pki.NodeUser(node, string(n.UID))
}

var errRefused = errors.New("refused")

// ask asks for a certificate for user and waits for the answer.
func ask(t *testing.T, api kubernetes.Interface, user string) (*pki.Pair, error) {
	t.Helper()
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	request, err := pki.Request(key, user)
	if err != nil {
		t.Fatal(err)
	}
	requests := api.CertificatesV1().CertificateSigningRequests()
	r, err := requests.Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "spec-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: request, SignerName: kube.AgentSigner, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	var pair *pki.Pair
	var refused error
	eventually(t, settle, "an answer to "+r.Name, func() error {
		now, err := requests.Get(t.Context(), r.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range now.Status.Conditions {
			if condition.Type == certificatesv1.CertificateDenied || condition.Type == certificatesv1.CertificateFailed {
				refused = fmt.Errorf("%w: %s", errRefused, condition.Message)
				return nil
			}
		}
		if len(now.Status.Certificate) == 0 {
			return errors.New("none yet")
		}
		pair, err = pki.ParsePair(now.Status.Certificate, keyPEM)
		return err
	})
	return pair, refused
}

// records opens etcd with a certificate, or with none.
func (c *cluster) records(t *testing.T, pair *pki.Pair) *clientv3.Client {
	t.Helper()
	m, err := c.CoreV1().ConfigMaps(system).Get(t.Context(), etcdObject, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	place, err := kube.ParseEtcdPlace(m.Data)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(place.CA)
	if pair != nil {
		certificate, err := tls.X509KeyPair(pair.CertPEM, pair.KeyPEM)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	e, err := clientv3.New(clientv3.Config{Endpoints: place.Endpoints, TLS: config, DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// key is that of a record.
func key(kind, name string) string {
	return store.DefaultPrefix + "/" + topology.DefaultConfig().Name + "/" + kind + "/" + name
}

func write(t *testing.T, e *clientv3.Client, key, value string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	_, err := e.Put(ctx, key, value)
	return err
}

func read(t *testing.T, e *clientv3.Client, key string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	_, err := e.Get(ctx, key)
	return err
}

func denied(err error) bool {
	return errors.Is(rpctypes.Error(err), rpctypes.ErrPermissionDenied) || err != nil && strings.Contains(err.Error(), "permission denied")
}

// TestNodeHasItsOwnCertificate: whoever has a node has the certificate of that node, and no
// other; with it no record of another.
func TestNodeHasItsOwnCertificate(t *testing.T) {
	c := connectOurs(t)
	agent := c.asAgent(t, c.agentOn(t, node1))
	if _, err := ask(t, agent, c.userOf(t, node2)); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "node1") {
		t.Errorf("another node's: %v", err)
	}
	if _, err := ask(t, agent, pki.ControllerUser); !errors.Is(err, errRefused) {
		t.Errorf("the controller's: %v", err)
	}
	pair, err := ask(t, agent, c.userOf(t, node1))
	if err != nil {
		t.Fatal(err)
	}
	e := c.records(t, pair)
	if err := read(t, e, key("subnets", nodeAddress[node2])); err != nil {
		t.Errorf("reads: %v", err)
	}
	own := topology.Request{Host: node1, HostIP: mustAddr(t, nodeAddress[node1])}
	if err := write(t, e, key("requests", nodeAddress[node1]), fmt.Sprintf(`{"Host":%q,"HostIP":%q}`, own.Host, own.HostIP)); err != nil {
		t.Errorf("writes its own: %v", err)
	}
	if _, err := e.Delete(t.Context(), key("requests", nodeAddress[node1])); err != nil {
		t.Errorf("takes it away: %v", err)
	}
	for what, k := range map[string]string{
		"another's status": key("status", nodeAddress[node2]), "another's limits": key("limits", nodeAddress[node2]), "another's MTU": key("mtu", nodeAddress[node2]),
		"its own subnet": key("subnets", nodeAddress[node1]), "a namespace": key("netnamespaces", "default"), "the configuration": store.DefaultPrefix + "/config",
		"what is not the network's": "/elsewhere",
	} {
		if err := write(t, e, k, "{}"); !denied(err) {
			t.Errorf("%s: %v, want it refused", what, err)
		}
	}
	if err := read(t, c.records(t, nil), key("subnets", nodeAddress[node1])); err == nil {
		t.Error("etcd answers without a certificate")
	}
}

// TestOthersHaveNoCertificate: neither a kubelet's own credentials nor a token that is bound to no pod, or to
// another account, get a node's certificate.
func TestOthersHaveNoCertificate(t *testing.T) {
	c := connectOurs(t)
	user := c.userOf(t, node1)
	if _, err := ask(t, c.asKubeconfig(t, node1), user); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "service account") {
		t.Errorf("a kubelet: %v", err)
	}
	if _, err := ask(t, c.asKubeconfig(t, "admin"), user); !errors.Is(err, errRefused) {
		t.Errorf("an admin: %v", err)
	}
	token, err := c.CoreV1().ServiceAccounts(system).CreateToken(t.Context(), agentAccount, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t, c.withToken(t, token.Status.Token), user); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "own pod") {
		t.Errorf("a token of no pod: %v", err)
	}
	// What an agent may see has nothing secret in it.
	agent := c.asAgent(t, c.agentOn(t, node1))
	if _, err := agent.CoreV1().Secrets(system).Get(t.Context(), etcdObject, metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("an agent reads the Secret: %v", err)
	}
}

// TestNodeThatGoesIsLockedOut: its certificate is of no use as soon as its Node is gone, whatever
// its dates say.
func TestNodeThatGoesIsLockedOut(t *testing.T) {
	c := connectOurs(t)
	if overlay() == "node-subnets" {
		t.Skip("kube-controller-manager gives the Node a subnet only when its kubelet is there")
	}
	const ghost = "ghost"
	address := netip.MustParseAddr("192.168.60.99")
	node, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: ghost, Labels: map[string]string{"kubernetes.io/os": "none"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := c.CoreV1().Nodes().Delete(context.Background(), ghost, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	// Others write to a new Node too.
	eventually(t, settle, "an address of the Node", func() error {
		now, err := c.CoreV1().Nodes().Get(t.Context(), ghost, metav1.GetOptions{})
		if err != nil {
			return err
		}
		now.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address.String()}}
		_, err = c.CoreV1().Nodes().UpdateStatus(t.Context(), now, metav1.UpdateOptions{})
		return err
	})
	pod, err := c.CoreV1().Pods(system).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "ghost-"},
		Spec:       corev1.PodSpec{NodeName: ghost, ServiceAccountName: agentAccount, Containers: []corev1.Container{{Name: "none", Image: image}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var now int64
	t.Cleanup(func() {
		err := c.CoreV1().Pods(system).Delete(context.Background(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	pair, err := ask(t, c.asAgent(t, pod), pki.NodeUser(ghost, string(node.UID)))
	if err != nil {
		t.Fatal(err)
	}
	e := c.records(t, pair)
	eventually(t, settle, "the node is let in", func() error { return write(t, e, key("mtu", address.String()), "{}") })
	if err := c.CoreV1().Nodes().Delete(t.Context(), ghost, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually(t, lockedOut, "the node locked out", func() error {
		if err := read(t, e, key("subnets", address.String())); !denied(err) {
			return fmt.Errorf("reads: %v", err)
		}
		return nil
	})
	t.Attr(measured, fmt.Sprintf("locked out %v after its Node was deleted", time.Since(begin).Round(100*time.Millisecond)))
}

// TestNothingIsShared: a fresh cluster has no certificate that more than one has.
func TestNothingIsShared(t *testing.T) {
	c := connectOurs(t)
	if overlay() == "external-etcd" {
		t.Skip("is about the etcd in the controller")
	}
	if _, err := c.CoreV1().Secrets(system).Get(t.Context(), etcdObject, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("Secret %s: %v, want none", etcdObject, err)
	}
	files, err := c.onNode(node1, "ls /var/lib/k8s-ovs-etcd/pki")
	if err != nil || strings.Contains(files, "client") || !strings.Contains(files, "ca.crt") {
		t.Errorf("the controller's certificates: %s, %v", files, err)
	}
	out, err := netns("nodes")
	if err != nil || !strings.Contains(out, node2) {
		t.Errorf("netns in the controller's pod: %s, %v", out, err)
	}
}
