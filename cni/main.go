// Command k8s-ovs is the CNI plugin: it checks what the container runtime
// gives it, asks the node agent over a unix socket, and prints the answer.
package main

import (
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/k8s-ovs/k8s-ovs/cni/internal/plugin"
)

// release is set by the linker: -X main.release=v1.2.3.
var release = "unreleased"

func main() {
	if err := plugin.PrepareEnvironment(os.Getenv, os.Setenv); err != nil {
		_ = err.Print() // as skel does; there is nobody else to tell
		os.Exit(1)
	}
	p := plugin.New(os.Stdout)
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    p.Add,
		Del:    p.Del,
		Check:  p.Check,
		GC:     p.GC,
		Status: p.Status,
	}, version.All, "CNI plugin k8s-ovs "+release)
}
