package netlab

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// cniNetwork is the network's name in the CNI configuration.
const cniNetwork = "k8s-ovs"

// ifName is the pod's interface, as every runtime names it.
const ifName = "eth0"

// NodeExec runs plugins in the network namespace at a path, where a runtime on
// that node would.
func NodeExec(netns string) invoke.Exec {
	return nodeExec{&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}, netns}
}

type nodeExec struct {
	*invoke.DefaultExec
	netns string
}

// ExecPlugin is invoke.Exec's.
func (e nodeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) (out []byte, err error) {
	inside := ns.Do(e.netns, func() error {
		out, err = e.DefaultExec.ExecPlugin(ctx, path, stdin, env)
		return nil
	})
	if err == nil {
		err = inside
	}
	return out, err
}

// cni returns the runtime's side of CNI on a node. A runtime that has lost its
// cache is one with another cacheDir.
func (l *Lab) cni(node, cacheDir string) (*libcni.CNIConfig, *libcni.NetworkConfigList, error) {
	s, err := l.read()
	if err != nil {
		return nil, nil, err
	}
	n, err := s.node(node)
	if err != nil {
		return nil, nil, err
	}
	list, err := libcni.NetworkConfFromBytes(l.CNIConfig(node))
	if err != nil {
		return nil, nil, fmt.Errorf("CNI configuration: %w", err)
	}
	dir := cmp.Or(s.PluginDir, s.Options.BinDir)
	return libcni.NewCNIConfigWithCacheDir([]string{dir}, cacheDir, NodeExec(n.Netns)), list, nil
}

// UsePlugin has runtimes call the plugin k8s-ovs in a folder from now on, of this version
// or another.
func (l *Lab) UsePlugin(dir string) error {
	return l.update(func(s *state) error { s.PluginDir = dir; return nil })
}

// CNIConfig is the network configuration list of a node, as it would stand in /etc/cni/net.d.
func (l *Lab) CNIConfig(node string) []byte {
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0",
		"name":       cniNetwork,
		"plugins": []map[string]any{{
			"type":         "k8s-ovs",
			"socket":       l.cniSocket(node),
			"capabilities": map[string]bool{"bandwidth": true},
		}},
	})
	if err != nil {
		panic(err) // maps of strings always encode
	}
	return conf
}

func (l *Lab) cniCache(node string) string { return filepath.Join(l.nodeDir(node), "cni-cache") }

// runtimeConf is what a container runtime passes for a pod.
func runtimeConf(p Pod) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: p.ContainerID,
		NetNS:       p.Sandbox(),
		IfName:      ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID},
			{"K8S_POD_UID", p.UID},
		},
	}
	if o := p.Options; o.IngressBandwidth != 0 || o.EgressBandwidth != 0 {
		b := map[string]uint64{}
		// The burst is what containerd sends: no limit.
		if o.IngressBandwidth != 0 {
			b["ingressRate"], b["ingressBurst"] = o.IngressBandwidth, math.MaxUint32
		}
		if o.EgressBandwidth != 0 {
			b["egressRate"], b["egressBurst"] = o.EgressBandwidth, math.MaxUint32
		}
		rt.CapabilityArgs = map[string]any{"bandwidth": b}
	}
	return rt
}

// CNIAdd calls ADD for the pod.
func (l *Lab) CNIAdd(ctx context.Context, p Pod) (*types100.Result, error) {
	c, list, err := l.cni(p.Node, l.cniCache(p.Node))
	if err != nil {
		return nil, err
	}
	r, err := c.AddNetworkList(ctx, list, runtimeConf(p))
	if err != nil {
		return nil, fmt.Errorf("CNI ADD: %w", err)
	}
	return types100.NewResultFromResult(r)
}

// CNIDel calls DEL for the pod.
func (l *Lab) CNIDel(ctx context.Context, p Pod) error {
	c, list, err := l.cni(p.Node, l.cniCache(p.Node))
	if err != nil {
		return err
	}
	if err := c.DelNetworkList(ctx, list, runtimeConf(p)); err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return nil
}

// CNICheck calls CHECK for the pod.
func (l *Lab) CNICheck(ctx context.Context, p Pod) error {
	c, list, err := l.cni(p.Node, l.cniCache(p.Node))
	if err != nil {
		return err
	}
	if err := c.CheckNetworkList(ctx, list, runtimeConf(p)); err != nil {
		return fmt.Errorf("CNI CHECK: %w", err)
	}
	return nil
}

// CNIGC calls GC on a node with the pods that are to stay, as a runtime
// whose cache is lost: the plugin alone decides what goes.
func (l *Lab) CNIGC(ctx context.Context, node string, stay []Pod) error {
	empty, err := os.MkdirTemp(l.nodeDir(node), "no-cache-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(empty) }()
	c, list, err := l.cni(node, empty)
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, p := range stay {
		if p.Node == node {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.ContainerID, IfName: ifName})
		}
	}
	if err := c.GCNetworkList(ctx, list, args); err != nil {
		return fmt.Errorf("CNI GC: %w", err)
	}
	return nil
}

// CNIStatus calls STATUS on a node.
func (l *Lab) CNIStatus(ctx context.Context, node string) error {
	c, list, err := l.cni(node, l.cniCache(node))
	if err != nil {
		return err
	}
	if err := c.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("CNI STATUS: %w", err)
	}
	return nil
}
