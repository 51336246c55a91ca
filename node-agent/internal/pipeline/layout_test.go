package pipeline

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// allFlows are flows of every kind, and the groups that they refer to.
func allFlows() (flows []of.Flow, groups []of.GroupEntry) {
	for _, proxy := range []ServiceProxy{NoServices, OVS, KubeProxy} {
		m := withPolicies(withPeers(with(proxy)))
		flows = append(flows, m.Flows()...)
		if proxy != NoServices {
			f, g := sampleServices(m)
			flows, groups = append(flows, f...), append(groups, g...)
		}
	}
	return append(flows, flowsOf(NewRules().Set(samplePolicies()))...), groups
}

// uses is what flows do with registers and where they send packets on, by table.
type uses struct {
	sets, reads map[int]map[uint8]bool
	to          map[uint8]map[uint8]bool
}

var (
	learned  = regexp.MustCompile(`learn\(table=(\d+),.*?\]\)`)
	matched  = regexp.MustCompile(`\breg(\d+)=`)
	written  = regexp.MustCompile(`->(?:reg|NXM_NX_REG)(\d+)`)
	used     = regexp.MustCompile(`(?:move:|load:|output:)NXM_NX_REG(\d+)`)
	sentOn   = regexp.MustCompile(`(?:goto_table:|resubmit\(,|\btable=)(\d+)`)
	groupRef = regexp.MustCompile(`group:(\d+)`)
)

// usesOf reads the flows as text.
func usesOf(flows []of.Flow, groups []of.GroupEntry) uses {
	u := uses{map[int]map[uint8]bool{}, map[int]map[uint8]bool{}, map[uint8]map[uint8]bool{}}
	for _, f := range flows {
		text := f.String()
		match, actions, _ := strings.Cut(text[strings.Index(text, "priority="):], "actions=")
		for _, ref := range groupRef.FindAllStringSubmatch(actions, -1) {
			for _, g := range groups {
				if fmt.Sprint(g.ID) == ref[1] {
					_, buckets, _ := strings.Cut(g.String(), ",bucket=")
					actions += "," + buckets
				}
			}
		}
		// A learned flow is one of the table that it goes into; what it is made of is the learner's to read.
		for _, l := range learned.FindAllStringSubmatch(actions, -1) {
			table := number(l[1])
			mark(u.reads, matched.FindAllStringSubmatch(l[0], -1), table)
			mark(u.sets, written.FindAllStringSubmatch(l[0], -1), table)
			mark(u.reads, used.FindAllStringSubmatch(l[0], -1), f.Table)
		}
		actions = learned.ReplaceAllString(actions, "")
		mark(u.reads, matched.FindAllStringSubmatch(match, -1), f.Table)
		mark(u.reads, used.FindAllStringSubmatch(actions, -1), f.Table)
		mark(u.sets, written.FindAllStringSubmatch(actions, -1), f.Table)
		for _, next := range sentOn.FindAllStringSubmatch(actions, -1) {
			add(u.to, f.Table, number(next[1]))
		}
	}
	return u
}

func number(s string) uint8 {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		panic(err)
	}
	return uint8(n)
}

func mark(to map[int]map[uint8]bool, registers [][]string, table uint8) {
	for _, r := range registers {
		add(to, int(number(r[1])), table)
	}
}

func add[K comparable](to map[K]map[uint8]bool, key K, table uint8) {
	if to[key] == nil {
		to[key] = map[uint8]bool{}
	}
	to[key][table] = true
}

func tables(set map[uint8]bool) []uint8 { return slices.Sorted(maps.Keys(set)) }

// TestStages: every table that flows are in is a stage, and packets go from stage to stage
// as it is written.
func TestStages(t *testing.T) {
	flows, groups := allFlows()
	u := usesOf(flows, groups)
	in := map[uint8]bool{TableAffinity: true} // whose flows are learned
	for _, f := range flows {
		in[f.Table] = true
	}
	want := map[uint8][]uint8{}
	for _, s := range Stages() {
		want[s.Table] = s.To
	}
	got := map[uint8][]uint8{}
	for table := range in {
		got[table] = tables(u.to[table])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("where packets go on to (-written +flows):\n%s", diff)
	}
}

// TestRegisters: each register is set and read by the flows of those tables that are
// written down, and holds no more bits than that.
func TestRegisters(t *testing.T) {
	flows, groups := allFlows()
	u := usesOf(flows, groups)
	type use struct{ SetBy, ReadBy []uint8 }
	want, got := map[int]use{}, map[int]use{}
	for _, r := range Registers() {
		want[r.Number] = use{r.SetBy, r.ReadBy}
		for _, f := range flows {
			if v, ok := f.Match.Field(of.FieldReg(r.Number)); ok && v.Uint64()>>r.Bits != 0 {
				t.Errorf("%s has %d bits and is matched with more: %s", r.Name, r.Bits, f)
			}
			if wide := tooWide(f.String(), r); wide != "" {
				t.Errorf("%s has %d bits and is given more by %s: %s", r.Name, r.Bits, wide, f)
			}
		}
		for _, g := range groups {
			if wide := tooWide(g.String(), r); wide != "" {
				t.Errorf("%s has %d bits and is given more by %s: %s", r.Name, r.Bits, wide, g)
			}
		}
	}
	for r := range u.reads {
		got[r] = use{tables(u.sets[r]), tables(u.reads[r])}
	}
	for r := range u.sets {
		got[r] = use{tables(u.sets[r]), tables(u.reads[r])}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("who sets and reads registers (-written +flows):\n%s", diff)
	}
}

