// Package install is what the plugin does when it is called by a person or an init container instead of a runtime: it puts the CNI plugins of
// the image where the container runtime of the node finds them.
package install

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniplugins"
)

// Command is the argument that asks for the installation.
const Command = "install"

// Main runs `k8s-ovs install` with the arguments after that word, and returns the exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("k8s-ovs "+Command, flag.ContinueOnError)
	fs.SetOutput(stderr)
	from := fs.String("from", "", "`directory` with the plugins")
	to := fs.String("to", "", "`directory` of the container runtime's plugins, such as /opt/cni/bin")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if *from == "" || *to == "" || fs.NArg() > 0 {
		fmt.Fprintf(stderr, "k8s-ovs %s: needs --from DIRECTORY and --to DIRECTORY, and nothing else\n", Command)
		return 2
	}
	replaced, err := cniplugins.Install(*from, *to)
	if err != nil {
		fmt.Fprintf(stderr, "k8s-ovs %s: %v\n", Command, err)
		return 1
	}
	for _, name := range cniplugins.Plugins {
		state := "is up to date"
		if replaced[name] {
			state = "installed"
		}
		fmt.Fprintf(stdout, "%s %s\n", filepath.Join(*to, name), state)
	}
	return 0
}
