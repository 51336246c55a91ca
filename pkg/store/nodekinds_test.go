package store

import (
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNodeKinds: the table of what a node has, and the documents, say the same; nothing of a node stays for ever.
func TestNodeKinds(t *testing.T) {
	read := func(page string) string {
		t.Helper()
		text, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	all, write, leased := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, n := range nodeKinds {
		if all[n.kind] {
			t.Errorf("%s is in the table twice", n.kind)
		}
		all[n.kind] = true
		if n.byNode {
			write[n.kind] = true
		}
		if n.ends == endsWithLease {
			leased[n.kind] = true
		}
		if n.ends == 0 {
			t.Errorf("nobody takes %s of a node that is gone away", n.kind)
		}
	}
	compare := func(page, what, text, pattern string, want map[string]bool) {
		t.Helper()
		said := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			said[m[1]] = true
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(said))); diff != "" {
			t.Errorf("docs/%s, %s (-nodeKinds +page):\n%s", page, what, diff)
		}
	}
	design := read("design.md")
	_, records, _ := strings.Cut(design, "\n## Records\n")
	records, _, _ = strings.Cut(records, "\n\nThe first three are")
	want := maps.Clone(all)
	want[kindNodes] = true
	compare("design.md", "records of a node", records, "`<Name>/(\\w+/)<nodeIP>`", want)

	identities := read("identities.md")
	_, rights, _ := strings.Cut(identities, "\n| `k8s-ovs-node:HOST:ID` |")
	rights, _, _ = strings.Cut(rights, "\n")
	compare("identities.md", "what a node may write", rights, "`(\\w+/)IP`", write)
	_, ends, _ := strings.Cut(identities, "who takes each away when the node is gone: ")
	ends, _, _ = strings.Cut(ends, "\n\n")
	compare("identities.md", "what ends when a node is gone", ends, "`(\\w+/)`", all)
	ends, _, _ = strings.Cut(ends, ")")
	compare("identities.md", "what ends with the lease", ends, "`(\\w+/)`", leased)

	ip := netip.MustParseAddr("192.0.2.7")
	var have []string
	for _, p := range NodePermissions(DefaultPrefix, "k8ssdn", ip) {
		kind, found := strings.CutSuffix(strings.TrimPrefix(p.From, DefaultPrefix+"/k8ssdn/"), ip.String())
		if !found || p.End != "" || !p.Write {
			t.Errorf("a node has the right %+v", p)
		}
		have = append(have, kind)
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(write)), have); diff != "" {
		t.Errorf("rights (-nodeKinds +NodePermissions):\n%s", diff)
	}
}

// TestDropLeft: of a node that is gone go the records that nothing else takes away, and of others none.
func TestDropLeft(t *testing.T) {
	e, s := network(t)
	l := campaign(t, s, "one")
	here, gone := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	if err := s.EnsureNode(ctxOf(t), "n1", here); err != nil {
		t.Fatal(err)
	}
	var stay, leave []string
	for _, n := range nodeKinds {
		for _, ip := range []netip.Addr{here, gone} {
			if _, err := e.Client().Put(ctxOf(t), s.keys.ofNode("k8ssdn", n.kind, ip), "{}"); err != nil {
				t.Fatal(err)
			}
			if ip == gone && n.ends == endsWithNode {
				leave = append(leave, n.kind+ip.String())
			} else {
				stay = append(stay, n.kind+ip.String())
			}
		}
	}
	dropped, err := l.DropLeft(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(leave)), slices.Sorted(slices.Values(dropped))); diff != "" {
		t.Errorf("dropped (-want +got):\n%s", diff)
	}
	for i, keys := range [][]string{leave, stay} {
		for _, key := range keys {
			got, err := e.Client().Get(ctxOf(t), s.keys.kind("k8ssdn", key))
			if err != nil {
				t.Fatal(err)
			}
			if want := int64(i); got.Count != want {
				t.Errorf("%s is there %d times, want %d", key, got.Count, want)
			}
		}
	}
	if dropped, err := l.DropLeft(ctxOf(t)); err != nil || len(dropped) > 0 {
		t.Errorf("again: %v, %v", dropped, err)
	}
}
