package identity

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

var (
	ip1, ip2 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now      = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestUsers(t *testing.T) {
	got := Users("/p", "net", map[netip.Addr]topology.Node{
		ip1:                              {Host: "n1", HostIP: ip1, UID: "u"},
		ip2:                              {Host: "n1", HostIP: ip2, UID: "u"}, // one machine with two addresses
		netip.MustParseAddr("192.0.2.3"): {Host: "n3", UID: "u", Identity: "i"},
		netip.MustParseAddr("192.0.2.4"): {Host: "n4"},
	})
	want := map[string][]string{"k8s-ovs-node:n1:u": {"k8s-ovs-node:n1:u", "k8s-ovs-reader"}, "k8s-ovs-node:n3:i": {"k8s-ovs-node:n3:i", "k8s-ovs-reader"}}
	if diff := cmp.Diff(want, got.Users); diff != "" {
		t.Errorf("users (-want +got):\n%s", diff)
	}
	var keys []string
	for _, p := range got.Roles["k8s-ovs-node:n1:u"] {
		if !p.Write || p.End != "" {
			t.Errorf("%+v is not one key to write", p)
		}
		keys = append(keys, strings.TrimPrefix(p.From, "/p/net/"))
	}
	if diff := cmp.Diff([]string{"limits/192.0.2.1", "mtu/192.0.2.1", "pods/192.0.2.1", "requests/192.0.2.1", "status/192.0.2.1",
		"limits/192.0.2.2", "mtu/192.0.2.2", "pods/192.0.2.2", "requests/192.0.2.2", "status/192.0.2.2"}, keys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// TestAnswer: each line is one request, and what becomes of it.
func TestAnswer(t *testing.T) {
	ca := must(pki.NewCA("ca", now))
	request := func(user string) string {
		key, _, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		return string(must(pki.Request(key, user)))
	}
	own, others := request("k8s-ovs-node:n1:i"), request("k8s-ovs-node:n2:i")
	answered := map[netip.Addr]store.Versioned[topology.Certificate]{ip1: {Value: topology.Certificate{
		Certificate: string(must(ca.Sign([]byte(own), "k8s-ovs-node:n1:i", time.Hour, now))), CA: string(ca.CertPEM)}}}
	trusted := map[netip.Addr]store.Versioned[topology.Certificate]{ip1: {Value: topology.Certificate{CA: string(ca.CertPEM)}}}
	n1 := topology.Node{Host: "n1", HostIP: ip1, Identity: "i", Subnet: netip.MustParsePrefix("172.11.0.0/22")}
	fresh := topology.Node{Host: "n1", HostIP: ip1, Identity: "i"}
	asks := func(r topology.Request) topology.Request { r.Host, r.HostIP = "n1", ip1; return r }
	for name, test := range map[string]struct {
		request    topology.Request
		node       *topology.Node
		unenforced bool
		answers    map[netip.Addr]store.Versioned[topology.Certificate]
		unreadable map[string]string
		want       Plan
	}{
		"namespaces": {asks(topology.Request{Namespaces: []string{"blue", "red"}}), &n1, false, trusted, nil, Plan{Namespaces: []string{"red"}}},
		"a namespace whose record does not parse": {asks(topology.Request{Namespaces: []string{"red"}}), &n1, false, trusted, map[string]string{"netnamespaces/red": "x"}, Plan{}},
		"a subnet, held":     {asks(topology.Request{Subnet: true}), &n1, false, trusted, nil, Plan{}},
		"a subnet":           {asks(topology.Request{Subnet: true}), &fresh, false, trusted, nil, Plan{Nodes: []topology.Node{{Host: "n1", HostIP: ip1, Identity: "i", Assign: true}}}},
		"nobody":             {asks(topology.Request{Subnet: true}), nil, false, nil, nil, Plan{Drop: []string{"192.0.2.1"}, Refused: map[string]string{"192.0.2.1": "there is no record of node n1 with address 192.0.2.1: it needs a bundle"}}},
		"nobody, unenforced": {asks(topology.Request{Subnet: true}), nil, true, nil, nil, Plan{Nodes: []topology.Node{{Host: "n1", HostIP: ip1, Assign: true}}}},
		"another's address": {topology.Request{Host: "n2", HostIP: ip1, Namespaces: []string{"red"}}, &n1, false, trusted, nil,
			Plan{Refused: map[string]string{"192.0.2.1": "n2 asks, but address 192.0.2.1 is node n1's"}}},
		"a certificate":           {asks(topology.Request{CSR: own}), &n1, false, nil, nil, Plan{Sign: []Signature{{ip1, "k8s-ovs-node:n1:i", own}}}},
		"a certificate, answered": {asks(topology.Request{CSR: own}), &n1, false, answered, nil, Plan{}},
		"another's certificate": {asks(topology.Request{CSR: others}), &n1, false, trusted, nil,
			Plan{Refused: map[string]string{"192.0.2.1": `it asks for a certificate for "k8s-ovs-node:n2:i", but is "k8s-ovs-node:n1:i"`}}},
		"a certificate, unenforced": {asks(topology.Request{CSR: own}), &n1, true, nil, nil,
			Plan{Refused: map[string]string{"192.0.2.1": "it asks for a certificate, but this controller signs none"}}},
		"in Kubernetes": {asks(topology.Request{Namespaces: []string{"red"}}), &topology.Node{Host: "n1", HostIP: ip1, UID: "u"}, false, nil, nil,
			Plan{Refused: map[string]string{"192.0.2.1": "its record follows the Node n1 of Kubernetes"}}},
		"another CA": {asks(topology.Request{}), &n1, false, nil, nil, Plan{Trust: []netip.Addr{ip1}}},
	} {
		in := Input{
			Config: topology.DefaultConfig(), Nodes: map[netip.Addr]topology.Node{}, Namespaces: map[string]topology.Namespace{"blue": {NetName: "blue"}},
			Unreadable: test.unreadable, Enforced: !test.unenforced, Trust: ca.CertPEM,
			Requests: store.Requests{All: map[netip.Addr]store.Versioned[topology.Request]{ip1: {Value: test.request}}, Answers: test.answers},
		}
		if test.node != nil {
			in.Nodes[ip1] = *test.node
		}
		if test.want.Refused == nil {
			test.want.Refused = map[string]string{}
		}
		if diff := cmp.Diff(test.want, Answer(in), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestAnswerGrants: a node gets as many namespaces as it may still ask for, and is told of the others; what is
// there already, or another asked for, costs it nothing.
func TestAnswerGrants(t *testing.T) {
	ip2 := netip.MustParseAddr("192.0.2.2")
	asks := func(host string, ip netip.Addr, namespaces ...string) store.Versioned[topology.Request] {
		return store.Versioned[topology.Request]{Value: topology.Request{Host: host, HostIP: ip, Namespaces: namespaces}}
	}
	wanted := map[netip.Addr]int{}
	got := Answer(Input{
		Enforced:   true,
		Nodes:      map[netip.Addr]topology.Node{ip1: {Host: "n1", HostIP: ip1}, ip2: {Host: "n2", HostIP: ip2}},
		Namespaces: map[string]topology.Namespace{"there": {NetName: "there"}},
		Requests:   store.Requests{All: map[netip.Addr]store.Versioned[topology.Request]{ip1: asks("n1", ip1, "a", "b", "there"), ip2: asks("n2", ip2, "a", "b", "c", "d")}},
		Grant: func(node netip.Addr, n int) int {
			wanted[node] = n
			return min(n, 2)
		},
	})
	want := Plan{Namespaces: []string{"a", "b", "c", "d"}, Refused: map[string]string{}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if wanted[ip1] != 2 || wanted[ip2] != 2 {
		t.Errorf("asked to grant %v", wanted)
	}
	got = Answer(Input{
		Enforced: true, Nodes: map[netip.Addr]topology.Node{ip1: {Host: "n1", HostIP: ip1}},
		Requests: store.Requests{All: map[netip.Addr]store.Versioned[topology.Request]{ip1: asks("n1", ip1, "a", "b", "c")}},
		Grant:    func(netip.Addr, int) int { return 1 },
	})
	if len(got.Namespaces) != 1 || !strings.Contains(got.Refused[ip1.String()], "more namespaces") {
		t.Errorf("of three, with one granted: %+v", got)
	}
}
