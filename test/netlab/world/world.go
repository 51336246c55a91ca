// Package world compares what a node of a lab consists of with what should be there: what
// is left of pods that are gone, and what is missing of those that run. Of each thing that
// makes a pod it asks who owns it, and not the agent whether all is well; only which flows
// are to be there, and how a pod's wire is to be, the agent has to say.
package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// Node is a node that is looked at.
type Node struct {
	Lab  *netlab.Lab
	Name string
	// Pods are those that are attached, of any node.
	Pods []netlab.Pod
	// Foreign are names of ports, devices and firewall tables that are somebody else's.
	Foreign []string
}

// Of is a node with the pods that the lab knows.
func Of(l *netlab.Lab, node string) (Node, error) {
	pods, err := l.Pods()
	return Node{Lab: l, Name: node, Pods: pods}, err
}

// Differences are what is there of pods that are gone, and what is missing or otherwise of those
// that run, one a line, each with its name. Some of it lasts for a moment: see [Node.Await].
// The error is that the node cannot be looked at, as its agent or its Open vSwitch is away.
func (n Node) Differences(ctx context.Context) ([]string, error) {
	l := &look{Node: n, pods: map[string]netlab.Pod{}, hostIfs: map[string]netlab.Pod{}, addresses: map[netip.Addr]netlab.Pod{}}
	for _, p := range n.Pods {
		if p.Node == n.Name {
			l.pods[p.ContainerID], l.hostIfs[p.HostInterface], l.addresses[p.IP] = p, p, p
		}
	}
	for _, part := range []struct {
		name string
		look func(*look, context.Context) error
	}{
		{"the agent", (*look).agent},
		{"addresses", (*look).leases},
		{"the state directory", (*look).files},
		{"the database", (*look).database},
		{"the switch", (*look).flows},
		{"devices", (*look).devices},
		{"queueing disciplines", (*look).queues},
		{"the firewall", (*look).firewall},
		{"connections", (*look).connections},
		{"network namespaces", (*look).namespaces},
		{"pods", (*look).check},
	} {
		if err := part.look(l, ctx); err != nil {
			return nil, fmt.Errorf("node %s: %s: %w", n.Name, part.name, err)
		}
	}
	return l.found, nil
}

// Await waits until there are no differences. The error has those that stay.
func (n Node) Await(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last error
	for {
		found, err := n.Differences(ctx)
		switch {
		case err == nil && len(found) == 0:
			return nil
		case ctx.Err() != nil:
			// What broke off because time was up is not why.
		case err != nil:
			last = err
		default:
			last = fmt.Errorf("node %s is not what it should be:\n  %s", n.Name, strings.Join(found, "\n  "))
		}
		select {
		case <-ctx.Done():
			if last == nil {
				last = context.Cause(ctx)
			}
			return fmt.Errorf("not in %s: %w", timeout, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// look is one look at a node.
type look struct {
	Node
	// pods that are to be there, by container, by the name of their host's end and by address.
	pods      map[string]netlab.Pod
	hostIfs   map[string]netlab.Pod
	addresses map[netip.Addr]netlab.Pod
	// state is what the agent tells; subnet is the node's, from the file of addresses.
	state  agentState
	subnet netip.Prefix
	found  []string
}

func (l *look) say(format string, args ...any) {
	l.found = append(l.found, fmt.Sprintf(format, args...))
}

// agentState is what the agent shows at /debug/state.
type agentState struct {
	NotReady    string `json:"notReady"`
	Attachments []struct {
		ContainerID string       `json:"containerID"`
		Namespace   string       `json:"Namespace"`
		Pod         string       `json:"Pod"`
		Addresses   []netip.Addr `json:"Addresses"`
		Port        uint32       `json:"Port"`
		Limits      struct {
			Ingress struct {
				Rate uint64 `json:"rate"`
			} `json:"ingress"`
		} `json:"Limits"`
	} `json:"attachments"`
	Flows []string `json:"flows"`
}

// agent compares whom the agent takes to be attached.
func (l *look) agent(ctx context.Context) error {
	text, err := l.Lab.Agent(l.Name).State(ctx)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), &l.state); err != nil {
		return err
	}
	if l.state.NotReady != "" {
		l.say("the agent is not ready: %s", l.state.NotReady)
	}
	listed := map[string]bool{}
	for _, at := range l.state.Attachments {
		listed[at.ContainerID] = true
		p, ok := l.pods[at.ContainerID]
		switch {
		case !ok:
			l.say("the agent lists %s/%s (container %s, %s), which is no pod of this node", at.Namespace, at.Pod, at.ContainerID, at.Addresses)
		case !slices.Equal(at.Addresses, []netip.Addr{p.IP}):
			l.say("pod %s: the agent has it at %s, its ADD was answered with %s", p, at.Addresses, p.IP)
		}
	}
	for id, p := range l.pods {
		if !listed[id] {
			l.say("pod %s (container %s, %s): the agent does not know it", p, id, p.IP)
		}
	}
	return nil
}

// limited reports whether what a pod receives has a limit now, by its host's end.
func (l *look) limited(hostIf string) bool {
	p, ok := l.hostIfs[hostIf]
	if !ok {
		return false
	}
	for _, at := range l.state.Attachments {
		if at.ContainerID == p.ContainerID {
			return at.Limits.Ingress.Rate > 0
		}
	}
	return false
}

// check asks CHECK for each pod: its wire, its limits, its port and its flows.
func (l *look) check(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(8)
	var mu sync.Mutex // guards what is said
	for _, p := range l.pods {
		g.Go(func() error {
			if err := l.Lab.CNICheck(ctx, p); err != nil {
				mu.Lock()
				defer mu.Unlock()
				l.say("pod %s: %v", p, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// foreign reports whether something is said to be somebody else's.
func (l *look) foreign(name string) bool { return slices.Contains(l.Foreign, name) }
