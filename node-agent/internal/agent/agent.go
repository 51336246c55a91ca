// Package agent wires the node agent together and keeps it running: the loop
// that brings the node to what the records say, and the lifetime of everything
// around it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniserver"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/diag"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
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
	conf, err := newConfiguration(cfg, bootID, log)
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
	n, err := newNode(cfg, log, m, host, api, conf, bootID)
	if err != nil {
		return err
	}
	n.identityMetrics = identity.NewMetrics(reg)
	reg.MustRegister(newLimitsCollector(n.limitSources))
	// Nothing that the agent waits for is mended by a restart, so there are no
	// checks of liveness.
	server := diag.NewServer(diag.Config{
		Address: cfg.Diag.MetricsAddress, Registry: reg, Profiling: cfg.Diag.Profiling, Logger: log, State: n.State,
		Ready: []diag.Check{
			{Name: "node", Probe: func(context.Context) error { return n.Ready() }},
			{Name: "services", Probe: func(context.Context) error { return n.servicesReady() }},
			{Name: "cni-configuration", Probe: func(context.Context) error { return conf.inPlace() }},
		},
	})
	if err := server.Listen(); err != nil {
		return err
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(running) })
	group.Go(func() error { return n.run(running) })
	err = group.Wait()
	if ctx.Err() != nil {
		n.leave(context.WithoutCancel(ctx))
	}
	if n.store != nil {
		n.store.Close()
	}
	return err
}

// run serves the CNI from the first moment on, beside all else.
func (n *node) run(ctx context.Context) error {
	server, err := cniserver.Listen(cniserver.Config{Socket: n.cfg.CNISocket, Attacher: n.front, Log: n.log, Metrics: n.metrics})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(ctx) })
	group.Go(func() error { return n.work(ctx) })
	err = group.Wait()
	if n.attacher != nil {
		n.attacher.Finish(context.WithoutCancel(ctx))
	}
	if n.ovs != nil {
		n.ovs.Close() // what was being detached needed it
	}
	return err
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
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.loop(ctx) })
	group.Go(func() error { return n.attacher.Run(ctx) })
	group.Go(func() error { return follow(ctx) })
	group.Go(func() error { return n.limiter.run(ctx, n.attacher) })
	group.Go(func() error { return n.publishLimits(ctx) })
	group.Go(func() error { return n.allot(ctx) })
	if n.asking != nil {
		group.Go(func() error { return n.asking.run(ctx) })
	}
	group.Go(func() error { return n.renew(ctx) })
	return group.Wait()
}

// connectSwitch waits for the database of Open vSwitch.
func (n *node) connectSwitch(ctx context.Context) error {
	n.setReady(fmt.Errorf("the database of Open vSwitch at %s does not answer yet", n.cfg.OVSDB))
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: n.cfg.OVSDB, RunDir: n.cfg.OVSRunDir, Logger: n.log})
	if err != nil {
		return err
	}
	n.ovs = client
	n.ports.found(switchPorts{n.ovs, n.conn.ports})
	n.setReady(errStarting)
	return nil
}

// prepare waits for Open vSwitch and an address, which everything else hangs on.
func (n *node) prepare(ctx context.Context) error {
	pause := newPause()
	for {
		err := n.tryPrepare(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.setReady(err)
		n.log.Warn("the node cannot be set up yet", "error", err)
		if !pause.sleep(ctx) {
			return ctx.Err()
		}
	}
	return nil
}

func (n *node) tryPrepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := n.ovs.WaitConnected(ctx); err != nil {
		return fmt.Errorf("the database of Open vSwitch at %s does not answer (is ovsdb-server running?): %w", n.cfg.OVSDB, err)
	}
	kernel, err := n.host.HasGenericFamily(underlay.KernelFamily)
	if err != nil {
		return err
	}
	if n.datapath, err = underlay.ChooseDatapath(n.cfg.Datapath, n.ovs.Info().DatapathTypes, kernel); err != nil {
		return err
	}
	n.underlay = underlay.New(n.underlayConfig(), n.host, n.ovs)
	under, _, err := n.underlay.Ensure(ctx)
	if err != nil {
		return err
	}
	n.routes.Routes = underlay.NewRoutes(n.ovs)
	n.setSelf(under.VTEP)
	n.log.Info("the node's end of the tunnels", "address", under.VTEP, "link", under.Link, "mtu", under.MTU, "datapath", n.datapath)
	return nil
}

func (n *node) underlayConfig() underlay.Config {
	return underlay.Config{
		NodeIP: n.cfg.NodeIP, Datapath: n.datapath, Bridge: n.cfg.VTEPBridge, StateDir: n.cfg.StateDir, BootID: n.bootID, Logger: n.log,
	}
}

func readBootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// pause is a growing wait between attempts.
type pause struct{ next time.Duration }

const (
	firstPause = 20 * time.Millisecond
	maxPause   = 2 * time.Second
)

func newPause() *pause { return &pause{next: firstPause} }

// take is the next wait.
func (p *pause) take() time.Duration {
	d := p.next
	p.next = min(2*p.next, maxPause)
	return d
}

func (p *pause) reset() { p.next = firstPause }

// sleep waits; false means that ctx ended.
func (p *pause) sleep(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(p.take()):
		return true
	}
}
