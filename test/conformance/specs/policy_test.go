package specs

//lint:file-ignore SA1019 somebody may still write Endpoints

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Users of the cluster's own.
const (
	sliceController      = "system:serviceaccount:kube-system:endpointslice-controller"
	loadBalancerOfACloud = "system:serviceaccount:kube-system:service-controller"
	ourController        = "system:serviceaccount:kube-system:k8s-ovs-controller"
)

// all are the objects that policies are about, with every right that others than
// k8s-ovs ask for.
var all = []rbacv1.PolicyRule{
	{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "services/status", "namespaces", "namespaces/status", "namespaces/finalize"}, Verbs: []string{"create", "get", "update", "patch"}},
	{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"create", "update", "patch"}},
}

// right is a rule of a Role for one of ours.
func right(verb, resource string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{"k8s-ovs.io"}, Resources: []string{resource}, ResourceNames: names, Verbs: []string{verb}}
}

// as is a client of somebody, who has the rights that rules give until the end of the spec.
func (c *cluster) as(t *testing.T, user string, rules ...rbacv1.PolicyRule) *cluster {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	if strings.HasPrefix(user, "system:serviceaccount:") {
		config.Impersonate.Groups = []string{"system:serviceaccounts", "system:authenticated"}
	}
	config.WarningHandler = rest.NoWarnings{}
	somebody := &cluster{run: c.run, scripts: c.scripts}
	if somebody.Interface, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	role, err := c.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{GenerateName: "spec-"}, Rules: rules}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	binding, err := c.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range []error{
			c.RbacV1().ClusterRoleBindings().Delete(context.Background(), binding.Name, metav1.DeleteOptions{}),
			c.RbacV1().ClusterRoles().Delete(context.Background(), role.Name, metav1.DeleteOptions{}),
		} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	// The authorizer takes a moment to follow.
	for _, r := range rules {
		eventually(t, settle, user+" has his rights", func() error { return somebody.may(t, r) })
	}
	return somebody
}

// may is nil when the client has all that a rule gives.
func (c *cluster) may(t *testing.T, r rbacv1.PolicyRule) error {
	review, err := c.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for _, has := range review.Status.ResourceRules {
		if slices.Equal(has.Resources, r.Resources) && slices.Equal(has.Verbs, r.Verbs) && slices.Equal(has.ResourceNames, r.ResourceNames) {
			return nil
		}
	}
	return fmt.Errorf("not yet: %v", r)
}

// refusedFor is nil when err is a policy's refusal with these words.
func refusedFor(err error, words string) error {
	if apierrors.IsForbidden(err) && strings.Contains(err.Error(), words) && strings.Contains(err.Error(), "ValidatingAdmissionPolicy") {
		return nil
	}
	return fmt.Errorf("want a refusal that says %q, got %v", words, err)
}

// slice makes an EndpointSlice of one address.
func (c *cluster) slice(t *testing.T, namespace, name, address string, labels map[string]string) error {
	family := discoveryv1.AddressTypeIPv4
	if strings.Contains(address, ":") {
		family = discoveryv1.AddressTypeIPv6
	}
	_, err := c.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-", Labels: labels}, AddressType: family,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}},
	}, metav1.CreateOptions{})
	return err
}

// endpoints makes Endpoints of one address, ready or not.
func (c *cluster) endpoints(t *testing.T, namespace, name, address string, ready bool) error {
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Port: podHTTP}}}
	if addresses := []corev1.EndpointAddress{{IP: address}}; ready {
		subset.Addresses = addresses
	} else {
		subset.NotReadyAddresses = addresses
	}
	_, err := c.CoreV1().Endpoints(namespace).Create(t.Context(), &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{GenerateName: name + "-"}, Subsets: []corev1.EndpointSubset{subset},
	}, metav1.CreateOptions{})
	return err
}

