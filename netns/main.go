// Command netns is the operator's way to the tenant networks of k8s-ovs: it
// shows which namespaces share a network, and joins, isolates and opens them.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Run(ctx, os.Args[1:], cli.IO{
		Out:      os.Stdout,
		Err:      os.Stderr,
		Terminal: terminal(os.Stderr),
		In:       answers(),
	}))
}

// answers is where somebody can answer a question that they see; nil where nobody can.
func answers() io.Reader {
	for _, f := range []*os.File{os.Stdin, os.Stderr} {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
			return nil
		}
	}
	return os.Stdin
}

// terminal reports whether f is a terminal on which a line can be rewritten.
func terminal(f *os.File) bool {
	if term := os.Getenv("TERM"); term == "" || term == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
