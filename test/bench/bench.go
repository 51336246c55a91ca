package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// measurement is one part of the run. They are made in this order, which goes
// from an empty node to a full one.
type measurement struct {
	name string
	run  func(context.Context, *bench) error
}

var measurements = []measurement{
	{"startup", startup},
	{"cni-empty", cniEmpty},
	{"burst", burst},
	{"namespaces", newNamespaces},
	{"bundle", bundle},
	{"pipeline", pipelineCost},
	{"services", services},
	{"service-traffic", serviceTraffic},
	{"limits", limits},
	{"policies", policies},
	{"policy-traffic", policyTraffic},
	{"policy-leader", policyLeader},
	{"tenants", tenants},
	{"change", change},
	{"cni-full", cniFull},
	{"live-tenants", liveTenants},
	{"agent", agent},
	{"agent-services", agentServices},
}

// bench is a run: its lab, and what was found out so far.
type bench struct {
	lab    *netlab.Lab
	short  bool
	bin    string
	stderr io.Writer
	report report

	ours, reference *plugin
	// full are the pods that are there for good; see populate.
	full   []attached
	filled bool
	// inDaemonSet is that agents are a DaemonSet's, which start in another way.
	inDaemonSet bool
	pods, bares int // count names
}

// times is how often to repeat: a full run's number or a short one's.
func (b *bench) times(full, short int) int {
	if b.short {
		return short
	}
	return full
}

func (b *bench) add(rows ...Row) { b.report.rows = append(b.report.rows, rows...) }

// section appends text to the report, under a title of its own.
func (b *bench) section(title, format string, args ...any) {
	b.report.sections = append(b.report.sections, section{title, fmt.Sprintf(format, args...)})
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.stderr, "bench: "+format+"\n", args...)
}

// network has room for the subnets of 500 nodes: a /12 has 1,024 of /22.
var network = netip.MustParsePrefix("172.16.0.0/12")

// strangerIP is the reference node's address in the underlay.
var strangerIP = netip.MustParseAddr("198.18.0.240")

// measureAll brings the lab up, measures, and takes the lab down, whatever happens.
func measureAll(ctx context.Context, cfg config, stdout, stderr io.Writer) (err error) {
	b := &bench{short: cfg.short, bin: cfg.bin, stderr: stderr}
	b.report.machine = describeMachine(ctx, cfg.short)
	began := time.Now()
	all, stolen := cpuTimes()
	b.lab, err = netlab.Up(ctx, netlab.Options{
		Name: fmt.Sprintf("bench-%d", os.Getpid()), Nodes: 2, Network: network, HostSubnetLength: 10, BinDir: cfg.bin, Datapath: "netdev",
		AgentArgs: []string{"--log-level", "info"}, ControllerArgs: []string{"--log-level", "info"},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.lab.Down()) }()
	if err := b.plugins(ctx); err != nil {
		return err
	}
	for _, m := range measurements {
		if cfg.only != nil && !cfg.only.MatchString(m.name) {
			continue
		}
		start := time.Now()
		b.logf("%s ...", m.name)
		from := len(b.report.rows)
		if err := m.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		b.logf("%s took %s", m.name, time.Since(start).Round(100*time.Millisecond))
		fmt.Fprint(stderr, report{rows: b.report.rows[from:]}.table())
	}
	b.report.machine.sinceStart(all, stolen)
	if cfg.out != "" {
		if err := b.report.write(cfg.out); err != nil {
			return err
		}
	}
	b.logf("done in %s", time.Since(began).Round(time.Second))
	_, err = io.WriteString(stdout, b.report.markdown())
	return err
}

// plugins sets up both sides' CNI.
func (b *bench) plugins(ctx context.Context) error {
	node, err := b.lab.Node("n1")
	if err != nil {
		return err
	}
	if b.ours, err = newPlugin("k8s-ovs", b.bin, b.lab.Dir(), node.Netns, b.lab.CNIConfig("n1")); err != nil {
		return err
	}
	netns, err := b.lab.NewStranger(ctx, "ref", strangerIP)
	if err != nil {
		return err
	}
	b.reference, err = newPlugin("bridge", b.bin, b.lab.Dir(), netns, referenceConfig(b.lab.Dir()))
	return err
}
