package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// TestStory is the ancestor's, against a real etcd.
func TestStory(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 2,
		space("helloworld1", 300924), space("helloworld2", 3831805), space("helloworld3", 6693608), space("kube-system", 0))
	l.controller()
	l.agent(1, nil)
	l.agent(2, nil)

	l.netns("join", "helloworld1", "helloworld2", "--dry-run").expect(t, ExitDone, []string{
		"dry run of join helloworld1 helloworld2; nothing was changed\n",
		"newly reachable, in both directions:\n  helloworld1 <-> helloworld2\n",
		"no longer reachable, in both directions:\n  none\n",
	}, nil)
	if got := *l.record("helloworld1").Effective; got != 300924 {
		t.Fatalf("a dry run changed the netID to %s", got)
	}

	o := l.netns("join", "helloworld1", "helloworld2")
	o.expect(t, ExitDone, []string{"helloworld1 joined helloworld2: netID 3831805, applied on 2/2 nodes\n"}, []string{"waiting for the controller\n"})
	o = l.netns("list")
	o.expect(t, ExitDone, nil, nil)
	want := `NAMESPACE     NETID     NETWORK-WITH   STATE
helloworld1   3831805   helloworld2    ready
helloworld2   3831805   helloworld1    ready
helloworld3   6693608   -              ready
kube-system   0         (all)          ready
`
	if diff := cmp.Diff(want, o.out); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	l.netns("join", "helloworld1", "helloworld2").expect(t, ExitDone, []string{"in the same network already (netID 3831805); nothing to do\n"}, nil)

	l.netns("isolate", "helloworld1").expect(t, ExitDone, []string{"helloworld1 is isolated: netID 5001, applied on 2/2 nodes\n"}, nil)
	l.netns("isolate", "helloworld1").expect(t, ExitDone, []string{"alone in its network already", "nothing to do"}, nil)

	o = l.netns("global", "helloworld3", "-o", "json")
	o.expect(t, ExitDone, nil, nil)
	var result view.Result
	if err := json.Unmarshal([]byte(o.out), &result); err != nil {
		t.Fatalf("%v\n%s", err, o.out)
	}
	if result.Result != view.Done || *result.NetID != netid.Global || result.Revision == 0 || result.Nodes.Applied != 2 {
		t.Errorf("result is %+v", result)
	}
	if diff := cmp.Diff([]string{"helloworld1", "helloworld2"}, result.Gains); diff != "" {
		t.Errorf("gains (-want +got):\n%s", diff)
	}
	l.netns("global", "helloworld3").expect(t, ExitDone, []string{"is global already"}, nil)
	l.netns("join", "helloworld2", "kube-system").expect(t, ExitDone, []string{"helloworld2 joined kube-system: netID 0", "note: kube-system is global, so joining it makes helloworld2 global"}, nil)

	l.netns("ls", "-o", "yaml").expect(t, ExitDone, []string{"- global: true\n", "  namespace: helloworld3\n", "  netID: 0\n"}, nil)
	l.netns("show", "helloworld1").expect(t, ExitDone, []string{"NetID:", "5001", "Reaches:", "helloworld2, helloworld3, kube-system", "2/2 nodes"}, nil)
	limited := l.store.LimitsPublisher(l.name, 0)
	t.Cleanup(limited.Close)
	limited.Set(topology.NodeLimits{Host: "n2", HostIP: address(2), Pods: []topology.PodLimits{
		{Namespace: "helloworld1", Pod: "web", Egress: &topology.LimitUsed{Rate: 1_500_000, Bytes: 7}},
	}})
	l.eventually(func() bool {
		return strings.Contains(l.netns("show", "helloworld1").out, "web           n2     egress      1500k")
	})
	o = l.netns("nodes", "-o", "yaml")
	o.expect(t, ExitDone, nil, nil)
	var nodes []view.Node
	if err := yaml.Unmarshal([]byte(o.out), &nodes); err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		if n.State != view.Ready || n.AppliedRevision == 0 {
			t.Errorf("node %s is %s at %d", n.Node, n.State, n.AppliedRevision)
		}
		n.AppliedRevision = 0
		want := view.Node{
			Node: fmt.Sprintf("n%d", i+1), Address: address(i + 1).String(), Subnet: fmt.Sprintf("172.11.%d.0/22", 4*i), Live: true,
			Datapath: "netdev", MTU: 1450, Pods: i + 1, Version: "v1.0.0", State: view.Ready,
		}
		if diff := cmp.Diff(want, n); diff != "" {
			t.Errorf("node (-want +got):\n%s", diff)
		}
	}
	if len(nodes) != 2 {
		t.Errorf("%d nodes, want 2", len(nodes))
	}
	l.netns("nodes").expect(t, ExitDone, []string{"NODE   ADDRESS     SUBNET          DATAPATH   MTU    PODS   APPLIED   STATE\nn1     192.0.2.1   172.11.0.0/22   netdev     1450   1      "}, nil)
}

