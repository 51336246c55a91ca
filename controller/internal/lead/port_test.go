package lead

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

func TestPortToKeep(t *testing.T) {
	type nodes = map[string]tunnel.Port
	for name, tc := range map[string]struct {
		first    bool
		was, now tunnel.Port
		uses     nodes
		want     tunnel.Port
	}{
		"nobody reports":                         {false, 4789, 8472, nodes{"a": 0}, 8472},
		"from the agents' flags into the record": {false, 0, 8472, nodes{"a": 8472, "b": 8472}, 8472},
		"what was said by nobody is said":        {false, 0, 4789, nodes{"a": 4789}, 4789},
		"changed under nodes":                    {false, 0, 8472, nodes{"a": 4789, "b": 4789}, 0},
		"some followed already":                  {false, 5000, 8472, nodes{"a": 8472, "b": 5000}, 5000},
		"taken away":                             {false, 8472, 0, nodes{"a": 8472}, 8472},
		"taken away, and it was the default":     {false, 4789, 0, nodes{"a": 4789}, 0},
		"an election":                            {true, 0, 8472, nodes{"a": 8472}, 8472},
		"changed while nobody led":               {true, 0, 8472, nodes{"a": 4789, "b": 4789}, 4789},
		"an election during a move":              {true, 0, 8472, nodes{"a": 8472, "b": 4789}, 8472},
		"one says so, and others say nothing":    {true, 0, 8472, nodes{"a": 5000, "b": 0}, 8472},
		"an election without nodes":              {true, 0, 8472, nil, 8472},
	} {
		if got := portToKeep(tc.first, tc.was, tc.now, tc.uses); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// A VXLANPort that somebody changes under nodes is put back, before anything else is done;
// and stands when no node has another.
func TestPortIsPutBack(t *testing.T) {
	e := etcdtest.Start(t)
	const (
		asEver = `{"Name":"k8ssdn","Network":"172.11.0.0/16","HostSubnetLength":10,"ServiceNetwork":"10.96.0.0/12","PluginName":"k8s-ovs-multitenant"}`
		key    = store.DefaultPrefix + "/config"
		status = store.DefaultPrefix + "/k8ssdn/status/198.18.0.1"
	)
	with := func(port string) string { return strings.TrimSuffix(asEver, "}") + `,"VXLANPort":` + port + `}` }
	e.Put(store.DefaultPrefix+"/k8ssdn/subnets/198.18.0.1", `{"Host":"n1","HostIP":"198.18.0.1","Subnet":"","Assign":true}`)
	e.Put(key, asEver)
	c := start(t, e, "one", nil)
	s := ready(t, c)
	eventually(t, "a subnet", func() bool {
		n, err := s.Node(ctxOf(t), netip.MustParseAddr("198.18.0.1"))
		return err == nil && n.Value.Ready()
	})
	e.Put(status, `{"Host":"n1","HostIP":"198.18.0.1","VXLANPort":4789}`)
	is := func(want string) {
		t.Helper()
		eventually(t, "the record "+want, func() bool {
			got, err := e.Client().Get(ctxOf(t), key)
			return err == nil && string(got.Kvs[0].Value) == want
		})
	}
	e.Put(key, with("8472"))
	is(asEver)
	eventually(t, "a word of it in the log", func() bool {
		return strings.Contains(c.log.String(), "became 8472 while node n1 has its tunnels at another port, as 1 of the nodes: put back to none")
	})
	c.stop()
	// Nobody leads, and somebody changes it.
	e.Put(key, with("8472"))
	c = start(t, e, "two", nil)
	is(with("4789"))

	// What all nodes have may be written, and taken away by nobody.
	e.Put(status, `{"Host":"n1","HostIP":"198.18.0.1","VXLANPort":8472}`)
	e.Put(key, with("8472"))
	s = ready(t, c)
	ensure(t, s, "a")
	id(t, s, "a") // the leader has seen it
	is(with("8472"))
	e.Put(key, asEver)
	is(with("8472"))
	if _, err := e.Client().Delete(ctxOf(t), status); err != nil {
		t.Fatal(err)
	}
	for i, port := range []string{"5000", "6000"} {
		e.Put(key, with(port))
		ns := fmt.Sprint("b", i)
		ensure(t, s, ns)
		id(t, s, ns)
		is(with(port))
	}
}
