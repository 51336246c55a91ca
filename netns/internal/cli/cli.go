// Package cli is the command line of netns: commands, flags, output and exit
// codes. What a request means and how it is carried through is decided in
// packages plan and act, what is shown in package view.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/act"
	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
	"github.com/k8s-ovs/k8s-ovs/pkg/kube/access"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Exit codes.
const (
	// ExitDone: done, or there was nothing to do.
	ExitDone = 0
	// ExitFailed: it failed; the error says what stands.
	ExitFailed = 1
	// ExitUsage: the command line, the environment or the configuration file is wrong.
	ExitUsage = 2
	// ExitTimeout: waiting took longer than --timeout.
	ExitTimeout = 3
)

// defaultEndpoint is where an etcd of its own listens by default.
const defaultEndpoint = "http://127.0.0.1:2379"

// IO is what a run reads from and writes to.
type IO struct {
	// Out gets what was asked for, Err gets errors, notes, progress and questions.
	Out, Err io.Writer
	// Terminal reports that a line on Err can be rewritten.
	Terminal bool
	// In has the answers to questions; nil where nobody is there to answer.
	In io.Reader
}

// records is what the commands need of [store.Store].
type records interface {
	act.Store
	act.Confirmer
	Statuses(ctx context.Context) (map[netip.Addr]topology.NodeStatus, error)
	MTUs(ctx context.Context) (topology.MTUs, error)
	Limits(ctx context.Context) (map[netip.Addr]topology.NodeLimits, error)
	Isolation(ctx context.Context, namespace string) (store.Versioned[topology.Isolation], error)
	Policies(ctx context.Context, namespace string) (store.NamespacePolicies, error)
	ClusterPolicies(ctx context.Context) (store.ClusterPolicies, error)
	Sets(ctx context.Context, hashes []string) (map[string]topology.SetMembers, error)
	NodePods(ctx context.Context) (map[netip.Addr]topology.NodePods, error)
	Close() error
}

// program is one run.
type program struct {
	io      IO
	open    func(store.Config) (records, error)
	etcd    options.Etcd
	kube    options.Kube
	output  string
	verbose bool
	// endpoints reports that --etcd-endpoints was given: the Secret does not count.
	endpoints bool
	// dataDir is that of a controller with embedded etcd on this machine.
	dataDir string
	// running tells errors of the command from errors in how it was called.
	running bool
}

// Run runs netns with args, which do not include its name, until it is done or
// ctx ends, and returns the exit code.
func Run(ctx context.Context, args []string, io IO) int {
	return run(ctx, args, io, func(cfg store.Config) (records, error) { return store.Open(cfg) })
}

func run(ctx context.Context, args []string, io IO, open func(store.Config) (records, error)) int {
	p := &program{io: io, open: open, dataDir: options.DefaultDataDir}
	root := p.root()
	root.SetArgs(args)
	root.SetOut(io.Out)
	root.SetErr(io.Err)
	cmd, err := root.ExecuteContextC(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return ExitDone
	case !p.running || errors.As(err, &usage):
		// Its lines are of the command line, and of cobra that proposes what was meant.
		for _, line := range strings.Split("netns: "+err.Error(), "\n") {
			_ = view.WriteLine(io.Err, strings.ReplaceAll(line, "\t", "  "))
		}
		fmt.Fprintf(io.Err, "\nSee '%s --help'.\n", cmd.CommandPath())
		return ExitUsage
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(io.Err, "netns: interrupted")
		return ExitFailed
	}
	_ = view.WriteLine(io.Err, "netns: "+err.Error())
	if hint := p.hint(err, args, os.Getenv("KUBECONFIG")); hint != "" {
		_ = view.WriteLine(io.Err, "hint: "+hint)
	}
	if errors.Is(err, act.ErrTimeout) {
		return ExitTimeout
	}
	return ExitFailed
}

// hint says what else to try when nobody said where etcd is and nothing answers where a
// controller on this machine would; empty otherwise.
func (p *program) hint(err error, args []string, kubeconfig string) string {
	if p.endpoints || p.kube.Enabled || !errors.Is(err, store.ErrUnavailable) {
		return ""
	}
	inside := "kubectl -n kube-system exec deploy/k8s-ovs-controller -- netns " + strings.Join(args, " ")
	if kubeconfig != "" {
		return fmt.Sprintf("netns does not read KUBECONFIG. In Kubernetes: `%s`; or from a machine that reaches etcd: --kubeconfig %s", inside, kubeconfig)
	}
	return fmt.Sprintf("nobody said where etcd is, so netns asked a controller on this machine: --etcd-endpoints says where. In Kubernetes: `%s`", inside)
}

const rootLong = `netns shows and changes the tenant networks of k8s-ovs.

Namespaces with the same netID are in one network: their pods reach each other
and nobody else's, save those of global namespaces (netID 0), which reach all and
are reached by all. The Kubernetes objects in a namespace are not touched.

Every flag may also be given in the environment (--etcd-cacert as
K8S_OVS_ETCD_CACERT) and in a YAML file (--config or K8S_OVS_CONFIG; its keys are
the names of flags). The command line wins over the environment, the environment
over the file.

Exit codes: 0 done, or nothing to do; 1 failed; 2 wrong usage; 3 timed out.`