// TestEndpointsByHand: nobody writes addresses of pods, of nodes, or such as no machine
// of a network has, as endpoints, unless he has the right to; Services with a selector, and
// endpoints elsewhere, go on.
func TestEndpointsByHand(t *testing.T) {
	c := connectOurs(t)
	namespace := c.namespace(t, "by-hand", nil)
	tenant := c.as(t, "spec-tenant", all...)
	trusted := c.as(t, "spec-trusted", append(slices.Clone(all), right("write-by-hand", "endpoints"))...)
	controllers := c.as(t, sliceController)
	eventually(t, settle, "the controller says what nodes there are", func() error {
		return refusedFor(tenant.slice(t, namespace, "node", nodeAddress[node2], nil), "is an address of node "+node2)
	})
	for address, why := range map[string]string{
		"10.128.0.9":       "is in the pod network 10.128.0.0/14",
		nodeAddress[node1]: "is an address of node " + node1,
		"10.96.0.1":        "is in the service network 10.96.0.0/12",
		"239.1.2.3":        "is not the address of a machine",
		"255.255.255.255":  "is not the address of a machine",
		"ff05::1":          "is not the address of a machine",
	} {
		for what, err := range map[string]error{
			"an EndpointSlice":    tenant.slice(t, namespace, "tenant", address, nil),
			"Endpoints":           tenant.endpoints(t, namespace, "tenant", address, true),
			"Endpoints not ready": tenant.endpoints(t, namespace, "tenant", address, false),
		} {
			if err := refusedFor(err, why); err != nil {
				t.Errorf("%s with %s: %v", what, address, err)
			}
		}
		for who, err := range map[string]error{
			"whoever has the right":    trusted.slice(t, namespace, "trusted", address, nil),
			"an admin":                 c.slice(t, namespace, "admin", address, nil),
			"the cluster's controller": controllers.slice(t, namespace, "controller", address, managed),
		} {
			if err != nil {
				t.Errorf("an EndpointSlice with %s by %s: %v", address, who, err)
			}
		}
		if err := trusted.endpoints(t, namespace, "trusted", address, true); err != nil {
			t.Errorf("Endpoints with %s by whoever has the right: %v", address, err)
		}
	}
	// Most of these the API server itself refuses, whoever asks.
	for _, address := range []string{"127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "::1", "fe80::1", "::ffff:10.128.0.9", "010.128.0.9", "fd00:0:0:0:0:0:0:1"} {
		for what, err := range map[string]error{
			"an EndpointSlice": tenant.slice(t, namespace, "special", address, nil),
			"Endpoints":        tenant.endpoints(t, namespace, "special", address, true),
		} {
			if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
				t.Errorf("%s with %s: %v", what, address, err)
			}
		}
	}
	for _, address := range []string{"192.0.2.1", "2001:db8::1"} {
		if err := tenant.slice(t, namespace, "outside", address, nil); err != nil {
			t.Errorf("an EndpointSlice with %s: %v", address, err)
		}
		if err := tenant.endpoints(t, namespace, "outside", address, true); err != nil {
			t.Errorf("Endpoints with %s: %v", address, err)
		}
	}
	tn := c.tenant(t, "guarded", nil, node1)
	eventually(t, settle, "a service with a selector serves", func() error {
		_, err := tn.pods[0].http(tn.service + ":" + serviceHTTP)
		return err
	})
}

// managed is the label of the slices that the cluster's controllers write.
var managed = map[string]string{discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}

