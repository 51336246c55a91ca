package policies

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// selecting are the names of so many policies, each of a length that the API server still takes.
func selecting(count, length int) (names []string) {
	for i := range count {
		name := fmt.Sprintf("p%06d", i)
		names = append(names, name+strings.Repeat("x", max(0, length-len(name))))
	}
	return names
}

// Of a pod's policies the record has few names, and says how many there are besides.
func TestListNamesFew(t *testing.T) {
	p := newPicture()
	names := selecting(maxNames+5, 0)
	p.pods[web1] = podAt(web1, "web", nil)
	p.pods[web1].selected = selection{ingress: names, egress: names[:maxNames], cluster: names[:maxNames+1]}
	before := slices.Clone(names)
	want := []topology.NodePod{{
		Namespace: "shop", Name: "web", Address: web1, Ingress: names[:maxNames], Egress: names[:maxNames], Cluster: names[:maxNames],
		Unnamed: topology.UnnamedPolicies{Ingress: 5, Cluster: 1},
	}}
	if diff := cmp.Diff(want, p.list(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !slices.Equal(before, p.pods[web1].selected.ingress) {
		t.Error("what selects the pod was changed")
	}
}

// Whatever policies select them, and whatever they are called, pods make a record that etcd takes.
func TestListStaysSmall(t *testing.T) {
	const longest = 253
	for _, test := range []struct{ pods, policies int }{{1, 2050}, {20, 105}, {250, 100}, {1000, 10}, {1600, 3000}} {
		p := newPicture()
		names := selecting(test.policies, longest)
		for i := range test.pods {
			at := netip.AddrFrom4([4]byte{172, 110, byte(200 + i>>8), byte(i)})
			p.pods[at] = &pod{Pod: Pod{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("p", longest), UID: strings.Repeat("u", 36), Address: at}}
			p.pods[at].selected = selection{ingress: names, egress: names, cluster: names}
		}
		list := p.list()
		data, err := json.Marshal(topology.NodePods{Host: strings.Repeat("h", longest), HostIP: web1, Pods: list})
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 1<<20-1024 {
			t.Errorf("%d pods with %d policies each: a record of %d bytes", test.pods, test.policies, len(data))
		}
		if estimate := bytesOf(list); estimate < len(data)-1024 {
			t.Errorf("%d pods with %d policies each: %d bytes were taken for %d", test.pods, test.policies, len(data), estimate)
		}
		for _, one := range list {
			if got := len(one.Ingress) + one.Unnamed.Ingress; got != test.policies {
				t.Fatalf("%d pods with %d policies each: one says that it has %d", test.pods, test.policies, got)
			}
		}
	}
}
