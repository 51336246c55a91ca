// Command k8s-ovs is the CNI plugin: it checks what the container runtime
// gives it, asks the node agent over a unix socket, and prints the answer.
// `k8s-ovs install` copies it, and the plugins that go with it, into the node.
package main

import (
	"os"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/k8s-ovs/k8s-ovs/cni/internal/install"
	"github.com/k8s-ovs/k8s-ovs/cni/internal/plugin"
	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

func main() {
	// A runtime passes no arguments, and always a command.
	if len(os.Args) > 1 && os.Args[1] == install.Command && os.Getenv("CNI_COMMAND") == "" {
		os.Exit(install.Main(os.Args[2:], os.Stdout, os.Stderr))
	}
	if err := plugin.PrepareEnvironment(os.Getenv, os.Setenv); err != nil {
		_ = err.Print() // as skel does; there is nobody else to tell
		os.Exit(1)
	}
	skel.PluginMainFuncs(plugin.New(os.Stdout).Commands(), plugin.Versions(), "CNI plugin k8s-ovs "+version.String())
}