// TestEndpointsOfControllers: nobody passes for one of the cluster's controllers, nor
// changes what they serve; what was there before the policy may be forgotten.
func TestEndpointsOfControllers(t *testing.T) {
	c := connectOurs(t)
	namespace := c.namespace(t, "managed", nil)
	tenant := c.as(t, "spec-tenant", all...)
	// What both policies about slices say: where a label goes, both refuse.
	const forControllers = "ask a cluster admin for the verb write-by-hand on endpoints.k8s-ovs.io"
	if err := refusedFor(tenant.slice(t, namespace, "forged", "192.0.2.1", managed), forControllers); err != nil {
		t.Errorf("a slice with their label: %v", err)
	}
	theirs, err := c.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "theirs", Labels: managed}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.128.0.9"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for what, patch := range map[string]string{
		"its endpoints": `{"endpoints":[{"addresses":["192.0.2.1"]}]}`,
		"its ports":     `{"ports":[{"port":4789,"protocol":"UDP","name":""}]}`,
		"its label":     `{"metadata":{"labels":{"` + discoveryv1.LabelManagedBy + `":null}}}`,
		"its service":   `{"metadata":{"labels":{"` + discoveryv1.LabelServiceName + `":"other"}}}`,
	} {
		_, err := tenant.DiscoveryV1().EndpointSlices(namespace).Patch(t.Context(), theirs.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		if err := refusedFor(err, forControllers); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// As the garbage collector does.
	if _, err := tenant.DiscoveryV1().EndpointSlices(namespace).Patch(t.Context(), theirs.Name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("what is served stays, and %v", err)
	}
}

// TestManyEndpointsByHand: a full slice is within what the API server spends on a policy.
func TestManyEndpointsByHand(t *testing.T) {
	c := connectOurs(t)
	namespace := c.namespace(t, "many", nil)
	tenant := c.as(t, "spec-tenant", all...)
	const most = 1000 // of an EndpointSlice
	var addresses []discoveryv1.Endpoint
	for i := range most {
		addresses = append(addresses, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("198.51.%d.%d", 100+i/250, i%250)}})
	}
	make := func(name string) error {
		_, err := tenant.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: name}, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: addresses,
		}, metav1.CreateOptions{})
		return err
	}
	if err := make("full"); err != nil {
		t.Error(err)
	}
	addresses[most-1].Addresses[0] = "10.128.0.9"
	if err := refusedFor(make("last-is-a-pod"), "10.128.0.9 is in the pod network"); err != nil {
		t.Error(err)
	}
}

