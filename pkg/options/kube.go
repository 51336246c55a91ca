package options

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// DefaultEtcdSecret names what says how to reach etcd.
const DefaultEtcdSecret = "kube-system/k8s-ovs-etcd"

// Kube says whether and how to use the Kubernetes API. [Kube.Register] the
// flags, resolve them, and let [Kube.Complete] check them.
type Kube struct {
	// Enabled is whether the API server is used at all.
	Enabled bool
	// Kubeconfig is a file; empty for the service account of the pod.
	Kubeconfig string
	// EtcdSecret is the NAMESPACE/NAME of the ConfigMap that tells agents where etcd is,
	// and of the Secret with the controllers' own access to an external one. It counts where no endpoints
	// of etcd are given.
	EtcdSecret string
}

// Register adds the flags.
func (k *Kube) Register(fs *pflag.FlagSet) {
	if k.EtcdSecret == "" {
		k.EtcdSecret = DefaultEtcdSecret
	}
	fs.BoolVar(&k.Enabled, "kubernetes", k.Enabled, "use the Kubernetes API server: that of the pod's service account, or --kubeconfig")
	fs.StringVar(&k.Kubeconfig, "kubeconfig", k.Kubeconfig, "`file` that says how to reach the Kubernetes API server; implies --kubernetes")
	fs.StringVar(&k.EtcdSecret, "etcd-secret", k.EtcdSecret, "`namespace/name` of the ConfigMap that tells agents where etcd is, and of the Secret with the controllers' access to an external one; used with --kubernetes where no --etcd-endpoints are given")
}

// Complete checks what was given. Errors name the flag.
func (k *Kube) Complete() error {
	if k.Kubeconfig != "" {
		if _, err := os.Stat(k.Kubeconfig); err != nil {
			return fmt.Errorf("--kubeconfig: %w", err)
		}
		k.Enabled = true
	}
	if !k.Enabled {
		return nil
	}
	namespace, name, ok := strings.Cut(k.EtcdSecret, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return fmt.Errorf("--etcd-secret %q is not NAMESPACE/NAME, such as %s", k.EtcdSecret, DefaultEtcdSecret)
	}
	return nil
}