const rootExample = `  netns list
  netns join helloworld1 helloworld2 --dry-run
  netns join helloworld1 helloworld2
  netns isolate helloworld1
  netns --etcd-bundle me.pem nodes`

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "netns",
		Short:             "Show and change the tenant networks of k8s-ovs",
		Long:              rootLong,
		Example:           rootExample,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: p.prepare,
		// Ours has other shells and another help.
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	fs := root.PersistentFlags()
	options.AddConfig(fs)
	p.etcd.Register(fs)
	p.kube.Register(fs)
	fs.StringVar(&p.dataDir, "data-dir", p.dataDir, "`folder` of a controller with embedded etcd on this machine, whose etcd is used where no other is named")
	fs.StringVarP(&p.output, "output", "o", "table", "`format` of the output: table, json or yaml")
	fs.BoolVarP(&p.verbose, "verbose", "v", false, "log what happens between netns and etcd")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)))
	root.AddCommand(p.list(), p.show(), p.join(), p.isolate(), p.global(), p.nodes(), p.version(), completion())
	return root
}

// prepare resolves and checks the flags of a command that is about to run.
func (p *program) prepare(cmd *cobra.Command, _ []string) error {
	if err := p.resolve(cmd); err != nil {
		return err
	}
	switch p.output {
	case "table", "json", "yaml":
	default:
		return fmt.Errorf("--output %q is none of table, json, yaml", p.output)
	}
	p.running = true
	return nil
}

// resolve fills in flags from the environment and the configuration file, in
// which flags of all commands may stand.
func (p *program) resolve(cmd *cobra.Command) error {
	var siblings []*pflag.FlagSet
	for all := cmd.Root().Commands(); len(all) > 0; all = all[1:] {
		siblings = append(siblings, all[0].Flags())
		all = append(all, all[0].Commands()...)
	}
	if err := options.Resolve(cmd.Flags(), siblings...); err != nil {
		return err
	}
	p.endpoints = cmd.Flags().Changed("etcd-endpoints") || p.etcd.BundleFile != ""
	return nil
}

// connect checks how etcd is to be reached and opens the records. It does not
// wait for etcd.
func (p *program) connect(ctx context.Context) (records, error) {
	if err := p.etcd.Complete(); err != nil {
		return nil, &usageError{err}
	}
	if err := p.kube.Complete(); err != nil {
		return nil, &usageError{err}
	}
	if p.kube.Enabled && !p.endpoints && !p.beside() {
		if err := p.readSecret(ctx); err != nil {
			return nil, err
		}
	}
	if len(p.etcd.Endpoints) == 0 {
		if err := p.local(); err != nil {
			return nil, &usageError{err}
		}
	}
	log := slog.New(slog.DiscardHandler)
	if p.verbose {
		log = slog.New(slog.NewTextHandler(p.io.Err, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	cfg := p.etcd.Config(log)
	cfg.By = author()
	return p.open(cfg)
}

// socket is that of the etcd in the controller.
func (p *program) socket() string { return filepath.Join(p.dataDir, options.EtcdSocket) }

// beside reports whether the controller with etcd in it runs on this machine, as it does for
// `kubectl exec deploy/k8s-ovs-controller -- netns`.
func (p *program) beside() bool {
	_, err := os.Stat(p.socket())
	return err == nil
}

// local is the etcd on this machine: that of a controller, through its socket, or one of
// its own.
func (p *program) local() error {
	if p.endpoints {
		return errors.New("--etcd-endpoints is empty: name at least one, such as " + defaultEndpoint)
	}
	_, err := os.Stat(p.socket())
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("only root may use the controller's etcd through its socket %s: use sudo, or give --etcd-bundle", p.socket())
	case err == nil && !p.etcd.TLS() && p.etcd.Username == "":
		p.etcd.Endpoints = []string{"unix://" + p.socket()}
	default:
		p.etcd.Endpoints = []string{strings.TrimPrefix(defaultEndpoint, "http://")}
	}
	return p.etcd.Complete()
}

// readSecret learns from the Kubernetes API server how to reach etcd.
func (p *program) readSecret(ctx context.Context) error {
	data, err := access.ReadSecret(ctx, p.kube.Kubeconfig, p.kube.EtcdSecret)
	if errors.Is(err, access.ErrNotFound) {
		return fmt.Errorf("%w: the etcd in the controller is reached from there: kubectl -n kube-system exec deploy/k8s-ovs-controller -- netns ..., or with a bundle: --etcd-bundle", err)
	}
	if err != nil {
		return err
	}
	etcd, err := access.Parse(data)
	if err == nil {
		err = p.etcd.Use(etcd.Endpoints, etcd.CA, etcd.Cert, etcd.Key, etcd.Prefix)
	}
	if err != nil {
		return fmt.Errorf("secret %s: %w", p.kube.EtcdSecret, err)
	}
	return nil
}

// usageError is a mistake in how netns was called.
type usageError struct{ error }

// note tells the operator something that is no part of the output.
func (p *program) note(format string, args ...any) {
	_ = view.WriteLine(p.io.Err, "note: "+fmt.Sprintf(format, args...)) // nobody is left to tell
}

// must is for errors that only a mistake in this package can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
