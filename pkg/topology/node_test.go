package topology

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const goodNode = `{"Host":"n1","HostIP":"198.18.0.1","Subnet":"172.11.0.0/22","Assign":false}`

func TestParseNode(t *testing.T) {
	n, err := ParseNode("198.18.0.1", []byte(goodNode))
	if err != nil {
		t.Fatal(err)
	}
	want := Node{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22")}
	if diff := cmp.Diff(want, n, byValue); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := n.Gateway(); got != netip.MustParseAddr("172.11.0.1") {
		t.Errorf("gateway %s", got)
	}
	data, _ := json.Marshal(n)
	if string(data) != goodNode {
		t.Errorf("written as %s\nwant       %s", data, goodNode)
	}
}

func TestParseNodeAsking(t *testing.T) {
	const text = `{"Host":"f5","HostIP":"192.0.2.7","Subnet":"","Assign":true}`
	n, err := ParseNode("192.0.2.7", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if n.Ready() || !n.Assign || n.Gateway().IsValid() {
		t.Errorf("%+v is ready, does not ask, or has a gateway", n)
	}
	if data, _ := json.Marshal(n); string(data) != text {
		t.Errorf("written as %s\nwant       %s", data, text)
	}
}

func TestParseNodeRefuses(t *testing.T) {
	for name, test := range map[string]struct{ key, data, say string }{
		// The first k8s-ovs's manual has key .199 with HostIP .197, which took .197's subnet away.
		"key and HostIP differ": {"192.0.2.199", `{"Host":"a","HostIP":"192.0.2.197","Assign":true}`, "must be the address in the key"},
		"no HostIP":             {"192.0.2.1", `{"Host":"a"}`, "HostIP is missing"},
		"key is no address":     {"n1", `{"Host":"a","HostIP":"192.0.2.1"}`, "not an address"},
		"second spelling":       {"2001:DB8::1", `{"Host":"a","HostIP":"2001:db8::1"}`, "must be written 2001:db8::1"},
		"broken JSON":           {"192.0.2.1", `{"Host":`, "not valid JSON"},
		"subnet is no prefix":   {"192.0.2.1", `{"HostIP":"192.0.2.1","Subnet":"172.11.0.0"}`, "not valid JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseNode(test.key, []byte(test.data)); err == nil || !strings.Contains(err.Error(), test.say) {
				t.Errorf("error %v, want one with %q", err, test.say)
			}
		})
	}
}

// Of a record with a field of another form the others are known: who has a subnet, keeps it.
func TestNodePartly(t *testing.T) {
	var n Node
	err := json.Unmarshal([]byte(`{"Host":"n1","HostIP":"198.18.0.1","Assign":"yes","Subnet":"172.11.0.0/22"}`), &n)
	if err == nil || n.Subnet != netip.MustParsePrefix("172.11.0.0/22") {
		t.Errorf("%+v, %v", n, err)
	}
}

func TestNodeValidate(t *testing.T) {
	cfg := DefaultConfig()
	for name, test := range map[string]struct{ ip, subnet, say string }{
		"good":                   {"198.18.0.1", "172.11.252.0/22", ""},
		"good, no subnet":        {"198.18.0.1", "", ""},
		"in the pod network":     {"172.11.0.7", "", "inside the pod network"},
		"in the service network": {"10.96.0.10", "", "inside the service network"},
		"IPv6":                   {"2001:db8::1", "", "not an IPv4 unicast"},
		"IPv4 in IPv6":           {"::ffff:198.18.0.1", "", "not an IPv4 unicast"},
		"loopback":               {"127.0.0.1", "", "not an IPv4 unicast"},
		"multicast":              {"224.0.0.1", "", "not an IPv4 unicast"},
		"none":                   {"", "", "HostIP is missing"},
		"subnet too small":       {"198.18.0.1", "172.11.0.0/24", "is not a /22"},
		"subnet not aligned":     {"198.18.0.1", "172.11.1.0/22", "is not a /22"},
		"subnet outside":         {"198.18.0.1", "172.12.0.0/22", "is not a /22"},
	} {
		t.Run(name, func(t *testing.T) {
			n := Node{Host: "n1"}
			if test.ip != "" {
				n.HostIP = netip.MustParseAddr(test.ip)
			}
			if test.subnet != "" {
				n.Subnet = netip.MustParsePrefix(test.subnet)
			}
			err := n.Validate(cfg)
			if test.say == "" && err != nil || test.say != "" && (err == nil || !strings.Contains(err.Error(), test.say)) {
				t.Errorf("error %v, want %q", err, test.say)
			}
		})
	}
}

