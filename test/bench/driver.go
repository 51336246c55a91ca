package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// plugin is one side's CNI, driven as a container runtime does: libcni executes
// the plugin in the node's network namespace.
type plugin struct {
	name  string
	cni   *libcni.CNIConfig
	list  *libcni.NetworkConfigList
	netns string
}

func newPlugin(name, bin, dir, netns string, conf []byte) (*plugin, error) {
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return nil, fmt.Errorf("CNI configuration of %s: %w", name, err)
	}
	exec := netlab.NodeExec(netns)
	cache := filepath.Join(dir, "bench-cni-"+name)
	return &plugin{name, libcni.NewCNIConfigWithCacheDir([]string{bin}, cache, exec), list, netns}, nil
}

// referenceConfig is bridge with host-local as every runtime's documentation
// has it: the bridge is the pods' gateway, nothing is masqueraded. host-local
// gives out of a /22, as ours does; its files are on the same file system as ours.
// Plugins that are chained come after it.
func referenceConfig(dir string, chained ...map[string]any) []byte {
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0",
		"name":       "reference",
		"plugins": append([]map[string]any{{
			"type":      "bridge",
			"bridge":    "cni0",
			"isGateway": true,
			"ipMasq":    false,
			"ipam": map[string]any{
				"type":    "host-local",
				"dataDir": filepath.Join(dir, "bench-host-local"),
				"ranges":  [][]map[string]string{{{"subnet": "10.22.0.0/22"}}},
				"routes":  []map[string]string{{"dst": "0.0.0.0/0"}},
			},
		}}, chained...),
	})
	if err != nil {
		panic(err) // maps of strings always encode
	}
	return conf
}

// limitingPlugin is the reference for limits, as it is chained.
var limitingPlugin = map[string]any{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}}

// attached is a sandbox and the attachment that is, or was last, in it.
type attached struct {
	pod netlab.Pod
	// bandwidth is the capability of that name; nil for no limits.
	bandwidth map[string]uint64
	// id is the container's: a new one each time, as each pod has.
	id     string
	result types.Result
}

// sandboxes makes n sandboxes whose pods are in the namespaces that namespace
// names by index. They go with the lab.
func (b *bench) sandboxes(n int, namespace func(i int) string) ([]attached, error) {
	out := make([]attached, n)
	for i := range out {
		b.pods++
		p, err := b.lab.NewSandbox("n1", namespace(i), fmt.Sprintf("p%d", b.pods), netlab.PodOptions{})
		if err != nil {
			return nil, err
		}
		out[i].pod = p
	}
	return out, nil
}

func (p *plugin) runtimeConf(a attached) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: a.id, NetNS: a.pod.Sandbox(), IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", a.pod.Namespace},
			{"K8S_POD_NAME", a.pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", a.id},
			{"K8S_POD_UID", a.pod.UID},
		},
	}
	if a.bandwidth != nil {
		rt.CapabilityArgs = map[string]any{"bandwidth": a.bandwidth}
	}
	return rt
}

// add calls ADD and returns how long it took.
func (p *plugin) add(ctx context.Context, a *attached) (time.Duration, error) {
	var id [32]byte // as containerd's: 64 characters
	_, _ = rand.Read(id[:])
	a.id = hex.EncodeToString(id[:])
	began := time.Now()
	result, err := p.cni.AddNetworkList(ctx, p.list, p.runtimeConf(*a))
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("ADD by %s: %w", p.name, err)
	}
	a.result = result
	return took, nil
}

// del calls DEL and returns how long it took.
func (p *plugin) del(ctx context.Context, a attached) (time.Duration, error) {
	began := time.Now()
	err := p.cni.DelNetworkList(ctx, p.list, p.runtimeConf(a))
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("DEL by %s: %w", p.name, err)
	}
	return took, nil
}

// all calls f for every sandbox at once and returns how long it took until the
// last was done.
func all(ctx context.Context, list []attached, f func(context.Context, *attached) error) (time.Duration, error) {
	g, ctx := errgroup.WithContext(ctx)
	start := make(chan struct{})
	for i := range list {
		g.Go(func() error {
			<-start
			return f(ctx, &list[i])
		})
	}
	began := time.Now()
	close(start)
	err := g.Wait()
	return time.Since(began), err
}

func (p *plugin) addAll(ctx context.Context, list []attached) (time.Duration, error) {
	return all(ctx, list, func(ctx context.Context, a *attached) error { _, err := p.add(ctx, a); return err })
}

func (p *plugin) delAll(ctx context.Context, list []attached) (time.Duration, error) {
	return all(ctx, list, func(ctx context.Context, a *attached) error { _, err := p.del(ctx, *a); return err })
}
