package netlab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

func nodeName(index int) string { return "n" + strconv.Itoa(index) }

func (l *Lab) nodeNetns(node string) string { return l.name + "-" + node }

func vtep(index int) netip.Addr {
	b := underlay.Addr().As4()
	b[3] = byte(index)
	return netip.AddrFrom4(b)
}

// Nodes of the lab, in the order of their numbers.
func (l *Lab) Nodes() ([]Node, error) {
	st, err := l.Status()
	return st.Nodes, err
}

// Node returns the node of that name.
func (l *Lab) Node(name string) (Node, error) {
	s, err := l.read()
	if err != nil {
		return Node{}, err
	}
	n, err := s.node(name)
	if err != nil {
		return Node{}, err
	}
	return n.Node, nil
}

// makeNode makes a node's namespace and its Open vSwitch; its agent is not started.
func (l *Lab) makeNode(ctx context.Context, index int, o Options) error {
	name := nodeName(index)
	n := nodeState{
		Node:         Node{Name: name, Netns: l.nodeNetns(name), VTEP: vtep(index), OVSRunDir: l.OVS(name).dir()},
		Index:        index,
		Datapath:     o.Datapath,
		AgentArgs:    o.AgentArgs,
		SystemRoutes: o.SystemRoutes,
	}
	if err := l.newNetns(n.Netns); err != nil {
		return err
	}
	for _, dir := range []string{l.nodeDir(name), l.stateDir(name)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
	}
	err := l.update(func(s *state) error {
		s.Nodes = append(s.Nodes, n)
		slices.SortFunc(s.Nodes, func(a, b nodeState) int { return cmp.Compare(a.Index, b.Index) })
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.Plug(ctx, n.Netns, name, netip.PrefixFrom(n.VTEP, underlay.Bits())); err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	if err := l.OVS(name).create(ctx); err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	return nil
}

// AddNode makes one more node and starts its agent (not in a bare lab).
func (l *Lab) AddNode(ctx context.Context) (Node, error) {
	n, err := l.NewNode(ctx)
	if err != nil {
		return Node{}, err
	}
	s, err := l.read()
	if err == nil && !s.Options.Bare {
		err = l.Agent(n.Name).Start(ctx)
	}
	if err != nil {
		return Node{}, fmt.Errorf("add node %s: %w", n.Name, errors.Join(err, l.RemoveNode(n.Name)))
	}
	return n, nil
}

// NewNode makes one more node, on which no agent has ever run.
func (l *Lab) NewNode(ctx context.Context) (Node, error) {
	s, err := l.read()
	if err != nil {
		return Node{}, err
	}
	index := 1
	for slices.ContainsFunc(s.Nodes, func(n nodeState) bool { return n.Index == index }) {
		index++
	}
	if index > maxNodes {
		return Node{}, fmt.Errorf("lab %s has %d nodes; there can be no more", l.name, maxNodes)
	}
	name := nodeName(index)
	if err := l.makeNode(ctx, index, s.Options); err != nil {
		return Node{}, fmt.Errorf("add node %s: %w", name, errors.Join(err, l.RemoveNode(name)))
	}
	return l.Node(name)
}

// RemoveNode takes a node away as a machine that dies: its processes are
// killed, its pods' and its own namespace removed. Its records stay: deleting
// those is the operator's.
func (l *Lab) RemoveNode(name string) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	if _, err := s.node(name); err != nil {
		return err
	}
	var errs []error
	for _, program := range []string{"agent", "ovs-vswitchd", "ovsdb-server"} {
		if p, ok := s.Processes[name+"/"+program]; ok {
			errs = append(errs, p.Kill())
		}
	}
	for _, p := range s.Pods {
		if p.Node == name {
			errs = append(errs, l.deleteNetns(p.Netns))
		}
	}
	if err := l.unplug(context.Background(), name); err != nil && !strings.Contains(err.Error(), "Cannot find device") {
		errs = append(errs, err) // a node that was not finished may have no port
	}
	errs = append(errs, l.deleteNetns(l.nodeNetns(name)), os.RemoveAll(l.nodeDir(name)))
	errs = append(errs, l.update(func(s *state) error {
		for _, program := range []string{"agent", "ovs-vswitchd", "ovsdb-server"} {
			delete(s.Processes, name+"/"+program)
		}
		s.Pods = slices.DeleteFunc(s.Pods, func(p Pod) bool { return p.Node == name })
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n nodeState) bool { return n.Name == name })
		return nil
	}))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	return nil
}

