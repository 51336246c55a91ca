package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/pki"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// etcdAs is a client of the lab's etcd with a TLS configuration.
func (l *lab) etcdAs(config *tls.Config) *clientv3.Client {
	l.t.Helper()
	st, err := l.Status()
	l.must(err)
	c, err := clientv3.New(clientv3.Config{Endpoints: st.Etcd.Endpoints, TLS: config, DialTimeout: patience, Logger: zap.NewNop()})
	l.must(err)
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

// each tries all, and counts those that are not refused. One that is just not answered is
// refused too: of a connection without a good certificate etcd says no more.
func (l *lab) each(tries map[string]func(ctx context.Context) error) (tried, delivered int) {
	l.t.Helper()
	for name, try := range tries {
		ctx, cancel := context.WithTimeout(l.t.Context(), 3*time.Second)
		if err := try(ctx); err == nil {
			l.t.Logf("%s: not refused", name)
			delivered++
		}
		cancel()
	}
	return len(tries), delivered
}

// TestAttackNodeRecords: a node's credentials let it write its own records, and nothing else.
func TestAttackNodeRecords(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a"}, "n2": {"blue/b"}})
	own, err := l.NodeIdentity("n1")
	l.must(err)
	n1 := l.etcdAs(netlab.TLS(own))
	if _, err := n1.Put(t.Context(), networkKey+"/limits/198.18.0.1", "x"); err != nil {
		t.Fatalf("its own record is refused, so this test sees nothing: %v", err)
	}
	before := l.record("red")

	put := func(key, value string) func(context.Context) error {
		return func(ctx context.Context) error { _, err := n1.Put(ctx, networkKey+"/"+key, value); return err }
	}
	remove := func(key string, opts ...clientv3.OpOption) func(context.Context) error {
		return func(ctx context.Context) error { _, err := n1.Delete(ctx, networkKey+"/"+key, opts...); return err }
	}
	l.attack(attacks.Node, "records that are not its own, written to etcd", func() (int, int) {
		return l.each(map[string]func(context.Context) error{
			"another's status":      put("status/198.18.0.2", "x"),
			"another's limits":      put("limits/198.18.0.2", "x"),
			"another's MTU":         put("mtu/198.18.0.2", "x"),
			"another's requests":    put("requests/198.18.0.2", "x"),
			"another's pods":        put("pods/198.18.0.2", "x"),
			"what was taken of its": put("acknowledged/198.18.0.1", "x"),
			"a policy":              put("policies/red/p", "x"),
			"a cluster's policy":    put("clusterpolicies/p", "x"),
			"who is isolated":       put("isolation/red", "x"),
			"who is in a set":       put("sets/0123456789abcdef/172.11.0.0", "x"),
			"the leaders' history":  put("history/now", "x"),
			"the terms there were":  put("history/terms", "x"),
			"its own certificate":   put("certificates/198.18.0.1", "x"),
			"its own subnet":        put("subnets/198.18.0.1", "x"),
			"another's subnet":      put("subnets/198.18.0.2", "x"),
			"a node":                put("subnets/198.18.0.9", `{"Host":"n9","HostIP":"198.18.0.9","Assign":true}`),
			"a join":                put("netnamespaces/red", `{"NetName":"red","Action":"join","Namespace":"blue"}`),
			"a namespace global":    put("netnamespaces/red", `{"NetName":"red","NetID":0,"Effective":0}`),
			"the lead":              put("leader/0", "x"),
			"the freed netIDs":      put("released", "{}"),
			"a key of another kind": put("x/198.18.0.1", "x"),
			"a status by its prefix": func(ctx context.Context) error {
				_, err := n1.Put(ctx, networkKey+"/status/198.18.0.10", "x")
				return err
			},
			"the configuration": func(ctx context.Context) error {
				_, err := n1.Put(ctx, strings.TrimSuffix(networkKey, "/k8ssdn")+"/config", "x")
				return err
			},
			"what is elsewhere": func(ctx context.Context) error { _, err := n1.Put(ctx, "/elsewhere", "x"); return err },
			"all deleted":       remove("", clientv3.WithPrefix()),
			"its kind deleted":  remove("status/", clientv3.WithPrefix()),
			"a node deleted":    remove("subnets/198.18.0.2"),
			"a transaction": func(ctx context.Context) error {
				_, err := n1.Txn(ctx).Then(clientv3.OpPut(networkKey+"/limits/198.18.0.1", "y"), clientv3.OpPut(networkKey+"/netnamespaces/red", "y")).Commit()
				return err
			},
		})
	})
	l.attack(attacks.Node, "etcd's own matters", func() (int, int) {
		return l.each(map[string]func(context.Context) error{
			"users off":   func(ctx context.Context) error { _, err := n1.AuthDisable(ctx); return err },
			"a user":      func(ctx context.Context) error { _, err := n1.UserAdd(ctx, "x", "y"); return err },
			"root's role": func(ctx context.Context) error { _, err := n1.UserGrantRole(ctx, own.User(), "root"); return err },
			"a permission": func(ctx context.Context) error {
				_, err := n1.RoleGrantPermission(ctx, own.User(), "a", "b", 2)
				return err
			},
			"a user gone": func(ctx context.Context) error { _, err := n1.UserDelete(ctx, "root"); return err },
			"the users":   func(ctx context.Context) error { _, err := n1.UserList(ctx); return err },
			"a snapshot": func(ctx context.Context) error {
				r, err := n1.Snapshot(ctx)
				if err == nil {
					_, err = r.Read(make([]byte, 1))
				}
				if err == io.EOF {
					return nil
				}
				return err
			},
			"compaction":      func(ctx context.Context) error { _, err := n1.Compact(ctx, 2); return err },
			"the raft leader": func(ctx context.Context) error { _, err := n1.MoveLeader(ctx, 1); return err },
			"a member": func(ctx context.Context) error {
				_, err := n1.MemberAdd(ctx, []string{"http://203.0.113.1:2380"})
				return err
			},
			"an alarm": func(ctx context.Context) error { _, err := n1.AlarmList(ctx); return err },
			"another's lease": func(ctx context.Context) error {
				r, err := n1.Get(ctx, networkKey+"/status/198.18.0.2")
				if err != nil || len(r.Kvs) == 0 {
					return fmt.Errorf("no status of n2: %w", err)
				}
				_, err = n1.Revoke(ctx, clientv3.LeaseID(r.Kvs[0].Lease))
				return err
			},
			"the leases": func(ctx context.Context) error { _, err := n1.Leases(ctx); return err },
			"the gateway": func(ctx context.Context) error {
				h := http.Client{Transport: &http.Transport{TLSClientConfig: netlab.TLS(own)}}
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, n1.Endpoints()[0]+"/v3/kv/range", strings.NewReader(`{"key":"AA==","range_end":"AA=="}`))
				if err != nil {
					return err
				}
				r, err := h.Do(req)
				if err == nil && r.StatusCode != http.StatusOK {
					err = fmt.Errorf("%s", r.Status)
				}
				return err
			},
		})
	})
	if diff := cmp.Diff(before, l.record("red")); diff != "" {
		t.Errorf("namespace red changed (-was +is):\n%s", diff)
	}
}

