package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
)

// completionTimeout bounds how long the shell waits for names of namespaces.
const completionTimeout = 2 * time.Second

func completion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script of a shell",
		Long: `Completion prints a script that makes the shell complete commands, flags and the
names of namespaces. Names come from etcd, reached as flags, environment and
configuration file say.`,
		Example: `  netns completion bash > /etc/bash_completion.d/netns
  netns completion zsh > "${fpath[1]}/_netns"
  netns completion fish > ~/.config/fish/completions/netns.fish`,
		ValidArgs: shells,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return fmt.Errorf("completion needs the name of a shell: bash, zsh or fish")
			}
			return nil
		},
		// The script needs no etcd: a configuration that is wrong must not stand in its way.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			default:
				return root.GenFishCompletion(out, true)
			}
		},
	}
}

// completeNamespaces completes up to count names of namespaces, each once.
// Nothing is completed when etcd does not answer.
func (p *program) completeNamespaces(count int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= count {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		rows, err := p.namespaces(cmd)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var found []cobra.Completion
		for _, row := range rows {
			if slices.Contains(args, row.Namespace) {
				continue
			}
			found = append(found, cobra.CompletionWithDesc(view.Printable(row.Namespace), view.Printable(describe(row))))
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

func (p *program) namespaces(cmd *cobra.Command) ([]view.Namespace, error) {
	if err := p.resolve(cmd); err != nil {
		return nil, err
	}
	p.etcd.DialTimeout = min(p.etcd.DialTimeout, completionTimeout)
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	st, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	snap, _, err := st.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return view.Namespaces(snap), nil
}

func describe(row view.Namespace) string {
	switch {
	case row.NetID == nil:
		return "no netID yet"
	case row.Global:
		return "global"
	}
	return "netID " + row.NetID.String()
}