// A node may have an address and a subnet of each family. A record that says so is read, kept
// as it is, and refused as long as nobody serves IPv6; so is one that contradicts itself.
func TestNodeLists(t *testing.T) {
	cfg := DefaultConfig()
	dual := cfg
	dual.Networks = []netip.Prefix{cfg.Network, netip.MustParsePrefix("fd00:1:2::/48")}
	for name, test := range map[string]struct {
		cfg       Config
		more, say string
	}{
		"the same as before":            {cfg, `,"HostIPs":["198.18.0.1"],"Subnets":["172.11.0.0/22"]`, ""},
		"a subnet of no network":        {cfg, `,"Subnets":["172.11.0.0/22","fd00:1:2:3::/64"]`, "network configuration only [172.11.0.0/16]"},
		"a subnet of each network":      {dual, `,"Subnets":["172.11.0.0/22","fd00:1:2:3::/64"]`, ""},
		"one of IPv6 of another size":   {dual, `,"Subnets":["172.11.0.0/22","fd00:1:2:3::/65"]`, "is not a /64 of the pod network fd00:1:2::/48"},
		"one that is not its network's": {dual, `,"Subnets":["172.11.0.0/22","172.11.4.0/22"]`, "is not a /64 of"},
		"another first subnet":          {dual, `,"Subnets":["172.11.4.0/22","fd00:1:2:3::/64"]`, "Subnets: the list begins with 172.11.4.0/22"},
		"an address of IPv6":            {dual, `,"HostIPs":["198.18.0.1","2001:db8::1"]`, "2001:db8::1: its address 2001:db8::1 is not IPv4"},
		"two of IPv4":                   {dual, `,"HostIPs":["198.18.0.1","198.18.0.2"]`, "not one of IPv4 and then one of IPv6"},
		"another first address":         {dual, `,"HostIPs":["198.18.0.2","2001:db8::1"]`, "HostIPs: the list begins with"},
	} {
		record := strings.TrimSuffix(goodNode, "}") + test.more + "}"
		n, err := ParseNode("198.18.0.1", []byte(record))
		if err != nil {
			t.Fatal(err)
		}
		if data, err := json.Marshal(n); err != nil || string(data) != record {
			t.Errorf("%s: written as %s, %v\nwant       %s", name, data, err, record)
		}
		if err := n.Validate(test.cfg); (err == nil) != (test.say == "") || err != nil && !strings.Contains(err.Error(), test.say) {
			t.Errorf("%s: error %v, want %q", name, err, test.say)
		}
	}
}

func TestNodeSubnets(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	n := Node{Host: "n1", HostIP: a("198.18.0.1")}
	if n.PodSubnets() != nil || n.Gateways() != nil {
		t.Errorf("without a subnet: %v, %v", n.PodSubnets(), n.Gateways())
	}
	n = n.WithSubnet(p("172.11.0.0/22"))
	if diff := cmp.Diff([]netip.Addr{a("172.11.0.1")}, n.Gateways(), byValue); diff != "" || n.Subnets != nil {
		t.Errorf("with one, list %v:\n%s", n.Subnets, diff)
	}
	n.Subnets = []netip.Prefix{n.Subnet, p("fd00:1:2:3::/64")}
	old := n.Subnets
	n = n.WithSubnet(p("172.11.4.0/22"))
	if diff := cmp.Diff([]netip.Prefix{p("172.11.4.0/22"), p("fd00:1:2:3::/64")}, n.PodSubnets(), byValue); diff != "" || old[0] != p("172.11.0.0/22") {
		t.Errorf("with another first one:\n%s", diff)
	}
	if diff := cmp.Diff([]netip.Addr{a("172.11.4.1"), a("fd00:1:2:3::ac0b:401")}, n.Gateways(), byValue); diff != "" {
		t.Errorf("gateways:\n%s", diff)
	}
	if n = n.WithSubnet(netip.Prefix{}); n.Ready() || n.Subnets != nil {
		t.Errorf("without any: %+v", n)
	}
}

