package deps

import (
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// ofOneFamily is what names one family of addresses, by where it is declared: whoever uses it serves that family, asks for
// it, or takes the first of what may be two.
var ofOneFamily = map[string][]string{
	"net/netip":             {"Addr.Is4", "Addr.As4", "AddrFrom4", "IPv4Unspecified"},
	"net":                   {"IP.To4", "IPv4", "IPv4len"},
	"golang.org/x/sys/unix": {"AF_INET", "ETH_P_IP", "IPPROTO_IP", "SockaddrInet4", "ICMP_FILTER"},
	"sigs.k8s.io/knftables": {"IPv4Family"},
	module + "pkg/openflow": {"IP", "ARP", "IPv4Src", "IPv4Dst", "TunnelSrc", "TunnelDst", "CTNWSrc", "CTNWDst", "CTNWSrcMasked", "CTNWDstMasked", "EtherTypeIPv4"},
	module + "pkg/topology": {"IPv4", "ChunkOf", "NextHop", "Config.Network", "Config.ServiceNetwork", "Config.NodeBits", "Node.Subnet", "Node.Gateway", "GatewayOf", "ForwarderOf", "NodeStatus.Subnet", "NodePod.Address"},
	module + "pkg/tunnel":   {"IPv4"},
	module + "pkg/link":     {"SandboxSpec.Address", "SandboxSpec.Gateway"},
}

// usesOfOneFamily are the names of [ofOneFamily] in each file of the product.
func usesOfOneFamily(t *testing.T) map[string][]string {
	t.Helper()
	uses := map[string][]string{}
	check(t, func(p checked) {
		note := func(at token.Pos, name string, o types.Object) {
			if o.Pkg() == nil || !slices.Contains(ofOneFamily[o.Pkg().Path()], name) {
				return
			}
			file := p.path + "/" + filepath.Base(p.files.Position(at).Filename)
			if !slices.Contains(uses[file], name) {
				uses[file] = append(uses[file], name)
			}
		}
		for id, o := range p.Uses {
			if o.Pkg() != nil && o.Parent() == o.Pkg().Scope() {
				note(id.Pos(), o.Name(), o)
			}
		}
		for at, s := range p.Selections {
			recv := s.Recv()
			if ptr, ok := recv.(*types.Pointer); ok {
				recv = ptr.Elem()
			}
			if named, ok := recv.(*types.Named); ok {
				note(at.Pos(), named.Obj().Name()+"."+s.Obj().Name(), s.Obj())
			}
		}
	})
	return uses
}

// TestFamilies: the page that says what serves IPv4 only names every file that names a family of addresses, or takes the
// first of what there may be two of; and what it names is there. Who adds such a file says in the page what it serves.
func TestFamilies(t *testing.T) {
	const page, title = "docs/design.md", "\n### What is IPv4 only\n"
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), title)
	if !found {
		t.Fatalf("%s has no section %q", page, strings.TrimSpace(title))
	}
	section, _, _ = strings.Cut(section, "\n### ")
	uses := usesOfOneFamily(t)
	named := map[string]bool{}
	folder := ""
	for line := range strings.SplitSeq(section, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.Contains(cells[2], ".go`") {
			continue
		}
		if at := strings.Trim(cells[1], " `"); at != "" {
			folder = at
		}
		for file, marks := range filesOf(cells[2]) {
			path := folder + "/" + file
			named[path] = true
			code, err := os.ReadFile(filepath.Join(root, path))
			if err != nil {
				t.Errorf("%s names a file that is not there: %v", page, err)
				continue
			}
			if len(marks) == 0 && len(uses[path]) == 0 {
				t.Errorf("%s names %s, which names no family: take it out, or say what to look for in it", page, path)
			}
			for _, mark := range marks {
				if !regexp.MustCompile(`\b` + regexp.QuoteMeta(mark) + `\b`).Match(code) {
					t.Errorf("%s says to look for %s in %s, where it is not", page, mark, path)
				}
			}
		}
	}
	for _, file := range slices.Sorted(maps.Keys(uses)) {
		if !named[file] {
			slices.Sort(uses[file])
			t.Errorf("%s uses %s, and %s (What is IPv4 only) does not name it: say there what of it serves IPv4 only, or that it serves both families",
				file, strings.Join(uses[file], ", "), page)
		}
	}
	if len(uses) == 0 {
		t.Error("no file names a family: this test looks for them in vain")
	}
}

// filesOf are the files that a cell names, each with the names that follow it there.
func filesOf(cell string) map[string][]string {
	files := map[string][]string{}
	file := ""
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
		if strings.HasSuffix(m[1], ".go") {
			file = m[1]
			files[file] = nil
		} else if file != "" {
			files[file] = append(files[file], m[1])
		}
	}
	return files
}
