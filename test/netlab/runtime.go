package netlab

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Plugin is one plugin of a network configuration list.
type Plugin map[string]any

// Runtime is the runtime's side of CNI on a node, for a network of any plugins: what
// chains others behind ours does, and what gives a pod several interfaces.
type Runtime struct {
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	// CacheDir is where it remembers results.
	CacheDir string
}

// OwnPlugin is the node's k8s-ovs plugin.
func (l *Lab) OwnPlugin(node string) Plugin {
	return Plugin{"type": "k8s-ovs", "socket": l.cniSocket(node), "capabilities": map[string]bool{"bandwidth": true}}
}

// Runtime makes one for a network of that name. Each has a cache of its own.
func (l *Lab) Runtime(node, network string, plugins ...Plugin) (*Runtime, error) {
	s, err := l.read()
	if err != nil {
		return nil, err
	}
	n, err := s.node(node)
	if err != nil {
		return nil, err
	}
	conf, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": network, "plugins": plugins})
	if err != nil {
		return nil, fmt.Errorf("CNI network %s: %w", network, err)
	}
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return nil, fmt.Errorf("CNI network %s: %w", network, err)
	}
	cache := filepath.Join(l.nodeDir(node), "cni-cache-"+network)
	return &Runtime{
		cni: libcni.NewCNIConfigWithCacheDir([]string{s.Options.BinDir}, cache, NodeExec(n.Netns)), list: list, CacheDir: cache,
	}, nil
}

// Interface is one interface that a runtime asks for.
type Interface struct {
	// Name in the sandbox.
	Name string
	// Netns is the sandbox's path; empty for the pod's own.
	Netns string
	// Args are added to CNI_ARGS; Capabilities are what the plugins that ask for them get.
	Args         [][2]string
	Capabilities map[string]any
}

func (i Interface) conf(p Pod) *libcni.RuntimeConf {
	rt := runtimeConf(p)
	rt.IfName, rt.Args = i.Name, append(rt.Args, i.Args...)
	if i.Netns != "" {
		rt.NetNS = i.Netns
	}
	if i.Capabilities != nil {
		rt.CapabilityArgs = i.Capabilities
	}
	return rt
}

// Add calls ADD of all plugins, in their order.
func (r *Runtime) Add(ctx context.Context, p Pod, i Interface) (*types100.Result, error) {
	res, err := r.cni.AddNetworkList(ctx, r.list, i.conf(p))
	if err != nil {
		return nil, fmt.Errorf("CNI ADD of %s: %w", i.Name, err)
	}
	return types100.NewResultFromResult(res)
}

// Check calls CHECK of all plugins, in their order.
func (r *Runtime) Check(ctx context.Context, p Pod, i Interface) error {
	if err := r.cni.CheckNetworkList(ctx, r.list, i.conf(p)); err != nil {
		return fmt.Errorf("CNI CHECK of %s: %w", i.Name, err)
	}
	return nil
}

// Del calls DEL of all plugins, the last one first.
func (r *Runtime) Del(ctx context.Context, p Pod, i Interface) error {
	if err := r.cni.DelNetworkList(ctx, r.list, i.conf(p)); err != nil {
		return fmt.Errorf("CNI DEL of %s: %w", i.Name, err)
	}
	return nil
}

// GC calls GC of all plugins with the interfaces that are to stay.
func (r *Runtime) GC(ctx context.Context, stay ...types.GCAttachment) error {
	if stay == nil {
		stay = []types.GCAttachment{}
	}
	if err := r.cni.GCNetworkList(ctx, r.list, &libcni.GCArgs{ValidAttachments: stay}); err != nil {
		return fmt.Errorf("CNI GC: %w", err)
	}
	return nil
}
