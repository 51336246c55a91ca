package netlab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// apiServer is where nodes find the API server that a test runs.
var apiServer = netip.AddrPortFrom(controllerIP, 6443)

// ListenAPIServer listens where agents look for an API server after UseKubernetes.
func (l *Lab) ListenAPIServer() (net.Listener, error) {
	return ns.ListenTCP(ns.Path(l.ControllerNetns()), apiServer.String())
}

// kubeconfig is the least that says where the API server is.
const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "http://%s"}}]
contexts: [{name: lab, context: {cluster: lab}}]
current-context: lab
`

// UseKubernetes makes agents that start from now on parts of a Kubernetes cluster, or
// standalone ones again. They find the way to etcd in the Secret
// kube-system/k8s-ovs-etcd, and make no records: a standalone agent that ran before, or
// the test, makes those.
func (l *Lab) UseKubernetes(use bool) error {
	path := ""
	if use {
		path = filepath.Join(l.dir, "kubeconfig")
		if err := os.WriteFile(path, fmt.Appendf(nil, kubeconfig, apiServer), 0o600); err != nil {
			return fmt.Errorf("lab %s: %w", l.name, err)
		}
	}
	return l.update(func(s *state) error { s.Kubeconfig = path; return nil })
}
