package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// TestRuntime drives the plugin as a runtime does, in every version.
func TestRuntime(t *testing.T) {
	netns := newNetns(t)
	a := startAgent(t, nil)
	for _, v := range version.All.SupportedVersions() {
		t.Run(v, func(t *testing.T) {
			cni := libcni.NewCNIConfigWithCacheDir([]string{pluginDir}, t.TempDir(), nil)
			list, err := libcni.ConfListFromBytes(fmt.Appendf(nil,
				`{"cniVersion":%q,"name":"k8s-ovs","plugins":[{"type":"k8s-ovs","socket":%q,"capabilities":{"bandwidth":true}}]}`, v, a.socket))
			if err != nil {
				t.Fatal(err)
			}
			rt := &libcni.RuntimeConf{
				ContainerID: "c1", NetNS: netns, IfName: "eth0",
				Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "helloworld1"}, {"K8S_POD_NAME", "web-0"},
					{"K8S_POD_INFRA_CONTAINER_ID", "c1"}, {"K8S_POD_UID", "u-1"}},
				CapabilityArgs: map[string]any{"bandwidth": map[string]uint64{
					"ingressRate": 10_000_000, "ingressBurst": 4294967295, "egressRate": 20_000_000}},
			}
			base := cniapi.Request{
				Version: cniapi.Version, ContainerID: "c1", Netns: netns, IfName: "eth0",
				PodNamespace: "helloworld1", PodName: "web-0", PodUID: "u-1", NetworkName: "k8s-ovs", CNIVersion: v,
			}
			limits := &cniapi.Bandwidth{IngressRate: 10_000_000, IngressBurst: 4294967295, EgressRate: 20_000_000}
			atLeast := func(min string) bool { ok, _ := version.GreaterThanOrEqualTo(v, min); return ok }
			ctx := context.Background()

			res, err := cni.AddNetworkList(ctx, list, rt)
			if err != nil {
				t.Fatal(err)
			}
			add := base
			add.Command, add.Bandwidth = cniapi.Add, limits
			expect(t, a, add)
			checkResult(t, res, v, netns)

			if atLeast("0.4.0") {
				if err := cni.CheckNetworkList(ctx, list, rt); err != nil {
					t.Error(err)
				}
				check := base
				check.Command, check.Bandwidth, check.PrevResult = cniapi.Check, limits, prevOf(v, netns)
				expect(t, a, check)
			}
			if atLeast("1.1.0") {
				if err := cni.GetStatusNetworkList(ctx, list); err != nil {
					t.Error(err)
				}
				for _, valid := range [][]types.GCAttachment{{{ContainerID: "c1", IfName: "eth0"}}, nil} {
					if valid == nil {
						// libcni itself first sends DEL for what it remembers.
						if err := cni.DelNetworkList(ctx, list, rt); err != nil {
							t.Error(err)
						}
					}
					if err := cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
						t.Error(err)
					}
				}
				del := base
				del.Command = cniapi.Del
				gc := cniapi.Request{Version: cniapi.Version, Command: cniapi.GC, NetworkName: "k8s-ovs", CNIVersion: v}
				one, none := gc, gc
				one.ValidAttachments = []cniapi.Attachment{{ContainerID: "c1", IfName: "eth0"}}
				none.ValidAttachments = []cniapi.Attachment{}
				expect(t, a, cniapi.Request{Version: cniapi.Version, Command: cniapi.Status, NetworkName: "k8s-ovs", CNIVersion: v}, one, del, none)
				// A runtime that gives GC no list at all: nothing may be removed.
				if err := cni.GCNetworkList(ctx, list, nil); err == nil || !strings.Contains(err.Error(), "cni.dev/valid-attachments") {
					t.Errorf("GC without a list: %v", err)
				}
				expect(t, a)
			}
			if err := cni.DelNetworkList(ctx, list, rt); err != nil {
				t.Error(err)
			}
			del := base
			del.Command = cniapi.Del
			expect(t, a, del)
		})
	}
}

func expect(t *testing.T, a *agent, want ...cniapi.Request) {
	t.Helper()
	if diff := cmp.Diff(want, a.requests(), compare); diff != "" {
		t.Errorf("the agent was asked (-want +got):\n%s", diff)
	}
}

