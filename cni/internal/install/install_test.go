package install

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniplugins"
)

func TestCommand(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, name := range cniplugins.Plugins {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args   []string
		status int
		out    string
	}{
		{[]string{"--from", from, "--to", to}, 0, "k8s-ovs installed"},
		{[]string{"--from", from, "--to", to}, 0, "k8s-ovs is up to date"},
		{[]string{"--from", from}, 2, "--to"},
		{[]string{"--from", from, "--to", to, "more"}, 2, "nothing else"},
		{[]string{"--form", from}, 2, "form"},
		{[]string{"--help"}, 0, "-from"},
		{[]string{"--from", to + "/missing", "--to", to}, 1, "missing/loopback"},
	} {
		var out bytes.Buffer
		if status := Main(tc.args, &out, &out); status != tc.status || !strings.Contains(out.String(), tc.out) {
			t.Errorf("%q: status %d, %s; want %d, %q", tc.args, status, out.String(), tc.status, tc.out)
		}
	}
}
