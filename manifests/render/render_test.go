package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const manifests = ".."

// What is checked in is what the overlays say.
func TestManifestsRendered(t *testing.T) {
	for _, r := range rendered {
		want, err := render(manifests, r.kustomization)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(manifests, r.file))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not what %s renders to: run `make manifests` (-want +got):\n%s", r.file, r.kustomization, diff)
		}
	}
}

// A release's manifests name its images, and differ in nothing else.
func TestManifestsRetag(t *testing.T) {
	text, err := render(manifests, "overlays/openvswitch")
	if err != nil {
		t.Fatal(err)
	}
	got := string(retag(text, "v1.2.3"))
	if strings.Contains(got, ":dev") || strings.Count(got, ":v1.2.3") != strings.Count(string(text), "image: ") {
		t.Errorf("not all images have the new tag:\n%s", got)
	}
	if diff := cmp.Diff(string(text), strings.ReplaceAll(got, ":v1.2.3", ":dev")); diff != "" {
		t.Errorf("more than tags differ (-want +got):\n%s", diff)
	}
}

// kustomizations are all that can be applied, with one that combines components
// as a user's own would.
func kustomizations(t *testing.T) []string {
	t.Helper()
	overlays, err := filepath.Glob(filepath.Join(manifests, "overlays", "*"))
	if err != nil || len(overlays) == 0 {
		t.Fatalf("no overlays: %v", err)
	}
	all := []string{"base", "policy", "render/testdata/combined"}
	for _, o := range overlays {
		all = append(all, filepath.Join("overlays", filepath.Base(o)))
	}
	return all
}

// decode reads a rendered kustomization as the API server does with
// fieldValidation=Strict.
func decode(t *testing.T, kustomization string) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{admissionv1.AddToScheme, appsv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	text, err := render(manifests, kustomization)
	if err != nil {
		t.Fatal(err)
	}
	var objects []runtime.Object
	for docs := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text))); ; {
		doc := make([]byte, len(text))
		n, err := docs.Read(doc)
		if err == io.EOF {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: %v", kustomization, err)
		}
		object, _, err := decoder.Decode(doc[:n], nil, nil)
		if err != nil {
			t.Fatalf("%s: %v in\n%s", kustomization, err, doc[:n])
		}
		objects = append(objects, object)
	}
}

func TestManifestsDecode(t *testing.T) {
	for _, k := range kustomizations(t) {
		if objects := decode(t, k); len(objects) == 0 {
			t.Errorf("%s renders to nothing", k)
		}
	}
}

// workload is a pod template and who runs it.
type workload struct {
	name   string
	labels map[string]string // that it selects
	pod    corev1.PodTemplateSpec
}

func workloads(objects []runtime.Object) []workload {
	var all []workload
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.DaemonSet:
			all = append(all, workload{o.Name, o.Spec.Selector.MatchLabels, o.Spec.Template})
		case *appsv1.Deployment:
			all = append(all, workload{o.Name, o.Spec.Selector.MatchLabels, o.Spec.Template})
		}
	}
	return all
}

// What the API server would refuse or a kubelet would wait for in vain, and what
// every program of a node's network needs.
func TestManifestsWorkloads(t *testing.T) {
	for _, k := range kustomizations(t) {
		objects := decode(t, k)
		for _, w := range workloads(objects) {
			name := k + " " + w.name
			if diff := cmp.Diff(w.labels, subset(w.pod.Labels, w.labels)); diff != "" {
				t.Errorf("%s does not select its own pods (-selector +pod):\n%s", name, diff)
			}
			spec := w.pod.Spec
			if !spec.HostNetwork {
				t.Errorf("%s needs a pod network to start", name)
			}
			if !strings.HasPrefix(spec.PriorityClassName, "system-") || len(spec.Tolerations) == 0 {
				t.Errorf("%s: priority class %q, tolerations %v", name, spec.PriorityClassName, spec.Tolerations)
			}
			if a := spec.ServiceAccountName; a != "" && !slices.ContainsFunc(objects, func(o runtime.Object) bool {
				sa, ok := o.(*corev1.ServiceAccount)
				return ok && sa.Name == a
			}) {
				t.Errorf("%s runs as service account %s, which is not there", name, a)
			}
			for _, c := range append(spec.InitContainers, spec.Containers...) {
				checkContainer(t, name, c, spec.Volumes)
			}
		}
	}
}

