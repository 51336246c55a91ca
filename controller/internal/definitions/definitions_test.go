package definitions

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestSameAsModule: the definition is that of the types that are linked.
func TestSameAsModule(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "config/crd/standard/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(theirs, clusterNetworkPolicies) {
		t.Error("clusternetworkpolicies.yaml is not that of the module: copy it from config/crd/standard there")
	}
}

// answers are what the API server says, one after the other; made is the last.
type answers struct {
	errs  []error
	made  bool
	asked []time.Time
}

func (a *answers) MakeDefinition(_ context.Context, text []byte) (bool, error) {
	a.asked = append(a.asked, time.Now())
	if i := len(a.asked) - 1; i < len(a.errs) {
		return false, a.errs[i]
	}
	return a.made, nil
}

// TestMake: it is tried until the API server has an answer, and each new failure is told once.
func TestMake(t *testing.T) {
	forbidden, away := errors.New("forbidden"), errors.New("away")
	for _, tc := range []struct {
		name            string
		api             answers
		asked           int
		warnings, infos int
	}{
		{"missing", answers{made: true}, 1, 0, 1},
		{"there", answers{}, 1, 0, 0},
		{"forbidden, then there", answers{errs: []error{away, forbidden, forbidden, forbidden}, made: true}, 5, 2, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				Make(t.Context(), &tc.api, slog.New(slog.NewTextHandler(&log, nil)))
				if len(tc.api.asked) != tc.asked || strings.Count(log.String(), "level=WARN") != tc.warnings || strings.Count(log.String(), "level=INFO") != tc.infos {
					t.Errorf("asked %d times, want %d; said, of %d warnings and %d others:\n%s", len(tc.api.asked), tc.asked, tc.warnings, tc.infos, log.String())
				}
			})
		})
	}
}

// TestMakeEnds: with its context.
func TestMakeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		api := &answers{errs: make([]error, 10000)}
		for i := range api.errs {
			api.errs[i] = errors.New("away")
		}
		Make(ctx, api, slog.New(slog.DiscardHandler))
		if n := len(api.asked); n < 10 || n > 50 {
			t.Errorf("asked %d times in an hour", n)
		}
	})
}