// TestAttackNodeFloods: a node's credentials do not let it fill etcd with its own records, nor keep it from others:
// tenants change meanwhile.
func TestAttackNodeFloods(t *testing.T) {
	long(t)
	// As docs/identities.md says, bytes.
	const value, burst, second = 512 << 10, 64 << 20, 1 << 20
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b"}})
	own, err := l.NodeIdentity("n2")
	l.must(err)
	changed := make(chan error, 1)
	l.attack(attacks.Node, "etcd filled with its own records", func() (tried, delivered int) {
		var writers errgroup.Group
		var mu sync.Mutex // guards what is counted
		began, taken, refused := time.Now(), 0, 0
		for range 4 {
			c := l.etcdAs(netlab.TLS(own))
			writers.Go(func() error {
				for {
					_, err := c.Put(t.Context(), networkKey+"/limits/198.18.0.2", strings.Repeat("x", value))
					mu.Lock()
					if err == nil {
						taken++
					} else {
						refused++
					}
					enough := refused >= 2000 || taken > 4*burst/value
					mu.Unlock()
					if enough {
						return nil
					}
				}
			})
		}
		go func() {
			_, err := l.Netns(t.Context(), "join", "red", "blue")
			if err == nil {
				_, err = l.Netns(t.Context(), "isolate", "blue")
			}
			changed <- err
		}()
		l.must(writers.Wait())
		allowed := (burst + int(time.Since(began)/time.Second+1)*second) / value
		t.Logf("%d of %d writes of %d bytes were taken in %s", taken, taken+refused, value, time.Since(began).Round(time.Millisecond))
		return taken + refused, max(0, taken-allowed)
	})
	if err := <-changed; err != nil {
		t.Errorf("a tenant's change meanwhile: %v", err)
	}
	l.requireMatrix("afterwards", withinTenants)
	log, err := os.ReadFile(filepath.Join(l.Dir(), "log", "controller.log"))
	if l.must(err); !strings.Contains(string(log), own.User()) {
		t.Error("nobody said which node it was")
	}
}

