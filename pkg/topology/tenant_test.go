package topology

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

func ptr[T any](v T) *T { return &v }

func TestParseNamespace(t *testing.T) {
	for name, test := range map[string]struct {
		data string
		want Namespace
	}{
		"the ancestor's": {
			`{"NetName":"ns","NetID":300924,"Action":"","Namespace":""}`,
			Namespace{NetName: "ns", NetID: ptr[int64](300924)},
		},
		"asking for a netID is not asking for 0": {`{"NetName":"ns"}`, Namespace{NetName: "ns"}},
		"0 is global":                            {`{"NetName":"ns","NetID":0}`, Namespace{NetName: "ns", NetID: ptr[int64](0)}},
		"out of range parses: people are told":   {`{"NetName":"ns","NetID":-7}`, Namespace{NetName: "ns", NetID: ptr[int64](-7)}},
		"null is none":                           {`{"NetName":"ns","NetID":null,"Effective":null}`, Namespace{NetName: "ns"}},
		"a request": {
			`{"NetName":"ns","NetID":12,"Action":"join","Namespace":"b","Effective":12}`,
			Namespace{NetName: "ns", NetID: ptr[int64](12), Action: Join, Namespace: "b", Effective: ptr(netid.ID(12))},
		},
		"unknown fields are kept": {`{"NetName":"ns","Color":"red"}`, Namespace{NetName: "ns", Rest: `"Color":"red"`}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseNamespace("ns", []byte(test.data))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The first k8s-ovs read what we write: fields it did not have come only where
// they say something.
func TestMarshalNamespace(t *testing.T) {
	for want, n := range map[string]Namespace{
		`{"NetName":"ns","Action":"","Namespace":""}`:                                                        {NetName: "ns"},
		`{"NetName":"ns","NetID":0,"Action":"","Namespace":"","Effective":0}`:                                {NetName: "ns", NetID: ptr[int64](0), Effective: ptr(netid.ID(0))},
		`{"NetName":"ns","NetID":77,"Action":"join","Namespace":"b"}`:                                        {NetName: "ns", NetID: ptr[int64](77), Action: Join, Namespace: "b"},
		`{"NetName":"ns","Action":"isolate","Namespace":"","By":"alice@desk"}`:                               {NetName: "ns", Action: Isolate, By: "alice@desk"},
		`{"NetName":"ns","Action":"","Namespace":"","Status":{"Message":"m","Time":"2026-01-02T03:04:05Z"}}`: {NetName: "ns", Status: &Status{Message: "m", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}},
	} {
		got, err := json.Marshal(n)
		if err != nil || string(got) != want {
			t.Errorf("%s, %v\nwant %s", got, err, want)
		}
	}
}

func TestParseNamespaceRefuses(t *testing.T) {
	for name, test := range map[string]struct{ key, data, say string }{
		"broken JSON":        {"ns", `{"NetName":"ns"`, "not valid JSON"},
		"fraction":           {"ns", `{"NetName":"ns","NetID":1.5}`, "not valid JSON"},
		"text":               {"ns", `{"NetName":"ns","NetID":"12"}`, "not valid JSON"},
		"too large for all":  {"ns", `{"NetName":"ns","NetID":99999999999999999999}`, "not valid JSON"},
		"key differs":        {"ns", `{"NetName":"other"}`, "must be the name in the key"},
		"no name":            {"ns", `{}`, "must be the name in the key"},
		"no DNS name":        {"a/b", `{"NetName":"a/b"}`, "not a DNS subdomain"},
		"Effective reserved": {"ns", `{"NetName":"ns","Effective":5}`, "reserved"},
		"Effective too big":  {"ns", `{"NetName":"ns","Effective":16777216}`, "too large"},
		"Effective negative": {"ns", `{"NetName":"ns","Effective":-1}`, "not valid JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseNamespace(test.key, []byte(test.data)); err == nil || !strings.Contains(err.Error(), test.say) {
				t.Errorf("error %v, want one with %q", err, test.say)
			}
		})
	}
}

func TestValidateRequest(t *testing.T) {
	for name, test := range map[string]struct {
		n   Namespace
		say string
	}{
		"asks for a netID":          {Namespace{}, ""},
		"global":                    {Namespace{NetID: ptr[int64](0)}, ""},
		"lowest":                    {Namespace{NetID: ptr[int64](10)}, ""},
		"highest":                   {Namespace{NetID: ptr[int64](1<<24 - 1)}, ""},
		"reserved":                  {Namespace{NetID: ptr[int64](9)}, "reserved"},
		"too large":                 {Namespace{NetID: ptr[int64](1 << 24)}, "24 bits"},
		"negative":                  {Namespace{NetID: ptr[int64](-1)}, "not a 24-bit number"},
		"wraps to 12":               {Namespace{NetID: ptr[int64](1<<32 + 12)}, "not a 24-bit number"},
		"join":                      {Namespace{NetName: "a", Action: Join, Namespace: "b"}, ""},
		"join nobody":               {Namespace{NetName: "a", Action: Join}, "needs Namespace"},
		"join itself":               {Namespace{NetName: "a", Action: Join, Namespace: "a"}, "cannot join itself"},
		"NetID ignored with action": {Namespace{NetID: ptr[int64](-1), Action: Isolate}, ""},
		"make global":               {Namespace{Action: MakeGlobal}, ""},
		"misspelled":                {Namespace{Action: "Join", Namespace: "b"}, `"Join" is none of`},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.n.ValidateRequest()
			if test.say == "" && err != nil || test.say != "" && (err == nil || !strings.Contains(err.Error(), test.say)) {
				t.Errorf("error %v, want %q", err, test.say)
			}
		})
	}
}

