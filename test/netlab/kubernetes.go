package netlab

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

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
	return l.startControllerOf(ctx, bin, "controller", append([]string{
		"--kubeconfig", s.Kubeconfig, "--node-ip", controllerIP.String(), "--pod", "kube-system/controller/uid", "--data-dir", l.DataDir(),
		"--network", o.Network.String(), "--host-subnet-length", fmt.Sprint(o.HostSubnetLength),
	}, o.ControllerArgs...), "/readyz")
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

// Program is the process id of the agent itself, also where another process keeps it running.
func (a Agent) Program() (pid int, err error) {
	p, err := a.Get()
	if err != nil {
		return 0, err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.PID, p.PID))
	if err != nil {
		return 0, fmt.Errorf("the agent of %s: %w", a.node, err)
	}
	for _, text := range append([]string{strconv.Itoa(p.PID)}, strings.Fields(string(children))...) {
		name, err := os.ReadFile(filepath.Join("/proc", text, "comm"))
		if err == nil && strings.TrimSpace(string(name)) == "k8s-ovs-agent" {
			return strconv.Atoi(text)
		}
	}
	return 0, fmt.Errorf("the agent of %s does not run", a.node)
}

// KillProgram kills the agent of StartInCluster itself, which is started again at once.
func (a Agent) KillProgram() error {
	pid, err := a.Program()
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
}

// API is the part of an API server that has the lab's pods; kubetest.Server is one.
type API interface {
	Put(object runtime.Object) error
	Delete(object runtime.Object) error
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
		if err := l.showPod(p); err != nil {
			return err
		}
	}
	return nil
}

// SetAnnotations makes these all the annotations that a pod has in the API server.
func (l *Lab) SetAnnotations(p Pod, annotations map[string]string) error {
	return l.describe(p, func(o *PodOptions) { o.Annotations = annotations })
}

// SetLabels makes these all the labels that a pod has in the API server.
func (l *Lab) SetLabels(p Pod, labels map[string]string) error {
	return l.describe(p, func(o *PodOptions) { o.Labels = labels })
}

// describe changes what the API server has of a pod.
func (l *Lab) describe(p Pod, change func(*PodOptions)) error {
	if l.api == nil {
		return fmt.Errorf("pod %s: what describes it is the API server's, and lab %s has none: see ShowPods", p, l.name)
	}
	err := l.update(func(s *state) error {
		known, err := s.pod(p.Namespace, p.Name)
		if err != nil {
			return err
		}
		change(&known.Options)
		p = *known
		return nil
	})
	if err != nil {
		return err
	}
	return l.showPod(p)
}

// showPod makes the pod one of the API server's, where there is one.
func (l *Lab) showPod(p Pod) error {
	if l.api == nil {
		return nil
	}
	if err := l.api.Put(p.object()); err != nil {
		return fmt.Errorf("pod %s: %w", p, err)
	}
	return nil
}

// object is the pod as an API server has it. It belongs to whoever is given it.
func (p Pod) object() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID),
			Labels: maps.Clone(p.Options.Labels), Annotations: maps.Clone(p.Options.Annotations),
		},
		Spec: corev1.PodSpec{NodeName: p.Node, Containers: []corev1.Container{{Name: "main", Ports: slices.Clone(p.Options.Ports)}}},
	}
}
