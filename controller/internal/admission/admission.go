// Package admission keeps what the API server's policies of k8s-ovs (manifests/policy)
// need to know of the cluster, and says when one of them is not in force. It refuses
// nothing itself, and never writes a policy: who may do that may do everything.
package admission

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/nodeaddr"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// ConfigMap is the policies' parameters.
const ConfigMap = "kube-system/k8s-ovs-admission"

// Keys of the ConfigMap; all others are addresses of nodes.
const (
	networkKey        = "network"
	serviceNetworkKey = "service-network"
)

// Policies are those that must be in force, and their bindings, which have the same names.
var Policies = []string{
	"k8s-ovs-controller", "k8s-ovs-definitions", "k8s-ovs-endpoints", "k8s-ovs-endpointslices", "k8s-ovs-external-ips",
	"k8s-ovs-load-balancer-status", "k8s-ovs-managed-endpointslices", "k8s-ovs-networks", "k8s-ovs-static-pods",
}

// Unguarded is the reason of the Event.
const Unguarded = "NotGuarded"

// Network is what the policies need to know. Its maps are not changed.
type Network struct {
	Config topology.Config
	// Addresses are those of the API server's Nodes, by their names, as far as they are taken
	// for theirs; Records are the hosts of the overlay, Nodes or not.
	Addresses map[string]nodeaddr.Addresses
	Records   map[netip.Addr]topology.Node
}

// data is what the ConfigMap is to say.
func (n Network) data() map[string]string {
	data := map[string]string{networkKey: n.Config.Network.String(), serviceNetworkKey: n.Config.ServiceNetwork.String()}
	for a, r := range n.Records {
		data[key(a)] = r.Host
	}
	// Several Nodes may have an address: of them it is always the same.
	for _, name := range slices.Sorted(maps.Keys(n.Addresses)) {
		for _, a := range n.Addresses[name].Own {
			data[key(a)] = name
		}
	}
	return data
}

// key is an address as the policies look it up.
func key(a netip.Addr) string {
	return strings.ReplaceAll(a.Unmap().WithZone("").String(), ":", "-")
}

// API is what a Keeper needs of [kube.Client].
type API interface {
	PutConfigMap(ctx context.Context, ref string, data map[string]string) (wrote bool, err error)
	PolicyAbsent(ctx context.Context, name string) (why string, err error)
	Event(object kube.ObjectRef, warning bool, reason kube.EventReason, message string)
}

const (
	// keepEvery is how often the ConfigMap is looked after, lookEvery how often the
	// policies: somebody may delete them. retryAfter is the pause after a failure.
	keepEvery  = 30 * time.Second
	lookEvery  = 3 * time.Minute
	retryAfter = 2 * time.Second
)

// Config is what a Keeper needs.
type Config struct {
	API API
	// Pod is what Events are about; without a name none are sent.
	Pod kube.ObjectRef
	// Absent is told after each look how many policies are not in force.
	Absent func(n int)
	Logger *slog.Logger
}

// Keeper keeps the ConfigMap, and looks after the policies, while this controller
// leads.
type Keeper struct {
	cfg  Config
	wake chan struct{}

	mu     sync.Mutex // guards newest
	newest *Network

	// These belong to Run: what the ConfigMap was made, nil where that is not known, and
	// what was said last.
	kept    map[string]string
	absent  string
	trouble backoff.Trouble // of the ConfigMap
}

// New makes a Keeper that does nothing before Run.
func New(cfg Config) *Keeper { return &Keeper{cfg: cfg, wake: make(chan struct{}, 1)} }

// Set takes the newest network.
func (k *Keeper) Set(n Network) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.newest = &n
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	look := time.NewTimer(0)
	defer look.Stop()
	keep := time.NewTimer(keepEvery)
	defer keep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-keep.C:
			k.kept = nil // somebody may have changed it
		case <-look.C:
			k.look(ctx)
			look.Reset(lookEvery)
			continue
		}
		pause := keepEvery
		if !k.keep(ctx) {
			pause = retryAfter
		}
		keep.Reset(pause)
	}
}

// keep brings the ConfigMap to what the newest network calls for. It reports whether
// that is done.
func (k *Keeper) keep(ctx context.Context) bool {
	k.mu.Lock()
	newest := k.newest
	k.mu.Unlock()
	if newest == nil {
		return true
	}
	data := newest.data()
	if maps.Equal(k.kept, data) {
		return true
	}
	wrote, err := k.cfg.API.PutConfigMap(ctx, ConfigMap, data)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		if k.trouble.News(err) {
			k.cfg.Logger.Error("the API server's policies do not know the cluster's addresses; trying again", "error", err)
		}
	default:
		k.kept = data
		k.trouble.Over()
		if wrote {
			k.cfg.Logger.Info("told the API server's policies what the cluster's addresses are", "configMap", ConfigMap, "addresses", len(data)-2)
		}
	}
	return err == nil
}

// look says which policies are not in force: in the log when that changed, in an
// Event each time, so that there is one as long as it is so.
func (k *Keeper) look(ctx context.Context) {
	var absent []string
	for _, name := range Policies {
		why, err := k.cfg.API.PolicyAbsent(ctx, name)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// Not to know is no better than to know that it is not there.
			why = err.Error()
		}
		if why != "" {
			absent = append(absent, why)
		}
	}
	k.cfg.Absent(len(absent))
	said := strings.Join(absent, "; ")
	message := "endpoints by hand, external addresses, who joins a network or what pods nodes make are not guarded, so tenants may reach each other: " + said + ": apply the manifests again (Kubernetes 1.30 and newer)"
	switch {
	case said == "" && k.absent != "":
		k.cfg.Logger.Info("all policies of the API server are in force again")
	case said != "" && said != k.absent:
		k.cfg.Logger.Warn(message)
	}
	k.absent = said
	if said != "" && k.cfg.Pod.Name != "" {
		k.cfg.API.Event(k.cfg.Pod, true, Unguarded, message)
	}
}
