package rows

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestRows: what is added is what the table has, and what would break the table is refused.
func TestRows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rows")
	t.Setenv(Variable, path)
	for _, add := range []error{
		Add("agent killed 50 times", 0, 0, "0 lost"),
		Add("all flows deleted", 12, 43210*time.Microsecond, "100 ms"),
	} {
		if add != nil {
			t.Fatal(add)
		}
	}
	for _, bad := range []error{Add("a | b", 0, 0, ""), Add("a", 0, 0, "b\nc")} {
		if bad == nil {
			t.Error("a row that is two is added")
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Table(string(data))
	if err != nil {
		t.Fatal(err)
	}
	want := "| fault | lost | longest gap | bar |\n|---|---:|---:|---|\n| agent killed 50 times | 0 | 0s | 0 lost |\n| all flows deleted | 12 | 43.2ms | 100 ms |\n"
	if got != want {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
	for _, bad := range []string{"", "\n", "fault | lost | gap\n"} {
		if got, err := Table(bad); err == nil {
			t.Errorf("the table of %q is %q", bad, got)
		}
	}
}

// TestNobodyAsks: without the variable a row goes nowhere.
func TestNobodyAsks(t *testing.T) {
	t.Setenv(Variable, "")
	if err := Add("agent killed", 0, 0, "0 lost"); err != nil {
		t.Error(err)
	}
}
