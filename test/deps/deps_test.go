// Package deps keeps the shape of the code: which package may import what.
package deps

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "github.com/k8s-ovs/k8s-ovs/"

// pkg is what `go list -json` says of one package.
type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list output: %v", err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		pkgs = append(pkgs, p)
	}
	return pkgs
}

// inTest reports whether a package only serves tests; those may import all.
func inTest(path string) bool { return strings.HasPrefix(path, "test/") }

func hasAny(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// TestOnlyImporter: each library that touches the world is imported in one place. The first
// rule that names an import is the one for it.
func TestOnlyImporter(t *testing.T) {
	rules := []struct {
		library string
		allowed []string
	}{
		{"github.com/vishvananda/netlink", []string{"pkg/link"}},
		{"github.com/vishvananda/netns", []string{"pkg/link"}},
		{"github.com/ovn-org/libovsdb", []string{"pkg/ovs"}},
		{"go.etcd.io/etcd/client", []string{"pkg/store"}},
		{"go.etcd.io/etcd/server", []string{"controller/internal/etcd"}},
		{"sigs.k8s.io/knftables", []string{"node-agent/internal/hostnet"}},
		{"github.com/containernetworking/cni", []string{"cni"}},
		// Who makes metrics: TestMetricsPage of the agent and of the controller asks each of these for what it shows. (The agent's packetsock counts in one.)
		{"github.com/prometheus/client_golang", []string{
			"pkg/diag", "node-agent/internal/agent", "node-agent/internal/allot", "node-agent/internal/crashnews", "node-agent/internal/flowcache", "node-agent/internal/identity", "node-agent/internal/nodemtu",
			"node-agent/internal/packetsock", "node-agent/internal/podlimits", "node-agent/internal/policies", "node-agent/internal/sharing",
			"controller/internal/controller", "controller/internal/etcd", "controller/internal/lead", "controller/internal/signer"}},
		{"k8s.io/apimachinery/pkg/api/resource", []string{"pkg/kube", "pkg/limits"}}, // quantities; it does no I/O
		{"k8s.io/apimachinery", []string{"pkg/kube", "pkg/policy"}},                  // selectors of labels
		{"k8s.io/api", []string{"pkg/kube", "pkg/policy"}},                           // objects as they are written
		{"k8s.io", []string{"pkg/kube"}},
		{"sigs.k8s.io/network-policy-api", []string{"pkg/kube", "pkg/policy"}}, // as above
	}
	for _, p := range list(t) {
		if inTest(p.ImportPath) {
			continue
		}
		for _, imp := range p.Imports {
			for _, r := range rules {
				if hasAny(imp, []string{r.library}) || strings.HasPrefix(imp, r.library+"/") {
					if !hasAny(p.ImportPath, r.allowed) {
						t.Errorf("%s imports %s; only %s may", p.ImportPath, imp, strings.Join(r.allowed, ", "))
					}
					break
				}
			}
		}
	}
}

// TestPure: these packages decide and never touch the world, nor by others of the project: those they import are pure too,
// or they import no more than a form of things from them.
func TestPure(t *testing.T) {
	pure := []string{
		"pkg/netid", "pkg/topology", "pkg/tunnel", "pkg/alloc", "pkg/service", "pkg/policy", "pkg/limits", "pkg/pki",
		"node-agent/internal/pipeline", "node-agent/internal/desired", "node-agent/internal/mtu", "node-agent/internal/toobig", "node-agent/internal/fairness",
		"controller/internal/tenant", "controller/internal/subnet", "controller/internal/identity", "controller/internal/restore",
	}
	forbidden := []string{"os", "os/exec", "syscall", "net/http", "golang.org/x/sys", "github.com/vishvananda", "go.etcd.io", "github.com/ovn-org"}
	forms := map[string]string{ // for whom, and of what
		"pkg/openflow": "node-agent/internal/pipeline", // flows
		"pkg/cniapi":   "pkg/limits",                   // errors with a code
		"pkg/store":    "controller/internal/identity", // users and requests
	}
	found, used := map[string]bool{}, map[string]bool{}
	for _, p := range list(t) {
		if !hasAny(p.ImportPath, pure) {
			continue
		}
		found[p.ImportPath] = true
		for _, imp := range p.Imports {
			imp, own := strings.CutPrefix(imp, module)
			if forms[imp] == p.ImportPath {
				used[imp] = true
			} else if hasAny(imp, forbidden) || own && !hasAny(imp, pure) {
				t.Errorf("%s is pure but imports %s", p.ImportPath, imp)
			}
		}
	}
	for imp, by := range forms {
		if !used[imp] {
			t.Errorf("%s does not import %s, as is said here", by, imp)
		}
	}
	for _, p := range pure {
		if !found[p] {
			t.Errorf("package %s is named here as pure but does not exist", p)
		}
	}
}

// TestQuickToStart: the CNI plugin is started for every pod, so it carries no etcd, netlink, OVSDB,
// HTTP or metrics code; somebody waits for netns, so it carries none of the kinds of objects that
// client-go makes known when a program starts.
func TestQuickToStart(t *testing.T) {
	heavy := map[string][]string{
		"cni":   {"net/http", "go.etcd.io", "github.com/vishvananda/netlink", "github.com/ovn-org", "github.com/prometheus", "k8s.io", "google.golang.org"},
		"netns": {"k8s.io/client-go/kubernetes", "github.com/prometheus"},
	}
	for _, p := range list(t) {
		for _, dep := range p.Deps {
			if hasAny(dep, heavy[p.ImportPath]) {
				t.Errorf("program %s depends on %s", p.ImportPath, dep)
			}
		}
		delete(heavy, p.ImportPath)
	}
	for name := range heavy {
		t.Errorf("program %s does not exist", name)
	}
}

// TestOneWay: pkg never imports a program, and no program imports another.
func TestOneWay(t *testing.T) {
	programs := []string{"cni", "node-agent", "controller", "netns"}
	for _, p := range list(t) {
		for _, imp := range p.Imports {
			rest, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			if strings.HasPrefix(p.ImportPath, "pkg/") && !strings.HasPrefix(rest, "pkg/") {
				t.Errorf("%s imports %s: pkg may not import programs", p.ImportPath, rest)
			}
			for _, a := range programs {
				if hasAny(p.ImportPath, []string{a}) && !hasAny(rest, []string{a, "pkg"}) {
					t.Errorf("%s imports %s: a program may import only itself and pkg", p.ImportPath, rest)
				}
			}
		}
	}
}

// TestKernelRooms: who changes the traffic control of devices and the kernel's connection table: all others ask these.
func TestKernelRooms(t *testing.T) {
	rooms := map[string][]string{
		"pkg/link/tc":        {"node-agent/internal/agent", "node-agent/internal/exits", "node-agent/internal/shaping", "node-agent/internal/sharing", "node-agent/internal/uplink"},
		"pkg/link/conntrack": {"node-agent/internal/agent", "node-agent/internal/attach", "node-agent/internal/exits"},
	}
	used := map[string]bool{}
	for _, p := range list(t) {
		for _, imp := range p.Imports {
			imp = strings.TrimPrefix(imp, module)
			if allowed, ruled := rooms[imp]; ruled && !inTest(p.ImportPath) {
				used[imp] = true
				if !hasAny(p.ImportPath, allowed) {
					t.Errorf("%s imports %s; only %s may", p.ImportPath, imp, strings.Join(allowed, ", "))
				}
			}
		}
	}
	for room := range rooms {
		if !used[room] {
			t.Errorf("package %s is named here and nobody imports it", room)
		}
	}
}

// TestAgentWires: the agent puts its rooms together, and nobody but it knows one: what a room needs of another
// is an interface of its own. Nobody but main knows the agent.
func TestAgentWires(t *testing.T) {
	const internal = "node-agent/internal/"
	only := map[string]string{internal + "agent": "node-agent"}
	for _, room := range []string{"allot", "answers", "asking", "crashnews", "etcdaccess", "exits", "flowcache", "front", "leftout", "nodemtu", "peers", "podlimits", "podroutes", "policies", "records", "sharing", "switchports", "tenants", "tunnelprobe"} {
		only[internal+room] = internal + "agent"
	}
	found := map[string]bool{}
	for _, p := range list(t) {
		found[p.ImportPath] = true
		for _, imp := range p.Imports {
			imp = strings.TrimPrefix(imp, module)
			if by, ruled := only[imp]; ruled && p.ImportPath != by && !inTest(p.ImportPath) {
				t.Errorf("%s imports %s; only %s may", p.ImportPath, imp, by)
			}
		}
	}
	for room := range only {
		if !found[room] {
			t.Errorf("package %s is named here and does not exist", room)
		}
	}
}

// TestTunnelTypes: what type of tunnel nodes reach each other by, and its name, few places know: docs/design.md names
// them. All others take the list of tunnels.
func TestTunnelTypes(t *testing.T) {
	named := regexp.MustCompile(`tunnel\.VXLAN(Port)?\b|\bNodeTunnel\b|"vxlan"|"vxlan0"`)
	allowed := map[string]bool{
		"pkg/tunnel/tunnel.go": false, "node-agent/internal/desired/tunnel.go": false, "node-agent/internal/bridge/encap.go": false, "controller/internal/lead/port.go": false,
		"node-agent/internal/underlay/netdev.go": false, // devices that cannot be the uplink
	}
	for _, top := range []string{"cni", "controller", "netns", "node-agent", "pkg"} {
		err := filepath.WalkDir(filepath.Join("../..", top), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for n, line := range strings.Split(string(text), "\n") {
				code, _, _ := strings.Cut(line, "//")
				if !named.MatchString(code) {
					continue
				}
				file := filepath.ToSlash(strings.TrimPrefix(path, "../../"))
				if _, ok := allowed[file]; !ok {
					t.Errorf("%s:%d names a type of tunnel, or the tunnel: %s", file, n+1, strings.TrimSpace(line))
				}
				allowed[file] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for file, names := range allowed {
		if !names {
			t.Errorf("%s is named here and names no type of tunnel", file)
		}
	}
}
