package store

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

// by opens a store for the requests of somebody.
func by(t *testing.T, e *etcdtest.Server, who string) *Store {
	t.Helper()
	s, err := Open(Config{Endpoints: e.Endpoints, By: who, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConfirmNode(t *testing.T) {
	e, _ := network(t)
	s, ctx := by(t, e, "alice@desk"), ctxOf(t)
	const nodes = DefaultPrefix + "/k8ssdn/subnets/"
	at := netip.MustParseAddr
	e.Put(nodes+"198.18.0.1", `{"Host":"n1","HostIP":"198.18.0.1","Subnet":"172.11.0.0/22","Assign":false,"UID":"u1"}`)
	e.Put(nodes+"198.18.0.2", `{"Host":"lb","HostIP":"198.18.0.2","Subnet":"172.11.4.0/22","Assign":false}`)
	e.Put(nodes+"198.18.0.3", `{"HostIP":"198.18.0.9"}`)

	done, err := s.ConfirmNode(ctx, "n1", at("198.18.0.9"), false)
	n, rerr := s.Node(ctx, at("198.18.0.9"))
	if err != nil || rerr != nil || done != ConfirmedNow || n.Value.Status == nil || n.Value.Status.Time.IsZero() {
		t.Fatalf("%v, %v, %v; %+v", done, err, rerr, n.Value)
	}
	n.Value.Status.Time = topology.Status{}.Time
	want := topology.Node{Host: "n1", HostIP: at("198.18.0.9"), Status: &topology.Status{
		Outcome: topology.Confirmed, Message: "confirmed as an address of node n1", By: "alice@desk"}}
	if diff := cmp.Diff(want, n.Value, byValue); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, test := range map[string]struct {
		host, ip string
		force    bool
		want     Confirmation
		err      error
		say      string
	}{
		"again":             {"n1", "198.18.0.9", false, ConfirmedBefore, nil, ""},
		"its own":           {"n1", "198.18.0.1", false, HasAddress, nil, ""},
		"another node's":    {"n2", "198.18.0.1", true, "", ErrConflict, "kubectl delete node n1"},
		"a host outside's":  {"n1", "198.18.0.2", false, "", ErrConflict, "--force"},
		"inside pods'":      {"n1", "172.11.0.9", true, "", ErrInvalid, "inside the pod network"},
		"unreadable record": {"n1", "198.18.0.3", true, "", ErrInvalid, "HostIP"},
	} {
		before, _ := s.Node(ctx, at(test.ip))
		got, err := s.ConfirmNode(ctx, test.host, at(test.ip), test.force)
		if got != test.want || !errors.Is(err, test.err) || err != nil && !contains(err.Error(), test.say) {
			t.Errorf("%s: %q, %v; want %q, %v with %q", name, got, err, test.want, test.err, test.say)
		}
		if after, _ := s.Node(ctx, at(test.ip)); after.Revision != before.Revision {
			t.Errorf("%s: it was written", name)
		}
	}
	if done, err := s.ConfirmNode(ctx, "n1", at("198.18.0.2"), true); err != nil || done != ConfirmedNow {
		t.Errorf("forced: %v, %v", done, err)
	}
	if n, err := s.Node(ctx, at("198.18.0.2")); err != nil || n.Value.Host != "n1" || !n.Value.Ready() {
		t.Errorf("forced: %+v, %v", n.Value, err)
	}
	// Only a confirmation is taken back, and by the name that it has.
	for ip, withdrawn := range map[string]bool{"198.18.0.9": true, "198.18.0.2": false, "198.18.0.1": false, "198.18.0.77": false} {
		if got, err := s.WithdrawConfirmation(ctx, "n9", at(ip)); err != nil || got {
			t.Errorf("withdrawn for another at %s: %v, %v", ip, got, err)
		}
		if got, err := s.WithdrawConfirmation(ctx, "n1", at(ip)); err != nil || got != withdrawn {
			t.Errorf("withdrawn at %s: %v, %v; want %v", ip, got, err, withdrawn)
		}
		if _, err := s.Node(ctx, at(ip)); withdrawn && !errors.Is(err, ErrNotFound) {
			t.Errorf("withdrawn at %s: %v", ip, err)
		}
	}
}

// TestBy: a request carries who made it, and its withdrawal who did that.
func TestBy(t *testing.T) {
	e, nobody := network(t)
	alice, bob, ctx := by(t, e, "alice@desk"), by(t, e, "bob@desk"), ctxOf(t)
	e.Put(key("a"), nsRecord("a", 100))
	e.Put(key("b"), nsRecord("b", 200))
	rev, err := alice.RequestAction(ctx, "a", topology.Join, "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bob.RequestAction(ctx, "a", topology.Join, "b"); err != nil {
		t.Fatal(err)
	}
	if n, err := nobody.Namespace(ctx, "a"); err != nil || n.Value.By != "alice@desk" {
		t.Errorf("%+v, %v; want the request of who was first", n.Value, err)
	}
	if err := bob.WithdrawAction(ctx, "a", rev); err != nil {
		t.Fatal(err)
	}
	n, err := nobody.Namespace(ctx, "a")
	if err != nil || n.Value.By != "" || n.Value.Action != topology.None || !n.Value.Status.Is(topology.Withdrawn) ||
		n.Value.Status.By != "bob@desk" || n.Value.Status.Message != "withdrawn: join b" {
		t.Errorf("%+v, %+v, %v", n.Value, n.Value.Status, err)
	}
	if _, err := nobody.RequestAction(ctx, "a", topology.Isolate, ""); err != nil {
		t.Fatal(err)
	}
	if n, err := nobody.Namespace(ctx, "a"); err != nil || n.Value.By != "" || n.Value.Status != nil {
		t.Errorf("%+v, %v", n.Value, err)
	}
}