// TestShowPolicies: policies of a namespace of Kubernetes, one of them, and one that is not
// there; without an API server there can be none.
func TestShowPolicies(t *testing.T) {
	shop := space("shop", 100)
	shop.UID = "u-shop"
	l := newLab(t, topology.DefaultConfig(), 1, shop, space("plain", 200))
	l.agent(1, nil)
	l.netns("show", "plain").expect(t, ExitDone, []string{"Policies:       none (no API server)\n"}, nil)
	l.netns("show", "shop").expect(t, ExitDone, []string{"Policies:       none\n"}, nil)
	lead, err := l.store.Campaign(t.Context(), l.name, "setup", 0)
	if err != nil {
		t.Fatal(err)
	}
	front := policy.Set{Namespace: "shop", Pods: "app=front"}
	key := policy.Key{Namespace: "shop", Name: "web"}
	web := policy.Policy{Key: key, Subject: "app=web", Ingress: policy.Side{Isolates: true, Rules: []policy.Rule{{Peers: []policy.Peer{{Set: &front}}, AnyPort: true}}}}
	text := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if _, err := lead.PutPolicies(t.Context(), []store.PolicyChange{
		{Key: store.IsolationKey("shop"), Value: text(topology.Isolation{Policies: []topology.IsolatingPolicy{web.Isolation()}, Cluster: []topology.SelectingPolicy{{Name: "web"}}})},
		{Key: store.ClusterPolicyKey("web"), Value: `{"Tier":"Admin","Priority":7,"Subject":{},"Egress":[{"Action":"Deny","Peers":[{"Set":{"Namespace":"shop","Pods":"app=front"}}]}]}`},
		{Key: store.PolicyRecordKey("shop", "web"), Value: text(web.Record())},
		{Key: store.SetKey(front.Hash()), Value: text(topology.AddressSet{PodSet: front.Record(), Whole: true})},
		{Key: store.ChunkKey(front.Hash(), netip.MustParseAddr("172.11.0.0")), Value: `{"Addresses":"3,7-9"}`},
	}); err != nil {
		t.Fatal(err)
	}
	pods := l.store.PodsPublisher(l.name, 0, nil)
	t.Cleanup(pods.Close)
	pods.Set(topology.NodePods{Host: "n1", HostIP: address(1), Pods: []topology.NodePod{{Namespace: "shop", Name: "web-1", Address: netip.MustParseAddr("172.11.0.5"), Ingress: []string{"web"}, Cluster: []string{"web"}}}})
	l.eventually(func() bool {
		return strings.Contains(l.netns("show", "shop").out, "web      app=web    ingress     web-1 on n1\n")
	})
	l.netns("show", "shop").expect(t, ExitDone, []string{"Policies:           1; not enforced on n1\n"}, nil)
	l.netns("show", "shop", "--policy", "web").expect(t, ExitDone, []string{"Policy:     shop/web\n", "Ingress:    isolates web-1 on n1\n", "ingress     pods app=front of namespace shop (4)   all\n"}, nil)
	l.netns("show", "shop", "--policy", "wbe").expect(t, ExitFailed, nil, []string{`namespace shop has no policy "wbe"; it has web`})
	o := l.netns("show", "shop", "--policy", "web", "-o", "json")
	o.expect(t, ExitDone, nil, nil)
	var d view.PolicyDetail
	if err := json.Unmarshal([]byte(o.out), &d); err != nil || d.IngressRules[0].Peers[0].Set.Members != 4 || d.Ingress.Pods[0].Node != "n1" || d.Egress != nil {
		t.Errorf("%+v, %v", d, err)
	}
	l.netns("show", "shop").expect(t, ExitDone, []string{"Cluster policies:   1; not enforced on n1\n", "web              Admin   7          (all)      web-1 on n1\n"}, nil)
	l.netns("show", "shop", "--cluster-policy", "web").expect(t, ExitDone, []string{"Subject:          all pods\n", "egress      Deny     pods app=front of namespace shop (4)   all\n"}, nil)
	l.netns("show", "shop", "--cluster-policy", "x").expect(t, ExitFailed, nil, []string{`no ClusterNetworkPolicy "x" is about pods of namespace shop; those that are: web`})
	l.netns("show", "shop", "--cluster-policy", "x", "--policy", "x").expect(t, ExitUsage, nil, []string{"--policy and --cluster-policy are of two policies"})
	l.etcd.Put(store.DefaultPrefix+"/"+l.name+"/clusterpolicies/web", `{`)
	l.netns("show", "shop", "--cluster-policy", "web").expect(t, ExitFailed, nil, []string{"cluster policy record web is not valid JSON"})
	l.etcd.Put(store.DefaultPrefix+"/"+l.name+"/policies/shop/web", `{`)
	l.netns("show", "shop", "--policy", "web").expect(t, ExitFailed, nil, []string{"policy record shop/web is not valid JSON"})
}