// prevOf is what the runtime remembers of result().
func prevOf(v, netns string) *cniapi.PrevResult {
	one, mtu := 1, 0
	if v == "1.1.0" {
		mtu = 1450
	}
	return &cniapi.PrevResult{
		Interfaces: []cniapi.PrevInterface{
			{Name: "veth0a1b", MAC: "02:00:00:00:00:01", MTU: mtu},
			{Name: "eth0", MAC: "0a:58:ac:0b:00:05", MTU: mtu, Sandbox: netns},
		},
		IPs: []cniapi.PrevIP{{Address: netip.MustParsePrefix("172.11.0.5/32"), Gateway: netip.MustParseAddr("172.11.0.1"), Interface: &one}},
	}
}

// checkResult compares what the runtime understood, in the newest form.
func checkResult(t *testing.T, res types.Result, v, netns string) {
	t.Helper()
	if res.Version() != v {
		t.Errorf("result has version %s, want %s", res.Version(), v)
	}
	got, err := types100.NewResultFromResult(res)
	if err != nil {
		t.Fatal(err)
	}
	mtu, routeMTU := 0, 0
	if v == "1.1.0" {
		mtu, routeMTU = 1450, 1440
	}
	want := &types100.Result{
		CNIVersion: "1.1.0",
		Interfaces: []*types100.Interface{
			{Name: "veth0a1b", Mac: "02:00:00:00:00:01", Mtu: mtu},
			{Name: "eth0", Mac: "0a:58:ac:0b:00:05", Mtu: mtu, Sandbox: netns},
		},
		IPs: []*types100.IPConfig{{Interface: types100.Int(1), Address: cidr("172.11.0.5/32"), Gateway: net.IPv4(172, 11, 0, 1)}},
		Routes: []*types.Route{
			{Dst: cidr("172.11.0.1/32")},
			{Dst: cidr("0.0.0.0/0"), GW: net.IPv4(172, 11, 0, 1), MTU: routeMTU},
		},
	}
	if v == "0.1.0" || v == "0.2.0" {
		// Their results have no interfaces.
		want.Interfaces, want.IPs[0].Interface = nil, nil
	}
	diff := cmp.Diff(want, got, cmp.Comparer(net.IP.Equal),
		cmp.Comparer(func(a, b net.IPNet) bool { return a.String() == b.String() }))
	if diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func cidr(s string) net.IPNet {
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	n.IP = ip
	return *n
}

// TestResultText has the results as they are printed: an older version's may
// have no field of a newer one.
func TestResultText(t *testing.T) {
	netns := newNetns(t)
	a := startAgent(t, nil)
	dns := `"dns":{"nameservers":["10.96.0.10"],"search":["a.svc"]}`
	interfaces := fmt.Sprintf(`"interfaces":[{"name":"veth0a1b","mac":"02:00:00:00:00:01"},{"name":"eth0","mac":"0a:58:ac:0b:00:05","sandbox":%q}]`, netns)
	routes := `"routes":[{"dst":"172.11.0.1/32"},{"dst":"0.0.0.0/0","gw":"172.11.0.1"}]`
	ip02 := `"ip4":{"ip":"172.11.0.5/32","gateway":"172.11.0.1",` + routes + `}`
	ip03 := `"ips":[{"version":"4","interface":1,"address":"172.11.0.5/32","gateway":"172.11.0.1"}]`
	ip10 := `"ips":[{"interface":1,"address":"172.11.0.5/32","gateway":"172.11.0.1"}]`
	want := map[string]string{
		"0.1.0": ip02 + "," + dns,
		"0.2.0": ip02 + "," + dns,
		"0.3.0": strings.Join([]string{interfaces, ip03, routes, dns}, ","),
		"0.3.1": strings.Join([]string{interfaces, ip03, routes, dns}, ","),
		"0.4.0": strings.Join([]string{interfaces, ip03, routes, dns}, ","),
		"1.0.0": strings.Join([]string{interfaces, ip10, routes, dns}, ","),
		"1.1.0": strings.Join([]string{
			fmt.Sprintf(`"interfaces":[{"name":"veth0a1b","mac":"02:00:00:00:00:01","mtu":1450},{"name":"eth0","mac":"0a:58:ac:0b:00:05","mtu":1450,"sandbox":%q}]`, netns),
			ip10, `"routes":[{"dst":"172.11.0.1/32"},{"dst":"0.0.0.0/0","gw":"172.11.0.1","mtu":1440}]`, dns}, ","),
	}
	for _, v := range version.All.SupportedVersions() {
		out, failure := call{command: "ADD", conf: fmt.Sprintf(`{"cniVersion":%q,"name":"k8s-ovs","type":"k8s-ovs","socket":%q,%s,"unknown":[1]}`, v, a.socket, dns)}.run(t, netns)
		if failure != nil {
			t.Errorf("%s: %v", v, failure)
			continue
		}
		var got, exp any
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Errorf("%s: stdout is not JSON: %v\n%s", v, err, out)
		}
		if err := json.Unmarshal(fmt.Appendf(nil, `{"cniVersion":%q,%s}`, v, want[v]), &exp); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(exp, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", v, diff)
		}
	}
}