// TestOwnAddresses: what a node has of its own in its subnets is the same in both families: the addresses of IPv6 belong to
// those of IPv4, and whoever sees one of either knows it, wherever its node's subnet lies.
func TestOwnAddresses(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	for _, test := range []struct {
		subnet, second      string
		gateways, forwarder []netip.Addr
	}{
		{"172.11.0.0/22", "fd00:1:2:3::/64", []netip.Addr{a("172.11.0.1"), a("fd00:1:2:3::ac0b:1")}, []netip.Addr{a("172.11.3.255"), a("fd00:1:2:3::ac0b:3ff")}},
		{"172.11.252.0/22", "fd00:1:2:4::/64", []netip.Addr{a("172.11.252.1"), a("fd00:1:2:4::ac0b:fc01")}, []netip.Addr{a("172.11.255.255"), a("fd00:1:2:4::ac0b:ffff")}},
		{"10.128.2.0/23", "", []netip.Addr{a("10.128.2.1")}, []netip.Addr{a("10.128.3.255")}},
		{"10.0.0.4/30", "fd00::/96", []netip.Addr{a("10.0.0.5"), a("fd00::a00:5")}, []netip.Addr{a("10.0.0.7"), a("fd00::a00:7")}},
	} {
		n := Node{Host: "n1", HostIP: a("198.18.0.1"), Subnet: p(test.subnet)}
		if test.second != "" {
			n.Subnets = []netip.Prefix{n.Subnet, p(test.second)}
		}
		if diff := cmp.Diff(test.gateways, n.Gateways(), byValue); diff != "" {
			t.Errorf("%s: gateways (-want +got):\n%s", test.subnet, diff)
		}
		if diff := cmp.Diff(test.forwarder, n.Forwarders(), byValue); diff != "" {
			t.Errorf("%s: forwarders (-want +got):\n%s", test.subnet, diff)
		}
		for i, subnet := range n.PodSubnets() {
			gateway, forwarder := n.Gateways()[i], n.Forwarders()[i]
			if !subnet.Contains(gateway) || !subnet.Contains(forwarder) {
				t.Errorf("%s and %s are not in %s", gateway, forwarder, subnet)
			}
			for addr, want := range map[netip.Addr]bool{gateway: true, forwarder: false, gateway.Next(): false, gateway.Prev(): false} {
				if got := IsGateway(addr, n.Subnet.Bits()); got != want {
					t.Errorf("%s is a gateway: %t, want %t", addr, got, want)
				}
			}
		}
		if n.Gateway() != n.Gateways()[0] || n.Gateway() != GatewayOf(n.Subnet) || n.Forwarders()[0] != ForwarderOf(n.Subnet) {
			t.Errorf("%s: the first are %v and %v", test.subnet, n.Gateways(), n.Forwarders())
		}
	}
	if n := (Node{}); n.Gateways() != nil || n.Forwarders() != nil {
		t.Errorf("without a subnet: %v, %v", n.Gateways(), n.Forwarders())
	}
}

func FuzzParseNode(f *testing.F) {
	f.Add("198.18.0.1", []byte(goodNode))
	f.Add("::1", []byte(`{"HostIP":"::1","Subnet":"::/0","Status":{"Message":"x","Time":"2026-01-01T00:00:00Z"}}`))
	f.Add("fe80::1%eth0", []byte(`{"HostIP":"fe80::1%eth0"}`))
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		n, err := ParseNode(key, data)
		if err != nil {
			return
		}
		if n.HostIP.String() != key {
			t.Errorf("record %q is node %s", key, n.HostIP)
		}
		n.Gateway()
		if n.Validate(DefaultConfig()) == nil && n.Ready() && !DefaultConfig().Network.Contains(n.Gateway()) {
			t.Errorf("gateway %s of %s is outside of the network", n.Gateway(), n.Subnet)
		}
		again, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		n2, err := ParseNode(key, again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if diff := cmp.Diff(n, n2, byValue); diff != "" {
			t.Errorf("%s is read as another:\n%s", again, diff)
		}
	})
}

// Records are equal that say the same, and every field is looked at.
func TestNodeEqual(t *testing.T) {
	whole := wholeNode()
	same := whole
	same.Status, same.HostIPs, same.Subnets = &Status{Message: "why"}, slices.Clone(whole.HostIPs), slices.Clone(whole.Subnets)
	if !whole.Equal(same) || !same.Equal(whole) {
		t.Error("a copy is another")
	}
	for i := range reflect.TypeFor[Node]().NumField() {
		other, name := whole, reflect.TypeFor[Node]().Field(i).Name
		field := reflect.ValueOf(&other).Elem().Field(i)
		if field.IsZero() {
			t.Fatalf("the test gives %s no value", name)
		}
		field.SetZero()
		if whole.Equal(other) || other.Equal(whole) {
			t.Errorf("a record with another %s is the same", name)
		}
	}
	if other := (Node{Status: &Status{Message: "another"}}); other.Equal(Node{Status: &Status{Message: "why"}}) {
		t.Error("a record with another Status is the same")
	}
}
