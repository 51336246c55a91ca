package netlab

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// EtcdPrefix is where the records are (the programs' default).
const EtcdPrefix = "/k8s.ovs.com/ovs/network"

// Controller is the lab's first controller, the one with etcd in it.
func (l *Lab) Controller() Component { return l.Process("controller") }

// StartController starts the lab's controller, with etcd in its process unless that has
// members of its own, and waits until it is ready. After Stop or Kill it finds its data again.
func (l *Lab) StartController(ctx context.Context) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	args, err := l.controllerArgs(s.Options)
	if err != nil {
		return err
	}
	if err := l.startController(ctx, "controller", args); err != nil {
		return err
	}
	return l.ensureOperator(ctx, s)
}

// StartControllerUnready is StartController that waits only until the controller answers, for tests in
// which it cannot get ready.
func (l *Lab) StartControllerUnready(ctx context.Context) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	args, err := l.controllerArgs(s.Options)
	if err != nil {
		return err
	}
	return l.startControllerOf(ctx, s.Options.BinDir, "controller", args, "/healthz")
}

// controllerArgs are the flags of the first controller.
func (l *Lab) controllerArgs(o Options) ([]string, error) {
	plugin, err := o.Mode.pluginName()
	if err != nil {
		return nil, err
	}
	args := []string{"--network", o.Network.String(), "--host-subnet-length", fmt.Sprint(o.HostSubnetLength), "--plugin-name", plugin}
	if o.Members > 0 {
		args = append(args, o.access(l.controllerBundle())...)
	} else {
		args = append(args, "--data-dir", l.dataDir(), "--listen-client-urls", o.url())
	}
	if o.Insecure {
		args = append(args, "--insecure-listen-http")
	}
	if o.ServiceNetwork.IsValid() {
		args = append(args, "--service-network", o.ServiceNetwork.String())
	}
	return append(args, o.ControllerArgs...), nil
}

// StartExtraController starts one more controller, a client of the first one's
// etcd, under a name such as "controller-2".
func (l *Lab) StartExtraController(ctx context.Context, name string, args ...string) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	if !s.Options.Insecure {
		if _, err := l.ControllerBundle(ctx); err != nil {
			return err
		}
	}
	return l.startController(ctx, name, append(s.Options.access(l.controllerBundle()), args...))
}

func (l *Lab) startController(ctx context.Context, name string, args []string) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	return l.startControllerOf(ctx, s.Options.BinDir, name, args, "/readyz")
}

// startControllerOf starts the program in bin, and waits until its diagnostics answer path.
func (l *Lab) startControllerOf(ctx context.Context, bin, name string, args []string, path string) error {
	if l.Process(name).Alive() {
		return fmt.Errorf("%s runs already", name)
	}
	dir := filepath.Join(l.dir, "ctl")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	socket := l.controllerMetrics(name)
	all := append([]string{filepath.Join(bin, "k8s-ovs-controller"),
		"--metrics-address", "unix://" + socket, "--log-format", "text", "--log-level", "debug"}, args...)
	return l.run(ctx, command{
		name:  name,
		netns: l.ControllerNetns(),
		args:  all,
		log:   filepath.Join(l.dir, "log", name+".log"),
	}, 60*time.Second, func() (bool, error) {
		_, err := get(ctx, socket, path)
		return err == nil, err
	})
}

// ControllerMetrics returns what a controller of that name serves on /metrics.
func (l *Lab) ControllerMetrics(ctx context.Context, name string) (string, error) {
	return get(ctx, l.controllerMetrics(name), "/metrics")
}

func (l *Lab) controllerMetrics(name string) string {
	return filepath.Join(l.dir, "ctl", name+"-metrics.sock")
}

// ControllerReady is nil when a controller of that name is ready; the error says why it is not.
func (l *Lab) ControllerReady(ctx context.Context, name string) error {
	_, err := get(ctx, l.controllerMetrics(name), "/readyz")
	return err
}

// startForwarders makes etcd, each of its members, reachable on 127.0.0.1 in the namespace that the
// lab is started from.
func (l *Lab) startForwarders(ctx context.Context, o Options) error {
	targets := map[string]netip.Addr{"forwarder": controllerIP}
	if o.Members > 0 {
		targets = map[string]netip.Addr{}
		for n := 1; n <= o.Members; n++ {
			targets["forwarder-"+memberName(n)] = memberIP(n)
		}
	}
	var endpoints []string
	scheme, _, _ := strings.Cut(o.url(), "://")
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		address, err := l.startForwarder(ctx, o, name, targets[name])
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		endpoints = append(endpoints, scheme+"://"+address)
	}
	return l.update(func(s *state) error {
		s.Etcd = EtcdStatus{Endpoints: endpoints, Prefix: EtcdPrefix}
		return nil
	})
}

// startForwarder starts a process that connects in the controller's namespace, and returns where it listens.
func (l *Lab) startForwarder(ctx context.Context, o Options, name string, to netip.Addr) (address string, err error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = listener.Close() }() // the process has its own
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	err = l.run(ctx, command{
		name:  name,
		args:  []string{filepath.Join(o.BinDir, "netlab"), "forward", "--netns", l.ControllerNetns(), "--to", netip.AddrPortFrom(to, 2379).String()},
		log:   filepath.Join(l.dir, "log", name+".log"),
		files: []*os.File{file},
	}, 10*time.Second, func() (bool, error) { return true, nil }) // the socket listens already
	return listener.Addr().String(), err
}

// Forward accepts connections on listener and joins each with one to address
// in the namespace netns, until ctx ends.
func Forward(ctx context.Context, listener net.Listener, netns, address string) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	for {
		in, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("forward to %s: %w", address, err)
		}
		go func() {
			out, err := ns.DialTCP(ns.Path(netns), address, 5*time.Second)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				_ = in.Close() // whoever connected sees that there is nobody
				return
			}
			if err := ns.SetUserTimeout(out, unacknowledged); err != nil { // as the programs do with a machine that is gone
				fmt.Fprintln(os.Stderr, err)
			}
			join(in, out)
		}()
	}
}

// unacknowledged is how long the programs wait for the other end to acknowledge what they have sent to etcd
// (keepAliveTimeout of package store). What they send through a forwarder it acknowledges itself.
const unacknowledged = 3 * time.Second

// Etcd returns a client of the lab's etcd that may do everything. The caller closes it.
func (l *Lab) Etcd() (*clientv3.Client, error) {
	if s, err := l.read(); err == nil && s.Options.Members > 0 {
		return l.memberClient(s.Etcd.Endpoints)
	}
	if _, err := os.Stat(l.dataDir()); err != nil {
		return nil, fmt.Errorf("lab %s has had no etcd: %w", l.name, err)
	}
	return clientv3.New(clientv3.Config{
		Endpoints:   []string{"unix://" + filepath.Join(l.dataDir(), options.EtcdSocket)},
		DialTimeout: 5 * time.Second,
		Logger:      zap.NewNop(), // errors come back to the caller
	})
}
