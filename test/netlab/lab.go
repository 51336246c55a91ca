package netlab

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// Mode is how tenants are kept apart.
type Mode string

const (
	// MultiTenant isolates namespaces from each other.
	MultiTenant Mode = "multitenant"
	// SingleTenant lets all pods reach all.
	SingleTenant Mode = "single"
)

// pluginName is the mode as the network configuration has it.
func (m Mode) pluginName() (string, error) {
	switch m {
	case MultiTenant:
		return "k8s-ovs-multitenant", nil
	case SingleTenant:
		return "k8s-ovs-subnet", nil
	}
	return "", fmt.Errorf("mode %q is neither %q nor %q", string(m), MultiTenant, SingleTenant)
}

// Addresses of the underlay. 198.18.0.0/15 is set aside for such labs (RFC
// 2544, appendix C.2.2), 203.0.113.0/24 for examples (RFC 5737): neither is on
// the machine.
var (
	underlay     = netip.MustParsePrefix("198.18.0.0/24")
	controllerIP = netip.MustParseAddr("198.18.0.250")
	// Gateway is the underlay's own address and the nodes' default gateway.
	Gateway = netip.MustParseAddr("198.18.0.254")
	// Outside is an address beyond the underlay: "the world".
	Outside = netip.MustParseAddr("203.0.113.1")
)

// maxNodes leaves the addresses from 198.18.0.201 on to others.
const maxNodes = 200

// Options is what a lab is made from. The zero value of a field means its default.
type Options struct {
	// Name of the lab, part of all names it makes; default "netlab".
	Name string `json:"name"`
	// Nodes to start, n1 to nN; default 2.
	Nodes int  `json:"nodes"`
	Mode  Mode `json:"mode"`
	// Network is the cluster network, default 172.11.0.0/16; ServiceNetwork by
	// default the controller's own choice.
	Network        netip.Prefix `json:"network"`
	ServiceNetwork netip.Prefix `json:"serviceNetwork"`
	// HostSubnetLength is the host bits of a node subnet; default 10 (a /22).
	HostSubnetLength int `json:"hostSubnetLength"`
	// BinDir has the programs: k8s-ovs, k8s-ovs-agent, k8s-ovs-controller,
	// netns, netlab. Default: $NETLAB_BIN, or the folder of the running program.
	BinDir string `json:"binDir"`
	// Datapath for the agents: auto, system or netdev. Default: $NETLAB_DATAPATH, or auto.
	Datapath string `json:"datapath"`
	// AgentArgs and ControllerArgs go behind the lab's own arguments.
	AgentArgs      []string `json:"agentArgs,omitempty"`
	ControllerArgs []string `json:"controllerArgs,omitempty"`
	// Members is how many members an etcd has that is none of the controller's: each a machine of
	// its own, "etcd-1" and so on. 0 for the one in the controller's process.
	Members int `json:"members,omitempty"`
	// Insecure has etcd serve plain http, without identities.
	Insecure bool `json:"insecure,omitempty"`
	// SystemRoutes lets ovs-vswitchd read the kernel's routes, as it does by default;
	// the one in manifests/ does not. Without an agent, which tells it ways to other nodes,
	// it has no others.
	SystemRoutes bool `json:"systemRoutes,omitempty"`
	// Bare starts neither controller nor agents: underlay and Open vSwitch only.
	Bare bool `json:"bare,omitempty"`
}

// Lab is a lab that is up. Its methods may be called from several goroutines
// and, for the same lab, from several programs.
type Lab struct {
	name, dir, id string
	mu            sync.Mutex // orders this program's changes of the state file
	// api has the pods too; nil where there is none.
	api API
}

// Name of the lab.
func (l *Lab) Name() string { return l.name }

// Dir is where the lab keeps sockets, logs and its state.
func (l *Lab) Dir() string { return l.dir }

func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = "netlab"
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Mode == "" {
		o.Mode = MultiTenant
	}
	if !o.Network.IsValid() {
		o.Network = netip.MustParsePrefix("172.11.0.0/16")
	}
	if o.HostSubnetLength == 0 {
		o.HostSubnetLength = 10
	}
	if o.Datapath == "" {
		o.Datapath = cmp.Or(os.Getenv("NETLAB_DATAPATH"), "auto")
	}
	if o.BinDir == "" {
		o.BinDir = os.Getenv("NETLAB_BIN")
	}
	if o.BinDir == "" {
		exe, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("find the programs: %w; name their folder", err)
		}
		o.BinDir = filepath.Dir(exe)
	}
	return o, o.validate()
}

