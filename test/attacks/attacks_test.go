package attacks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rows")
	t.Setenv("ATTACKS", path)
	good := Row{By: Pod, Name: "a | b", Datapath: "netdev", Tried: 3}
	known := Row{By: Node, Name: "any VNI", Datapath: "netdev", Tried: 2, Delivered: 2, NotHeld: "no encryption"}
	for _, tt := range []struct {
		row  Row
		want string // part of the error
	}{
		{good, ""},
		{known, ""},
		{good, ""},
		{Row{By: Pod, Name: "c", Datapath: "netdev"}, "shows nothing"},
		{Row{By: Pod, Name: "d", Datapath: "netdev", Tried: 2, Delivered: 1}, "1 of 2 delivered"},
		{Row{By: Pod, Name: "e", Datapath: "netdev", Tried: 2, NotHeld: "x"}, "say that it is held off"},
	} {
		err := Record(tt.row)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.row, err, tt.want)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	rows, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := Markdown(&b, "v1", rows); err != nil {
		t.Fatal(err)
	}
	const want = `# Attacks

What the tests tried at commit v1 (` + "`make attacks`" + `), and how much of it was delivered. One row is one attack on one datapath: ` + "`netdev`" + ` is
Open vSwitch's userspace datapath, ` + "`system`" + ` the kernel's. 1 held off, 1 known to succeed, 3 failures.

| attacker | attack | datapath | tried | delivered | |
|---|---|---|---:|---:|---|
| hostile pod | a \| b | netdev | 6 | 0 | held off |
| hostile pod | c | netdev | 0 | 0 | **FAILED** |
| hostile pod | d | netdev | 2 | 1 | **FAILED** |
| hostile pod | e | netdev | 2 | 0 | **FAILED** |
| stolen node | any VNI | netdev | 2 | 2 | not held off: no encryption |
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
