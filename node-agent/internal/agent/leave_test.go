package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/attach"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/cniconf"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/underlay"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns/nstest"
)

// daemonSet stands in for the API server.
type daemonSet struct {
	apiServer
	wants bool
	err   error
}

func (d daemonSet) DaemonSetWants(_ context.Context, namespace, name, node string) (bool, error) {
	if namespace != "kube-system" || name != "k8s-ovs-agent" || node != "n1" {
		return true, errors.New("asked for " + namespace + "/" + name + " on " + node)
	}
	return d.wants, d.err
}

func ending(cfg Config, c *cniconf.Kept, api apiServer) *node {
	return &node{cfg: cfg, runtime: runtimeSide{conf: c}, api: api, log: quiet()}
}

func configured(t *testing.T) Config {
	dir := t.TempDir()
	cfg := Defaults()
	cfg.NodeName, cfg.StateDir = "n1", dir
	cfg.Cluster.CNIConfDir, cfg.Cluster.cniConf = filepath.Join(dir, "net.d"), cniconf.Default(cniapi.DefaultSocket)
	cfg.Cluster.daemonSet = service.Key{Namespace: "kube-system", Name: "k8s-ovs-agent"}
	return cfg
}

func start(t *testing.T, cfg Config, bootID string) *cniconf.Kept {
	t.Helper()
	c, err := cniconf.Keep(cfg.cniConf(bootID), "", quiet())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// oneDevice and onePort are a pod's device and its port of the bridge.
type oneDevice struct{ attach.Kernel }

func (oneDevice) Exists(string) (bool, error)                            { return true, nil }
func (oneDevice) Name([]attach.Wire) ([]string, map[string]error, error) { return nil, nil, nil }
func (oneDevice) Sweep(map[string]bool) (int, error)                     { return 0, nil }

type (
	ports   = attach.Ports // the embedded field is not called as the method
	onePort struct{ ports }
)

func (onePort) Ports(string) ([]ovs.Port, error) {
	return []ovs.Port{{Name: attach.HostIf(cniapi.Attachment{ContainerID: "c", IfName: "eth0"}), Ofport: 12, ExternalIDs: map[string]string{
		"k8s-ovs-container": "c", "k8s-ovs-ifname": "eth0", "k8s-ovs-address": "172.11.0.2",
	}}}, nil
}

// A node that leaves takes its MTU record along, unless its pods or the next agent go by it.
func TestLeaveMTURecord(t *testing.T) {
	cfg := configured(t)
	self := netip.MustParseAddr("198.18.0.1")
	subnet := netip.MustParsePrefix("172.11.0.0/22")
	etcd := etcdtest.Start(t)
	s, err := store.Open(store.Config{Endpoints: etcd.Endpoints, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.PutConfig(t.Context(), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureNode(t.Context(), "n1", self); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name               string
		wanted, pod, early bool
		stays              bool
	}{
		{name: "only restarts", wanted: true, stays: true},
		{name: "does not know its pods yet", early: true, stays: true},
		{name: "has a pod", pod: true, stays: true},
		{name: "empty"},
	} {
		if _, err := s.PutNodeMTU(t.Context(), topology.NodeMTU{Host: "n1", HostIP: self, Carries: 1400, Receives: 1400, Sends: 1400}); err != nil {
			t.Fatal(err)
		}
		n := ending(cfg, start(t, cfg, "boot-1"), daemonSet{wants: c.wanted})
		n.etcd.store = s
		p := &parts{self: self, picture: &picture{}, attacher: attach.New(attach.NewBare(oneDevice{}, onePort{}, "br0", t.TempDir(), quiet()), nil, nil, nil)}
		n.parts.Store(p)
		if !c.early {
			p.picture.started = subnet
		}
		if c.pod {
			node := attach.Node{Bridge: "br0", Subnets: []netip.Prefix{subnet}, Gateways: []netip.Addr{netip.MustParseAddr("172.11.0.1")}, MTU: attach.MTU{Device: 1400, Route: 1400}}
			if _, err := p.attacher.Start(t.Context(), node, t.TempDir(), "boot-1"); err != nil {
				t.Fatal(err)
			}
		}
		n.leave(t.Context())
		all, err := s.MTUs(t.Context())
		if _, there := all.Nodes[self]; err != nil || there != c.stays {
			t.Errorf("a node that %s: the record is there: %t, %v; want %t", c.name, there, err, c.stays)
		}
	}
}

// The CNI configuration goes with the node, and stays where the agent only restarts or nobody knows.
func TestLeaveConfiguration(t *testing.T) {
	for name, c := range map[string]struct {
		api   daemonSet
		stays bool
	}{
		"a restart was asked for": {daemonSet{wants: true}, true}, "the API server is away": {daemonSet{err: errors.New("away")}, true}, "the node leaves": {daemonSet{}, false},
	} {
		cfg := configured(t)
		conf := start(t, cfg, "boot-1")
		conf.Ensure()
		ending(cfg, conf, c.api).leave(t.Context())
		if _, err := os.Stat(filepath.Join(cfg.Cluster.CNIConfDir, cfg.Cluster.CNIConfFile)); (err == nil) != c.stays {
			t.Errorf("%s: %v; want it there: %t", name, err, c.stays)
		}
	}
}

// A node that leaves takes the device and the table of its checks along; one whose agent restarts does not.
func TestLeaveTakesChecks(t *testing.T) {
	name := nstest.New(t)
	host, err := link.Open(ns.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	if err := tc.In(host).EnsureIFB(exits.Device); err != nil {
		t.Fatal(err)
	}
	exit, err := hostnet.NewExit(host)
	if err != nil {
		t.Fatal(err)
	}
	end, err := hostnet.NewTunnelEnd(host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := end.Ended(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := exit.Passed(t.Context(), hostnet.Way{Gateway: "tun0", Probe: netip.MustParseAddr("172.11.0.0")}); err != nil {
		t.Fatal(err)
	}
	cfg := configured(t)
	for _, wants := range []bool{true, false} {
		n := ending(cfg, start(t, cfg, "boot-1"), daemonSet{wants: wants})
		n.host, n.firewall.exit, n.firewall.end = host, exit, end
		n.leave(t.Context())
		tables, err := exec.Command("ip", "netns", "exec", name, "nft", "list", "tables").CombinedOutput()
		for _, table := range []string{"k8s-ovs-exit", "k8s-ovs-tunnels"} {
			if there := strings.Contains(string(tables), table); err != nil || there != wants {
				t.Errorf("the DaemonSet wants the node: %t; its table %s is there: %t, %v: %s", wants, table, there, err, tables)
			}
		}
		if there, err := host.LinkExists(exits.Device); err != nil || there != wants {
			t.Errorf("the DaemonSet wants the node: %t; its device is there: %t, %v", wants, there, err)
		}
	}
}

// A node that leaves although its agent never found Open vSwitch: the uplink gets the node's address, and the firewall of
// the agent before goes.
func TestLeaveWithoutOpenVSwitch(t *testing.T) {
	name := nstest.New(t)
	host, err := link.Open(ns.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	if err := ns.IP(t.Context(), name, "link add eth0 type bridge", "link set eth0 up"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "netns", "exec", name, "nft", "add table ip k8s-ovs").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	config := link.Config{Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}
	cfg := configured(t)
	was := fmt.Sprintf(`{"bridge": "br-phy", "vtep": "192.0.2.1", "uplink": "eth0", "config": %s, "device": "boot-1/7"}`, config.Encode())
	if err := os.WriteFile(filepath.Join(cfg.StateDir, "underlay.json"), []byte(was), 0o600); err != nil {
		t.Fatal(err)
	}
	n := ending(cfg, start(t, cfg, "boot-1"), daemonSet{})
	n.bootID = "boot-1"
	n.ovs.lender = underlay.NewLender(n.underlayConfig(), host)
	if n.firewall.net, err = hostnet.New(host); err != nil {
		t.Fatal(err)
	}
	n.leave(t.Context())
	if l, ok, err := host.AddressOwner(netip.MustParseAddr("192.0.2.1")); err != nil || !ok || l.Name != "eth0" {
		t.Errorf("the node's address is on %q (%t, %v)", l.Name, ok, err)
	}
	if tables, err := exec.Command("ip", "netns", "exec", name, "nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(tables), "k8s-ovs") {
		t.Errorf("tables are left: %s (%v)", tables, err)
	}
}
