package policies

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestStaticPods: whoever has stolen a kubelet makes images of static pods in any namespace and with
// any labels, bound to its own node: such a pod is in no set, whatever the kubelet calls it, and
// people are told. Where the namespace's label says so it is.
func TestStaticPods(t *testing.T) {
	w, m, k, n1 := small(t)
	chunk := store.ChunkKey(webSet, netip.MustParseAddr("172.11.0.0"))
	key := kube.PodKey{Namespace: "shop", Name: "evil-n1"}
	w.pods[key] = &pod{uid: "u-evil", labels: map[string]string{"app": "web"}, node: n1, at: netip.MustParseAddr("172.11.0.9")}
	w.say(n1)
	w.tellNodes(k.state)
	expect := func(what string, in bool) {
		t.Helper()
		settle(t, k)
		want := `{"Addresses":"2"}`
		if in {
			want = `{"Addresses":"2,9"}`
		}
		if got := m.records[chunk].Value; got != want {
			t.Errorf("%s: the set is %s, want %s", what, got, want)
		}
		told := 0
		for _, n := range k.state.notices(lacking{}) {
			if n.reason == StaticPodPassedOver && n.object.Name == key.Name && n.object.UID == "u-evil" && strings.Contains(n.text(), "k8s-ovs.io/static-pods=allowed") {
				told++
			}
		}
		if told != map[bool]int{true: 0, false: 1}[in] {
			t.Errorf("%s: people are told of %d pods", what, told)
		}
	}
	node := w.nodes[n1].Host
	// The annotation may say the UID of the pod in the API server, one of the node's own, or nothing.
	for _, mirrors := range []string{"u-evil", "static", ""} {
		k.state.setLabels(key, &kube.PodLabels{UID: "u-evil", Mirrors: mirrors, Mirror: true, Node: node, Labels: map[string]string{"app": "web"}})
		expect("mirrors "+mirrors, false)
	}
	labels := map[string]string{topology.StaticPodsLabel: "refused"}
	k.state.setNamespace("shop", &labels)
	expect("another value of the label", false)
	allowed := map[string]string{topology.StaticPodsLabel: topology.StaticPodsAllowed}
	k.state.setNamespace("shop", &allowed)
	expect("an admin allows static pods", true)
	k.state.setNamespace("shop", &labels)
	expect("and does no more", false)
	k.state.setNamespace("shop", &allowed)
	expect("and does", true)
	k.state.setNamespace("shop", nil)
	expect("the namespace is gone", false)

	// It goes, and nobody is told of it any more.
	delete(w.pods, key)
	w.say(n1)
	w.tellNodes(k.state)
	k.state.setLabels(key, nil)
	settle(t, k)
	if n := len(k.state.static); n != 0 {
		t.Errorf("%d static pods are remembered", n)
	}
}

// TestNamespacesWithoutStaticPods: a namespace that comes or goes has pods looked at only where it takes
// static pods, or took them: the look is at all pods of the cluster.
func TestNamespacesWithoutStaticPods(t *testing.T) {
	s := newState()
	key, at := kube.PodKey{Namespace: "shop", Name: "web-n1"}, netip.MustParseAddr("172.11.0.9")
	s.addresses[key] = map[netip.Addr]claim{at: {node: "n1", NodePod: topology.NodePod{Namespace: key.Namespace, Name: key.Name, Address: at}}}
	s.setLabels(key, &kube.PodLabels{UID: "u", Mirror: true, Node: "n1"})
	if !s.static[key] {
		t.Fatal("a static pod is not passed over")
	}
	// What a look would find again.
	clear(s.static)
	s.setNamespace("shop", &map[string]string{"team": "a"})
	s.setNamespace("shop", nil)
	if len(s.static) > 0 {
		t.Error("a namespace that takes no static pods had its pods looked at")
	}
	s.setNamespace("shop", &map[string]string{topology.StaticPodsLabel: topology.StaticPodsAllowed})
	s.setNamespace("shop", nil)
	if !s.static[key] {
		t.Error("a namespace that took static pods is gone, and they are not passed over again")
	}
}