// TestAddressesOfServices: who may have a Service take connections to addresses that
// are not its own.
func TestAddressesOfServices(t *testing.T) {
	c := connectOurs(t)
	namespace := c.namespace(t, "addresses", nil)
	tenant := c.as(t, "spec-tenant", all...)
	trusted := c.as(t, "spec-trusted", append(slices.Clone(all), right("use", "externalips"), right("write-status", "loadbalancers"))...)
	cloud := c.as(t, loadBalancerOfACloud, all...)
	make := func(c *cluster, name string, externalIPs ...string) error {
		_, err := c.CoreV1().Services(namespace).Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}, ExternalIPs: externalIPs},
		}, metav1.CreateOptions{})
		return err
	}
	const external, balancer = "spec.externalIPs would take connections", "status.loadBalancer would take connections"
	if err := refusedFor(make(tenant, "taking", "192.0.2.1"), external); err != nil {
		t.Error(err)
	}
	for who, err := range map[string]error{"a tenant, without external addresses": make(tenant, "plain"), "whoever has the right": make(trusted, "granted", "192.0.2.1")} {
		if err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
	patch := func(c *cluster, name, patch string, subresources ...string) error {
		_, err := c.CoreV1().Services(namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...)
		return err
	}
	const status = `{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}}}`
	for what, err := range map[string]error{
		"an address for a plain Service": refusedFor(patch(tenant, "plain", `{"spec":{"externalIPs":["192.0.2.2"]}}`), external),
		"one more":                       refusedFor(patch(tenant, "granted", `{"spec":{"externalIPs":["192.0.2.1","192.0.2.2"]}}`), external),
		"something else of it":           patch(tenant, "granted", `{"metadata":{"labels":{"a":"b"}}}`),
		"a status":                       refusedFor(patch(tenant, "plain", status, "status"), balancer),
		"a status by who has the right":  patch(trusted, "granted", status, "status"),
		"a status by the cloud":          patch(cloud, "plain", status, "status"),
		"its end":                        patch(tenant, "plain", `{"status":{"loadBalancer":null}}`, "status"),
		"no address":                     patch(tenant, "granted", `{"spec":{"externalIPs":null}}`),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestWhoJoinsNetworks: a network is joined by those who have the right to that one.
func TestWhoJoinsNetworks(t *testing.T) {
	c := connectOurs(t)
	tenant := c.as(t, "spec-tenant", all...)
	member := c.as(t, "spec-member", append(slices.Clone(all), right("join", "networks", "money"))...)
	create := func(c *cluster, annotations map[string]string) (string, error) {
		ns, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "joins-", Annotations: annotations}}, metav1.CreateOptions{})
		return ns.GetName(), err
	}
	patch := func(c *cluster, namespace, key string, value any, subresources ...string) error {
		body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: value}}})
		if err != nil {
			return err
		}
		_, err = c.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, body, metav1.PatchOptions{}, subresources...)
		return err
	}
	refusedNetwork := func(err error, network string) error {
		return refusedFor(err, `may not join network "`+network+`"`)
	}
	plain := c.namespace(t, "joins", nil)
	for _, network := range []string{"money", "global", ""} {
		if _, err := create(tenant, map[string]string{networkAnnotation: network}); refusedNetwork(err, network) != nil {
			t.Error(refusedNetwork(err, network))
		}
		for _, sub := range [][]string{nil, {"status"}} {
			if err := refusedNetwork(patch(tenant, plain, networkAnnotation, network, sub...), network); err != nil {
				t.Errorf("%v: %v", sub, err)
			}
		}
	}
	for what, err := range map[string]error{
		"another network than one's own": refusedNetwork(patch(member, plain, networkAnnotation, "other"), "other"),
		"global":                         refusedNetwork(patch(member, plain, networkAnnotation, "global"), "global"),
		"a netID":                        refusedFor(patch(member, plain, netIDAnnotation, "4711"), "is for the k8s-ovs controller to write"),
		"something else":                 patch(tenant, plain, "a", "b"),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := patch(member, plain, networkAnnotation, "money"); err != nil {
		t.Errorf("one's own network: %v", err)
	}
	if err := patch(tenant, plain, "a", "c"); err != nil {
		t.Errorf("something else of a namespace that is on one: %v", err)
	}
	if err := patch(tenant, plain, networkAnnotation, nil); err != nil {
		t.Errorf("leaving: %v", err)
	}
	made, err := create(member, map[string]string{networkAnnotation: "money"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CoreV1().Namespaces().Delete(t.Context(), made, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if err := patch(c, plain, networkAnnotation, "global"); err != nil {
		t.Errorf("an admin: %v", err)
	}
}

// TestControllerPatchesItsKeyOnly: whoever has the controller's rights changes nothing
// else of Namespaces.
func TestControllerPatchesItsKeyOnly(t *testing.T) {
	c := connectOurs(t)
	namespace := c.namespace(t, "patched", map[string]string{"kept": "so"})
	// More than it has, so that the policy has to refuse.
	controller := c.as(t, ourController, append(slices.Clone(all), right("join", "networks"))...)
	patch := func(patch string) error {
		_, err := controller.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	const words = "the k8s-ovs controller writes annotation k8s-ovs.io/netid of a Namespace and nothing else"
	for what, body := range map[string]string{
		"a network":     `{"metadata":{"annotations":{"k8s-ovs.io/network":"global"}}}`,
		"an annotation": `{"metadata":{"annotations":{"kept":"otherwise"}}}`,
		"its end":       `{"metadata":{"annotations":{"kept":null}}}`,
		"a label":       `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"privileged"}}}`,
		"a finalizer":   `{"metadata":{"finalizers":["example.org/stays"]}}`,
	} {
		if err := refusedFor(patch(body), words); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The real one puts this right at once.
	if err := patch(`{"metadata":{"annotations":{"k8s-ovs.io/netid":"5"}}}`); err != nil {
		t.Errorf("its key: %v", err)
	}
	if _, err := controller.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "made-"}}, metav1.CreateOptions{}); refusedFor(err, words) != nil {
		t.Error(refusedFor(err, words))
	}
}
