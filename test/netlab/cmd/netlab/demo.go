package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/demo"
)

func (t *tool) demo() *cobra.Command {
	o := demo.Options{Out: os.Stdout}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show join, isolate and global on two nodes; exit 0 only if all is as it must be",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if slices.Contains(netlab.List(), t.name) {
				return fmt.Errorf("a lab named %s is up; end it with `netlab down --name %s`, or give the demo another --name", t.name, t.name)
			}
			o.Lab.Name, o.Programs = t.name, programs()
			return demo.Run(cmd.Context(), o)
		},
	}
	c.Flags().BoolVar(&o.Keep, "keep", false, "leave the lab up and say what to try next")
	c.Flags().StringVar(&o.Lab.BinDir, "bin", "", "folder of the programs (default: $NETLAB_BIN, or netlab's own)")
	c.Flags().StringVar(&o.Lab.Datapath, "datapath", "", "of the nodes: auto, system or netdev (default $NETLAB_DATAPATH, or auto)")
	return c
}
