package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/act"
	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

func (p *program) list() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List namespaces and who shares a network",
		Long: `List shows every namespace, its netID and the other namespaces with the same
one. A netID is shown once the controller has confirmed it; it is what nodes
program. (all) marks global namespaces, which reach all and are reached by all.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := p.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			snap, _, err := st.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			rows := view.Namespaces(snap)
			switch {
			case len(rows) == 0:
				p.note("the network %q has no namespaces yet; a namespace gets its record with its first pod", snap.Config.Name)
			case snap.Config.Single():
				p.note("the network %q has a single tenant: every namespace reaches all", snap.Config.Name)
			}
			return print(p, rows, view.WriteNamespaces)
		},
	}
}

func (p *program) show() *cobra.Command {
	var policy, clusterPolicy string
	cmd := &cobra.Command{
		Use:   "show NAMESPACE",
		Short: "Show one namespace: whom it reaches, its last request, its policies, its limited pods",
		Long: `Show tells all about one namespace: its netID, the namespaces that share it,
everybody that it reaches and is reached by, a pending request or what became of
the last one, and on how many nodes its record is in the flows.

Then its NetworkPolicies with the pods that each isolates, by direction, and the
nodes that do not enforce them, and the ClusterNetworkPolicies that are about pods
of it. --policy and --cluster-policy show the rules of one, with how many pods
are in the sets that they name.

Then its pods that have a rate limit: the rate in bits per second, the burst in
bytes where one was asked for, and since the limit began the bytes that passed,
the packets that waited, and those that were dropped. Nodes say so every 10
seconds, in large clusters less often.`,
		Args:              arguments("NAMESPACE"),
		ValidArgsFunction: p.completeNamespaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if policy != "" && clusterPolicy != "" {
				return &usageError{errors.New("--policy and --cluster-policy are of two policies; give one")}
			}
			st, err := p.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			snap, revs, err := st.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			n, err := plan.Find(snap, args[0])
			if err != nil {
				return err
			}
			statuses, err := st.Statuses(cmd.Context())
			if err != nil {
				return err
			}
			limits, err := st.Limits(cmd.Context())
			if err != nil {
				return err
			}
			policies, err := policiesOf(cmd.Context(), st, args[0])
			if err != nil {
				return err
			}
			switch {
			case policy != "":
				return p.showPolicy(cmd.Context(), st, args[0], policy, policies)
			case clusterPolicy != "":
				return p.showClusterPolicy(cmd.Context(), st, args[0], clusterPolicy, policies)
			}
			if snap.Config.Single() {
				p.note("the network %q has a single tenant: every namespace reaches all", snap.Config.Name)
			}
			return print(p, view.Show(snap, n, revs.Namespaces[args[0]].Mod, statuses, limits, policies), view.WriteDetail)
		},
	}
	cmd.Flags().StringVar(&policy, "policy", "", "show the NetworkPolicy of this `name` instead")
	cmd.Flags().StringVar(&clusterPolicy, "cluster-policy", "", "show the ClusterNetworkPolicy of this `name` instead")
	return cmd
}

// policiesOf reads what is known of the policies of a namespace.
func policiesOf(ctx context.Context, st records, namespace string) (view.Policies, error) {
	isolation, err := st.Isolation(ctx, namespace)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return view.Policies{}, err
	}
	cluster, err := st.ClusterPolicies(ctx)
	if err != nil {
		return view.Policies{}, err
	}
	pods, err := st.NodePods(ctx)
	return view.Policies{Isolation: isolation.Value, Cluster: cluster.Policies, Pods: pods}, err
}

// showPolicy shows one policy of a namespace.
func (p *program) showPolicy(ctx context.Context, st records, namespace, name string, policies view.Policies) error {
	all, err := st.Policies(ctx, namespace)
	if err != nil {
		return err
	}
	if reason, invalid := all.Invalid[name]; invalid {
		return errors.New(reason)
	}
	record := all.Policies[name]
	sets, err := st.Sets(ctx, view.PolicySets(record))
	if err != nil {
		return err
	}
	detail, ok := view.ShowPolicy(namespace, name, policies, record, sets)
	if !ok {
		return fmt.Errorf("namespace %s has no policy %q; it has %s", namespace, name, policies.Names())
	}
	return print(p, detail, view.WritePolicy)
}

// showClusterPolicy shows one ClusterNetworkPolicy that is about pods of a namespace.
func (p *program) showClusterPolicy(ctx context.Context, st records, namespace, name string, policies view.Policies) error {
	all, err := st.ClusterPolicies(ctx)
	if err != nil {
		return err
	}
	if reason, invalid := all.Invalid[name]; invalid {
		return errors.New(reason)
	}
	sets, err := st.Sets(ctx, view.ClusterPolicySets(all.Policies[name]))
	if err != nil {
		return err
	}
	policies.Cluster = all.Policies
	detail, ok := view.ShowClusterPolicy(namespace, name, policies, sets)
	if !ok {
		return fmt.Errorf("no ClusterNetworkPolicy %q is about pods of namespace %s; those that are: %s", name, namespace, policies.ClusterNames())
	}
	return print(p, detail, view.WriteClusterPolicy)
}

func (p *program) nodes() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List nodes, their subnets and what they have applied",
		Long: `Nodes shows every node that has a record, or whose agent reports. APPLIED is the