// TestRefusals: what cannot be done says why, and leaves the records alone.
func TestRefusals(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100), space("forbidden", 200), space("helloworld1", 300))
	l.controller()
	l.netns("join", "a", "a").expect(t, ExitFailed, nil, []string{"netns: namespace a cannot join itself; nothing was changed\n"})
	l.netns("join", "a", "helloword1").expect(t, ExitFailed, nil, []string{`no namespace "helloword1"; did you mean "helloworld1"?`})
	l.netns("show", "helloword1").expect(t, ExitFailed, nil, []string{`did you mean "helloworld1"?`})
	if got := l.record("a"); got.Action != topology.None || got.Status != nil {
		t.Errorf("the record was touched: %+v", got)
	}
	l.netns("join", "a", "forbidden").expect(t, ExitFailed, nil, []string{"join a forbidden was not carried out: namespace forbidden cannot be joined"})
	o := l.netns("join", "a", "forbidden", "-o", "json")
	o.expect(t, ExitFailed, []string{`"result": "refused"`}, []string{"was not carried out"})
	l.netns("show", "a").expect(t, ExitDone, []string{"Last request:", "namespace forbidden cannot be joined ("}, nil)
	l.netns("join", "a", "helloworld1").expect(t, ExitDone, []string{"applied on no node: none is live"}, nil)
}

func TestSingleTenant(t *testing.T) {
	cfg := topology.DefaultConfig()
	cfg.PluginName = topology.SingleTenant
	l := newLab(t, cfg, 0, space("a", 100), space("b", 200))
	l.netns("join", "a", "b").expect(t, ExitFailed, nil, []string{"single tenant", "every namespace reaches all", "nothing was changed"})
	l.netns("list").expect(t, ExitDone, []string{"(all)"}, []string{"note: the network \"k8ssdn\" has a single tenant: every namespace reaches all\n"})
}

func TestEmptyNetwork(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 0)
	l.netns("list").expect(t, ExitDone, []string{"NAMESPACE"}, []string{"has no namespaces yet"})
	l.netns("list", "-o", "json").expect(t, ExitDone, []string{"[]\n"}, nil)
	l.netns("nodes").expect(t, ExitDone, []string{"NODE"}, []string{"has no nodes yet"})
	l.netns("isolate", "a").expect(t, ExitFailed, nil, []string{`no namespace "a"`, "none yet"})
	l.netns("list", "--etcd-prefix", "/elsewhere").expect(t, ExitFailed, nil, []string{"no network configuration", "/elsewhere/config", "k8s-ovs-controller"})
}

// TestSlowNode: the command returns when the last live node has the change, and
// not before.
func TestSlowNode(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %t", terminal), func(t *testing.T) {
			l := newLab(t, topology.DefaultConfig(), 3, space("a", 100), space("b", 200))
			l.controller()
			gate := make(chan struct{})
			l.agent(1, nil)
			l.agent(2, gate)
			opened := false
			stderr := &buffer{onWrite: func(all string) {
				if !opened && strings.Contains(all, "applied on 1/2 nodes") {
					opened = true
					close(gate)
				}
			}}
			o := netnsIO(t.Context(), stderr, terminal, "--etcd-endpoints", l.etcd.Endpoints[0], "join", "a", "b")
			o.expect(t, ExitDone, []string{"a joined b: netID 200, applied on 2/2 nodes; not live and not counted: n3\n"}, []string{"applied on 1/2 nodes"})
			if !opened {
				t.Error("the command did not wait for the slow node")
			}
			if terminal && (strings.Contains(o.err, "\n") || !strings.HasSuffix(o.err, eraseLine)) {
				t.Errorf("on a terminal the line is rewritten and cleared: %q", o.err)
			}
			if !terminal && strings.Contains(o.err, "\r") {
				t.Errorf("without a terminal each step is a line: %q", o.err)
			}
		})
	}
}

