// Command k8s-ovs-controller gives netIDs to namespaces and subnets to nodes,
// and carries out join, isolate and global. One of several leads. Without
// --etcd-endpoints it runs etcd in its own process. `k8s-ovs-controller give-data` makes
// the folder of that etcd another user's.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/admin"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/controller"
	"github.com/k8s-ovs/k8s-ovs/controller/internal/owner"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:]))
}

// run returns the exit status: 0 after a signal, 1 when it failed, 2 for usage.
func run(ctx context.Context, args []string) int {
	if len(args) > 0 && args[0] == owner.Command {
		return owner.Main(args[1:], os.Stdout, os.Stderr)
	}
	fs := pflag.NewFlagSet("k8s-ovs-controller", pflag.ContinueOnError)
	fs.SortFlags = false
	cfg := controller.Defaults()
	cfg.Register(fs)
	options.AddConfig(fs)
	showVersion := fs.Bool("version", false, "print the version and exit")
	fs.Usage = func() {
		fmt.Fprintf(os.Stderr, "k8s-ovs-controller gives netIDs to namespaces and subnets to nodes.\n\n"+admin.Commands+"\nFlags (each also from %sNAME or a key in --config):\n%s", options.EnvPrefix, fs.FlagUsages())
	}
	usage := func(err error) int {
		fmt.Fprintf(os.Stderr, "k8s-ovs-controller: %v\n", err)
		return 2
	}
	if len(args) > 0 && admin.Known(args[0]) {
		err := admin.Run(ctx, args, admin.IO{Out: os.Stdout, Err: os.Stderr}, fs)
		switch {
		case errors.Is(err, pflag.ErrHelp), err == nil:
			return 0
		case admin.IsUsage(err):
			return usage(err)
		}
		fmt.Fprintf(os.Stderr, "k8s-ovs-controller: %v\n", err)
		return 1
	}
	if err := options.Parse(fs, args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		return usage(err)
	}
	if *showVersion {
		fmt.Println("k8s-ovs-controller", version.String())
		return 0
	}
	if err := cfg.Complete(); err != nil {
		return usage(err)
	}
	log, err := cfg.Diag.Logger(os.Stderr)
	if err != nil {
		return usage(err)
	}
	if err := controller.Run(ctx, cfg, log); err != nil {
		log.Error("the controller ends", "error", err)
		return 1
	}
	return 0
}
