package store

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestRestSurvives: whoever changes a record leaves in it what a newer release has written there.
func TestRestSurvives(t *testing.T) {
	e, _ := network(t)
	s := by(t, e, "alice@desk")
	ip := netip.MustParseAddr("198.18.0.1")
	const (
		tree  = DefaultPrefix + "/k8ssdn/"
		rest  = `,"Color":{"of":"a newer release"}}`
		plain = `{"NetName":"red","NetID":12,"Action":"","Namespace":"","Effective":12` + rest
		asked = `{"NetName":"red","NetID":12,"Action":"isolate","Namespace":"","Effective":12` + rest
		host  = `{"Host":"lb","HostIP":"198.18.0.1","Subnet":"","Assign":false` + rest
	)
	e.Put(key("blue"), nsRecord("blue", 13))
	l := campaign(t, s, "one")
	// records is what whoever writes has read.
	records := func() (topology.Snapshot, Revs) {
		now, revs, err := s.Snapshot(ctxOf(t))
		if err != nil {
			t.Fatal(err)
		}
		return now, revs
	}
	for name, tc := range map[string]struct {
		key, before string
		write       func() error
	}{
		"RequestAction": {key("red"), plain, func() error {
			_, err := s.RequestAction(ctxOf(t), "red", topology.Join, "blue")
			return err
		}},
		"ForceAction": {key("red"), plain, func() error {
			_, err := s.ForceAction(ctxOf(t), "red", topology.Isolate, "")
			return err
		}},
		"WithdrawAction": {key("red"), asked, func() error {
			_, revs := records()
			return s.WithdrawAction(ctxOf(t), "red", revs.Namespaces["red"].Mod)
		}},
		"EnsureNode":          {tree + "subnets/198.18.0.1", host, func() error { return s.EnsureNode(ctxOf(t), "n1", ip) }},
		"EnsureNode, its own": {tree + "subnets/198.18.0.1", host, func() error { return s.EnsureNode(ctxOf(t), "lb", ip) }},
		"ConfirmNode": {tree + "subnets/198.18.0.1", host, func() error {
			_, err := s.ConfirmNode(ctxOf(t), "n1", ip, true)
			return err
		}},
		"Identify": {tree + "subnets/198.18.0.1", host, func() error { return s.Identify(ctxOf(t), "lb", ip, "another") }},
		"PutNode": {tree + "subnets/198.18.0.1", host, func() error {
			now, revs := records()
			n := now.Nodes[ip].WithSubnet(netip.MustParsePrefix("172.11.0.0/22"))
			_, err := l.PutNode(ctxOf(t), ip.String(), n, revs.Nodes[ip].Mod)
			return err
		}},
		"PutNamespace": {key("red"), asked, func() error {
			now, revs := records()
			n := now.Namespaces["red"]
			n.Action = topology.None
			_, err := l.PutNamespace(ctxOf(t), "red", n, revs.Namespaces["red"].Mod)
			return err
		}},
		"PutNamespaces": {key("red"), asked, func() error {
			now, revs := records()
			n := now.Namespaces["red"]
			n.Action = topology.None
			_, err := l.PutNamespaces(ctxOf(t), []NamespacePut{{Key: "red", Namespace: n, Revision: revs.Namespaces["red"].Mod}})
			return err
		}},
		"PutConfig": {DefaultPrefix + "/config", `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"` + rest, func() error {
			now, revs := records()
			now.Config.VXLANPort = 8472
			_, err := l.PutConfig(ctxOf(t), now.Config, revs.Config)
			return err
		}},
	} {
		e.Put(tc.key, tc.before)
		if err := tc.write(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		resp, err := e.Client().Get(ctxOf(t), tc.key)
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatalf("%s: %v, %v", name, resp, err)
		}
		written, members := resp.Kvs[0].Value, map[string]json.RawMessage{}
		if err := json.Unmarshal(written, &members); err != nil || string(members["Color"]) != `{"of":"a newer release"}` || string(written) == tc.before {
			t.Errorf("%s: %s, %v", name, written, err)
		}
	}
}