func TestTimeoutOnNode(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 2, space("a", 100), space("b", 200))
	l.controller()
	l.agent(1, nil)
	l.agent(2, make(chan struct{}))
	// Long enough for the controller and node 1 on a busy machine.
	l.netns("join", "a", "b", "--timeout", "10s").expect(t, ExitTimeout, nil, []string{"after 10s applied on 1/2 nodes, missing on n2. The request stands"})
	if got := *l.record("a").Effective; got != 200 {
		t.Errorf("netID is %s, want 200", got)
	}
	l.netns("nodes").expect(t, ExitDone, []string{"behind"}, nil)
	l.netns("show", "a").expect(t, ExitDone, []string{"1/2 nodes, missing on n2"}, nil)
}

// TestNoController: a request that nobody took never fires later.
func TestNoController(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 1, space("a", 100), space("b", 200))
	l.agent(1, nil)
	o := l.netns("join", "a", "b", "--timeout", "300ms", "-o", "json")
	o.expect(t, ExitTimeout, []string{`"result": "withdrawn"`}, []string{"no controller has taken the request in 300ms: none is leading; is k8s-ovs-controller running?", "withdrawn"})
	if got := l.record("a"); got.Action != topology.None || *got.Effective != 100 {
		t.Errorf("the request stands: %+v", got)
	}
	l.controller()
	// The controller works on what comes next, so it has passed the record by.
	l.netns("global", "b").expect(t, ExitDone, []string{"b is global"}, nil)
	if got := *l.record("a").Effective; got != 100 {
		t.Errorf("the withdrawn request fired: netID %s", got)
	}
}

func TestNoWait(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100), space("b", 200), space("c", 300))
	l.netns("join", "a", "b", "--no-wait").expect(t, ExitDone, []string{"requested: join a b; `netns show a` tells"}, nil)
	if got := l.record("a"); got.Action != topology.Join || got.Namespace != "b" {
		t.Fatalf("record is %+v", got)
	}
	l.netns("list").expect(t, ExitDone, []string{"pending: join a b is requested"}, nil)
	l.netns("show", "a", "-o", "json").expect(t, ExitDone, []string{`"request": "join a b"`, `"state": "pending"`}, nil)
	l.netns("join", "a", "c").expect(t, ExitFailed, nil, []string{"a has another request pending: join a b"})
	l.controller()
	// The same request again joins the wait for the first one.
	l.netns("join", "a", "b").expect(t, ExitDone, nil, nil)
	if got := *l.record("a").Effective; got != 200 {
		t.Errorf("netID is %s, want 200", got)
	}
}

func TestInterrupt(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100), space("b", 200))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stderr := &buffer{onWrite: func(all string) {
		if strings.Contains(all, "waiting for the controller") {
			cancel()
		}
	}}
	o := netnsIO(ctx, stderr, false, "--etcd-endpoints", l.etcd.Endpoints[0], "join", "a", "b")
	o.expect(t, ExitFailed, nil, []string{"interrupted: the request join a b stands"})
	if got := l.record("a"); got.Action != topology.Join {
		t.Errorf("the request does not stand: %+v", got)
	}
	// Before anything was asked for there is nothing that stands.
	o = netns(ctx, "--etcd-endpoints", l.etcd.Endpoints[0], "isolate", "b")
	o.expect(t, ExitFailed, nil, []string{"netns: interrupted\n"})
}

func TestUnreachable(t *testing.T) {
	// Ports of the discard and echo services on the loopback: nobody listens.
	o := netns(t.Context(), "--etcd-endpoints", "127.0.0.1:9,127.0.0.1:7", "--etcd-dial-timeout", "2s", "list")
	o.expect(t, ExitFailed, nil, []string{"etcd is unavailable", "endpoints tried: http://127.0.0.1:9, http://127.0.0.1:7", "connection refused"})
	if strings.Count(o.err, "\n") != 1 {
		t.Errorf("more than the error is printed: %q", o.err)
	}
}

