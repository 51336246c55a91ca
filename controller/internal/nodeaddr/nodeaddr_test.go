package nodeaddr

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

func addresses(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func node(name string, age int, internal []netip.Addr, others ...netip.Addr) kube.Node {
	return kube.Node{Name: name, UID: "uid-" + name, Created: time.Unix(int64(1000-age), 0), Addresses: internal, Every: slices.Concat(internal, others), Internal: len(internal)}
}

// TestOf: a Node has nothing of a pod, a service or another Node, whatever its kubelet reports.
func TestOf(t *testing.T) {
	cfg := topology.DefaultConfig()
	pod, service := cfg.Network.Addr().Next().String(), cfg.ServiceNetwork.Addr().Next().String()
	shared := addresses("203.0.113.7")[0] // several nodes leave the cluster by it
	nodes := map[string]kube.Node{
		"old":    node("old", 30, addresses("192.0.2.1"), shared, addresses("2001:db8::1")[0]),
		"record": node("record", 1, addresses("192.0.2.2"), shared),
		"young":  node("young", 5, addresses("192.0.2.3", "192.0.2.1")),
		// As old as can be, so that nothing but records can be in its way.
		"stolen": node("stolen", 999, addresses("192.0.2.9", "192.0.2.2", pod), addresses("192.0.2.3", "192.0.2.50", service, "169.254.169.254", "::1", "127.0.0.1", "::ffff:192.0.2.2", "198.51.100.1")...),
	}
	records := map[netip.Addr]topology.Node{
		addresses("192.0.2.2")[0]:  {Host: "record", UID: "uid-record"},
		addresses("192.0.2.3")[0]:  {Host: "young", UID: "uid-young"},
		addresses("192.0.2.9")[0]:  {Host: "stolen"}, // from before its UID was in it
		addresses("192.0.2.1")[0]:  {Host: "gone", UID: "uid-gone"},
		addresses("192.0.2.50")[0]: {Host: "balancer"},
	}
	got := Of(cfg, nodes, records)
	want := map[string][]netip.Addr{
		"old": nodes["old"].Every, "record": nodes["record"].Every, "young": addresses("192.0.2.3"),
		"stolen": addresses("192.0.2.9", "198.51.100.1"),
	}
	for name, own := range want {
		if diff := cmp.Diff(own, got[name].Own, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
	why := map[string]string{}
	for _, r := range got["stolen"].Refused {
		why[r.Address.String()] = r.Why
	}
	if diff := cmp.Diff(map[string]string{
		"192.0.2.2": "the InternalIP of Node record", "192.0.2.3": "the InternalIP of Node young", "192.0.2.50": "the address of host balancer, which is no Node",
		pod: "inside the pod network", service: "inside the service network", "169.254.169.254": "not the address of a machine", "::1": "not the address of a machine",
		"127.0.0.1": "not the address of a machine", "::ffff:192.0.2.2": "the InternalIP of Node record",
	}, why); diff != "" {
		t.Errorf("what is refused of the stolen node (-want +got)\n%s", diff)
	}
}

// TestOfYounger: with its InternalIPs a younger Node takes no address away from an older one, of
// either family, whatever that one lists it as.
func TestOfYounger(t *testing.T) {
	external, shared := addresses("198.51.100.1")[0], addresses("203.0.113.7")[0]
	v6 := addresses("2001:db8::1")[0]
	nodes := map[string]kube.Node{
		"victim": node("victim", 20, addresses("192.0.2.1", "2001:db8::1"), external, shared),
		"other":  node("other", 10, addresses("192.0.2.2"), shared),
		"thief":  node("thief", 1, append(addresses("192.0.2.9"), external, v6)),
		// The same address, in another spelling, and not as InternalIP.
		"second": node("second", 30, addresses("192.0.2.8"), netip.MustParseAddr("::ffff:192.0.2.1")),
	}
	got := Of(topology.DefaultConfig(), nodes, nil)
	for name, want := range map[string][]netip.Addr{
		"victim": nodes["victim"].Every, "other": nodes["other"].Every, "second": nodes["second"].Every,
		// What is nobody's InternalIP alone several may have, and so the victim keeps it.
		"thief": append(addresses("192.0.2.9"), external),
	} {
		if diff := cmp.Diff(want, got[name].Own, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
	if diff := cmp.Diff([]Refused{{v6, "the InternalIP of Node victim"}}, got["thief"].Refused, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("what is refused of the thief (-want +got)\n%s", diff)
	}
}

// TestComplaint fits into an Event, whatever is listed.
func TestComplaint(t *testing.T) {
	if c := (Addresses{Own: addresses("192.0.2.1")}).Complaint(); c != "" {
		t.Errorf("a node that lists its own is complained of: %s", c)
	}
	a := Addresses{More: 19984}
	for range kube.MaxNodeAddresses {
		a.Refused = append(a.Refused, Refused{addresses("2001:db8:1111:2222:3333:4444:5555:6666")[0], "the InternalIP of Node " + strings.Repeat("n", 63)})
	}
	c := a.Complaint()
	for _, want := range []string{"2001:db8:1111:2222:3333:4444:5555:6666 is the InternalIP of Node nnn", "12 others", "19984 are more than the 16"} {
		if !strings.Contains(c, want) {
			t.Errorf("complaint lacks %q: %s", want, c)
		}
	}
	if len(c) > 1024 {
		t.Errorf("complaint has %d bytes, more than an Event: %s", len(c), c)
	}
}