func checkContainer(t *testing.T, name string, c corev1.Container, volumes []corev1.Volume) {
	t.Helper()
	if repository, tag, _ := strings.Cut(c.Image, ":"); !strings.HasPrefix(repository, "k8s-ovs/") || tag == "" {
		t.Errorf("%s: container %s has image %q", name, c.Name, c.Image)
	}
	if len(c.Resources.Requests) == 0 {
		t.Errorf("%s: container %s requests nothing", name, c.Name)
	}
	// The scheduler takes a port of a pod on the host's network for a host port.
	if len(c.Ports) > 0 {
		t.Errorf("%s: container %s names ports, so a node could not start the next one", name, c.Name)
	}
	for _, m := range c.VolumeMounts {
		if !slices.ContainsFunc(volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			t.Errorf("%s: container %s mounts volume %q, which is not there", name, c.Name, m.Name)
		}
	}
	for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe} {
		// The programs serve on this address only.
		if p != nil && p.HTTPGet != nil && p.HTTPGet.Host != "127.0.0.1" {
			t.Errorf("%s: container %s is probed at %q", name, c.Name, p.HTTPGet.Host)
		}
	}
}

func subset(m, keys map[string]string) map[string]string {
	out := map[string]string{}
	for k := range keys {
		if v, ok := m[k]; ok {
			out[k] = v
		}
	}
	return out
}

// Each variant changes what it is for; together they change all of it.
func TestManifestsVariants(t *testing.T) {
	const (
		proxy    = "--service-proxy=kube-proxy"
		single   = "--plugin-name=k8s-ovs-subnet"
		external = "--embedded-etcd=false"
		embedded = "--data-dir=/var/lib/k8s-ovs-etcd"
	)
	for k, want := range map[string][]string{
		"base":                         {embedded},
		"overlays/openvswitch":         {embedded, "k8s-ovs-openvswitch"},
		"overlays/external-etcd":       {external},
		"overlays/single-tenant":       {embedded, single},
		"overlays/kube-proxy-services": {embedded, proxy},
		"render/testdata/combined":     {external, single, proxy, "k8s-ovs-openvswitch"},
	} {
		var got []string
		for _, w := range workloads(decode(t, k)) {
			for _, a := range append([]string{w.name}, w.pod.Spec.Containers[0].Args...) {
				if slices.Contains([]string{proxy, single, external, embedded, "k8s-ovs-openvswitch"}, a) {
					got = append(got, a)
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", k, diff)
		}
	}
}

// Nobody may read or write all Secrets, and nothing is granted by a star.
func TestManifestsLeastRights(t *testing.T) {
	for _, o := range decode(t, "base") {
		var name string
		var rules []rbacv1.PolicyRule
		switch o := o.(type) {
		case *rbacv1.ClusterRole:
			name, rules = "ClusterRole "+o.Name, o.Rules
			for _, r := range rules {
				if slices.Contains(r.Resources, "secrets") {
					t.Errorf("%s grants secrets of the whole cluster", name)
				}
			}
		case *rbacv1.Role:
			name, rules = "Role "+o.Namespace+"/"+o.Name, o.Rules
		}
		for _, r := range rules {
			if slices.Contains(append(append(r.APIGroups, r.Resources...), r.Verbs...), "*") {
				t.Errorf("%s grants by a star: %v", name, r)
			}
			if slices.Contains(r.Resources, "pods") && !slices.Equal(r.Verbs, []string{"list", "watch"}) && !slices.Equal(r.Verbs, []string{"list"}) {
				t.Errorf("%s grants %v of pods; they are only listed and watched, by selectors", name, r.Verbs)
			}
			if slices.Contains(r.Resources, "secrets") && len(r.ResourceNames) == 0 && !slices.Equal(r.Verbs, []string{"create"}) {
				t.Errorf("%s grants %v of any Secret", name, r.Verbs)
			}
		}
	}
}

// Whoever takes a node over has its agent's rights: nothing secret is among what they
// reach, and nothing that says who may have which certificate.
func TestManifestsAgentRights(t *testing.T) {
	for _, k := range kustomizations(t) {
		for _, o := range decode(t, k) {
			var name string
			var rules []rbacv1.PolicyRule
			switch o := o.(type) {
			case *rbacv1.Role:
				name, rules = o.Name, o.Rules
			case *rbacv1.ClusterRole:
				name, rules = o.Name, o.Rules
			}
			for _, r := range rules {
				for _, forbidden := range []string{"secrets", "certificatesigningrequests/approval", "certificatesigningrequests/status", "signers", "*"} {
					if name == "k8s-ovs-agent" && slices.Contains(r.Resources, forbidden) {
						t.Errorf("%s: %s has %v on %s", k, name, r.Verbs, forbidden)
					}
				}
			}
		}
	}
}
