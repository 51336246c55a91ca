// Package agent wires the node agent together and keeps it running: the loop
// that brings the node to what the records say, step by step, and the lifetime
// of everything around it.
//
// It owns when something is done and in which order. What is done belongs to the
// packages that it calls: it never touches a device, a flow or a record by itself.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/allot"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniconf"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniserver"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/crashes"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/crashnews"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowcache"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podlimits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/switchports"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniplugins"
	"github.com/k8s-ovs/k8s-ovs/pkg/diag"
	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/conntrack"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

// Run runs the agent until ctx ends. What it set up stays: pods keep their
// network while no agent runs.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return errors.New("the agent needs root: it makes network devices and owns Open vSwitch's bridge")
	}
	bootID, err := readBootID()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		// Pods can go without it; what cannot be done says so.
		log.Error("the state directory cannot be made", "error", err)
	}
	log.Info("k8s-ovs-agent starts", "version", version.String(), "node", cfg.NodeName)

	api, err := openAPI(cfg, log)
	if err != nil {
		return err
	}
	if api != nil {
		defer api.Close()
	}
	conf, err := cniconf.Keep(cfg.cniConf(bootID), cfg.Cluster.CNIConfTemplate, log)
	if err != nil {
		return err
	}
	reg := diag.NewRegistry("k8s-ovs-agent")
	m := newMetrics(reg)
	host, err := link.Current()
	if err != nil {
		return err
	}
	defer host.Close()
	runtime := runtimeSide{conf: conf, plugins: cniplugins.Keep(cfg.Cluster.CNIPluginsFrom, cfg.Cluster.CNIBinDir, log)}
	n, err := newNode(cfg, log, m, host, api, runtime, bootID)
	if err != nil {
		return err
	}
	reg.MustRegister(collectors(n.limitSources, cfg.OVSRunDir)...)
	server := diag.NewServer(n.diagnostics(reg))
	if err := server.Listen(); err != nil {
		return err
	}
	faultpoint.Here("start", "metrics")
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(running) })
	group.Go(func() error { return n.run(running) })
	err = group.Wait()
	if ctx.Err() != nil {
		n.leave(context.WithoutCancel(ctx))
	}
	if n.etcd.store != nil {
		n.etcd.store.Close()
	}
	return err
}

// diagnostics are what the agent shows of itself. Nothing that it waits for is mended by a
// restart, so there are no checks of liveness; where one helps, the agent ends by itself.
func (n *node) diagnostics(reg *prometheus.Registry) diag.Config {
	return diag.Config{
		Address: n.cfg.Diag.MetricsAddress, Registry: reg, Profiling: n.cfg.Diag.Profiling, Logger: n.log, State: n.State,
		Ready: []diag.Check{
			{Name: "node", Probe: func(context.Context) error { return n.ready.is() }},
			{Name: "services", Probe: func(context.Context) error { return n.servicesReady() }},
			{Name: "policies", Probe: func(context.Context) error { return n.policiesReady() }},
			{Name: "cni-configuration", Probe: func(context.Context) error { return n.runtime.conf.InPlace() }},
		},
	}
}

// run serves the CNI from the first moment on, beside all else.
func (n *node) run(ctx context.Context) error {
	server, err := cniserver.Listen(cniserver.Config{Socket: n.cfg.CNISocket, Attacher: n.front, Log: n.log, Metrics: n.metrics})
	if err != nil {
		return err
	}
	n.runtime.socket = server
	faultpoint.Here("start", "the CNI's socket")
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(ctx) })
	group.Go(func() error { return n.work(ctx) })
	group.Go(func() error { return n.ovs.lender.Run(ctx) })
	group.Go(func() error { return n.ready.watch(ctx) })
	group.Go(func() error { return crashnews.Watch(ctx, n.cfg.OVSRunDir, n.tellCrash, n.log) })
	err = group.Wait()
	if p := n.parts.Load(); p != nil {
		p.attacher.Finish(context.WithoutCancel(ctx))
	}
	if n.ovs.client != nil {
		n.ovs.client.Close() // what was being detached needed it
	}
	return err
}

// tellCrash tells people that a daemon of Open vSwitch has ended.
func (n *node) tellCrash(r crashes.Record) {
	n.log.Error("a daemon of Open vSwitch ended", "node", n.cfg.NodeName, "last", r.String())
	if n.api != nil {
		n.api.Event(kube.ObjectRef{Kind: "Node", Name: n.cfg.NodeName, UID: n.cfg.NodeName}, true, "OpenVSwitchCrashed", r.String())
	}
}

// work prepares what does not change while the agent runs, then runs the loop and what is
// beside it.
func (n *node) work(ctx context.Context) error {
	if err := n.connectSwitch(ctx); err != nil {
		return err
	}
	follow, err := n.openStore(ctx)
	if err != nil {
		return err
	}
	if err := n.prepare(ctx); err != nil {
		return err
	}
	faultpoint.Here("start", "the node knows its address")
	p := n.parts.Load()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.loop.run(ctx) })
	group.Go(func() error { return p.flows.Run(ctx) })
	group.Go(func() error { return p.attacher.Run(ctx) })
	group.Go(func() error { return follow(ctx) })
	group.Go(func() error { return n.limiter.Run(ctx, p.attacher) })
	group.Go(func() error { return n.limitsPublisher(p).Run(ctx) })
	group.Go(func() error { return n.allotment(p).Run(ctx) })
	group.Go(func() error { return p.cache.Run(ctx) })
	if p.through != nil {
		group.Go(func() error { p.through.Run(ctx); return nil })
	}
	if n.etcd.asking != nil {
		group.Go(func() error { return n.etcd.asking.Run(ctx) })
	}
	if p.policies != nil {
		group.Go(func() error { return n.enforce(ctx, p) })
	}
	if p.namesakes != nil {
		group.Go(func() error { return p.namesakes.Run(ctx) })
	}
	group.Go(func() error {
		return n.etcd.identity.Renew(ctx, p.self, n.etcd.store, n.etcd.asking, n.metrics.identity)
	})
	return group.Wait()
}

