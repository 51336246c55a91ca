package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

func (t *tool) up() *cobra.Command {
	var o netlab.Options
	var mode, network, services string
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a lab",
		Long: `Starts underlay, controller with etcd, and nodes, and returns when all are
ready for pods. If anything fails, what was made is removed again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			o.Name, o.Mode, o.SystemRoutes = t.name, netlab.Mode(mode), o.Bare
			if o.Network, err = optionalPrefix("--network", network); err != nil {
				return err
			}
			if o.ServiceNetwork, err = optionalPrefix("--service-network", services); err != nil {
				return err
			}
			began := time.Now()
			l, err := netlab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			st, err := l.Status()
			if err != nil {
				return err
			}
			fmt.Printf("lab %s is up after %.1f s: %d nodes, etcd at %s\n", l.Name(), time.Since(began).Seconds(), len(st.Nodes), strings.Join(st.Etcd.Endpoints, ","))
			return nil
		},
	}
	f := c.Flags()
	f.IntVar(&o.Nodes, "nodes", 2, "how many nodes")
	f.StringVar(&mode, "mode", string(netlab.MultiTenant), "multitenant or single")
	f.StringVar(&network, "network", "", "pod network (default 172.11.0.0/16)")
	f.StringVar(&services, "service-network", "", "service network (default: the controller's)")
	f.IntVar(&o.HostSubnetLength, "host-subnet-length", 10, "host bits of a node's subnet: 10 is a /22")
	f.StringVar(&o.Datapath, "datapath", "", "of the nodes: auto, system or netdev (default $NETLAB_DATAPATH, or auto)")
	f.StringVar(&o.BinDir, "bin", "", "folder of the programs (default: $NETLAB_BIN, or netlab's own)")
	f.StringArrayVar(&o.AgentArgs, "agent-arg", nil, "a further argument for the agents; may be repeated")
	f.StringArrayVar(&o.ControllerArgs, "controller-arg", nil, "a further argument for the controller; may be repeated")
	f.IntVar(&o.Members, "members", 0, "how many members etcd has, each a machine of its own; 0 for the etcd in the controller")
	f.BoolVar(&o.Insecure, "insecure", false, "etcd serves plain http, without identities")
	f.BoolVar(&o.Bare, "bare", false, "underlay and Open vSwitch only, which knows ways to other nodes from the kernel")
	if err := f.MarkHidden("bare"); err != nil {
		panic(err) // the flag is the line above
	}
	return c
}

func optionalPrefix(flag, s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%s: %w", flag, err)
	}
	return p, nil
}

func (t *tool) down() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "down",
		Short: "End a lab and remove all it has made",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if !all {
				return netlab.Down(t.name)
			}
			for _, name := range netlab.List() {
				if err := netlab.Down(name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "end all labs")
	return c
}

// forward is the process that makes etcd reachable; `up` starts it.
func forward() *cobra.Command {
	var netns, to string
	c := &cobra.Command{
		Use:    "forward",
		Short:  "Join connections to descriptor 3 with ones made in a namespace",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := os.NewFile(3, "listener")
			if f == nil {
				return fmt.Errorf("forward: descriptor 3 is not open")
			}
			l, err := net.FileListener(f)
			if err != nil {
				return fmt.Errorf("forward: descriptor 3 is not a listening socket: %w", err)
			}
			_ = f.Close() // the listener is a duplicate
			return netlab.Forward(cmd.Context(), l, netns, to)
		},
	}
	c.Flags().StringVar(&netns, "netns", "", "namespace to connect in")
	c.Flags().StringVar(&to, "to", "", "address to connect to")
	return c
}

// programs is where the lab's programs are, as a person would type it.
func programs() string {
	exe, err := os.Executable()
	if err != nil {
		return "bin"
	}
	dir := filepath.Dir(exe)
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, dir); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return dir
}
