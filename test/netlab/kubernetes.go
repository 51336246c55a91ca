package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

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
// standalone ones again. They reach etcd as standalone ones do, and make no
// records: a standalone agent that ran before, or the test, makes those. See
// StartInCluster for agents that know of etcd from the API server alone.
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

// EtcdAddress is where a controller of StartInCluster has its etcd, with TLS.
var EtcdAddress = netip.AddrPortFrom(controllerIP, 2389).String()

// DataDir is where it keeps the records.
func (l *Lab) DataDir() string { return filepath.Join(l.dir, "ctl", "etcd") }

// StartInCluster starts the controller of a Kubernetes cluster in a bare lab, after
// UseKubernetes, and waits until it is ready. bin is the folder with its program, of this
// version or another.
func (l *Lab) StartInCluster(ctx context.Context, bin string) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	o := s.Options
	return l.startControllerOf(ctx, bin, "controller", []string{
		"--kubeconfig", s.Kubeconfig, "--node-ip", controllerIP.String(), "--pod", "kube-system/controller/uid", "--data-dir", l.DataDir(),
		"--network", o.Network.String(), "--host-subnet-length", fmt.Sprint(o.HostSubnetLength),
	})
}

// StartInCluster starts a node's agent in a Kubernetes cluster, after UseKubernetes, and
// waits until it is ready: the API server says where etcd is. bin is the folder with its program. It runs as a
// DaemonSet's does: one that ends by itself is started again, until Stop or Kill.
func (a Agent) StartInCluster(ctx context.Context, bin string) error {
	s, err := a.lab.read()
	if err != nil {
		return err
	}
	n, err := s.node(a.node)
	if err != nil {
		return err
	}
	if a.Alive() {
		return fmt.Errorf("the agent of %s runs already", a.node)
	}
	l := a.lab
	// The shell stands in for the kubelet; the agent is its child, and ends with it.
	restarts := []string{"/bin/sh", "-c", `trap 'kill -TERM $pid; wait $pid; exit 0' TERM; while :; do "$@" & pid=$!; wait $pid; sleep 0.1; done`, "agent"}
	args := append(append(append(restarts, l.agentArgs(*n, bin)...), "--kubeconfig", s.Kubeconfig), n.AgentArgs...)
	return l.run(ctx, command{
		name: a.name, netns: n.Netns, args: args, env: l.OVS(n.Name).env(), log: filepath.Join(l.dir, "log", n.Name+"-agent.log"),
	}, 60*time.Second, func() (bool, error) {
		err := a.Ready(ctx)
		return err == nil, err
	})
}

// API is the part of an API server that has the lab's pods; kubetest.Server is one.
type API interface {
	PutPod(namespace, name, uid, node string, annotations map[string]string) error
	DeletePod(namespace, name, node string) error
}

// ShowPods makes the lab's pods, those there are and those made by l from now on,
// pods of the API server too: the test's, which agents watch after UseKubernetes.
func (l *Lab) ShowPods(api API) error {
	l.api = api
	s, err := l.read()
	if err != nil {
		return err
	}
	for _, p := range s.Pods {
		if err := l.showPod(p, p.Options.Annotations); err != nil {
			return err
		}
	}
	return nil
}

// SetAnnotations makes these all the annotations that a pod has in the API server.
func (l *Lab) SetAnnotations(p Pod, annotations map[string]string) error {
	if l.api == nil {
		return fmt.Errorf("pod %s: annotations are the API server's, and lab %s has none: see ShowPods", p, l.name)
	}
	return l.showPod(p, annotations)
}

// showPod makes the pod one of the API server's, where there is one.
func (l *Lab) showPod(p Pod, annotations map[string]string) error {
	if l.api == nil {
		return nil
	}
	if err := l.api.PutPod(p.Namespace, p.Name, p.UID, p.Node, annotations); err != nil {
		return fmt.Errorf("pod %s: %w", p, err)
	}
	return nil
}
