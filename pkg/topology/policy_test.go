package topology

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPolicyForms: each record is read, and written as it was.
func TestPolicyForms(t *testing.T) {
	web := PodSet{Namespaces: "team=a", Pods: "app=web"}
	for name, test := range map[string]struct {
		text string
		want any
		read func(string) (any, error)
	}{
		"isolation": {
			`{"Policies":[{"Name":"web","Selector":"app=web","Ingress":true},{"Name":"z.9","Selector":"","Egress":true}]}`,
			Isolation{Policies: []IsolatingPolicy{{Name: "web", Selector: "app=web", Ingress: true}, {Name: "z.9", Egress: true}}},
			func(s string) (any, error) { return ParseIsolation("shop", []byte(s)) },
		},
		"isolation by ClusterNetworkPolicies": {
			`{"Policies":[],"Cluster":[{"Name":"base","Selector":""}]}`,
			Isolation{Policies: []IsolatingPolicy{}, Cluster: []SelectingPolicy{{Name: "base"}}},
			func(s string) (any, error) { return ParseIsolation("shop", []byte(s)) },
		},
		"cluster policy": {
			`{"Tier":"Baseline","Priority":7,"Subject":{"Namespaces":"team=a","Pods":"app=web"},"Ingress":[{"Action":"Deny","Peers":[{"Set":{}}]}],` +
				`"Egress":[{"Action":"Pass","Peers":[{"Set":{"OfNodes":true,"Nodes":"zone=b"}}],"Ports":[{"Protocol":"TCP","Port":80}]},{"Action":"Accept"}]}`,
			ClusterPolicyRecord{
				Tier: TierBaseline, Priority: 7, Subject: web,
				Ingress: []ClusterPolicyRule{{ActionDeny, PolicyRule{Peers: []PolicyPeer{{Set: &PodSet{}}}}}},
				Egress: []ClusterPolicyRule{
					{ActionPass, PolicyRule{Peers: []PolicyPeer{{Set: &PodSet{OfNodes: true, Nodes: "zone=b"}}}, Ports: []PolicyPort{{Protocol: "TCP", Port: 80}}}},
					{Action: ActionAccept},
				},
			},
			func(s string) (any, error) { return ParseClusterPolicy("base", []byte(s)) },
		},
		"policy": {
			`{"Selector":"app=web","Ingress":[{"Peers":[{"Set":{"Namespaces":"team=a","Pods":"app=web"}},{"Block":"10.0.0.0/8","Except":["10.1.0.0/16"]},{"Set":{}}],` +
				`"Ports":[{"Protocol":"TCP","Port":80,"End":90},{"Protocol":"TCP","Name":"http"},{"Protocol":"UDP"}]},{},{"Peers":[],"Ports":[]}],"Egress":null}`,
			PolicyRecord{Selector: "app=web", Ingress: []PolicyRule{
				{
					Peers: []PolicyPeer{{Set: &web}, {Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}, {Set: &PodSet{}}},
					Ports: []PolicyPort{{Protocol: "TCP", Port: 80, End: 90}, {Protocol: "TCP", Name: "http"}, {Protocol: "UDP"}},
				},
				{},
				{Peers: []PolicyPeer{}, Ports: []PolicyPort{}},
			}},
			func(s string) (any, error) { return ParsePolicy("shop/web", []byte(s)) },
		},
		"policy that allows nothing": {
			`{"Selector":"","Ingress":null,"Egress":[]}`, PolicyRecord{Egress: []PolicyRule{}},
			func(s string) (any, error) { return ParsePolicy("shop/deny", []byte(s)) },
		},
		"set": {
			`{"Namespaces":"team=a","Pods":"app=web","Whole":true}`, AddressSet{PodSet: web, Whole: true},
			func(s string) (any, error) { return ParseAddressSet("9f2c00000000abcd", []byte(s)) },
		},
		"chunk": {
			`{"Addresses":"2,5-9","Ports":[{"Name":"http","Protocol":"TCP","Port":8080,"Addresses":"2,5"}]}`,
			SetChunk{Addresses: octets(2, 5, 6, 7, 8, 9), Ports: []ChunkPort{{Name: "http", Protocol: "TCP", Port: 8080, Addresses: octets(2, 5)}}},
			func(s string) (any, error) {
				base, c, err := ParseSetChunk("9f2c00000000abcd/172.11.0.0", []byte(s))
				if base != netip.MustParseAddr("172.11.0.0") {
					t.Errorf("base %s", base)
				}
				return c, err
			},
		},
		"pods": {
			`{"Host":"n1","HostIP":"198.18.0.1","Pods":[{"Namespace":"shop","Name":"web-1","UID":"u","Address":"172.11.0.5","Ingress":["web"]}]}`,
			NodePods{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Pods: []NodePod{{Namespace: "shop", Name: "web-1", UID: "u", Address: netip.MustParseAddr("172.11.0.5"), Ingress: []string{"web"}}}},
			func(s string) (any, error) { return ParseNodePods("198.18.0.1", []byte(s)) },
		},
		"acknowledgement": {
			`{"Revision":7}`, Acknowledged{Revision: 7},
			func(s string) (any, error) { return ParseAcknowledged("198.18.0.1", []byte(s)) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.read(test.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, byValue); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
			if data, err := json.Marshal(got); err != nil || string(data) != test.text {
				t.Errorf("written as %s (%v)\nwant       %s", data, err, test.text)
			}
		})
	}
}