// limitSources are who knows what limits do; nil before the node is set up.
func (n *node) limitSources() (podlimits.Counted, podlimits.MeterDrops) {
	p := n.parts.Load()
	if p == nil {
		return nil, nil
	}
	return p.attacher, p.table
}

func (n *node) allotment(p *parts) *allot.Allotment {
	return allot.New(allot.Config{
		Table: p.table, Gate: n.firewall.gate, Kernel: conntrack.In(n.host), Userspace: n.ovs.client, Pods: p.attacher, Datapath: n.ovs.datapath,
		ServiceConnections: n.cfg.ServiceConnections, NodeConnections: n.cfg.NodeConnections, Metrics: n.metrics.fair, Logger: n.log,
	})
}

func (n *node) flowCache(p *parts) *flowcache.Watch {
	return flowcache.New(flowcache.Config{
		Switch: n.ovs.client, Datapath: n.ovs.datapath, Pods: p.attacher, Metrics: n.metrics.cache, Logger: n.log,
		Tell: func(why string) {
			if n.api != nil {
				n.api.Event(kube.ObjectRef{Kind: "Node", Name: n.cfg.NodeName, UID: n.cfg.NodeName}, true, "FlowCacheFull", why)
			}
		},
	})
}

func (n *node) limitsPublisher(p *parts) podlimits.Publisher {
	return podlimits.Publisher{
		Host: n.cfg.NodeName, HostIP: p.self, Pods: p.attacher, Peers: func() int { return len(p.table.Peers()) }, Store: n.etcd.store, Logger: n.log,
	}
}

// connectSwitch waits for the database of Open vSwitch.
func (n *node) connectSwitch(ctx context.Context) error {
	n.ready.set(fmt.Errorf("the database of Open vSwitch at %s does not answer yet", n.cfg.OVSDB))
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: n.cfg.OVSDB, RunDir: n.cfg.OVSRunDir, Logger: n.log})
	if err != nil {
		return err
	}
	n.ovs.client = client
	n.ovs.ports.Found(switchports.New(client, n.ovs.events))
	n.ready.set(errStarting)
	return nil
}

// prepare waits for Open vSwitch and an address, which everything else hangs on.
func (n *node) prepare(ctx context.Context) error {
	pause := &backoff.Pauses{First: firstPause, Last: lastPause}
	for {
		err := n.tryPrepare(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.ready.set(err)
		if errors.Is(err, detached.Err) {
			return err
		}
		n.log.Debug("the node cannot be set up yet", "error", err)
		if !pause.Wait(ctx) {
			return ctx.Err()
		}
	}
	return nil
}

func (n *node) tryPrepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := n.ovs.client.WaitConnected(ctx); err != nil {
		return noDatabase(n.cfg.OVSDB, err)
	}
	if err := n.ovs.client.Init(ctx); err != nil {
		return err
	}
	kernel, err := n.host.HasGenericFamily(underlay.KernelFamily)
	if err != nil {
		return err
	}
	inUse, err := n.datapathInUse()
	if err != nil {
		return err
	}
	if n.ovs.datapath, err = underlay.ChooseDatapath(n.cfg.Datapath, n.ovs.client.Info().DatapathTypes, kernel, inUse); err != nil {
		return err
	}
	if n.ovs.datapath == ovs.DatapathSystem {
		n.ovs.lender.Idle()
	}
	setup := underlay.New(n.underlayConfig(), n.host, n.ovs.client)
	under, _, err := setup.Ensure(ctx)
	if err != nil {
		return err
	}
	n.setSelf(under.VTEP, setup)
	if inUse == ovs.DatapathNetdev && kernel && n.cfg.Datapath == DatapathAuto {
		n.log.Info("pods are attached to the userspace datapath, which stays, though the kernel has a datapath by now; to change to it, drain the node and reboot it", "bridge", n.cfg.Bridge)
	}
	n.log.Info("the node's end of the tunnels", "address", under.VTEP, "link", under.Link, "mtu", under.MTU, "datapath", n.ovs.datapath)
	return nil
}

// datapathInUse is the datapath by which pods are attached; empty where none are. Rows of ports from before a reboot
// do not count: their devices are gone.
func (n *node) datapathInUse() (string, error) {
	links, err := n.host.Links()
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(links, func(l link.Link) bool { return strings.HasPrefix(l.Name, attach.HostIfPrefix) }) {
		return "", nil
	}
	b, _ := n.ovs.client.Bridge(n.cfg.Bridge)
	return b.DatapathType, nil
}

func (n *node) underlayConfig() underlay.Config {
	return underlay.Config{
		NodeIP: n.cfg.NodeIP, Datapath: n.ovs.datapath, Bridge: n.cfg.VTEPBridge, StateDir: n.cfg.StateDir, BootID: n.bootID, Lender: n.ovs.lender, Logger: n.log,
		Dial: func(ctx context.Context, bridge string) (underlay.Switch, error) {
			return of.Dial(ctx, n.ovs.client.MgmtSocket(bridge))
		},
	}
}

func readBootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