// TestAttackNodePods: who has stolen a node gets none of its pods past policies by calling them
// pods of other nodes, in the one record of pods that it may write.
func TestAttackNodePods(t *testing.T) {
	long(t)
	c := policed(t, netlab.Options{})
	c.labelled("n1", "red/web", "web")
	c.labelled("n1", "red/near", "near")
	c.labelled("n2", "red/far", "far")
	c.policy("red/web", onlyApp("near"))
	c.waitMatrix("only red/near is let in", policyTime, toWeb("red/near"))
	own, err := c.NodeIdentity("n2")
	c.must(err)
	place, ok := c.api.Object("configmaps", "kube-system", "k8s-ovs-etcd").(*corev1.ConfigMap)
	if !ok {
		t.Fatal("no ConfigMap says where etcd is")
	}
	access, err := kube.ParseEtcdPlace(place.Data)
	c.must(err)
	access.Cert, access.Key = own.Pair.CertPEM, own.Pair.KeyPEM
	n2, far := c.records(access), c.get("red/far")
	near, ok := c.api.Object("pods", "red", "near").(*corev1.Pod)
	if !ok {
		t.Fatal("the API server has no pod red/near")
	}
	c.attack(attacks.Node, "its pods called others, that policies let in", func() (tried, delivered int) {
		for _, uid := range []string{string(near.UID), ""} { // some runtimes say none
			lie, err := json.Marshal(topology.NodePods{
				Host: "n2", HostIP: netip.MustParseAddr("198.18.0.2"), Pods: []topology.NodePod{{Namespace: "red", Name: "near", UID: uid, Address: far.IP}},
			})
			c.must(err)
			put, err := n2.Put(t.Context(), networkKey+"/pods/198.18.0.2", string(lie))
			c.must(err)
			c.eventually("the leader has taken it in", policyTime, func() error { return c.acknowledged("198.18.0.2", put.Header.Revision) })
			if _, err := c.PodExec(t.Context(), far, "ping", "-c3", "-i0.2", "-W1", c.get("red/web").IP.String()); err == nil {
				delivered++
			}
			tried++
		}
		return tried, delivered
	})
}

