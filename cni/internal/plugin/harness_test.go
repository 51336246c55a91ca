package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// pluginDir has the real plugin under its real name.
var pluginDir string

// release is the version that the plugin is built as.
const release = "v1.2.3-test"

func TestMain(m *testing.M) { os.Exit(withPlugin(m.Run)) }

func withPlugin(run func() int) int {
	dir, err := os.MkdirTemp("", "k8s-ovs-plugin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// As the Makefile builds it.
	linker := "-X github.com/k8s-ovs/k8s-ovs/pkg/version.Version=" + release
	build := exec.Command("go", "build", "-ldflags", linker, "-o", filepath.Join(dir, "k8s-ovs"), "github.com/k8s-ovs/k8s-ovs/cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the plugin: %v\n%s", err, out)
		return 1
	}
	pluginDir = dir
	return run()
}

// agent is the other end of the socket. It keeps what it is asked.
type agent struct {
	socket string
	mu     sync.Mutex
	asked  []cniapi.Request
}

// startAgent answers all requests with answer, or with success when it is nil.
func startAgent(t *testing.T, answer func(cniapi.Request) cniapi.Response) *agent {
	t.Helper()
	a := &agent{socket: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			req, err := cniapi.ReadRequest(conn)
			if err != nil || req.Validate() != nil {
				t.Errorf("the plugin sent %+v: %v, %v", req, err, req.Validate())
			}
			a.mu.Lock()
			a.asked = append(a.asked, req)
			a.mu.Unlock()
			resp := cniapi.Response{}
			if answer != nil {
				resp = answer(req)
			} else if req.Command == cniapi.Add {
				resp.Result = result(req)
			}
			if err := cniapi.WriteResponse(conn, resp); err != nil {
				t.Error(err)
			}
			conn.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return a
}

// requests returns what was asked since the last call.
func (a *agent) requests() []cniapi.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	asked := a.asked
	a.asked = nil
	return asked
}

func result(req cniapi.Request) *cniapi.Result {
	return &cniapi.Result{
		HostIfName: "veth0a1b", HostMAC: cniapi.MAC{2, 0, 0, 0, 0, 1},
		SandboxIfName: req.IfName, MAC: cniapi.MAC{0x0a, 0x58, 172, 11, 0, 5}, Sandbox: req.Netns,
		IPs: []cniapi.IP{{Address: netip.MustParsePrefix("172.11.0.5/32"), Gateway: netip.MustParseAddr("172.11.0.1")}},
		Routes: []cniapi.Route{
			{Dst: netip.MustParsePrefix("172.11.0.1/32")},
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), GW: netip.MustParseAddr("172.11.0.1"), MTU: 1440},
		},
		MTU: 1450,
	}
}

// newNetns makes a network namespace and returns its path.
func newNetns(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("k8s-ovs-plugin-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add %s: %v: %s", name, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("ip netns del %s: %v: %s", name, err, out)
		}
	})
	return "/var/run/netns/" + name
}

// call is one run of the plugin as a runtime does it.
type call struct {
	command string
	env     map[string]string // over the usual; "-" takes a variable away
	conf    string
}

const podArgsEnv = "IgnoreUnknown=1;K8S_POD_NAMESPACE=helloworld1;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1"

// run returns the plugin's output and, if it failed, its error, having checked
// that it failed as the specification wants: exit status, JSON, silence.
func (c call) run(t *testing.T, netns string) (stdout string, failure *types.Error) {
	t.Helper()
	env := map[string]string{
		"CNI_COMMAND": c.command, "CNI_PATH": pluginDir, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0",
		"CNI_NETNS": netns, "CNI_ARGS": podArgsEnv,
	}
	for k, v := range c.env {
		env[k] = v
	}
	cmd := exec.Command(filepath.Join(pluginDir, "k8s-ovs"))
	cmd.Env = []string{}
	for k, v := range env {
		if v != "-" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.conf), &out, &errs
	err := cmd.Run()
	if errs.Len() > 0 {
		t.Errorf("on stderr: %s", errs.String())
	}
	if err == nil {
		return out.String(), nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("the plugin ended with %v; stdout %s", err, out.String())
	}
	dec := json.NewDecoder(&out)
	failure = &types.Error{}
	if err := dec.Decode(failure); err != nil {
		t.Fatalf("stdout is not a CNI error: %v", err)
	}
	if failure.Code == 0 || failure.Msg == "" {
		t.Errorf("incomplete error %+v", failure)
	}
	if dec.More() {
		t.Error("there is more on stdout than the error")
	}
	return "", failure
}

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}
