package access

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An API server's answers: the Secret's data, that there is none, why it may not be read, and what is no answer.
func TestReadSecret(t *testing.T) {
	answers := map[string]struct {
		code int
		body string
	}{
		"there":     {http.StatusOK, `{"kind":"Secret","data":{"ca.crt":"b25l"}}`},
		"none":      {http.StatusNotFound, `{"kind":"Status","message":"secrets \"none\" not found"}`},
		"forbidden": {http.StatusForbidden, `{"kind":"Status","message":"user bob may not"}`},
		"page":      {http.StatusOK, `<html>`},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[strings.TrimPrefix(r.URL.Path, "/behind/api/v1/namespaces/ns/secrets/")]
		if !ok || !strings.HasPrefix(r.UserAgent(), "k8s-ovs/") {
			t.Errorf("asked for %s as %s", r.URL.Path, r.UserAgent())
		}
		w.WriteHeader(a.code)
		fmt.Fprint(w, a.body)
	}))
	defer server.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	content := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`, server.URL+"/behind")
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := ReadSecret(t.Context(), kubeconfig, "ns/there"); err != nil || string(data[CAKey]) != "one" {
		t.Errorf("%q: %v", data, err)
	}
	if _, err := ReadSecret(t.Context(), kubeconfig, "ns/none"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "Secret ns/none") {
		t.Errorf("none: %v", err)
	}
	for name, say := range map[string]string{"ns/forbidden": "user bob may not", "ns/page": "the API server's answer", "ns": "NAMESPACE/NAME"} {
		if _, err := ReadSecret(t.Context(), kubeconfig, name); err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want one that says %q", name, err, say)
		}
	}
	server.Close()
	if _, err := ReadSecret(t.Context(), kubeconfig, "ns/there"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("nobody answers: %v", err)
	}
}