func TestPolicyFormsRefused(t *testing.T) {
	policy := func(text string) error { _, err := ParsePolicy("shop/web", []byte(text)); return err }
	peer := func(text string) error { return policy(`{"Ingress":[{},{"Peers":[{"Set":{}},` + text + `]}]}`) }
	port := func(text string) error { return policy(`{"Egress":[{"Ports":[` + text + `]}]}`) }
	chunk := func(key, text string) error { _, _, err := ParseSetChunk(key, []byte(text)); return err }
	isolation := func(key, text string) error { _, err := ParseIsolation(key, []byte(text)); return err }
	set := func(key, text string) error { _, err := ParseAddressSet(key, []byte(text)); return err }
	pods := func(key, text string) error { _, err := ParseNodePods(key, []byte(text)); return err }
	cluster := func(text string) error { _, err := ParseClusterPolicy("base", []byte(text)); return err }
	_, name := ParsePolicy("shop/A", []byte(`{}`))
	_, clusterName := ParseClusterPolicy("A", []byte(`{"Tier":"Admin"}`))
	const hash = "9f2c00000000abcd"
	for say, err := range map[string]error{
		"policy record shop/web is not valid JSON of its form":          policy(`{"Ingress":{}}`),
		`policy record shop/A: the name "A" is not a DNS subdomain`:     name,
		`cluster policy record A: the name "A" is not a DNS subdomain`:  clusterName,
		`cluster policy record base: its Tier "" is none of`:            cluster(`{}`),
		"base: its Subject: it has Namespace and Namespaces":            cluster(`{"Tier":"Admin","Subject":{"Namespace":"a","Namespaces":"b=c"}}`),
		"its Subject is a set of nodes":                                 cluster(`{"Tier":"Admin","Subject":{"OfNodes":true}}`),
		`Ingress[0]: its Action "Allow" is none of`:                     cluster(`{"Tier":"Admin","Ingress":[{"Action":"Allow"}]}`),
		"Egress[0]: Peers[0]: it needs one of Set and Block":            cluster(`{"Tier":"Admin","Egress":[{"Action":"Deny","Peers":[{}]}]}`),
		`isolation record shop: the name "X" is not`:                    isolation("shop", `{"Cluster":[{"Name":"X"}]}`),
		"it has OfNodes and what chooses pods":                          peer(`{"Set":{"OfNodes":true,"Pods":"a=b"}}`),
		"without OfNodes there are no Nodes":                            peer(`{"Set":{"Nodes":"a=b"}}`),
		"shop/web: Ingress[1]: Peers[1]: it needs one of Set and Block": peer(`{}`),
		"Peers[1]: it needs one of Set and Block, and not both":         peer(`{"Set":{},"Block":"10.0.0.0/8"}`),
		"with Set there is no Except":                                   peer(`{"Set":{},"Except":["10.0.0.0/8"]}`),
		"a prefix of Except is empty":                                   peer(`{"Block":"10.0.0.0/8","Except":[""]}`),
		"it has Namespace and Namespaces":                               peer(`{"Set":{"Namespace":"a","Namespaces":"b=c"}}`),
		`shop/web: Egress[0]: Ports[0]: its Protocol "" is none of`:     port(`{}`),
		"ports 0 to 7 are no range":                                     port(`{"Protocol":"TCP","End":7}`),
		"ports 8 to 7 are no range":                                     port(`{"Protocol":"TCP","Port":8,"End":7}`),
		`it has the name "http" and a number`:                           port(`{"Protocol":"TCP","Port":8,"Name":"http"}`),
		"isolation record a/b: namespace name":                          isolation("a/b", `{}`),
		`isolation record a: the name "x/y" is not`:                     isolation("a", `{"Policies":[{"Name":"x/y"}]}`),
		`the name "9f2c" of a set is not 16 hexadecimal digits`:         set("9f2c", `{}`),
		`the name "9F2C00000000ABCD" of a set`:                          set("9F2C00000000ABCD", `{}`),
		"set record " + hash + "/172.11.0.1: its key ends in":           chunk(hash+"/172.11.0.1", `{}`),
		"set record " + hash + "/of: its key ends in":                   chunk(hash+"/of", `{}`),
		`octets "5-2": "5-2" is no range`:                               chunk(hash+"/172.11.0.0", `{"Addresses":"5-2"}`),
		`octets "256": "256" is no number`:                              chunk(hash+"/172.11.0.0", `{"Addresses":"256"}`),
		`port "http", TCP 0, needs`:                                     chunk(hash+"/172.11.0.0", `{"Ports":[{"Name":"http","Protocol":"TCP"}]}`),
		"record of the pods of node 198.18.0.1: HostIP is 198.18.0.2":   pods("198.18.0.1", `{"HostIP":"198.18.0.2"}`),
		"node 198.18.0.1: pod shop/web at fd00::1 needs":                pods("198.18.0.1", `{"HostIP":"198.18.0.1","Pods":[{"Namespace":"shop","Name":"web","Address":"fd00::1"}]}`),
	} {
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want one with %q", err, say)
		}
	}
}

