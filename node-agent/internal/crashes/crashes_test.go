package crashes

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	r, err := Load(dir, "ovs-vswitchd")
	if err != nil || r.Count() != 0 || r.String() != "" {
		t.Fatalf("before the first end: %+v, %v", r, err)
	}
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	r.Add(End{Time: at, Cause: "SIGSEGV", Lived: 90*time.Minute + 300*time.Millisecond})
	r.Add(End{Time: at, Cause: "exit status 1", Lived: 5 * time.Millisecond})
	r.Add(End{Time: at, Cause: "SIGSEGV", Lived: 61*time.Second + time.Millisecond, Line: "it was like this", GivenUp: true})
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, "ovs-vswitchd")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("(-written +read):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"SIGSEGV": 2, "exit status 1": 1}, got.Ends); diff != "" || got.Count() != 3 {
		t.Errorf("count %d\n%s", got.Count(), diff)
	}
	const want = "ovs-vswitchd ended (SIGSEGV) after 1m1s; that was 3 times since the machine started; it cannot stay up, so its container ends, " +
		"and kubelet starts that again after longer and longer pauses; the last that it printed: it was like this"
	if got.String() != want {
		t.Errorf("it says %q", got)
	}
}

// TestAll: a file that cannot be read hides no other.
func TestAll(t *testing.T) {
	dir := t.TempDir()
	for _, daemon := range []string{"ovsdb-server", "ovs-vswitchd"} {
		r := Record{Daemon: daemon}
		r.Add(End{Cause: "SIGKILL"})
		if err := r.Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(File(dir, "half"), []byte(`{"daemon":`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/db.sock", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	all, err := All(dir)
	if err == nil || !strings.Contains(err.Error(), "half") {
		t.Errorf("error %v does not name the file that is broken", err)
	}
	var names []string
	for _, r := range all {
		names = append(names, r.Daemon)
	}
	if diff := cmp.Diff([]string{"ovs-vswitchd", "ovsdb-server"}, names); diff != "" {
		t.Error(diff)
	}
}
