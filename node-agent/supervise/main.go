// Command k8s-ovs-supervise runs a daemon of Open vSwitch in its container, and starts it
// again at once whenever it ends: kubelet would, but after pauses that grow from crash to crash
// up to five minutes, without network for the node's pods. How often and why it ended stands
// in a file beside the daemon's sockets, where the agent finds it. A daemon that cannot stay
// up is kubelet's to know: then the supervisor ends, too.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

func main() {
	// The kernel ends the daemon with the thread that has started it.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	flags := flag.NewFlagSet("k8s-ovs-supervise", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: k8s-ovs-supervise [--run-dir FOLDER] NAME COMMAND [ARGUMENT...]")
		flags.PrintDefaults()
	}
	dir := flags.String("run-dir", "/run/openvswitch", "`folder` of Open vSwitch's sockets, for the record of how the daemon ended")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *showVersion {
		fmt.Println("k8s-ovs-supervise", version.String())
		return 0
	}
	if flags.NArg() < 2 {
		flags.Usage()
		return 2
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	s := &supervisor{
		daemon: flags.Arg(0), args: flags.Args()[1:], dir: *dir, out: os.Stderr, grace: usualGrace, open: usualOpen,
		log: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("daemon", flags.Arg(0)),
	}
	return s.run(stop)
}