func (o Options) validate() error {
	if err := validName(o.Name); err != nil {
		return err
	}
	if o.Nodes < 0 || o.Nodes > maxNodes {
		return fmt.Errorf("%d nodes: a lab has 1 to %d", o.Nodes, maxNodes)
	}
	if o.Members < 0 || o.Members > maxMembers || o.Members > 0 && (o.Insecure || o.Bare) {
		return fmt.Errorf("%d members of etcd: there are at most %d, with identities, in a lab with a controller", o.Members, maxMembers)
	}
	_, err := o.Mode.pluginName()
	return err
}

// validName keeps names usable in paths of sockets (108 bytes, unix(7)) and in
// names of namespaces.
func validName(name string) error {
	ok := len(name) >= 1 && len(name) <= 32
	for i, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' && i > 0)
	}
	if !ok {
		return fmt.Errorf("lab name %q: use 1 to 32 lower-case letters, digits and dashes", name)
	}
	return nil
}

// tools are the programs that a lab needs and the Debian packages that have them.
var tools = []struct{ program, pkg string }{
	{"ip", "iproute2"},
	{"bridge", "iproute2"},
	{"ovsdb-tool", "openvswitch-common"},
	{"ovs-vsctl", "openvswitch-switch"},
	{"ovsdb-server", "openvswitch-switch"},
	{"ovs-vswitchd", "openvswitch-switch"},
}

// checkMachine says what the machine lacks for a lab.
func checkMachine(o Options) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("a lab makes network namespaces, so it needs root: run it with sudo")
	}
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, fmt.Sprintf("%s (Debian package %s)", t.program, t.pkg))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing on this machine: %s", strings.Join(missing, ", "))
	}
	if o.Bare {
		return nil
	}
	for _, b := range []string{"k8s-ovs", "k8s-ovs-agent", "k8s-ovs-controller", "netlab"} {
		if st, err := os.Stat(filepath.Join(o.BinDir, b)); err != nil || st.Mode()&0o111 == 0 {
			return fmt.Errorf("program %s is not in %s: build it first (`make build`) or name another folder with --bin", b, o.BinDir)
		}
	}
	return nil
}

// Up starts a lab and returns when all its nodes are ready for pods. If it
// fails, or ctx ends first, it removes again what it has made and its error has
// the end of the log of what failed.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkMachine(o); err != nil {
		return nil, fmt.Errorf("lab %s: %w", o.Name, err)
	}
	l, err := create(o)
	if err != nil {
		return nil, err
	}
	if err := l.build(ctx, o); err != nil {
		if down := l.Down(); down != nil {
			err = errors.Join(err, fmt.Errorf("and cleaning up: %w", down))
		}
		return nil, fmt.Errorf("lab %s did not come up: %w", o.Name, err)
	}
	return l, nil
}

// create takes the lab's name and writes its first state.
func create(o Options) (*Lab, error) {
	unlock, err := lockRoot()
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir := dirOf(o.Name)
	if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("lab %s is up already: use it, end it with `netlab down --name %s`, or take another --name", o.Name, o.Name)
	} else if err != nil {
		return nil, fmt.Errorf("lab %s: %w", o.Name, err)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	l := &Lab{name: o.Name, dir: dir, id: o.Name + "-" + hex.EncodeToString(id[:])}
	if !ns.DirMounted() {
		// Whoever removes the last lab undoes what the first one did to the machine.
		if err := os.WriteFile(filepath.Join(Root, madeNetnsDir), nil, 0o600); err != nil {
			return nil, fmt.Errorf("lab %s: %w", o.Name, err)
		}
	}
	for _, sub := range []string{"cni", "log"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("lab %s: %w", o.Name, err)
		}
	}
	return l, writeState(dir, state{ID: l.id, Options: o, Processes: map[string]Process{}})
}

// madeNetnsDir is a file that says that /run/netns was not there before the first lab.
const madeNetnsDir = "made-run-netns"