// TestAttackNodeLostRecords: who has stolen a node, and says in its own status that etcd has lost records, has the
// leader write none of them.
func TestAttackNodeLostRecords(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a"}, "n2": {"blue/b"}})
	own, err := l.NodeIdentity("n1")
	l.must(err)
	n1 := l.etcdAs(netlab.TLS(own))
	before, blue, unused := l.record("red"), netid.ID(l.netID("blue")), netid.Max
	lies := map[string]topology.Namespace{
		"a name":                  {NetName: "future1", Effective: &unused},
		"a namespace global":      {NetName: "future2", Effective: &unused, Action: topology.MakeGlobal},
		"a join":                  {NetName: "future3", Effective: &unused, Action: topology.Join, Namespace: "blue"},
		"another's netID":         {NetName: "future4", Effective: &blue},
		"a change to another's":   {NetName: "future5", Effective: &unused, Change: topology.Change{Step: topology.StepAccept, NetID: blue}},
		"one that is there":       {NetName: "red", Effective: &blue},
		"one that is there, thus": {NetName: "red", Effective: &unused, Action: topology.Join, Namespace: "blue"},
	}
	host := netip.MustParseAddr("198.18.0.1")
	evil := topology.Node{Host: "n9", HostIP: netip.MustParseAddr("198.18.0.9"), Subnet: netip.MustParsePrefix("172.11.252.0/22"), Identity: "stolen"}
	lie := topology.NodeStatus{Host: "n1", HostIP: host, Held: &topology.Held{At: topology.Point{Term: "x", Revision: 1 << 40}, Nodes: []topology.Node{evil, evil, evil}}}
	for range 3 { // as if three nodes said so
		for _, n := range lies {
			lie.Held.Namespaces = append(lie.Held.Namespaces, n)
		}
	}
	data, err := json.Marshal(lie)
	l.must(err)
	l.must(l.Agent("n1").Stop()) // it would write its own
	l.attack(attacks.Node, "records that etcd is said to have lost", func() (tried, delivered int) {
		_, err := n1.Put(t.Context(), networkKey+"/status/"+host.String(), string(data))
		l.must(err)
		l.eventually("the leader goes on without them", time.Minute, func() error {
			log, err := l.Controller().Log()
			l.must(err)
			if !strings.Contains(log, "now follow etcd") {
				return fmt.Errorf("it does not say so")
			}
			return nil
		})
		l.pods(map[string][]string{"n2": {"later/c"}}) // it has planned since
		for what, n := range lies {
			got, err := l.etcd().Get(t.Context(), networkKey+"/netnamespaces/"+n.NetName)
			l.must(err)
			if n.NetName != "red" && len(got.Kvs) > 0 {
				t.Logf("%s: %s", what, got.Kvs[0].Value)
				delivered++
			}
		}
		if l.registered(evil.HostIP.String()) {
			delivered++
		}
		return len(lies) + 1, delivered
	})
	if diff := cmp.Diff(before, l.record("red")); diff != "" {
		t.Errorf("namespace red changed (-was +is):\n%s", diff)
	}
}

// acknowledged is nil if what a node said of its pods in that revision is in the sets.
func (l *lab) acknowledged(node string, revision int64) error {
	r, err := l.etcd().Get(l.t.Context(), networkKey+"/acknowledged/"+node)
	if err != nil || len(r.Kvs) == 0 {
		return fmt.Errorf("no record: %w", err)
	}
	var taken topology.Acknowledged
	if err := json.Unmarshal(r.Kvs[0].Value, &taken); err != nil {
		return err
	}
	if taken.Revision < revision {
		return fmt.Errorf("revision %d is taken in, not %d", taken.Revision, revision)
	}
	return nil
}

// TestAttackUnderlayCertificates: without a certificate of the lab's CA, which has not
// ended, nobody gets anywhere.
func TestAttackUnderlayCertificates(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{Nodes: 1})
	own, err := l.NodeIdentity("n1")
	l.must(err)
	stranger, err := pki.NewCA("k8s-ovs-etcd-ca", time.Now())
	l.must(err)
	forged := func(user string) *tls.Config {
		p, err := stranger.Client(user, time.Hour, time.Now())
		l.must(err)
		b := own
		b.Pair = p
		return netlab.TLS(b)
	}
	get := func(config *tls.Config) func(context.Context) error {
		return func(ctx context.Context) error {
			c := l.etcdAs(config)
			defer c.Close()
			_, err := c.Get(ctx, networkKey, clientv3.WithPrefix())
			return err
		}
	}
	none := netlab.TLS(own)
	none.Certificates = nil
	l.must(l.GiveBundle(t.Context(), "n1", "--lifetime", "-1m"))
	late, err := l.GivenBundle("n1")
	l.must(err)
	first := get(netlab.TLS(own))
	l.eventually("the first bundle is revoked by the second", patience, func() error {
		if first(t.Context()) == nil {
			return fmt.Errorf("it opens etcd still")
		}
		return nil
	})
	l.attack(attacks.Underlay, "etcd without a good certificate", func() (int, int) {
		return l.each(map[string]func(context.Context) error{
			"none":                       get(none),
			"no TLS":                     get(nil),
			"signed by another CA":       get(forged(own.User())),
			"root's by another CA":       get(forged("root")),
			"an expired one":             get(netlab.TLS(late)),
			"one that was given anew":    first,
			"plain HTTP of the metrics":  func(ctx context.Context) error { return plain(ctx, l, "/metrics") },
			"plain HTTP of the gateway":  func(ctx context.Context) error { return plain(ctx, l, "/v3/kv/range") },
			"plain HTTP of the versions": func(ctx context.Context) error { return plain(ctx, l, "/version") },
		})
	})
}

