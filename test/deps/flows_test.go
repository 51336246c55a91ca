package deps

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const internal = "node-agent/internal/"

// TestFlowsGoOneWay: who produces flows calls down to the store, and the store calls
// nobody; so no lock of one package is ever waited for with that of one below it held.
func TestFlowsGoOneWay(t *testing.T) {
	may := map[string][]string{
		internal + "flowstore": {"pkg/openflow", "pkg/faultpoint"},
		internal + "nodeflows": {internal + "flowstore", internal + "pipeline", internal + "desired", "pkg"},
		internal + "services":  {internal + "nodeflows", internal + "flowstore", internal + "pipeline", "pkg"},
		// Pods come to policies from attach, and what the switch does not see goes to the node's firewall.
		internal + "policies": {internal + "attach", internal + "hostnet", internal + "flowstore", internal + "pipeline", "pkg"},
	}
	found := 0
	for _, p := range list(t) {
		allowed, ok := may[p.ImportPath]
		if !ok {
			continue
		}
		found++
		for _, imp := range p.Imports {
			if rest, ours := strings.CutPrefix(imp, module); ours && !hasAny(rest, allowed) {
				t.Errorf("%s imports %s; of this module it may only %s", p.ImportPath, rest, strings.Join(allowed, ", "))
			}
		}
	}
	if found != len(may) {
		t.Errorf("%d of the %d packages named here exist", found, len(may))
	}
}

// TestOnlyTheStoreWritesFlows: one package makes the parts of bundles and sets meters, one
// dials the switch; what others need of a connection they name in interfaces of their own.
func TestOnlyTheStoreWritesFlows(t *testing.T) {
	const store, dials = internal + "flowstore", internal + "agent"
	rules := map[string]string{
		"Mod": store, "AddFlow": store, "ModifyFlow": store, "DeleteFlow": store, "DeleteFlows": store,
		"AddGroup": store, "SetGroup": store, "ModifyGroup": store, "DeleteGroup": store,
		"AddMeter": store, "ModifyMeter": store, "DeleteMeter": store,
		"Dial": dials, "Conn": dials,
	}
	found := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(root, "node-agent"), func(path string, e os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		of := importedAs(file, module+"pkg/openflow")
		if of == "" {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			owner, ruled := rules[s.Sel.Name]
			x, _ := s.X.(*ast.Ident)
			meter := strings.HasSuffix(s.Sel.Name, "Meter") // a method
			if !ruled || !meter && (x == nil || x.Name != of) {
				return true
			}
			found[owner] = true
			if filepath.ToSlash(rel) != owner {
				t.Errorf("%s uses %s; only %s may", rel, s.Sel.Name, owner)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !found[store] || !found[dials] {
		t.Errorf("found uses in %v only: this test looks for them in vain", found)
	}
}

// importedAs is the name of an imported package in a file; "" where it is not imported.
func importedAs(file *ast.File, path string) string {
	i := slices.IndexFunc(file.Imports, func(s *ast.ImportSpec) bool {
		p, err := strconv.Unquote(s.Path.Value)
		return err == nil && p == path
	})
	switch {
	case i < 0:
		return ""
	case file.Imports[i].Name != nil:
		return file.Imports[i].Name.Name
	}
	return filepath.Base(path)
}