// TestBadInput has every mistake a runtime or an administrator can make: the
// plugin says which field it is in, and nothing reaches the agent.
func TestBadInput(t *testing.T) {
	netns := newNetns(t)
	a := startAgent(t, nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	conf := func(more string) string {
		return fmt.Sprintf(`{"cniVersion":"1.1.0","name":"k8s-ovs","type":"k8s-ovs","socket":%q%s}`, a.socket, more)
	}
	env := func(k, v string) map[string]string { return map[string]string{k: v} }
	for _, tc := range []struct {
		name string
		call call
		code uint
		want string
	}{
		{"no CNI_ARGS", call{"ADD", env("CNI_ARGS", "-"), conf("")}, 4, "K8S_POD_NAMESPACE"},
		{"no pod name", call{"ADD", env("CNI_ARGS", "K8S_POD_NAMESPACE=a"), conf("")}, 4, "K8S_POD_NAME"},
		{"CNI_ARGS is no list", call{"ADD", env("CNI_ARGS", "K8S_POD_NAMESPACE=a;web"), conf("")}, 4, "CNI_ARGS"},
		{"unknown key", call{"ADD", env("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;FOO=1"), conf("")}, 4, "CNI_ARGS: key \"FOO\""},
		{"namespace has capitals", call{"ADD", env("CNI_ARGS", "K8S_POD_NAMESPACE=Not_A_Label;K8S_POD_NAME=b"), conf("")}, 4, "K8S_POD_NAMESPACE"},
		{"namespace climbs", call{"ADD", env("CNI_ARGS", "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=b"), conf("")}, 4, "K8S_POD_NAMESPACE"},
		{"pod name has an equals sign", call{"ADD", env("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=B=c"), conf("")}, 4, "K8S_POD_NAME"},
		{"a MAC is asked for", call{"ADD", env("CNI_ARGS", podArgsEnv+";MAC=02:00:00:00:00:01"), conf("")}, 4, "CNI_ARGS: MAC"},
		{"an address is asked for", call{"ADD", env("CNI_ARGS", podArgsEnv+";IP=172.11.0.9"), conf("")}, 4, "CNI_ARGS: IP"},
		{"capability mac", call{"ADD", nil, conf(`,"runtimeConfig":{"mac":"02:00:00:00:00:01"}`)}, 2, "runtimeConfig.mac: 02:00:00:00:00:01"},
		{"capability ips", call{"ADD", nil, conf(`,"runtimeConfig":{"ips":["172.11.0.9/22"]}`)}, 2, "runtimeConfig.ips: 172.11.0.9/22"},
		{"args.cni.mac", call{"ADD", nil, conf(`,"args":{"cni":{"mac":"02:00:00:00:00:01"}}`)}, 2, "args.cni.mac"},
		{"args.cni.ips", call{"ADD", nil, conf(`,"args":{"cni":{"ips":["172.11.0.9"]}}`)}, 2, "args.cni.ips"},
		{"no netns", call{"ADD", env("CNI_NETNS", "-"), conf("")}, 4, "CNI_NETNS"},
		{"netns does not exist", call{"ADD", env("CNI_NETNS", "/var/run/netns/none-such"), conf("")}, 4, "CNI_NETNS: /var/run/netns/none-such does not exist"},
		{"netns does not exist in CHECK", call{"CHECK", env("CNI_NETNS", "/var/run/netns/none-such"), conf(`,"prevResult":{"cniVersion":"1.1.0"}`)}, 4, "CNI_NETNS"},
		{"netns is relative", call{"ADD", env("CNI_NETNS", "netns/x"), conf("")}, 4, "CNI_NETNS"},
		{"netns is a file", call{"ADD", env("CNI_NETNS", file), conf("")}, 4, "CNI_NETNS"},
		{"netns is a device", call{"ADD", env("CNI_NETNS", "/dev/null"), conf("")}, 4, "CNI_NETNS"},
		{"netns is below a file", call{"ADD", env("CNI_NETNS", file+"/x"), conf("")}, 4, "CNI_NETNS"},
		{"netns is another kind", call{"ADD", env("CNI_NETNS", "/proc/self/ns/uts"), conf("")}, 4, "CNI_NETNS: /proc/self/ns/uts is a namespace, but"},
		{"netns is the host's", call{"ADD", env("CNI_NETNS", fmt.Sprintf("/proc/%d/ns/net", os.Getpid())), conf("")}, 4, "CNI_NETNS"},
		{"interface name is too long", call{"ADD", env("CNI_IFNAME", "abcdefghijklmnop"), conf("")}, 4, "CNI_IFNAME"},
		{"interface name is a template", call{"ADD", env("CNI_IFNAME", "eth%d"), conf("")}, 4, "CNI_IFNAME"},
		{"interface name has a slash", call{"ADD", env("CNI_IFNAME", "a/b"), conf("")}, 4, "CNI_IFNAME"},
		{"no interface name", call{"ADD", env("CNI_IFNAME", "-"), conf("")}, 4, "CNI_IFNAME"},
		{"no container ID", call{"DEL", env("CNI_CONTAINERID", "-"), conf("")}, 4, "CNI_CONTAINERID"},
		{"container ID climbs", call{"ADD", env("CNI_CONTAINERID", "../x"), conf("")}, 4, "CNI_CONTAINERID"},
		{"container ID is too long", call{"ADD", env("CNI_CONTAINERID", strings.Repeat("a", 256)), conf("")}, 4, "CNI_CONTAINERID"},
		{"unknown command", call{"FROB", nil, conf("")}, 4, "CNI_COMMAND"},

		{"no configuration", call{"ADD", nil, ""}, 6, "network config"},
		{"broken JSON", call{"ADD", nil, `{"cniVersion":"1.1.0","name":`}, 6, "network config"},
		{"broken JSON in DEL", call{"DEL", nil, `{"cniVersion":`}, 6, "network config"},
		{"a JSON list", call{"ADD", nil, "[]"}, 6, "network config"},
		{"JSON null", call{"ADD", nil, "null"}, 7, "network name"},
		{"unknown version", call{"ADD", nil, `{"cniVersion":"9.9.9","name":"k8s-ovs"}`}, 1, "incompatible CNI versions"},
		{"version is no version", call{"ADD", nil, `{"cniVersion":"abc","name":"k8s-ovs"}`}, 1, "incompatible CNI versions"},
		{"version is a number", call{"ADD", nil, `{"cniVersion":1,"name":"k8s-ovs"}`}, 6, "cniVersion"},
		{"no network name", call{"ADD", nil, `{"cniVersion":"1.1.0"}`}, 7, "name"},
		{"network name has a slash", call{"ADD", nil, `{"cniVersion":"1.1.0","name":"a/b"}`}, 7, "name"},
		{"socket is relative", call{"ADD", nil, `{"cniVersion":"1.1.0","name":"n","socket":"cni.sock"}`}, 7, "socket"},
		{"socket is too long", call{"ADD", nil, `{"cniVersion":"1.1.0","name":"n","socket":"/` + strings.Repeat("a", 107) + `"}`}, 7, "socket"},
		{"socket is a number", call{"ADD", nil, `{"cniVersion":"1.1.0","name":"n","socket":1}`}, 6, "socket"},
		{"negative rate", call{"ADD", nil, conf(`,"runtimeConfig":{"bandwidth":{"ingressRate":-1}}`)}, 6, "runtimeConfig.bandwidth.ingressRate"},
		{"burst without rate", call{"ADD", nil, conf(`,"runtimeConfig":{"bandwidth":{"egressBurst":1}}`)}, 7, "runtimeConfig.bandwidth.egressBurst"},
		{"CHECK without prevResult", call{"CHECK", nil, conf("")}, 7, "prevResult"},
		{"CHECK with null for prevResult", call{"CHECK", nil, conf(`,"prevResult":null`)}, 7, "prevResult"},
		{"CHECK with a list for prevResult", call{"CHECK", nil, conf(`,"prevResult":[]`)}, 6, "prevResult"},
		{"CHECK with another version's prevResult", call{"CHECK", nil, conf(`,"prevResult":{"cniVersion":"0.9.9"}`)}, 6, "prevResult"},
		{"CHECK with an odd address", call{"CHECK", nil, conf(`,"prevResult":{"cniVersion":"1.1.0","ips":[{"address":"x"}]}`)}, 6, "prevResult"},
		{"CHECK with no address", call{"CHECK", nil, conf(`,"prevResult":{"cniVersion":"1.1.0","ips":[{}]}`)}, 7, "prevResult.ips[0]"},
		{"CHECK with null interface", call{"CHECK", nil, conf(`,"prevResult":{"cniVersion":"1.1.0","interfaces":[null]}`)}, 7, "prevResult.interfaces[0]"},
		{"CHECK with null address", call{"CHECK", nil, conf(`,"prevResult":{"cniVersion":"1.1.0","ips":[null]}`)}, 7, "prevResult.ips[0]"},
		{"CHECK before 0.4.0", call{"CHECK", nil, `{"cniVersion":"0.3.1","name":"n"}`}, 1, "CHECK"},
		{"GC without list", call{"GC", nil, conf("")}, 7, "cni.dev/valid-attachments"},
		{"GC with an object", call{"GC", nil, conf(`,"cni.dev/valid-attachments":{}`)}, 6, "cni.dev/valid-attachments"},
		{"GC with a gap", call{"GC", nil, conf(`,"cni.dev/valid-attachments":[{"containerID":"a"}]`)}, 7, "cni.dev/valid-attachments[0]"},
		{"STATUS before 1.1.0", call{"STATUS", nil, `{"cniVersion":"1.0.0","name":"n"}`}, 1, "STATUS"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, failure := tc.call.run(t, netns)
			if failure == nil {
				t.Fatalf("no error; stdout %s", out)
			}
			if failure.Code != tc.code || !strings.Contains(failure.Error(), tc.want) {
				t.Errorf("code %d, %q; want code %d naming %s", failure.Code, failure, tc.code, tc.want)
			}
			expect(t, a)
		})
	}
}