// SetNodeAddress makes addr the address with which the node's agent is started
// from now on. Moving the address itself is the caller's, as is restarting.
func (l *Lab) SetNodeAddress(node string, addr netip.Addr) error {
	return l.update(func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		n.VTEP = addr
		return nil
	})
}

// SetAgentArgs makes args what goes behind the lab's own arguments when the node's
// agent is started from now on.
func (l *Lab) SetAgentArgs(node string, args ...string) error {
	return l.update(func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		n.AgentArgs = args
		return nil
	})
}

func (l *Lab) nodeDir(node string) string   { return filepath.Join(l.dir, node) }
func (l *Lab) stateDir(node string) string  { return filepath.Join(l.nodeDir(node), "state") }
func (l *Lab) cniSocket(node string) string { return filepath.Join(l.nodeDir(node), "cni.sock") }
func (l *Lab) metricsSocket(node string) string {
	return filepath.Join(l.nodeDir(node), "metrics.sock")
}

// Agent is the node agent of one node.
type Agent struct {
	Component
	node string
}

// Agent returns the agent of a node; whether there is such a node shows when it is used.
func (l *Lab) Agent(node string) Agent { return Agent{l.Process(node + "/agent"), node} }

// Start starts the agent and waits until it is ready.
func (a Agent) Start(ctx context.Context) error { return a.start(ctx, a.Ready) }

// StartUnready starts the agent and waits only until it answers, for tests in
// which it cannot get ready (etcd away).
func (a Agent) StartUnready(ctx context.Context) error {
	return a.start(ctx, func(ctx context.Context) error {
		_, err := get(ctx, a.lab.metricsSocket(a.node), "/healthz")
		return err
	})
}

func (a Agent) start(ctx context.Context, ready func(context.Context) error) error {
	s, err := a.lab.read()
	if err != nil {
		return err
	}
	n, err := s.node(a.node)
	if err != nil {
		return err
	}
	if a.Alive() {
		return fmt.Errorf("the agent of %s runs already", a.node)
	}
	l := a.lab
	if err := l.ensureBundle(ctx, a.node, s.Options); err != nil {
		return err
	}
	args := append(l.agentArgs(*n, s.Options.BinDir), s.Options.access(l.nodeBundle(n.Name))...)
	if s.Kubeconfig != "" {
		args = append(args, "--kubeconfig", s.Kubeconfig)
	}
	return l.run(ctx, command{
		name:  a.name,
		netns: n.Netns,
		args:  append(args, n.AgentArgs...),
		env:   l.OVS(n.Name).env(),
		log:   filepath.Join(l.dir, "log", n.Name+"-agent.log"),
	}, 60*time.Second, func() (bool, error) {
		err := ready(ctx)
		return err == nil, err
	})
}

// agentArgs are the program in bin and its arguments, but for the way to etcd.
func (l *Lab) agentArgs(n nodeState, bin string) []string {
	return []string{
		filepath.Join(bin, "k8s-ovs-agent"),
		"--node-name", n.Name,
		"--node-ip", n.VTEP.String(),
		"--datapath", n.Datapath,
		"--ovs-db", l.OVS(n.Name).DB(),
		"--ovs-rundir", n.OVSRunDir,
		"--state-dir", l.stateDir(n.Name),
		"--cni-socket", l.cniSocket(n.Name),
		"--metrics-address", "unix://" + l.metricsSocket(n.Name),
		"--log-format", "text",
		"--log-level", "debug",
	}
}

// Restart kills the agent and starts it again.
func (a Agent) Restart(ctx context.Context) error {
	if err := a.Kill(); err != nil {
		return err
	}
	return a.Start(ctx)
}

// Ready asks the agent whether it is; the error says what is missing.
func (a Agent) Ready(ctx context.Context) error {
	_, err := get(ctx, a.lab.metricsSocket(a.node), "/readyz")
	return err
}

// Metrics returns what the agent serves on /metrics.
func (a Agent) Metrics(ctx context.Context) (string, error) {
	return get(ctx, a.lab.metricsSocket(a.node), "/metrics")
}

// State returns what the agent serves on /debug/state.
func (a Agent) State(ctx context.Context) (string, error) {
	return get(ctx, a.lab.metricsSocket(a.node), "/debug/state")
}

// StateDir is where the node's agent keeps its state.
func (l *Lab) StateDir(node string) string { return l.stateDir(node) }

// CNISocket is where the node's agent is called by the plugin.
func (l *Lab) CNISocket(node string) string { return l.cniSocket(node) }

// ExecIn runs fn with the calling thread in the node's namespace (see ns.Do).
func (l *Lab) ExecIn(node string, fn func() error) error { return ns.Do(l.nodeNetns(node), fn) }
