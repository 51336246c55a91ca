package version

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFrom(t *testing.T) {
	vcs := []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef0123"},
		{Key: "vcs.modified", Value: "true"},
	}
	tests := []struct {
		name   string
		linked string
		build  *debug.BuildInfo
		want   Info
		line   string
	}{
		{
			name: "nothing recorded",
			want: Info{Version: "unknown", Commit: "unknown"},
			line: "unknown (commit unknown, ",
		},
		{
			name:  "development build",
			build: &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}},
			want:  Info{Version: "unknown", Commit: "unknown"},
			line:  "unknown (commit unknown, ",
		},
		{
			name:  "pseudo version and revision",
			build: &debug.BuildInfo{Main: debug.Module{Version: "v0.0.0-20260101000000-0123456789ab"}, Settings: vcs},
			want:  Info{Version: "v0.0.0-20260101000000-0123456789ab", Commit: "0123456789abcdef0123", Modified: true},
			line:  "v0.0.0-20260101000000-0123456789ab (commit 0123456789ab, modified, ",
		},
		{
			name:   "the linker's word wins",
			linked: "v1.2.3",
			build:  &debug.BuildInfo{Main: debug.Module{Version: "v0.9.0"}, Settings: vcs[:1]},
			want:   Info{Version: "v1.2.3", Commit: "0123456789abcdef0123"},
			line:   "v1.2.3 (commit 0123456789ab, ",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Go = runtime.Version()
			tt.want.Platform = runtime.GOOS + "/" + runtime.GOARCH
			got := from(tt.linked, tt.build)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("from (-want +got):\n%s", diff)
			}
			if !strings.HasPrefix(got.String(), tt.line) {
				t.Errorf("String() = %q, want it to begin with %q", got.String(), tt.line)
			}
		})
	}
}

// TestLinkedVersion builds a program the way a release is built: a renamed
// variable would otherwise be ignored by the linker without a word.
func TestLinkedVersion(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "program")
	build := exec.Command("go", "build", "-o", bin,
		"-ldflags", "-X github.com/k8s-ovs/k8s-ovs/pkg/version.Version=v1.2.3", "./testdata/program")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out); got != "v1.2.3" {
		t.Errorf("linked version is %q, want v1.2.3", got)
	}
}