// plain asks the lab's etcd over TLS without a certificate.
func plain(ctx context.Context, l *lab, path string) error {
	st, err := l.Status()
	l.must(err)
	h := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, st.Etcd.Endpoints[0]+path, nil)
	l.must(err)
	r, err := h.Do(req)
	if err == nil {
		_ = r.Body.Close()
	}
	return err
}

// TestNodeRemoved: the key of a node that was removed is good for nothing, at once; its
// pods keep their network; a new bundle lets it in again.
func TestNodeRemoved(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a"}, "n2": {"red/b"}})
	own, err := l.NodeIdentity("n2")
	l.must(err)
	n2 := l.etcdAs(netlab.TLS(own))
	watch := n2.Watch(t.Context(), networkKey, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-watch; r.Err() != nil {
		t.Fatal(r.Err())
	}
	began := time.Now()
	_, err = l.etcd().Delete(t.Context(), networkKey+"/subnets/198.18.0.2")
	l.must(err)
	for open := true; open; {
		select {
		case r, more := <-watch:
			open = more && r.Err() == nil
		case <-time.After(patience):
			t.Fatal("a node that was removed still watches")
		}
	}
	t.Logf("the watch of a removed node ended after %s", time.Since(began).Round(time.Millisecond))
	if _, err := n2.Get(t.Context(), networkKey+"/status/198.18.0.2"); err == nil {
		t.Error("a node that was removed still reads")
	}
	l.eventually("the agent says what is wrong", patience, func() error {
		err := l.Agent("n2").Ready(t.Context())
		if err == nil || !strings.Contains(err.Error(), "bundle node n2") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	if l.registered("198.18.0.2") {
		t.Error("it has made itself a record again")
	}
	l.must(l.GiveBundle(t.Context(), "n2"))
	l.must(l.Agent("n2").Restart(t.Context()))
	l.reaches("red/a", "red/b")
}

// registered reports whether the node of that address has a record.
func (l *lab) registered(ip string) bool {
	l.t.Helper()
	r, err := l.etcd().Get(l.t.Context(), networkKey+"/subnets/"+ip)
	l.must(err)
	return len(r.Kvs) > 0
}

// reaches fails the test unless a pod can ping another.
func (l *lab) reaches(from, to string) {
	l.t.Helper()
	_, err := l.PodExec(l.t.Context(), l.get(from), "ping", "-c1", "-W5", l.get(to).IP.String())
	l.must(err)
}

// TestCertificateRenewed: certificates that live for seconds are renewed while the probe
// loses nothing, also over a CA that is rotated.
func TestCertificateRenewed(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{ControllerArgs: []string{"--certificate-lifetime", "20s"}})
	l.pods(map[string][]string{"n1": {"red/a"}, "n2": {"red/b"}})
	serial := func(node string) string {
		b, err := l.NodeIdentity(node)
		l.must(err)
		return b.Pair.Cert.SerialNumber.String()
	}
	renewed := func(what string) {
		t.Helper()
		before := map[string]string{"n1": serial("n1"), "n2": serial("n2")}
		l.eventually(what, 60*time.Second, func() error {
			for node, old := range before {
				if serial(node) == old {
					return fmt.Errorf("%s has the old one", node)
				}
			}
			return nil
		})
	}
	run := l.run(probe.Exactly(everybody))
	l.traffic(run, 20)
	// The first ones live for 30 days: rotation has them renewed.
	_, err := l.Admin(t.Context(), "rotate-ca")
	l.must(err)
	renewed("renewed by the new CA")
	renewed("renewed after half of its life")
	l.eventually("the former CA is dropped", 60*time.Second, func() error {
		_, err := l.Admin(t.Context(), "rotate-ca", "--finish")
		return err
	})
	// It ends by itself, to start with the new CA only.
	l.eventually("the controller ends", patience, func() error {
		if l.Controller().Alive() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	l.must(l.StartController(t.Context()))
	renewed("renewed by the new CA alone")
	rep := run.Stop()
	for _, e := range rep.LostEvents {
		t.Errorf("lost %s", e)
	}
	t.Logf("%s:\n%s", rep.Duration.Round(1e8), table(rep))
}