etcd revision of the newest record that is in the node's flows. MTU is what its
pods send; the cluster's is the least that any node carries, so a node that
carries less than the others is named, and by what. States:

  ready      it has all records in its flows
  behind     newer records are not in its flows yet
  not ready  its agent says why pods do not reach what they should
  not live   it has a subnet, but its agent does not report
  no subnet  the controller has not given it a subnet
  no record  its agent reports, but it has no record
  invalid    its record cannot be used`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := p.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			// Records first: a node must not look as if it lagged behind one that
			// came after its report was read.
			snap, revs, err := st.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			statuses, err := st.Statuses(cmd.Context())
			if err != nil {
				return err
			}
			mtus, err := st.MTUs(cmd.Context())
			if err != nil {
				return err
			}
			if len(snap.Nodes) == 0 {
				p.note("the network %q has no nodes yet; a node gets its record when its agent first starts", snap.Config.Name)
			}
			return print(p, view.Nodes(snap, statuses, mtus, newest(revs)), view.WriteNodes)
		},
	}
	cmd.AddCommand(p.confirmAddress())
	return cmd
}

// newest is the revision of the newest record that nodes program.
func newest(revs store.Revs) int64 {
	rev := revs.Config
	for _, r := range revs.Nodes {
		rev = max(rev, r.Mod)
	}
	for _, r := range revs.Namespaces {
		rev = max(rev, r.Mod)
	}
	return rev
}

func (p *program) join() *cobra.Command {
	return p.action(&cobra.Command{
		Use:   "join NAMESPACE TARGET",
		Short: "Put a namespace into the network of another",
		Long: `Join gives NAMESPACE the netID of TARGET: their pods reach each other, and
NAMESPACE no longer reaches those that it shared a network with. TARGET and
whoever is with it stay as they are. Joining a global namespace makes NAMESPACE
global.` + actionLong,
		Example: `  netns join helloworld1 helloworld2
  netns join helloworld1 helloworld2 --dry-run`,
		Args:              arguments("NAMESPACE", "TARGET"),
		ValidArgsFunction: p.completeNamespaces(2),
	}, topology.Join)
}

func (p *program) isolate() *cobra.Command {
	return p.action(&cobra.Command{
		Use:   "isolate NAMESPACE",
		Short: "Give a namespace a network of its own",
		Long: `Isolate gives NAMESPACE a fresh netID: its pods reach each other and global
namespaces only.` + actionLong,
		Args:              arguments("NAMESPACE"),
		ValidArgsFunction: p.completeNamespaces(1),
	}, topology.Isolate)
}

func (p *program) global() *cobra.Command {
	return p.action(&cobra.Command{
		Use:   "global NAMESPACE",
		Short: "Let a namespace reach all and be reached by all",
		Long: `Global gives NAMESPACE netID 0: its pods reach the pods of all namespaces, and
