package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

func (t *tool) pod() *cobra.Command {
	var node, ingress, egress string
	c := &cobra.Command{
		Use:   "pod NAMESPACE/NAME --node NODE",
		Short: "Make a pod: a network namespace, attached by CNI ADD",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, name, err := netlab.ParsePodName(args[0])
			if err != nil {
				return err
			}
			var o netlab.PodOptions
			if o.IngressBandwidth, err = parseRate("--ingress-bandwidth", ingress); err != nil {
				return err
			}
			if o.EgressBandwidth, err = parseRate("--egress-bandwidth", egress); err != nil {
				return err
			}
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			p, err := l.AddPod(cmd.Context(), node, namespace, name, o)
			if err != nil {
				return err
			}
			fmt.Println(p.IP)
			return nil
		},
	}
	c.Flags().StringVar(&node, "node", "n1", "`NODE` that the pod runs on")
	c.Flags().StringVar(&ingress, "ingress-bandwidth", "", "limit of what the pod receives, bits per second: 10M, 1G, 512k")
	c.Flags().StringVar(&egress, "egress-bandwidth", "", "limit of what the pod sends")
	return c
}

// parseRate reads a rate as annotations have it; none is no limit.
func parseRate(flag, s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	rate, err := limits.ParseRate(s)
	if err != nil {
		return 0, fmt.Errorf("%s is %q: %w", flag, s, err)
	}
	return rate, nil
}

func (t *tool) delete() *cobra.Command {
	c := &cobra.Command{Use: "delete", Short: "Delete a pod or a node"}
	c.AddCommand(&cobra.Command{
		Use:   "pod NAMESPACE/NAME...",
		Short: "Detach pods by CNI DEL and remove their namespaces",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			for _, arg := range args {
				namespace, name, err := netlab.ParsePodName(arg)
				if err != nil {
					return err
				}
				p, err := l.Pod(namespace, name)
				if err != nil {
					return err
				}
				if err := l.DelPod(cmd.Context(), p); err != nil {
					return err
				}
			}
			return nil
		},
	}, t.removeNode("node NODE"))
	return c
}

func (t *tool) removeNode(use string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: "Take a node away as a machine that dies; its records stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			return l.RemoveNode(args[0])
		},
	}
}

func (t *tool) exec() *cobra.Command {
	return &cobra.Command{
		Use:   "exec NAMESPACE/NAME -- COMMAND [ARG...]",
		Short: "Run a command in a pod",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			namespace, name, err := netlab.ParsePodName(args[0])
			if err != nil {
				return err
			}
			p, err := l.Pod(namespace, name)
			if err != nil {
				return err
			}
			return replace(l, p.Netns, args[1:])
		},
	}
}

// replace turns this process into the command, so that terminal, signals and
// exit status are its own.
func replace(l *netlab.Lab, netns string, args []string) error {
	ip, err := exec.LookPath("ip")
	if err != nil {
		return err
	}
	argv := append([]string{"ip", "netns", "exec", netns}, args...)
	return syscall.Exec(ip, argv, append(os.Environ(), l.Mark()))
}

func (t *tool) node() *cobra.Command {
	c := &cobra.Command{
		Use:   "node NODE -- COMMAND [ARG...]",
		Short: "Run a command in a node, add one, or cut one off",
		Args:  cobra.MinimumNArgs(2),
		RunE:  t.nodeExec,
	}
	c.AddCommand(
		&cobra.Command{Use: "exec NODE -- COMMAND [ARG...]", Short: "Run a command in a node (OVS_RUNDIR is set for ovs-vsctl, ovs-ofctl, ovs-appctl)",
			Args: cobra.MinimumNArgs(2), RunE: t.nodeExec},
		&cobra.Command{Use: "add", Short: "Add a node", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			n, err := l.AddNode(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Println(n.Name)
			return nil
		}},
		t.removeNode("remove NODE"),
		&cobra.Command{Use: "cut NODE", Short: "Drop all that a node sends and receives", Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				l, err := netlab.Open(t.name)
				if err != nil {
					return err
				}
				return l.Cut(cmd.Context(), args[0])
			}},
		&cobra.Command{Use: "heal NODE", Short: "Undo cut", Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				l, err := netlab.Open(t.name)
				if err != nil {
					return err
				}
				return l.Heal(cmd.Context(), args[0])
			}},
	)
	return c
}

func (t *tool) nodeExec(_ *cobra.Command, args []string) error {
	l, err := netlab.Open(t.name)
	if err != nil {
		return err
	}
	n, err := l.Node(args[0])
	if err != nil {
		return err
	}
	for _, v := range []string{"OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR"} {
		if err := os.Setenv(v, n.OVSRunDir); err != nil {
			return err
		}
	}
	return replace(l, n.Netns, args[1:])
}

func (t *tool) netns() *cobra.Command {
	return &cobra.Command{
		Use:   "netns -- COMMAND [ARG...]",
		Short: "Run the operator's CLI on the lab's records: netlab netns -- list",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			st, err := l.Status()
			if err != nil {
				return err
			}
			bin, err := l.Program("netns")
			if err != nil {
				return err
			}
			return syscall.Exec(bin, append([]string{"netns"}, args...), append(netlab.Environ(), l.Env(st.Etcd)...))
		},
	}
}

// process makes the verbs that act on one of the lab's programs.
func (t *tool) process() []*cobra.Command {
	verb := func(name, short string, do func(c netlab.Component) error) *cobra.Command {
		return &cobra.Command{Use: name + " PROGRAM", Short: short, Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			return do(l.Process(args[0]))
		}}
	}
	start := &cobra.Command{Use: "start PROGRAM", Short: "Start one of the lab's programs that has ended", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			return l.Start(cmd.Context(), args[0])
		}}
	return []*cobra.Command{
		start,
		verb("stop", "End one of the lab's programs (SIGTERM): controller, n1/agent, n1/ovs-vswitchd, n1/ovsdb-server", netlab.Component.Stop),
		verb("kill", "End one of the lab's programs at once (SIGKILL)", netlab.Component.Kill),
		verb("suspend", "Halt one of the lab's programs (SIGSTOP)", netlab.Component.Suspend),
		verb("resume", "Undo suspend", netlab.Component.Resume),
	}
}
