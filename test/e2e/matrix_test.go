package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// twelve are 3 namespaces with 2 pods on each of 2 nodes.
var twelve = map[string][]string{
	"n1": {"red/a", "red/b", "green/a", "green/b", "blue/a", "blue/b"},
	"n2": {"red/c", "red/d", "green/c", "green/d", "blue/c", "blue/d"},
}

var apart = tenants{"red": "r", "green": "g", "blue": "b"}

// story is the ways in which tenants change, one after the other.
var story = []struct {
	name    string
	command []string
	after   tenants
}{
	{"red joins green", []string{"join", "red", "green"}, apart.with("red", "g")},
	{"blue joins them", []string{"join", "blue", "red"}, tenants{"red": "g", "green": "g", "blue": "g"}},
	// Joins are no chain: isolating the one that was joined leaves the others together.
	{"green leaves", []string{"isolate", "green"}, tenants{"red": "r", "green": "g", "blue": "r"}},
	{"red leaves", []string{"isolate", "red"}, apart},
	{"blue becomes global", []string{"global", "blue"}, apart.with("blue", "0")},
	{"blue is isolated again", []string{"isolate", "blue"}, apart},
}

// TestMatrixByCLI: when the CLI returns, the change is in force.
func TestMatrixByCLI(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(twelve)
	l.requireMatrix("at first", apart.allowed)
	for _, s := range story {
		l.netns(s.command...)
		l.requireMatrix(s.name, s.after.allowed)
	}
}

// TestMatrixByRecords: the same by records written by hand in the first
// k8s-ovs's form, which has none of the newer fields.
func TestMatrixByRecords(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(twelve)
	l.requireMatrix("at first", apart.allowed)
	etcd, err := l.Etcd()
	l.must(err)
	defer func() { _ = etcd.Close() }()
	for _, s := range story {
		record := map[string]any{"NetName": s.command[1], "NetID": 0, "Action": s.command[0], "Namespace": ""}
		if len(s.command) > 2 {
			record["Namespace"] = s.command[2]
		}
		data, err := json.Marshal(record)
		l.must(err)
		_, err = etcd.Put(t.Context(), netlab.EtcdPrefix+"/k8ssdn/netnamespaces/"+s.command[1], string(data))
		l.must(err)
		l.waitMatrix(s.name, 15*time.Second, s.after.allowed)
	}
}

// TestRefusedRecords: requests that cannot be carried out change nothing, now
// or later.
func TestRefusedRecords(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "green/a"}, "n2": {"red/b", "green/b"}})
	etcd, err := l.Etcd()
	l.must(err)
	defer func() { _ = etcd.Close() }()
	key := netlab.EtcdPrefix + "/k8ssdn/netnamespaces/"
	green, err := etcd.Get(t.Context(), key+"green")
	l.must(err)
	var greenRecord struct{ NetID int64 }
	l.must(json.Unmarshal(green.Kvs[0].Value, &greenRecord))
	for name, record := range map[string]map[string]any{
		"join of nobody":       {"NetName": "red", "NetID": 0, "Action": "join", "Namespace": "nobody"},
		"join of itself":       {"NetName": "red", "NetID": 0, "Action": "join", "Namespace": "red"},
		"unknown action":       {"NetName": "red", "NetID": 0, "Action": "explode", "Namespace": ""},
		"reserved netID":       {"NetName": "red", "NetID": 5, "Action": "", "Namespace": ""},
		"netID out of range":   {"NetName": "red", "NetID": 1 << 24, "Action": "", "Namespace": ""},
		"netID of green's own": {"NetName": "red", "NetID": greenRecord.NetID, "Action": "", "Namespace": ""},
	} {
		data, err := json.Marshal(record)
		l.must(err)
		put, err := etcd.Put(t.Context(), key+"red", string(data))
		l.must(err)
		l.eventually(name+" is answered", 15*time.Second, func() error {
			got, err := etcd.Get(t.Context(), key+"red")
			l.must(err)
			if got.Kvs[0].ModRevision == put.Header.Revision {
				return errUnanswered
			}
			var r struct {
				Action string
				Status *struct{ Message string }
			}
			l.must(json.Unmarshal(got.Kvs[0].Value, &r))
			if r.Action != "" || r.Status == nil || r.Status.Message == "" {
				t.Errorf("%s: record is now %s; want no Action and a Status that says why", name, got.Kvs[0].Value)
			}
			return nil
		})
		l.requireMatrix(name, tenants{"red": "r", "green": "g"}.allowed)
	}
	// The target that was missing appears: the refused join must not fire.
	l.pod("n1", "nobody/a")
	l.requireMatrix("after the target appeared", tenants{"red": "r", "green": "g", "nobody": "n"}.allowed)
	l.must(l.Controller().Kill())
	l.must(l.StartController(t.Context()))
	l.netns("isolate", "nobody") // the new leader has read all records when this is done
	l.requireMatrix("after the controller's restart", tenants{"red": "r", "green": "g", "nobody": "n"}.allowed)
}

// TestSingleTenant: all pods reach all, whatever is asked for.
func TestSingleTenant(t *testing.T) {
	l := up(t, netlab.Options{Mode: netlab.SingleTenant})
	l.pods(twelve)
	l.requireMatrix("at first", everybody)
	for _, s := range story {
		_, err := l.Netns(t.Context(), s.command...)
		var exit *exec.ExitError
		if !asExit(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("netns %s in a single-tenant network: %v, want exit status 1", strings.Join(s.command, " "), err)
		}
	}
	l.requireMatrix("after all actions", everybody)
	etcd, err := l.Etcd()
	l.must(err)
	defer func() { _ = etcd.Close() }()
	_, err = etcd.Put(t.Context(), netlab.EtcdPrefix+"/k8ssdn/netnamespaces/red", `{"NetName":"red","NetID":0,"Action":"isolate","Namespace":""}`)
	l.must(err)
	l.requireMatrix("after a record", everybody)
	l.pod("n1", "violet/a")
	l.requireMatrix("with a new namespace", everybody)
}

// TestNeighbourTables: a pod reaches all its peers although its neighbour table holds
// one entry (the ancestors': one a peer, until it overflowed).
func TestNeighbourTables(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{
		"n1": {"red/a", "red/b", "red/c", "red/d"},
		"n2": {"red/e", "red/f", "red/g", "red/h"},
	})
	l.requireMatrix("eight pods", everybody)
	pods, err := l.Pods()
	l.must(err)
	for _, p := range pods {
		out, err := l.PodExec(t.Context(), p, "ip", "-4", "neigh", "show", "dev", "eth0")
		l.must(err)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 1 || !strings.Contains(lines[0], "PERMANENT") {
			t.Errorf("%s has neighbours\n%s\nwant its gateway alone, permanent", p, out)
		}
	}
	for _, node := range []string{"n1", "n2"} {
		for _, p := range pods {
			if out, err := l.NodeExec(t.Context(), node, "ping", "-c1", "-W2", p.IP.String()); err != nil {
				t.Errorf("%s does not reach %s: %v\n%s", node, p, err, out)
			}
		}
		out, err := l.NodeExec(t.Context(), node, "ip", "-4", "neigh", "show", "dev", "tun0")
		l.must(err)
		if n := strings.Count(strings.TrimSpace(out), "\n") + 1; n > 1 {
			t.Errorf("%s has %d neighbours on tun0 after talking to %d pods:\n%s", node, n, len(pods), out)
		}
	}
}