// TestHint: who asks nobody in particular is told how to ask in Kubernetes.
func TestHint(t *testing.T) {
	const inside = "`kubectl -n kube-system exec deploy/k8s-ovs-controller -- netns list -o json`"
	down := fmt.Errorf("list: %w", store.ErrUnavailable)
	args := []string{"list", "-o", "json"}
	for _, tt := range []struct {
		p          program
		err        error
		kubeconfig string
		want       []string
	}{
		{program{}, down, "", []string{"--etcd-endpoints", inside}},
		{program{}, down, "/root/admin.conf", []string{"does not read KUBECONFIG", inside, "--kubeconfig /root/admin.conf"}},
		{program{endpoints: true}, down, "/root/admin.conf", nil},
		{program{kube: options.Kube{Enabled: true}}, down, "/root/admin.conf", nil},
		{program{}, errors.New("no such namespace"), "/root/admin.conf", nil},
	} {
		got := tt.p.hint(tt.err, args, tt.kubeconfig)
		if (got == "") != (tt.want == nil) {
			t.Errorf("endpoints %v, kubernetes %v, %v: hint %q", tt.p.endpoints, tt.p.kube.Enabled, tt.err, got)
		}
		for _, w := range tt.want {
			if !strings.Contains(got, w) {
				t.Errorf("hint %q lacks %q", got, w)
			}
		}
	}
	t.Setenv("KUBECONFIG", "/root/admin.conf")
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"list"}, IO{Out: io.Discard, Err: &stderr}, func(store.Config) (records, error) { return nil, down })
	if code != ExitFailed || !strings.Contains(stderr.String(), "hint: netns does not read KUBECONFIG") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
}

// TestHostileText: what a record says of itself in an error, a note or the line of progress does
// not rule the operator's terminal.
func TestHostileText(t *testing.T) {
	const hostile = "\x1b[2J\nn2 \u009b8m"
	var stderr bytes.Buffer
	run(t.Context(), []string{"list"}, IO{Out: io.Discard, Err: &stderr}, func(store.Config) (records, error) { return nil, errors.New(hostile) })
	run(t.Context(), []string{"list", hostile}, IO{Out: io.Discard, Err: &stderr}, nil)
	(&program{io: IO{Err: &stderr}}).note("%s", hostile)
	p := progress{w: &stderr}
	p.show(hostile)
	if strings.Contains(stderr.String(), "\x1b") || strings.Contains(stderr.String(), "\u009b") || strings.Contains(stderr.String(), "\nn2") {
		t.Errorf("control characters are printed: %q", &stderr)
	}
	stderr.Reset()
	p.rewrite = true
	p.show(hostile)
	if want := eraseLine + "\uFFFD[2J n2 \uFFFD8m"; stderr.String() != want {
		t.Errorf("progress is %q, want %q", &stderr, want)
	}
}

// TestHostileOutput: nor does it in JSON or YAML, which mean the same all the same.
func TestHostileOutput(t *testing.T) {
	texts := []string{"plain text: 'ä' 网 \U0001F600", "", "0", "- a\n- b"}
	for _, r := range "\x00\t\n\r\x1b\x7f\u0085\u009b\u00a0\u00ad\u200b\u202e\u2028\u2029\u2066\ue000\ufeff\uffff\U000110bd\U000e0041" {
		texts = append(texts, "a: "+string(r)+" b")
	}
	texts = append(texts, strings.Join(texts, " "))
	for _, format := range []string{"json", "yaml"} {
		for _, text := range texts {
			// Keys are people's words too, such as names of labels.
			want := map[string][]string{"k" + text: {text, "other"}}
			var out bytes.Buffer
			if err := print(&program{output: format, io: IO{Out: &out}}, want, nil); err != nil {
				t.Fatalf("%s of %q: %v", format, text, err)
			}
			if strings.ContainsFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
				t.Errorf("%s of %q prints %q", format, text, &out)
			}
			var got map[string][]string
			decode := json.Unmarshal
			if format == "yaml" {
				decode = func(data []byte, v any) error { return yaml.Unmarshal(data, v) }
			}
			if err := decode(out.Bytes(), &got); err != nil {
				t.Errorf("%s of %q cannot be read: %v: %q", format, text, err, &out)
			} else if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s of %q (-want +got)\n%s", format, text, diff)
			}
		}
	}
}