// TestDelForgives: whatever else is wrong or gone, DEL reaches the agent.
func TestDelForgives(t *testing.T) {
	netns := newNetns(t)
	a := startAgent(t, nil)
	full := cniapi.Request{
		Version: cniapi.Version, Command: cniapi.Del, ContainerID: "c1", Netns: netns, IfName: "eth0",
		PodNamespace: "helloworld1", PodName: "web-0", PodUID: "u-1", NetworkName: "k8s-ovs", CNIVersion: "1.1.0",
	}
	noNetns, noPod := full, full
	noNetns.Netns = ""
	noPod.PodNamespace, noPod.PodName, noPod.PodUID = "", "", ""
	gone, own, older := full, full, full
	gone.Netns = "/var/run/netns/none-such"
	own.Netns = fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	older.CNIVersion = "" // as in the configuration: 0.1.0
	for _, tc := range []struct {
		name string
		env  map[string]string
		conf string
		want cniapi.Request
	}{
		{"all there", nil, "", full},
		{"no netns", map[string]string{"CNI_NETNS": "-"}, "", noNetns},
		{"empty netns", map[string]string{"CNI_NETNS": ""}, "", noNetns},
		{"relative netns", map[string]string{"CNI_NETNS": "x"}, "", noNetns},
		{"netns is gone", map[string]string{"CNI_NETNS": gone.Netns}, "", gone},
		{"netns is the host's by now", map[string]string{"CNI_NETNS": own.Netns}, "", own},
		{"no CNI_ARGS", map[string]string{"CNI_ARGS": "-"}, "", noPod},
		{"odd namespace", map[string]string{"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=A;K8S_POD_NAME=b"}, "", noPod},
		{"unknown key", map[string]string{"CNI_ARGS": podArgsEnv[len("IgnoreUnknown=1;"):] + ";X=Y;;Z"}, "", full},
		{"odd fields", nil, `,"dns":1,"prevResult":[],"runtimeConfig":{"bandwidth":"much"},"cni.dev/valid-attachments":1`, full},
		{"odd previous result", nil, `,"prevResult":{"cniVersion":"7.0.0","ips":[null]}`, full},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"k8s-ovs","type":"k8s-ovs","socket":%q%s}`, a.socket, tc.conf)
			if out, failure := (call{"DEL", tc.env, conf}).run(t, netns); failure != nil || out != "" {
				t.Errorf("%v, stdout %q", failure, out)
			}
			expect(t, a, tc.want)
		})
	}
	if _, failure := (call{"DEL", nil, fmt.Sprintf(`{"name":"k8s-ovs","socket":%q}`, a.socket)}).run(t, netns); failure != nil {
		t.Error(failure)
	}
	expect(t, a, older)
}

// TestAgentIsDown: the code says whether to repeat the call, the text where to
// look.
func TestAgentIsDown(t *testing.T) {
	netns := newNetns(t)
	socket := filepath.Join(t.TempDir(), "cni.sock")
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"k8s-ovs","type":"k8s-ovs","socket":%q,"cni.dev/valid-attachments":[],"prevResult":{"cniVersion":"1.1.0"}}`, socket)
	for command, code := range map[string]uint{"ADD": 11, "DEL": 11, "CHECK": 11, "GC": 11, "STATUS": 50} {
		_, failure := call{command, nil, conf}.run(t, netns)
		if failure == nil || failure.Code != code || !strings.Contains(failure.Msg, "the k8s-ovs agent is not answering on "+socket) ||
			!strings.Contains(failure.Details, "k8s-ovs-agent") {
			t.Errorf("%s: %+v, want code %d about %s", command, failure, code, socket)
		}
	}
	out, failure := call{"VERSION", nil, ""}.run(t, netns)
	if failure != nil {
		t.Fatal(failure)
	}
	info, err := (&version.PluginDecoder{}).Decode([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(version.All.SupportedVersions(), info.SupportedVersions()); diff != "" {
		t.Errorf("VERSION (-want +got):\n%s", diff)
	}
}

// TestAgentsError reaches the runtime as the agent said it.
func TestAgentsError(t *testing.T) {
	a := startAgent(t, func(cniapi.Request) cniapi.Response {
		return cniapi.Response{Error: cniapi.Errorf(cniapi.CodeTryAgain, "node subnet is full").WithDetails("remove pods")}
	})
	_, failure := call{"ADD", nil, fmt.Sprintf(`{"cniVersion":"1.1.0","name":"n","socket":%q}`, a.socket)}.run(t, newNetns(t))
	if diff := cmp.Diff(types.NewError(11, "node subnet is full", "remove pods"), failure); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestGuard(t *testing.T) {
	var e *types.Error
	if err := guard(func() error { panic("x") }); !errors.As(err, &e) || e.Code != cniapi.CodeInternal || e.Details == "" {
		t.Errorf("a panic became %v", err)
	}
	if err := guard(func() error { return nil }); err != nil {
		t.Errorf("success became %v", err)
	}
	if err := guard(func() error { return cniapi.Errorf(7, "x") }); !errors.As(err, &e) || e.Code != 7 {
		t.Errorf("an error became %v", err)
	}
}

// People ask without CNI_COMMAND.
func TestRelease(t *testing.T) {
	out, err := exec.Command(filepath.Join(pluginDir, "k8s-ovs"), "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "CNI plugin k8s-ovs "+release+"\n") {
		t.Errorf("%v\n%s", err, out)
	}
}
