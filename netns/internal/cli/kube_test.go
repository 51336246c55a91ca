package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// apiServer answers with Secrets, by their paths, and gives back a kubeconfig.
func apiServer(t *testing.T, secrets map[string]map[string][]byte) (kubeconfig string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		data, ok := secrets[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"no such Secret","code":404}`)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"kind": "Secret", "apiVersion": "v1", "data": data})
	}))
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	content := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`, server.URL)
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// TestSecret: in Kubernetes a Secret says how to reach etcd, unless a flag does.
func TestSecret(t *testing.T) {
	secure := newSecureEtcd(t, "127.0.0.1")
	kubeconfig := apiServer(t, map[string]map[string][]byte{
		"/api/v1/namespaces/kube-system/secrets/k8s-ovs-etcd": secure.secret(t),
		"/api/v1/namespaces/x/secrets/empty":                  {},
		"/api/v1/namespaces/x/secrets/plain":                  {"endpoints": []byte("http://" + secure.endpoint)},
	})
	netns(t.Context(), "--kubeconfig", kubeconfig, "list").expect(t, ExitDone, []string{"helloworld1"}, nil)
	netns(t.Context(), "--kubeconfig", kubeconfig, "--etcd-secret", "x/plain", "list").expect(t, ExitFailed, nil, []string{"secret x/plain", "not encrypted", "write https://"})
	netns(t.Context(), "--kubeconfig", kubeconfig, "--etcd-endpoints", "127.0.0.1:9", "--etcd-dial-timeout", "300ms", "list").expect(t, ExitFailed, nil, []string{"127.0.0.1:9"})
	netns(t.Context(), "--kubeconfig", kubeconfig, "--etcd-secret", "x/empty", "list").expect(t, ExitFailed, nil, []string{"secret x/empty", `"endpoints" is missing`})
	netns(t.Context(), "--kubeconfig", kubeconfig, "--etcd-secret", "x/none", "list").expect(t, ExitFailed, nil, []string{"Secret x/none", "not found", "exec deploy/k8s-ovs-controller", "--etcd-bundle"})
	// Beside a controller with etcd in it there is no Secret.
	l := newLab(t, topology.DefaultConfig(), 0, space("a", 100))
	beside := filepath.Dir(strings.TrimPrefix(l.etcd.Endpoints[0], "unix://"))
	netns(t.Context(), "--kubeconfig", kubeconfig, "--etcd-secret", "x/none", "--data-dir", beside, "list").expect(t, ExitDone, []string{"a           100"}, nil)
	netns(t.Context(), "--kubeconfig", kubeconfig, "--etcd-secret", "none", "list").expect(t, ExitUsage, nil, []string{"--etcd-secret"})
}