// lockRoot orders the coming and going of labs.
func lockRoot() (func(), error) {
	for {
		err := os.MkdirAll(Root, 0o755)
		if err == nil {
			var unlock func()
			if unlock, err = lockFile(filepath.Join(Root, "lock")); err == nil {
				return unlock, nil
			}
		}
		// The last lab may go meanwhile, and Root with it: also while MkdirAll
		// looks at what it found there.
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("labs: %w", err)
		}
	}
}

// build makes underlay, controller and nodes.
func (l *Lab) build(ctx context.Context, o Options) error {
	if err := l.makeUnderlay(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	if !o.Bare {
		g.Go(func() error {
			if err := l.startForwarders(gctx, o); err != nil {
				return err
			}
			if o.Members > 0 {
				if err := l.startMembers(gctx, o); err != nil {
					return err
				}
			}
			return l.StartController(gctx)
		})
	}
	for i := range o.Nodes {
		g.Go(func() error { return l.makeNode(gctx, i+1, o) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if o.Bare {
		return nil
	}
	g, gctx = errgroup.WithContext(ctx)
	for i := range o.Nodes {
		g.Go(func() error { return l.Agent(nodeName(i + 1)).Start(gctx) })
	}
	return g.Wait()
}

// Open returns the lab of that name, which someone has brought up before.
func Open(name string) (*Lab, error) {
	if err := validName(name); err != nil {
		return nil, err
	}
	s, err := readState(dirOf(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lab %s is not up; start it with `netlab up --name %s`", name, name)
	}
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	return &Lab{name: name, dir: dirOf(name), id: s.ID}, nil
}

// Down ends the lab of that name. One that is not up is fine.
func Down(name string) error {
	if err := validName(name); err != nil {
		return err
	}
	l := &Lab{name: name, dir: dirOf(name)}
	if _, err := os.Stat(l.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if s, err := readState(l.dir); err == nil {
		l.id = s.ID
	}
	return l.Down()
}

// Down ends all processes of the lab and removes its namespaces and files. It
// goes on when a step fails, reports all that failed, and may be called again.
func (l *Lab) Down() error {
	unlock, err := lockRoot()
	if err != nil {
		return err
	}
	defer unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := readState(l.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("lab %s: cannot tell what it has made: %w", l.name, err)
	}
	var errs []error
	if l.id != "" {
		procs := l.marked()
		for _, p := range s.Processes {
			procs = append(procs, p)
		}
		errs = append(errs, stopAll(procs, 2*time.Second))
		errs = append(errs, stopAll(l.marked(), 0)) // what these have started meanwhile
	}
	for _, name := range s.Namespaces {
		errs = append(errs, ns.Delete(name))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %s: %w", l.name, err)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("lab %s: %w", l.name, err)
	}
	removeRoot()
	return nil
}

// removeRoot removes what labs share when none is left. The caller holds the lock on it.
func removeRoot() {
	entries, err := os.ReadDir(Root)
	if err != nil || slices.ContainsFunc(entries, os.DirEntry.IsDir) {
		return
	}
	mark := filepath.Join(Root, madeNetnsDir)
	if _, err := os.Stat(mark); err == nil {
		ns.RemoveDir()
	}
	// In one step, lest a lab that comes up now loses the lock it has just made.
	gone := fmt.Sprintf("%s.%d", Root, os.Getpid())
	if os.Rename(Root, gone) == nil {
		_ = os.RemoveAll(gone) // the next lab makes it again
	}
}

// Status is the lab as it is now.
func (l *Lab) Status() (Status, error) {
	s, err := l.read()
	if err != nil {
		return Status{}, err
	}
	st := Status{Name: l.name, Etcd: s.Etcd, Nodes: []Node{}, Pods: []PodStatus{}}
	if st.Etcd.Endpoints == nil {
		st.Etcd.Endpoints = []string{}
	}
	for _, n := range s.Nodes {
		st.Nodes = append(st.Nodes, n.Node)
	}
	for _, p := range s.Pods {
		if p.IP.IsValid() { // attached
			st.Pods = append(st.Pods, PodStatus{p.Namespace, p.Name, p.Node, p.IP, p.Netns})
		}
	}
	return st, nil
}

// List returns the names of all labs that are up.
func List() []string {
	entries, err := os.ReadDir(Root)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}
