package topology

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
)

func TestTenancy(t *testing.T) {
	for name, test := range map[string]struct {
		data  string
		known bool
		want  Tenancy
		// takes and refuses are senders' netIDs.
		takes, refuses []netid.ID
	}{
		"no netID yet":      {`{"NetName":"a"}`, false, Tenancy{}, nil, nil},
		"at rest":           {`{"NetName":"a","Effective":11}`, true, Tenancy{NetID: 11}, []netid.ID{11, 0}, []netid.ID{12}},
		"global":            {`{"NetName":"a","Effective":0}`, true, Tenancy{}, []netid.ID{11, 0}, nil},
		"accept":            {`{"NetName":"a","Effective":11,"Change":{"Step":"accept","NetID":12}}`, true, Tenancy{11, 12, true}, []netid.ID{11, 12, 0}, []netid.ID{13}},
		"send":              {`{"NetName":"a","Effective":12,"Change":{"Step":"send","NetID":11}}`, true, Tenancy{12, 11, true}, []netid.ID{11, 12, 0}, []netid.ID{13}},
		"becoming global":   {`{"NetName":"a","Effective":11,"Change":{"Step":"accept","NetID":0}}`, true, Tenancy{11, 0, true}, []netid.ID{11, 12, 0}, nil},
		"no longer global":  {`{"NetName":"a","Effective":11,"Change":{"Step":"send","NetID":0}}`, true, Tenancy{11, 0, true}, []netid.ID{11, 12, 0}, nil},
		"a step of a later": {`{"NetName":"a","Effective":11,"Change":{"Step":"swap","NetID":12}}`, true, Tenancy{NetID: 11}, []netid.ID{11, 0}, []netid.ID{12}},
	} {
		n, err := ParseNamespace("a", []byte(test.data))
		if err != nil {
			t.Fatal(err)
		}
		got, known := n.Tenancy()
		if diff := cmp.Diff(test.want, got); diff != "" || known != test.known {
			t.Errorf("%s: known %v (-want +got):\n%s", name, known, diff)
		}
		for _, id := range test.takes {
			if !got.Admits(id) {
				t.Errorf("%s: %d is not taken", name, id)
			}
		}
		for _, id := range test.refuses {
			if got.Admits(id) {
				t.Errorf("%s: %d is taken", name, id)
			}
		}
	}
	if _, err := ParseNamespace("a", []byte(`{"NetName":"a","Effective":11,"Change":{"Step":"send","NetID":5}}`)); err == nil {
		t.Error("a reserved netID in Change is taken")
	}
}

// The release before reads a record in the midst of a change as one that asks for it still, with
// the netID that nodes send with.
func TestChangeForOlder(t *testing.T) {
	n := Namespace{NetName: "a", NetID: ptr[int64](11), Effective: ptr(netid.ID(11)), Action: Join, Namespace: "b", Change: Change{Step: StepAccept, NetID: 12, Request: "join b", By: "alice@desk"}}
	got, err := json.Marshal(n)
	want := `{"NetName":"a","NetID":11,"Action":"join","Namespace":"b","Effective":11,"Change":{"Step":"accept","NetID":12,"Request":"join b","By":"alice@desk"}}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
	s := Snapshot{Config: DefaultConfig(), Namespaces: map[string]Namespace{"a": n}}
	if id, ok := s.NetID("a"); !ok || id != 11 {
		t.Errorf("netID %d, %v", id, ok)
	}
	if !s.Changing(11) || !s.Changing(12) || s.Changing(13) {
		t.Error("Changing does not name both netIDs, and these only")
	}
	if from, to := n.Change.Origin(11), n.Change.Goal(11); from != 11 || to != 12 {
		t.Errorf("from %d to %d", from, to)
	}
	n.Change = Change{Step: StepSend, NetID: 11}
	if from, to := n.Change.Origin(12), n.Change.Goal(12); from != 11 || to != 12 {
		t.Errorf("then from %d to %d", from, to)
	}
}
