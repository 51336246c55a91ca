// Package clusternetworkpolicy runs the conformance suite of sigs.k8s.io/network-policy-api,
// standard and experimental, on the cluster that KUBECONFIG names. The suite is the copy that
// the script build makes, which asks nothing by SCTP.
package clusternetworkpolicy

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	api "sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
	"sigs.k8s.io/network-policy-api/pkg/consts"
)

// experimental names the environment variable with the file that has the definition of the
// experimental channel.
const experimental = "EXPERIMENTAL_DEFINITION"

// definition is the name of ClusterNetworkPolicy's.
const definition = "clusternetworkpolicies." + api.GroupName

// TestClusterNetworkPolicy runs the specs, those of the experimental channel last, with the
// definition that they need.
func TestClusterNetworkPolicy(t *testing.T) {
	s, c := connect(t)
	s.Setup(t)
	specs := slices.Clone(tests.ConformanceTests)
	slices.SortStableFunc(specs, func(a, b suite.ConformanceTest) int {
		switch {
		case isExperimental(a) == isExperimental(b):
			return 0
		case isExperimental(b):
			return -1
		}
		return 1
	})
	for _, spec := range specs {
		t.Run(spec.ShortName, func(t *testing.T) {
			if strings.HasSuffix(spec.ShortName, "SCTP") {
				t.Skip("needs SCTP, which neither this kernel nor Open vSwitch's userspace datapath before 3.2 has")
			}
			if isExperimental(spec) {
				defineExperimental(t, c)
			}
			spec.Run(t, s)
		})
	}
}

// connect makes the suite, and has the cluster's ClusterNetworkPolicy be of the suite's version.
func connect(t *testing.T) (*suite.ConformanceTestSuite, client.WithWatch) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv(clientcmd.RecommendedConfigPathEnvVar))
	if err != nil {
		t.Fatal(err)
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.NewWithWatch(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, install := range []func() error{
		func() error { return api.Install(c.Scheme()) },
		func() error { return apiextensionsv1.AddToScheme(c.Scheme()) },
	} {
		if err := install(); err != nil {
			t.Fatal(err)
		}
	}
	d := fetchDefinition(t, c)
	if is := d.Annotations[consts.BundleVersionAnnotation]; is != consts.BundleVersion {
		t.Fatalf("the cluster's ClusterNetworkPolicy is of version %q, the suite of %q", is, consts.BundleVersion)
	}
	return suite.New(suite.Options{
		Client:                     c,
		ClientSet:                  clients,
		KubeConfig:                 *config,
		CleanupBaseResources:       true,
		EnableAllSupportedFeatures: true,
	}), c
}

func fetchDefinition(t *testing.T, c client.Client) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	d := &apiextensionsv1.CustomResourceDefinition{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: definition}, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// isExperimental says whether a spec has named ports or nodes as peers, which the standard
// channel does not know.
func isExperimental(spec suite.ConformanceTest) bool {
	return !suite.StandardFeatures.HasAll(spec.Features...)
}

// defineExperimental has the cluster know the experimental channel from now on, as an admin
// may, and waits until the API server takes what is only there, and has ended the watches of
// before: those leave out what they did not know when they began.
func defineExperimental(t *testing.T, c client.WithWatch) {
	t.Helper()
	text, err := os.ReadFile(os.Getenv(experimental))
	if err != nil {
		t.Fatalf("%s: %v", experimental, err)
	}
	wanted := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(text, wanted); err != nil {
		t.Fatal(err)
	}
	d := fetchDefinition(t, c)
	if d.Annotations[consts.ChannelAnnotation] == wanted.Annotations[consts.ChannelAnnotation] {
		return
	}
	before, err := c.Watch(t.Context(), &api.ClusterNetworkPolicyList{})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Stop()
	d.Spec, d.Annotations = wanted.Spec, wanted.Annotations
	if err := c.Update(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	end := time.After(time.Minute)
	for ended := false; !ended; {
		select {
		case _, goesOn := <-before.ResultChan():
			ended = !goesOn
		case <-end:
			t.Fatal("a watch of the standard channel's policies goes on a minute after the definition was changed")
		}
	}
	for err = takesNodes(t, c); err != nil; err = takesNodes(t, c) {
		select {
		case <-end:
			t.Fatalf("a minute after the definition was changed: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// takesNodes is nil when a policy with nodes as peers would be taken, and they would stay in it.
func takesNodes(t *testing.T, c client.Client) error {
	p := &api.ClusterNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "nodes"},
		Spec: api.ClusterNetworkPolicySpec{
			Tier:    api.AdminTier,
			Subject: api.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{}},
			Egress: []api.ClusterNetworkPolicyEgressRule{{
				Action: api.ClusterNetworkPolicyRuleActionAccept,
				To:     []api.ClusterNetworkPolicyEgressPeer{{Nodes: &metav1.LabelSelector{}}},
			}},
		},
	}
	if err := c.Create(t.Context(), p, client.DryRunAll); err != nil {
		return err
	}
	if p.Spec.Egress[0].To[0].Nodes == nil {
		return fmt.Errorf("nodes of policy %s are left out", p.Name)
	}
	return nil
}