func TestValidateNamespaceName(t *testing.T) {
	for name, good := range map[string]bool{
		"a": true, "kube-system": true, "0": true, "a--b": true, strings.Repeat("a", 63): true,
		"redhat.test.crio": true, "a.b": true, "0.0": true, "a-b.c-d": true,
		"": false, "A": false, "-a": false, "a-": false, "a/b": false, "ä": false, "a b": false, strings.Repeat("a", 64): false,
		".": false, "..": false, ".a": false, "a.": false, "a..b": false, "a.-b": false, "a-.b": false, "../a": false, "a_b": false,
		"a%": false, "a*": false, "a\"": false, "a\n": false, "a\x00": false, "--all": false, "a;b": false, "a{b": false, "a,b": false, "a=b": false,
	} {
		if err := ValidateNamespaceName(name); (err == nil) != good {
			t.Errorf("%q: %v, want good %v", name, err, good)
		}
	}
}

func TestSnapshotNetID(t *testing.T) {
	s := Snapshot{Config: DefaultConfig(), Namespaces: map[string]Namespace{
		"confirmed": {NetID: ptr[int64](99), Effective: ptr(netid.ID(12))},
		"asking":    {NetID: ptr[int64](99)},
	}}
	type answer struct {
		ID netid.ID
		OK bool
	}
	for _, single := range []bool{false, true} {
		want := map[string]answer{"confirmed": {12, true}, "asking": {0, false}, "unknown": {0, false}}
		if single {
			s.Config.PluginName = SingleTenant
			want = map[string]answer{"confirmed": {0, true}, "asking": {0, true}, "unknown": {0, true}}
		}
		got := map[string]answer{}
		for ns := range want {
			id, ok := s.NetID(ns)
			got[ns] = answer{id, ok}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("single %v (-want +got):\n%s", single, diff)
		}
	}
}

func FuzzParseNamespace(f *testing.F) {
	f.Add("ns", []byte(`{"NetName":"ns","NetID":300924,"Action":"join","Namespace":"b","Effective":12}`))
	f.Add("ns", []byte(`{"NetName":"ns","NetID":-1,"Status":{"Message":"m","Time":"2026-01-02T03:04:05+14:00"}}`))
	f.Add("a/b", []byte(`{"NetName":"a/b"}`))
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		n, err := ParseNamespace(key, data)
		if err != nil {
			return
		}
		if n.NetName != key || ValidateNamespaceName(key) != nil {
			t.Errorf("record %q is namespace %q", key, n.NetName)
		}
		if n.Effective != nil && n.Effective.Validate() != nil {
			t.Errorf("Effective %d", *n.Effective)
		}
		if n.Action == None && n.ValidateRequest() == nil && n.NetID != nil && netid.ID(*n.NetID).Validate() != nil {
			t.Errorf("NetID %d is accepted", *n.NetID)
		}
		again, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		n2, err := ParseNamespace(key, again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if diff := cmp.Diff(n, n2); diff != "" {
			t.Errorf("%s is read as another:\n%s", again, diff)
		}
	})
}
