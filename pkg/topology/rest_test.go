package topology

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

// What a record has that this release does not know is read in one form, whatever stands in etcd, and is
// written behind the rest of it.
func TestRest(t *testing.T) {
	for more, want := range map[string]string{
		``:                                     ``,
		`,"By":"me","uid":"u","FORCED":true`:   ``,
		`,"\u0042y":"me"`:                      ``,
		`,"Color":"red"`:                       `"Color":"red"`,
		`,"B":1.50,"A":null`:                   `"A":null,"B":1.50`,
		`,"A":1,"A":2`:                         `"A":2`,
		` , "A" : [ 1 , {"b" : "}],\"\\" } ] `: `"A":[1,{"b":"}],\"\\"}]`,
		`,"A":{"NetName":"x"},"\"":{}`:         `"\"":{},"A":{"NetName":"x"}`,
		`,"A":"<"`:                             `"A":"\u003c"`,
		",\"\xff\":1":                          `"` + "�" + `":1`,
		`,"Change":{"Step":"later"}`:           ``,
	} {
		n, err := ParseNamespace("ns", []byte(` {"NetName":"ns","Action":"","Namespace":""`+more+`}`))
		if err != nil || string(n.Rest) != want {
			t.Errorf("%s: read as %s, %v\nwant %s", more, n.Rest, err, want)
			continue
		}
		n.By, n.UID, n.Forced = "", "", false
		written, err := json.Marshal(n)
		if whole := `{"NetName":"ns","Action":"","Namespace":"",` + want + `}`; err != nil || string(written) != strings.Replace(whole, ",}", "}", 1) {
			t.Errorf("%s: written as %s, %v", more, written, err)
		}
	}
	for _, v := range []any{&Config{}, &Node{}, &Namespace{}} {
		if err := json.Unmarshal([]byte(" null"), v); err != nil {
			t.Errorf("%T: null: %v", v, err)
		}
	}
}

func TestRestWith(t *testing.T) {
	for _, tc := range []struct{ a, b, want Rest }{
		{``, ``, ``},
		{`"A":1`, ``, `"A":1`},
		{``, `"A":1`, `"A":1`},
		{`"A":1,"C":3`, `"A":2,"B":2`, `"A":2,"B":2,"C":3`},
	} {
		if got := tc.a.With(tc.b); got != tc.want {
			t.Errorf("%s with %s: %s, want %s", tc.a, tc.b, got, tc.want)
		}
	}
}

// Configurations and nodes keep it as namespaces do.
func TestRestOfAll(t *testing.T) {
	const more = `,"Color":"red"}`
	node, config := strings.TrimSuffix(goodNode, "}")+more, strings.TrimSuffix(goodConfig, "}")+more
	n, err := ParseNode("198.18.0.1", []byte(node))
	if data, werr := json.Marshal(n); err != nil || werr != nil || string(data) != node {
		t.Errorf("%s, %v, %v", data, err, werr)
	}
	c, err := ParseConfig([]byte(config))
	if data, werr := json.Marshal(c); err != nil || werr != nil || string(data) != config {
		t.Errorf("%s, %v, %v", data, err, werr)
	}
	// The copy on a node's disk, and what nodes say that they hold.
	s := Snapshot{Config: c, Nodes: map[netip.Addr]Node{n.HostIP: n}}
	data, _ := json.Marshal(s)
	var again Snapshot
	if err := json.Unmarshal(data, &again); err != nil || !again.Config.Equal(c) || !again.Nodes[n.HostIP].Equal(n) {
		t.Errorf("%+v, %v", again, err)
	}
}

// FuzzRest compares with what encoding/json says the members are.
func FuzzRest(f *testing.F) {
	f.Add([]byte(`{"NetName":"ns","Color":"red","a":[{"b":"\"}"}]}`))
	f.Add([]byte(" { } "))
	f.Fuzz(func(t *testing.T, data []byte) {
		var n Namespace
		if json.Unmarshal(data, &n) != nil {
			return
		}
		members := map[string]json.RawMessage{}
		if err := json.Unmarshal(data, &members); err != nil {
			t.Fatal(err)
		}
		for name := range members {
			if namespaceFields.knows(name) {
				delete(members, name)
			}
		}
		if want := restOf(members); n.Rest != want {
			t.Errorf("%s: %s, want %s", data, n.Rest, want)
		}
	})
}

