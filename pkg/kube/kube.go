// Package kube is the Kubernetes API as the network needs it: services for one
// node, namespaces and nodes for the controller, the way to etcd, certificates that
// are asked for and given, and the few things that are written back.
//
// It and its package access are all that knows client-go. It decides nothing about the
// network: it turns objects into values and calls into requests. Watches hold
// only what they turn objects into, so a large cluster costs little memory;
// while the API server is away they keep what they had and try again.
package kube

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	admissionv1 "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	appsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	certificatesv1 "k8s.io/client-go/kubernetes/typed/certificates/v1"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryv1 "k8s.io/client-go/kubernetes/typed/discovery/v1"
	networkingv1 "k8s.io/client-go/kubernetes/typed/networking/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube/access"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

const (
	// callTimeout bounds one request that is not a watch.
	callTimeout = 10 * time.Second
	// The controller annotates every namespace when it first runs; client-go's
	// own bound of 5 requests a second would make that minutes.
	requestsPerSecond, requestBurst = 50, 100
	// requestRetry is how often a certificate that was asked for is looked for, where
	// no watch tells of it.
	requestRetry = 10 * time.Second
)

// Config says how to reach the API server.
type Config struct {
	// Kubeconfig is a file; empty for the service account of the pod we run in.
	Kubeconfig string
	// Logger hears of watches that fail; slog.Default() when nil.
	Logger *slog.Logger
}

// Interfaces are the parts of client-go's clientset that a Client uses.
type Interfaces struct {
	Core      corev1.CoreV1Interface
	Discovery discoveryv1.DiscoveryV1Interface
	Apps      appsv1.AppsV1Interface
	Admission admissionv1.AdmissionregistrationV1Interface
	// Certificates has the requests for certificates.
	Certificates certificatesv1.CertificatesV1Interface
	// Pods are the pods of a namespace, or of all where it is empty.
	Pods func(namespace string) PodMetadata
	// Placed are all pods with their nodes. They are used by the controller only.
	Placed PlacedPods
	// Definitions are CustomResourceDefinitions, ClusterPolicies the ClusterNetworkPolicies in
	// a version. They and Networking are used by the controller only.
	Definitions     dynamic.ResourceInterface
	ClusterPolicies func(version string) dynamic.ResourceInterface
	Networking      networkingv1.NetworkingV1Interface
	// Clientset is what these came from: a fake one says there which kinds
	// of watches it cannot do. Nil for the real ones.
	Clientset any
}

// Client is a connection to the API server. Its methods may be called at once
// from several goroutines.
type Client struct {
	api Interfaces
	log *slog.Logger

	mu       sync.Mutex // guards what follows
	recorder record.EventRecorder
	events   record.EventBroadcaster
}

// Open makes a Client. It reads the kubeconfig, or the files of the service
// account, and does not connect: an API server that is away shows in the calls.
func Open(cfg Config) (*Client, error) {
	rc, err := access.RESTConfig(cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	rc.ContentType = runtime.ContentTypeProtobuf
	rc.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	rc.UserAgent = "k8s-ovs/" + version.String()
	rc.QPS, rc.Burst = requestsPerSecond, requestBurst
	// One connection for all groups.
	hc, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	var api Interfaces
	if api.Core, err = corev1.NewForConfigAndClient(rc, hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	api.Placed = podTables{api.Core.RESTClient()}
	if api.Discovery, err = discoveryv1.NewForConfigAndClient(rc, hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	if api.Apps, err = appsv1.NewForConfigAndClient(rc, hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	mc, err := metadata.NewForConfigAndClient(rc, hc)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	api.Pods = func(namespace string) PodMetadata { return mc.Resource(podsResource).Namespace(namespace) }
	dc, err := dynamic.NewForConfigAndClient(rc, hc)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	api.Definitions = dc.Resource(definitionsResource)
	api.ClusterPolicies = func(version string) dynamic.ResourceInterface { return dc.Resource(clusterPolicies(version)) }
	if api.Networking, err = networkingv1.NewForConfigAndClient(rc, hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	if api.Admission, err = admissionv1.NewForConfigAndClient(rc, hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	if api.Certificates, err = certificatesv1.NewForConfigAndClient(rc, hc); err != nil {
		return nil, fmt.Errorf("API server %s: %w", rc.Host, err)
	}
	return New(api, cfg.Logger), nil
}

// New makes a Client of interfaces that are there already, such as fake ones.
func New(api Interfaces, log *slog.Logger) *Client {
	if log == nil {
		log = slog.Default()
	}
	return &Client{api: api, log: log}
}

// Close ends the sending of Events. Watches end with their contexts.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.events != nil {
		c.events.Shutdown()
	}
}