// TestGlobalAsks: before a namespace is opened to all, netns says to whom, and asks
// whoever can answer.
func TestGlobalAsks(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100), space("b", 200), space("c", 0), space("d", 300))
	l.controller()
	ask := func(answer io.Reader, args ...string) outcome {
		var out, stderr bytes.Buffer
		code := Run(t.Context(), append([]string{"--etcd-endpoints", l.etcd.Endpoints[0]}, args...), IO{Out: &out, Err: &stderr, In: answer})
		return outcome{code, out.String(), stderr.String()}
	}
	const consequence, question = "a becomes global: it and b, d newly reach each other, and so does every namespace that comes later\n", "Make a global? [y/N] "
	for _, answer := range []string{"", "\n", "n\n", "yess\n"} {
		for _, args := range [][]string{{"global", "a"}, {"join", "a", "c"}} {
			ask(strings.NewReader(answer), args...).expect(t, ExitFailed, nil, []string{consequence + question, "nothing was changed"})
		}
	}
	if got := l.record("a"); *got.Effective != 100 || got.Action != topology.None {
		t.Fatalf("it was changed: %+v", got)
	}
	ask(strings.NewReader("y\n"), "global", "a").expect(t, ExitDone, []string{"a is global"}, []string{consequence + question})
	silent := func(o outcome) {
		t.Helper()
		if strings.Contains(o.err, "[y/N]") {
			t.Errorf("asked: %s", o.err)
		}
	}
	answered := ask(strings.NewReader(""), "global", "b", "--yes")
	answered.expect(t, ExitDone, []string{"b is global"}, []string{"b becomes global: it and d newly reach each other"})
	silent(answered)
	script := ask(nil, "global", "d")
	script.expect(t, ExitDone, []string{"d is global"}, []string{"d becomes global: it reaches no namespace that it does not reach now"})
	silent(script)
	silent(ask(strings.NewReader(""), "isolate", "d"))
	silent(ask(strings.NewReader(""), "global", "b")) // nothing to do
}

func TestUsage(t *testing.T) {
	config := filepath.Join(t.TempDir(), "netns.yaml")
	if err := os.WriteFile(config, []byte("time-out: 1m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"joim", "a", "b"}, "unknown command \"joim\" for \"netns\"\n\nDid you mean this?\n  join"},
		{[]string{"join", "a"}, "join needs NAMESPACE and TARGET; TARGET is missing"},
		{[]string{"join"}, "NAMESPACE is missing"},
		{[]string{"isolate", "a", "b"}, `isolate takes NAMESPACE only, but was also given "b"`},
		{[]string{"list", "a"}, `list takes no arguments, but was given "a"`},
		{[]string{"list", "--frobnicate"}, "unknown flag: --frobnicate"},
		{[]string{"list", "--dry-run"}, "unknown flag: --dry-run"},
		{[]string{"list", "-o", "xml"}, `--output "xml" is none of table, json, yaml`},
		{[]string{"join", "a", "b", "--timeout", "soon"}, "--timeout"},
		{[]string{"join", "a", "b", "--timeout", "-1s"}, "--timeout -1s is negative"},
		{[]string{"list", "--config", config}, `no flag is called "time-out"; did you mean "timeout"?`},
		{[]string{"list", "--etcd-endpoints", "nowhere"}, `--etcd-endpoints: "nowhere": it needs a host and a port`},
		{[]string{"list", "--etcd-endpoints", ""}, "--etcd-endpoints is empty"},
		{[]string{"isolate", "a", "--yes"}, "unknown flag: --yes"},
		{[]string{"list", "--etcd-cert", config}, "--etcd-cert is given without --etcd-key"},
		{[]string{"completion"}, "bash, zsh or fish"},
		{[]string{"completion", "powershell"}, "bash, zsh or fish"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			o := netns(t.Context(), tt.args...)
			o.expect(t, ExitUsage, nil, []string{tt.want, "--help'."})
			if o.out != "" {
				t.Errorf("output %q", o.out)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"help"}, {"--help"}} {
		o := netns(t.Context(), args...)
		o.expect(t, ExitDone, []string{"Usage:\n  netns [command]", "Exit codes: 0 done", "K8S_OVS_ETCD_CACERT", "join", "isolate", "global", "list", "show", "nodes", "version", "completion"}, nil)
	}
	for _, command := range []string{"join", "isolate", "global"} {
		netns(t.Context(), "help", command).expect(t, ExitDone, []string{"--dry-run", "--no-wait", "--timeout", "(default 30s)", "withdrawn"}, nil)
	}
}

// TestVersion needs no etcd.
func TestVersion(t *testing.T) {
	netns(t.Context(), "version").expect(t, ExitDone, []string{"netns ", "(commit "}, nil)
	netns(t.Context(), "version", "-o", "json").expect(t, ExitDone, []string{`"version": "`, `"platform": "linux/`}, nil)
}

func TestCompletion(t *testing.T) {
	for shell, want := range map[string]string{"bash": "__start_netns", "zsh": "#compdef netns", "fish": "complete -c netns"} {
		netns(t.Context(), "completion", shell).expect(t, ExitDone, []string{want}, nil)
	}
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100), space("b", 0), topology.Namespace{NetName: "new"})
	// What the shells' scripts call.
	l.netns("__complete", "join", "").expect(t, ExitDone, []string{"a\tnetID 100\nb\tglobal\nnew\tno netID yet\n:4\n"}, nil)
	l.netns("__complete", "join", "a", "").expect(t, ExitDone, []string{"b\tglobal\nnew\tno netID yet\n:4\n"}, nil)
	l.netns("__complete", "join", "a", "b", "").expect(t, ExitDone, []string{":4\n"}, nil)
	l.netns("__complete", "show", "n").expect(t, ExitDone, []string{"new"}, nil)
	l.netns("__complete", "list", "-o", "").expect(t, ExitDone, []string{"table\njson\nyaml\n"}, nil)
	// Without etcd nothing is completed, and nothing is printed into the prompt.
	o := netns(t.Context(), "--etcd-endpoints", "127.0.0.1:9", "--etcd-dial-timeout", "100ms", "__complete", "show", "")
	if o.code != ExitDone || o.out != ":4\n" {
		t.Errorf("%+v", o)
	}
}

