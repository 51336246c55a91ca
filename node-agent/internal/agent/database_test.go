package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/test/mounts"
)

// TestDatabaseFolderDeleted: where the folder of the database's socket was deleted under the agent's mount, and made anew on
// the node, only a new start finds the database again. One that is there without a socket is waited for.
func TestDatabaseFolderDeleted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a folder")
	}
	source, mounted := mounts.Bound(t)
	endpoint := "unix:" + filepath.Join(mounted, "db.sock")
	cause := errors.New("refused")
	if err := noDatabase(endpoint, cause); !errors.Is(err, cause) || errors.Is(err, detached.Err) || !strings.Contains(err.Error(), "is ovsdb-server running?") {
		t.Errorf("no socket in a folder that is there: %v", err)
	}
	if err := os.RemoveAll(source); err != nil {
		t.Fatal(err)
	}
	for _, then := range []string{"deleted", "made anew"} {
		if err := noDatabase(endpoint, cause); !errors.Is(err, detached.Err) || !strings.Contains(err.Error(), mounted) {
			t.Errorf("%s: %v", then, err)
		}
		if err := os.MkdirAll(source, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