are reached by them. Before it is done netns says which namespaces those are, and
on a terminal asks; --yes answers. A script is not asked.` + actionLong,
		Args:              arguments("NAMESPACE"),
		ValidArgsFunction: p.completeNamespaces(1),
	}, topology.MakeGlobal)
}

const actionLong = `

It writes the request into the namespace's record and waits until the controller
has carried it out and every live node has the change in its flows; --timeout
bounds that. When no controller takes the request in that time, the request is
withdrawn. Nodes that do not report are named and not waited for.

A namespace whose Kubernetes annotation k8s-ovs.io/network says which network it
is on is changed with --force only; that stands until the annotation changes.`

// action makes cmd one that asks for a change.
func (p *program) action(cmd *cobra.Command, a topology.Action) *cobra.Command {
	o := act.Options{Timeout: act.DefaultTimeout}
	fs := cmd.Flags()
	var yes bool
	if a != topology.Isolate { // which opens nothing
		fs.BoolVarP(&yes, "yes", "y", false, "do not ask before a namespace becomes global")
	}
	fs.BoolVar(&o.DryRun, "dry-run", false, "say who could newly, or no longer, reach whom, and change nothing")
	fs.BoolVar(&o.Force, "force", false, "change the namespace also where its annotation "+topology.NetworkAnnotation+" says otherwise")
	fs.BoolVar(&o.NoWait, "no-wait", false, "write the request and do not wait for it to be carried out")
	fs.DurationVar(&o.Timeout, "timeout", o.Timeout, "how long to wait; 0 for as long as it takes")
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return err
		}
		if o.Timeout < 0 {
			return fmt.Errorf("--timeout %s is negative", o.Timeout)
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		st, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer st.Close()
		r := plan.Request{Action: a, Namespace: args[0]}
		if len(args) > 1 {
			r.Target = args[1]
		}
		progress := &progress{w: p.io.Err, rewrite: p.io.Terminal}
		o.Progress = progress.show
		o.Confirm = func(planned plan.Plan) error { return p.confirm(cmd.Context(), planned, yes) }
		result, err := act.Do(cmd.Context(), st, r, o)
		progress.clear()
		// In a table the error says it all; a script reads how far it came.
		if err != nil && (p.output == "table" || result.Result == "") {
			return err
		}
		if printErr := print(p, result, view.WriteResult); printErr != nil {
			return printErr
		}
		return err
	}
	return cmd
}

// confirm says whom a namespace opens itself to when it becomes global, and asks where
// somebody is there to answer.
func (p *program) confirm(ctx context.Context, planned plan.Plan, yes bool) error {
	if !planned.OpensAll() {
		return nil
	}
	name := planned.Request.Namespace
	if err := view.WriteOpened(p.io.Err, name, planned.Change.Gains); err != nil {
		return err
	}
	if yes || p.io.In == nil {
		return nil
	}
	fmt.Fprintf(p.io.Err, "Make %s global? [y/N] ", view.Printable(name))
	// A read of a terminal cannot be interrupted: after Ctrl-C it ends with the program.
	typed := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(p.io.In).ReadString('\n') // no answer is no
		typed <- line
	}()
	select {
	case line := <-typed:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		return errors.New("nothing was changed")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of netns",
		Args:  arguments(),
		RunE: func(*cobra.Command, []string) error {
			return print(p, version.Get(), writeVersion)
		},
	}
}

// arguments checks that there is one argument for each name.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(names) == 0 && len(args) > 0:
			return fmt.Errorf("%s takes no arguments, but was given %q", cmd.Name(), args[0])
		case len(args) < len(names):
			return fmt.Errorf("%s needs %s; %s is missing", cmd.Name(), strings.Join(names, " and "), names[len(args)])
		case len(args) > len(names):
			return fmt.Errorf("%s takes %s only, but was also given %q", cmd.Name(), strings.Join(names, " and "), args[len(names)])
		}
		return nil
	}
}