// TestSources: command line over environment over file, for the CLI as for the
// other programs; flags of sibling commands may stand in the file.
func TestSources(t *testing.T) {
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100))
	config := filepath.Join(t.TempDir(), "netns.yaml")
	content := fmt.Sprintf("etcd-endpoints: [%q]\netcd-dial-timeout: 10s\noutput: yaml\ntimeout: 1m\n", l.etcd.Endpoints[0])
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	netns(t.Context(), "--config", config, "list").expect(t, ExitDone, []string{"- global: false\n"}, nil)
	t.Setenv("K8S_OVS_CONFIG", config)
	netns(t.Context(), "list").expect(t, ExitDone, []string{"- global: false\n"}, nil)
	t.Setenv("K8S_OVS_OUTPUT", "json")
	netns(t.Context(), "list").expect(t, ExitDone, []string{`"namespace": "a"`}, nil)
	netns(t.Context(), "list", "-o", "table").expect(t, ExitDone, []string{"NAMESPACE   NETID"}, nil)
	t.Setenv("K8S_OVS_ETCD_ENDPOINTS", "127.0.0.1:9")
	t.Setenv("K8S_OVS_ETCD_DIAL_TIMEOUT", "300ms")
	netns(t.Context(), "list").expect(t, ExitFailed, nil, []string{"127.0.0.1:9"})
	l.netns("list").expect(t, ExitDone, nil, nil)
}

// TestMistypedVariable: a setting that has no effect is refused, as in the file.
func TestMistypedVariable(t *testing.T) {
	t.Setenv("K8S_OVS_ETCD_ENDPOINT", "127.0.0.1:9")
	netns(t.Context(), "list").expect(t, ExitUsage, nil, []string{`K8S_OVS_ETCD_ENDPOINT: no program of k8s-ovs has such a flag; did you mean "K8S_OVS_ETCD_ENDPOINTS"`})
}

// TestFlagsKnown: programs share an environment, so the others know the flags of netns.
func TestFlagsKnown(t *testing.T) {
	names := map[string]bool{}
	for below := []*cobra.Command{(&program{}).root()}; len(below) > 0; below = below[1:] {
		c := below[0]
		below = append(below, c.Commands()...)
		for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			set.VisitAll(func(f *pflag.Flag) { names[f.Name] = true })
		}
	}
	delete(names, "help")
	if diff := cmp.Diff(options.FlagsOf("netns"), slices.Sorted(maps.Keys(names))); diff != "" {
		t.Errorf("flags (-package options knows +netns has):\n%s", diff)
	}
}
