// Package demo tells the first k8s-ovs's story on a lab: three namespaces with
// pods on both nodes, and who reaches whom before and after join, isolate and
// global. Every table is checked against what it must be.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// Options of a demonstration.
type Options struct {
	// Lab to bring up; its Nodes are set to 2.
	Lab netlab.Options
	// Keep leaves the lab up.
	Keep bool
	// Programs is the folder of the programs as a person would type it.
	Programs string
	// Out is where the story goes.
	Out io.Writer
}

// namespaces of the story, as the first k8s-ovs's documentation has them.
var namespaces = []string{"helloworld1", "helloworld2", "helloworld3"}

// group is which tenants exist: namespaces with the same number share one, 0 is global.
type group map[string]int

func (g group) allowed(from, to probe.Endpoint) bool {
	a, b := g[from.Namespace], g[to.Namespace]
	return a == b || a == 0 || b == 0
}

// chapter is one step of the story.
type chapter struct {
	title   string
	command []string // of netns; none in the first
	after   group
}

var story = []chapter{
	{"Each namespace is a tenant of its own:", nil,
		group{"helloworld1": 1, "helloworld2": 2, "helloworld3": 3}},
	{"helloworld1 joins helloworld2's network:", []string{"join", "helloworld1", "helloworld2"},
		group{"helloworld1": 2, "helloworld2": 2, "helloworld3": 3}},
	{"helloworld1 leaves again:", []string{"isolate", "helloworld1"},
		group{"helloworld1": 4, "helloworld2": 2, "helloworld3": 3}},
	{"helloworld3 becomes global: it reaches all and all reach it:", []string{"global", "helloworld3"},
		group{"helloworld1": 4, "helloworld2": 2, "helloworld3": 0}},
}

// teller prints the story and remembers the first failure to do so.
type teller struct {
	w   io.Writer
	err error
}

func (t *teller) say(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format, args...)
	}
}

// Run tells the story. It fails when a pod reaches what it may not, does not
// reach what it must, or anything else goes wrong; unless Keep is set it leaves
// nothing behind either way.
func Run(ctx context.Context, o Options) (err error) {
	began := time.Now()
	t := &teller{w: o.Out}
	o.Lab.Nodes = 2
	t.say("Two nodes, a controller and etcd on this machine ...\n")
	l, err := netlab.Up(ctx, o.Lab)
	if err != nil {
		return err
	}
	if !o.Keep {
		defer func() { err = errors.Join(err, l.Down()) }()
	}
	if err := addPods(ctx, l, t, o); err != nil {
		return err
	}
	endpoints, err := l.Endpoints()
	if err != nil {
		return err
	}
	t.say("\nWho reaches whom, by ping, UDP, TCP and HTTP: ✓ by all of them, ✗ by none.\n")
	for _, c := range story {
		if err := tell(ctx, l, t, o, c, endpoints); err != nil {
			return err
		}
	}
	t.say("\nAll as it must be, after %.0f s.\n", time.Since(began).Seconds())
	if o.Keep {
		return tryNext(l, t, o)
	}
	return t.err
}

// addPods makes a pod of each namespace on each node.
func addPods(ctx context.Context, l *netlab.Lab, t *teller, o Options) error {
	nodes, err := l.Nodes()
	if err != nil {
		return err
	}
	t.say("$ eval $(%s/netlab env%s)\n", o.Programs, nameFlag(l))
	for _, namespace := range namespaces {
		for j, node := range nodes {
			t.say("$ %s/netlab pod%s %s/%c --node %s\n", o.Programs, nameFlag(l), namespace, 'a'+j, node.Name)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, namespace := range namespaces {
		g.Go(func() error {
			for j, node := range nodes {
				if _, err := l.AddPod(ctx, node.Name, namespace, string(rune('a'+j)), netlab.PodOptions{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// tell carries out one step and checks who reaches whom after it.
func tell(ctx context.Context, l *netlab.Lab, t *teller, o Options, c chapter, endpoints []probe.Endpoint) error {
	t.say("\n%s\n", c.title)
	if c.command != nil {
		t.say("$ %s/netns %s\n", o.Programs, strings.Join(c.command, " "))
		out, err := l.Netns(ctx, c.command...)
		t.say("%s", out)
		if err != nil {
			return err
		}
	}
	r, err := probe.Matrix(ctx, endpoints, probe.AllProtocols)
	if err != nil {
		return err
	}
	t.say("\n")
	if t.err == nil {
		t.err = r.Render(t.w)
	}
	if err := r.Check(c.after.allowed); err != nil {
		return fmt.Errorf("%s %w", c.title, err)
	}
	return t.err
}

func nameFlag(l *netlab.Lab) string {
	if l.Name() == "netlab" {
		return ""
	}
	return " --name " + l.Name()
}

// tryNext prints what to do with a lab that stays up.
func tryNext(l *netlab.Lab, t *teller, o Options) error {
	st, err := l.Status()
	if err != nil {
		return err
	}
	lab := fmt.Sprintf("%s/netlab%s", o.Programs, nameFlag(l))
	t.say("\nThe lab stays up. Try next:\n")
	for _, line := range []string{
		lab + " status",
		lab + " matrix",
		lab + " exec helloworld1/a -- ping -c3 " + podIP(st, "helloworld3", "b"),
		"eval $(" + lab + " env); " + o.Programs + "/netns list",
		lab + " node exec n1 -- ovs-ofctl -O OpenFlow14 dump-flows br0",
		"eval $(" + lab + " env); etcdctl get --prefix " + st.Etcd.Prefix + "/",
		lab + " down",
	} {
		t.say("  %s\n", line)
	}
	return t.err
}

func podIP(st netlab.Status, namespace, name string) string {
	for _, p := range st.Pods {
		if p.Namespace == namespace && p.Name == name {
			return p.IP.String()
		}
	}
	return ""
}
