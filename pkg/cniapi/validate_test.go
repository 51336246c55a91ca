package cniapi

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// valid has one good request of each command; tests break one field of it.
func valid(cmd Command) Request {
	req := Request{Version: Version, Command: cmd}
	switch cmd {
	case GC:
		req.NetworkName = "k8s-ovs"
		req.ValidAttachments = []Attachment{}
	case Add, Del, Check:
		req.NetworkName = "k8s-ovs"
		req.ContainerID = "0a1b-x_y.z"
		req.IfName = "eth0"
		req.Netns = "/var/run/netns/x"
		req.PodNamespace = "helloworld1"
		req.PodName = "web-0.a"
		req.PodUID = "8a6e7a1c-0b9e-4f0a-9d0c-9b4b3cfd4b51"
	}
	if cmd == Check {
		req.PrevResult = &PrevResult{
			Interfaces: []PrevInterface{{Name: "eth0"}},
			IPs:        []PrevIP{{Address: netip.MustParsePrefix("172.11.0.5/32"), Interface: new(int)}},
		}
	}
	return req
}

func TestValidateAcceptsGoodRequests(t *testing.T) {
	for _, cmd := range []Command{Add, Del, Check, GC, Status} {
		if err := valid(cmd).Validate(); err != nil {
			t.Errorf("%s: %v", cmd, err)
		}
	}
	for name, change := range map[string]func(*Request){
		"no limits":           func(r *Request) { r.Bandwidth = &Bandwidth{} },
		"rate without burst":  func(r *Request) { r.Bandwidth = &Bandwidth{IngressRate: 1e6, EgressRate: 1} },
		"no UID":              func(r *Request) { r.PodUID = "" },
		"name of 15":          func(r *Request) { r.IfName = "abcdefghijklmno" },
		"VLAN-like name":      func(r *Request) { r.IfName = "eth0.100@x" },
		"pod name of 255":     func(r *Request) { r.PodName = strings.Repeat("a", 255) },
		"critest's pod name":  func(r *Request) { r.PodName = "create-PodSandbox-with-hostname0a1b2c" },
		"podman's pod name":   func(r *Request) { r.PodName = "zealous_Noether.1" },
		"CRI-O's namespace":   func(r *Request) { r.PodNamespace = "redhat.test.crio" },
		"namespace of 63":     func(r *Request) { r.PodNamespace = strings.Repeat("a", 63) },
		"container ID of 255": func(r *Request) { r.ContainerID = strings.Repeat("a", 255) },
	} {
		req := valid(Add)
		change(&req)
		if err := req.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestValidateNamesTheField has every way in which a request can be wrong, the
// code that the specification wants for it, and what the message must name.
func TestValidateNamesTheField(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cmd    Command
		change func(*Request)
		code   uint
		want   string
	}{
		{"other release", Add, func(r *Request) { r.Version = 2 }, CodeTryAgain, "version 2"},
		{"no command", "", func(*Request) {}, CodeInvalidEnv, "CNI_COMMAND"},
		{"unknown command", "FROB", func(*Request) {}, CodeInvalidEnv, "CNI_COMMAND"},
		{"VERSION is the plugin's own", "VERSION", func(*Request) {}, CodeInvalidEnv, "CNI_COMMAND"},

		{"no container ID", Add, func(r *Request) { r.ContainerID = "" }, CodeInvalidEnv, "CNI_CONTAINERID"},
		{"no container ID in DEL", Del, func(r *Request) { r.ContainerID = "" }, CodeInvalidEnv, "CNI_CONTAINERID"},
		{"container ID climbs", Add, func(r *Request) { r.ContainerID = "../../etc" }, CodeInvalidEnv, "CNI_CONTAINERID"},
		{"container ID of 256", Add, func(r *Request) { r.ContainerID = strings.Repeat("a", 256) }, CodeInvalidEnv, "CNI_CONTAINERID"},
		{"container ID begins with a dash", Add, func(r *Request) { r.ContainerID = "-a" }, CodeInvalidEnv, "CNI_CONTAINERID"},
		{"newline in container ID", Add, func(r *Request) { r.ContainerID = "a\n" }, CodeInvalidEnv, "CNI_CONTAINERID"},

		{"no interface name", Add, func(r *Request) { r.IfName = "" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name of 16", Add, func(r *Request) { r.IfName = "abcdefghijklmnop" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name of 16 in DEL", Del, func(r *Request) { r.IfName = "abcdefghijklmnop" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name with slash", Add, func(r *Request) { r.IfName = "a/b" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name with colon", Add, func(r *Request) { r.IfName = "eth0:1" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name with space", Add, func(r *Request) { r.IfName = "eth 0" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name with tab", Add, func(r *Request) { r.IfName = "eth\t0" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name is a template", Add, func(r *Request) { r.IfName = "eth%d" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name is not ASCII", Add, func(r *Request) { r.IfName = "ethà" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name is not UTF-8", Add, func(r *Request) { r.IfName = "eth\xff" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name .", Add, func(r *Request) { r.IfName = "." }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name ..", Add, func(r *Request) { r.IfName = ".." }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name lo", Add, func(r *Request) { r.IfName = "lo" }, CodeInvalidEnv, "CNI_IFNAME"},
		{"interface name all", Add, func(r *Request) { r.IfName = "all" }, CodeInvalidEnv, "CNI_IFNAME"},

		{"no netns", Add, func(r *Request) { r.Netns = "" }, CodeInvalidEnv, "CNI_NETNS"},
		{"no netns in CHECK", Check, func(r *Request) { r.Netns = "" }, CodeInvalidEnv, "CNI_NETNS"},
		{"relative netns", Add, func(r *Request) { r.Netns = "netns/x" }, CodeInvalidEnv, "CNI_NETNS"},
		{"NUL in netns", Add, func(r *Request) { r.Netns = "/a\x00b" }, CodeInvalidEnv, "CNI_NETNS"},
		{"long netns", Add, func(r *Request) { r.Netns = "/" + strings.Repeat("a", 4095) }, CodeInvalidEnv, "CNI_NETNS"},

		{"no namespace", Add, func(r *Request) { r.PodNamespace = "" }, CodeInvalidEnv, "K8S_POD_NAMESPACE"},
		{"namespace with capitals and underscore", Add, func(r *Request) { r.PodNamespace = "Hello_World" }, CodeInvalidEnv, "K8S_POD_NAMESPACE"},
		{"namespace that climbs", Add, func(r *Request) { r.PodNamespace = ".." }, CodeInvalidEnv, "K8S_POD_NAMESPACE"},
		{"namespace of 64", Add, func(r *Request) { r.PodNamespace = strings.Repeat("a", 64) }, CodeInvalidEnv, "K8S_POD_NAMESPACE"},
		{"namespace with capitals in DEL", Del, func(r *Request) { r.PodNamespace = "A" }, CodeInvalidEnv, "K8S_POD_NAMESPACE"},
		{"no pod name", Add, func(r *Request) { r.PodName = "" }, CodeInvalidEnv, "K8S_POD_NAME"},
		{"pod name that climbs", Add, func(r *Request) { r.PodName = "../b" }, CodeInvalidEnv, "K8S_POD_NAME"},
		{"pod name of 256", Add, func(r *Request) { r.PodName = strings.Repeat("a", 256) }, CodeInvalidEnv, "K8S_POD_NAME"},
		{"UID with space", Add, func(r *Request) { r.PodUID = "a b" }, CodeInvalidEnv, "K8S_POD_UID"},

		{"no network name", Add, func(r *Request) { r.NetworkName = "" }, CodeInvalidConfig, "name"},
		{"network name with slash", GC, func(r *Request) { r.NetworkName = "a/b" }, CodeInvalidConfig, "name"},
		{"ingress burst alone", Add, func(r *Request) { r.Bandwidth = &Bandwidth{IngressBurst: 1} }, CodeInvalidConfig, "runtimeConfig.bandwidth.ingressBurst"},
		{"egress burst alone", Add, func(r *Request) { r.Bandwidth = &Bandwidth{EgressBurst: 1} }, CodeInvalidConfig, "runtimeConfig.bandwidth.egressBurst"},

		{"no prevResult", Check, func(r *Request) { r.PrevResult = nil }, CodeInvalidConfig, "prevResult"},
		{"prevResult without address", Check, func(r *Request) { r.PrevResult.IPs[0].Address = netip.Prefix{} }, CodeInvalidConfig, "prevResult.ips[0].address"},
		{"prevResult points nowhere", Check, func(r *Request) { *r.PrevResult.IPs[0].Interface = 1 }, CodeInvalidConfig, "prevResult.ips[0].interface"},
		{"prevResult points before", Check, func(r *Request) { *r.PrevResult.IPs[0].Interface = -1 }, CodeInvalidConfig, "prevResult.ips[0].interface"},

		{"no list for GC", GC, func(r *Request) { r.ValidAttachments = nil }, CodeInvalidConfig, "cni.dev/valid-attachments"},
		{"GC list with a gap", GC, func(r *Request) { r.ValidAttachments = []Attachment{{"a", "eth0"}, {"b", ""}} }, CodeInvalidConfig, "cni.dev/valid-attachments[1]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := valid(tc.cmd)
			tc.change(&req)
			err := req.Validate()
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("Validate() = %v, want an *Error", err)
			}
			if e.Code != tc.code || !strings.Contains(e.Msg, tc.want) {
				t.Errorf("Validate() = code %d %q, want code %d naming %s", e.Code, e.Msg, tc.code, tc.want)
			}
		})
	}
}

// TestDelNeedsOnlyTheKey: whatever else is lost, DEL works.
func TestDelNeedsOnlyTheKey(t *testing.T) {
	req := Request{Version: Version, Command: Del, ContainerID: "a", IfName: "eth0"}
	if err := req.Validate(); err != nil {
		t.Error(err)
	}
}

// TestSpared: only a list says what GC leaves; an empty one is a list.
func TestSpared(t *testing.T) {
	a, b := Attachment{"a", "eth0"}, Attachment{"b", "eth0"}
	for _, tc := range []struct {
		name   string
		req    Request
		want   map[Attachment]bool
		refuse bool
	}{
		{"none", Request{}, nil, true},
		{"none, and one that is being made", Request{}.Sparing([]Attachment{b}), nil, true},
		{"empty", Request{ValidAttachments: []Attachment{}}, map[Attachment]bool{}, false},
		{"one", Request{ValidAttachments: []Attachment{a}}.Sparing([]Attachment{b}), map[Attachment]bool{a: true, b: true}, false},
	} {
		got, err := tc.req.Spared()
		if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != tc.refuse {
			t.Errorf("%s: error %v (-want +got):\n%s", tc.name, err, diff)
		}
	}
}
