// Command netlab runs k8s-ovs on several "nodes" of one machine: see
// `netlab help` and package test/netlab.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netlab:", err)
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			os.Exit(exit.ExitCode())
		}
		os.Exit(1)
	}
}

// tool is what all verbs share.
type tool struct {
	name string // of the lab
}

func root() *cobra.Command {
	t := &tool{}
	c := &cobra.Command{
		Use:   "netlab",
		Short: "k8s-ovs on several nodes of one machine",
		Long: `netlab runs the real programs of k8s-ovs on several "nodes" of one machine.
Each node is a network namespace with an Open vSwitch of its own, pods are
namespaces attached through the CNI plugin, the records are in a real etcd.
The machine's own Open vSwitch and interfaces are not touched.

  netlab up --nodes 2
  netlab pod red/a --node n1
  netlab pod red/b --node n2
  netlab exec red/a -- ping -c1 $(netlab status -o ip red/b)
  netlab matrix
  netlab netns -- list
  netlab down`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.PersistentFlags().StringVar(&t.name, "name", "netlab", "the lab's `LAB` name: namespaces are LAB-n1, LAB-NAMESPACE-POD")
	c.AddCommand(t.up(), t.down(), t.status(), t.list(), t.pod(), t.delete(), t.exec(), t.node(),
		t.netns(), t.env(), t.logs(), t.ps(), t.matrix(), t.demo(), forward(), member())
	c.AddCommand(t.process()...)
	return c
}