// Somebody has decided of every field what it is in a restoration: whoever adds one does so here, by the
// rules in docs/design.md.
const (
	claimed = "nodes must agree on it, or the record is not put back"
	beside  = "it is put back with the record where half of all nodes hold it"
	dropped = "it follows from the others, or is not put back"
)

var (
	nodeDecided = map[string]string{
		"Host": claimed, "HostIP": claimed, "Subnet": claimed, "UID": claimed, "Identity": claimed, "HostIPs": claimed, "Subnets": claimed,
		"Assign": dropped, "Status": dropped, "Rest": beside,
	}
	namespaceDecided = map[string]string{
		"NetName": claimed, "Effective": claimed, "Change": claimed, "UID": claimed, "Declared": claimed, "Forced": claimed, "Action": claimed, "Namespace": claimed,
		"By": beside, "Status": beside, "Rest": beside, "NetID": dropped,
	}
)

func wholeNode() Node {
	return Node{
		Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Subnet: netip.MustParsePrefix("172.11.0.0/22"), Assign: true, Status: &Status{Message: "why"}, UID: "u", Identity: "i",
		HostIPs: []netip.Addr{netip.MustParseAddr("198.18.0.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("172.11.0.0/22")}, Rest: `"Color":"red"`,
	}
}

func wholeNamespace() Namespace {
	return Namespace{
		NetName: "ns", NetID: ptr[int64](10), Action: Join, Namespace: "b", By: "me", Effective: ptr(netid.ID(10)), Change: Change{Step: StepSend, NetID: 11},
		Status: &Status{Message: "why"}, UID: "u", Declared: "net", Forced: true, Rest: `"Color":"red"`,
	}
}

func TestClaimDecided(t *testing.T) {
	decided(t, wholeNode(), Node.Claim, nodeDecided)
	decided(t, wholeNamespace(), Namespace.Claim, namespaceDecided)
}

// decided checks that a claim has those fields of a record that are claimed, and only those.
func decided[T any](t *testing.T, whole T, claim func(T) T, by map[string]string) {
	t.Helper()
	of := reflect.ValueOf(claim(whole))
	for i := range of.NumField() {
		name := of.Type().Field(i).Name
		switch how, is := by[name]; {
		case !is:
			t.Errorf("nobody has decided whether %s of %T is part of what nodes must agree on", name, whole)
		case reflect.ValueOf(whole).Field(i).IsZero():
			t.Errorf("the test gives %s of %T no value", name, whole)
		case of.Field(i).IsZero() == (how == claimed):
			t.Errorf("%s of %T: %s", name, whole, how)
		}
	}
}

// A node says of its records those whose claim etcd does not have, whatever field differs.
func TestSameClaim(t *testing.T) {
	held := Snapshot{Nodes: map[netip.Addr]Node{wholeNode().HostIP: wholeNode()}, Namespaces: map[string]Namespace{"ns": wholeNamespace()}}
	for name, how := range nodeDecided {
		other := wholeNode()
		reflect.ValueOf(&other).Elem().FieldByName(name).SetZero()
		same := how != claimed
		if wholeNode().SameClaim(other) != same || other.SameClaim(wholeNode()) != same {
			t.Errorf("another %s of a node: the claim is the same: %t", name, !same)
		}
		now := Snapshot{Nodes: map[netip.Addr]Node{wholeNode().HostIP: other}, Namespaces: held.Namespaces}
		if said := HeldBeside(held, now, func(string) bool { return false }); (len(said.Nodes) == 0) != same {
			t.Errorf("another %s of a node: the node says %+v", name, said.Nodes)
		}
	}
	tenancy := map[string]bool{"Effective": true, "Change": true}
	for name := range namespaceDecided {
		other := wholeNamespace()
		reflect.ValueOf(&other).Elem().FieldByName(name).SetZero()
		if wholeNamespace().SameTenancy(other) == tenancy[name] || other.SameTenancy(wholeNamespace()) == tenancy[name] {
			t.Errorf("another %s of a namespace: the tenancy is the same: %t", name, tenancy[name])
		}
	}
	if a, b := wholeNamespace(), wholeNamespace(); !a.SameTenancy(b) || cmp.Diff(a, b) != "" {
		t.Error("a copy is another")
	}
}
