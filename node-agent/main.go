// Command k8s-ovs-agent makes one node part of the overlay: it attaches pods
// to the bridge br0, programs its flows, and serves the CNI plugin.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/agent"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	fs := pflag.NewFlagSet("k8s-ovs-agent", pflag.ContinueOnError)
	fs.SortFlags = false
	cfg := agent.Defaults()
	cfg.Register(fs)
	options.AddConfig(fs)
	showVersion := fs.Bool("version", false, "print the version and exit")
	fs.Usage = func() {
		fmt.Fprintf(os.Stderr, "k8s-ovs-agent makes this node part of the overlay. Needs root and a running Open vSwitch.\n\nFlags (each also from %sNAME or a key in --config):\n%s", options.EnvPrefix, fs.FlagUsages())
	}
	if err := options.Parse(fs, args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		fmt.Fprintf(os.Stderr, "k8s-ovs-agent: %v\n", err)
		return 2
	}
	if *showVersion {
		fmt.Println("k8s-ovs-agent", version.String())
		return 0
	}
	if err := cfg.Complete(); err != nil {
		fmt.Fprintf(os.Stderr, "k8s-ovs-agent: %v\n", err)
		return 2
	}
	log, err := cfg.Diag.Logger(os.Stderr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "k8s-ovs-agent: %v\n", err)
		return 2
	}
	if err := agent.Run(ctx, cfg, log); err != nil && !errors.Is(err, context.Canceled) {
		log.Error("the agent ends", "error", err)
		return 1
	}
	return 0
}