var constant = regexp.MustCompile(`(?:set_field|load):(0x[0-9a-f]+|\d+)(?:/0x[0-9a-f]+)?->(?:reg|NXM_NX_REG)(\d+)(?:\[(?:(\d+)\.\.\d+)?\])?`)

// tooWide is an action that writes a number into r which has more bits than r, or none.
func tooWide(actions string, r Register) string {
	for _, c := range constant.FindAllStringSubmatch(actions, -1) {
		value, err := strconv.ParseUint(c[1], 0, 64)
		lowest, _ := strconv.Atoi(c[3]) // none is 0
		if err != nil || c[2] == fmt.Sprint(r.Number) && value<<lowest>>r.Bits != 0 {
			return c[0]
		}
	}
	return ""
}

// TestTooWide: what TestRegisters finds.
func TestTooWide(t *testing.T) {
	for actions, want := range map[string]string{
		"set_field:0xff->reg3,goto_table:20":        "",
		"set_field:0x100->reg3,goto_table:20":       "set_field:0x100->reg3",
		"set_field:0x100->reg4":                     "",
		"set_field:1->reg4,set_field:256->reg3":     "set_field:256->reg3",
		"set_field:0x100/0x1ff->reg3":               "set_field:0x100/0x1ff->reg3",
		"load:0x1->NXM_NX_REG3[7..8]":               "",
		"load:0x1->NXM_NX_REG3[8..9]":               "load:0x1->NXM_NX_REG3[8..9]",
		"learn(table=24,load:0x100->NXM_NX_REG3[])": "load:0x100->NXM_NX_REG3[]",
	} {
		if got := tooWide(actions, Register{Number: 3, Bits: 8}); got != want {
			t.Errorf("%s: %q, want %q", actions, got, want)
		}
	}
}

// TestOneWayOut: only Output sends packets anywhere, and whoever sends a packet there has
// said by which port it leaves.
func TestOneWayOut(t *testing.T) {
	outputs := regexp.MustCompile(`output:|IN_PORT\b|CONTROLLER|ALL|FLOOD|NORMAL|LOCAL`)
	flows, groups := allFlows()
	for _, g := range groups {
		if outputs.MatchString(g.String()) {
			t.Errorf("a group sends packets out: %s", g)
		}
	}
	for _, f := range flows {
		_, actions, _ := strings.Cut(f.String(), "actions=")
		if outputs.MatchString(strings.ReplaceAll(actions, "OXM_OF_IN_PORT[]", "")) != (f.Table == TableOutput) {
			t.Errorf("only Output, and each of its flows, sends packets out: %s", f)
		}
		decides := f.Goto != nil && (*f.Goto == TableAdmit || *f.Goto == tableLeave && f.Table != TableCommit)
		if says := strings.Contains(actions, "->reg2"); decides != says {
			t.Errorf("goes to the way out: %t, says by which port: %t: %s", decides, says, f)
		}
	}
}

// TestRegistersAreNamed: no other file knows a register by its number.
func TestRegistersAreNamed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	bare := regexp.MustCompile(`of\.(Reg|RegMasked|FieldReg\d*)\b|Zone: +\d`)
	for _, file := range files {
		if file == "layout.go" || strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if found := bare.Find(text); found != nil {
			t.Errorf("%s has %q: registers and zones have names in layout.go", file, found)
		}
	}
}

// TestDocument: PIPELINE.md has the stages and registers as they are.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("PIPELINE.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[uint8]string{}
	var want []string
	for _, s := range Stages() {
		names[s.Table] = s.Name
		want = append(want, fmt.Sprintf("| %d %s | %s |", s.Table, s.Name, s.Question))
	}
	named := func(tables []uint8) string {
		var out []string
		for _, table := range tables {
			out = append(out, names[table])
		}
		return strings.Join(out, ", ")
	}
	for _, r := range Registers() {
		want = append(want, fmt.Sprintf("| `reg%d` | %s | %d | %s | %s | %s |", r.Number, r.Name, r.Bits, r.Holds, named(r.SetBy), named(r.ReadBy)))
	}
	for _, zone := range []struct {
		number uint16
		holds  string
	}{{ZonePolicy, "connections of selected pods"}, {ZoneService, "connections to services"}, {ZoneHairpin, "those of pods that are their own endpoints"}} {
		want = append(want, fmt.Sprintf("| zone %d | %s |", zone.number, zone.holds))
	}
	row := regexp.MustCompile("(?m)^\\| (?:\\d+ [A-Z][A-Za-z ]* \\| [^|]*\\?|`reg\\d+` .*|zone \\d+ \\| [^|]*) \\|")
	got := row.FindAllString(string(text), -1)
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("PIPELINE.md says (-the code +PIPELINE.md):\n%s", diff)
	}
}

// TestDocumentCounts: PIPELINE.md has the numbers of fixed flows as they are.
func TestDocumentCounts(t *testing.T) {
	text, err := os.ReadFile("PIPELINE.md")
	if err != nil {
		t.Fatal(err)
	}
	none := len(with(NoServices).Fixed())
	for _, want := range []string{
		fmt.Sprintf("\nFixed: %d ", none),
		fmt.Sprintf("Fixed flows: %d more.", len(with(OVS).Fixed())-none),
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("PIPELINE.md does not say %q", want)
		}
	}
}