func octets(list ...byte) (o Octets) {
	for _, b := range list {
		o.Add(b)
	}
	return o
}

// TestOctets: whatever is among them, they are written and read the same, and list what was added.
func TestOctets(t *testing.T) {
	for text, want := range map[string]Octets{"": {}, "0": octets(0), "255": octets(255), "0,2-3,255": octets(0, 2, 3, 255)} {
		if got := want.String(); got != text {
			t.Errorf("written %q, want %q", got, text)
		}
	}
	all := octets()
	for i := range 256 {
		all.Add(byte(i))
	}
	if all.String() != "0-255" || all.Len() != 256 {
		t.Errorf("all are %q, %d", all, all.Len())
	}
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		var o Octets
		added := map[byte]bool{}
		for range random.IntN(300) {
			b := byte(random.IntN(256))
			o.Add(b)
			added[b] = true
		}
		var back Octets
		if err := back.UnmarshalText([]byte(o.String())); err != nil || back != o {
			t.Fatalf("seed %d: %q is read as %q (%v)", seed, o, back, err)
		}
		n := 0
		for b := range o.All() {
			n++
			if !added[b] {
				t.Fatalf("seed %d: %d was not added", seed, b)
			}
		}
		if n != len(added) || o.Len() != n {
			t.Fatalf("seed %d: %d of %d added are there", seed, n, len(added))
		}
	}
}

// TestStatusBefore: a status of an agent before Enforces says that it enforces nothing, and
// one that says something is read by whoever does not know the field.
func TestStatusBefore(t *testing.T) {
	const before = `{"Host":"n1","HostIP":"198.18.0.1","Revision":7,"Version":"0.9","Datapath":"netdev","MTU":1450,"Pods":3}`
	var s NodeStatus
	if err := json.Unmarshal([]byte(before), &s); err != nil || s.Enforces != nil {
		t.Fatalf("%+v, %v", s, err)
	}
	if data, _ := json.Marshal(s); string(data) != before {
		t.Errorf("written as %s\nwant       %s", data, before)
	}
	s.Enforces = []string{EnforcesNetworkPolicy}
	data, _ := json.Marshal(s)
	var old struct{ Host, Version string }
	if err := json.Unmarshal(data, &old); err != nil || old.Host != "n1" || !strings.HasSuffix(string(data), `"Enforces":["NetworkPolicy"]}`) {
		t.Errorf("%s: %+v, %v", data, old, err)
	}
	s.Lacks = []string{LacksSCTPPorts}
	if data, _ = json.Marshal(s); !strings.HasSuffix(string(data), `"Enforces":["NetworkPolicy"],"Lacks":["SCTPPorts"]}`) {
		t.Errorf("written as %s", data)
	}
}
