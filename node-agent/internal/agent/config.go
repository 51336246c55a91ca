package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/exits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/fairness"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/identity"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/mtu"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/podlimits"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/uplink"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/diag"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// DatapathAuto lets the agent choose.
const DatapathAuto = "auto"

// Config is what the agent runs with.
type Config struct {
	// NodeName is the node's name; the host's name by default.
	NodeName string
	// NodeIP is the VTEP address; the default route's address by default.
	NodeIP netip.Addr
	nodeIP string
	Etcd   options.Etcd
	// bundle is the file of --etcd-bundle, of which the agent keeps a copy that it renews.
	bundle string
	// ownIdentity is that the node has a bundle of its own.
	ownIdentity bool
	// StateDir keeps leases and the copy of the records.
	StateDir string
	// CNISocket is where the plugin calls.
	CNISocket string
	Switch
	PodMTU
	Shares
	// ExitCheck is what becomes of the node where its way to the outside is closed, TunnelCheck where all ways to other
	// nodes are.
	ExitCheck, TunnelCheck exits.Policy
	Diag                   diag.Flags
	// Cluster is for a node of a Kubernetes cluster.
	Cluster Cluster
}

// Switch is which datapath the node has, and where its Open vSwitch is.
type Switch struct {
	// Datapath is "auto", "system" or "netdev".
	Datapath string
	// Bridge is the overlay's bridge, VTEPBridge the one that holds the VTEP
	// address on the userspace datapath.
	Bridge, VTEPBridge string
	// OVSDB is the endpoint of ovsdb-server, OVSRunDir the directory of the
	// bridges' management sockets.
	OVSDB, OVSRunDir string
	// VXLANPort is the UDP port of the tunnels where the records do not name one; 0 for
	// [tunnel.VXLANPort].
	VXLANPort tunnel.Port
}

// PodMTU is how large the packets of pods may be.
type PodMTU struct {
	// MTU of pods, bytes; 0 follows the underlay. A larger one than the underlay
	// carries is clamped.
	MTU int
	// MTUOnBlackHole says what a path that loses large packets does. Paths are probed
	// every MTUProbeInterval at UDP port MTUProbePort, the same on every node; 0 for not.
	MTUOnBlackHole   mtu.Policy
	MTUProbeInterval time.Duration
	MTUProbePort     uint16
}

// Shares are what pods may have of what they share.
type Shares struct {
	// BandwidthPolicy is "strict" or "lenient".
	BandwidthPolicy podlimits.Policy
	// UplinkRate is what pods share of the uplink.
	UplinkRate uplink.Rate
	// ServiceConnections and NodeConnections are the most new connections per second that
	// the pods of a namespace may make to services and through the node.
	ServiceConnections, NodeConnections fairness.Rate
	// MaxPods is how many pods a namespace may have on this node; 0 for as many as there
	// are addresses.
	MaxPods int
}

// Defaults are the values without any flag.
func Defaults() Config {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	return Config{
		NodeName: host, StateDir: "/var/lib/k8s-ovs", CNISocket: cniapi.DefaultSocket,
		Switch: Switch{
			Datapath: DatapathAuto, Bridge: "br0", VTEPBridge: "br-phy", OVSDB: "unix:/run/openvswitch/db.sock",
		},
		PodMTU: PodMTU{MTUOnBlackHole: mtu.Clamp, MTUProbeInterval: 10 * time.Second, MTUProbePort: 4790},
		Shares: Shares{BandwidthPolicy: podlimits.Strict}, ExitCheck: exits.NotReady, TunnelCheck: exits.NotReady,
		Diag: diag.Flags{MetricsAddress: "127.0.0.1:9465"},
		Cluster: Cluster{
			serviceProxy: string(pipeline.OVS), publicServices: []string{"default/kubernetes"}, CNIConfFile: "10-k8s-ovs.conflist", CNIPluginsFrom: "/usr/libexec/cni",
		},
	}
}

// Register adds the flags.
func (c *Config) Register(fs *pflag.FlagSet) {
	fs.StringVar(&c.NodeName, "node-name", c.NodeName, "`name` of this node in the records")
	fs.StringVar(&c.nodeIP, "node-ip", "", "IPv4 `address` of this node's tunnels (default: the address of the default route)")
	c.Etcd.Register(fs)
	fs.StringVar(&c.Datapath, "datapath", c.Datapath, "Open vSwitch `datapath`: system (kernel), netdev (userspace), or auto")
	fs.StringVar(&c.Bridge, "bridge", c.Bridge, "`bridge` of the overlay")
	fs.StringVar(&c.VTEPBridge, "vtep-bridge", c.VTEPBridge, "`bridge` that holds the uplink and the tunnel address on the userspace datapath")
	fs.StringVar(&c.OVSDB, "ovs-db", c.OVSDB, "`endpoint` of ovsdb-server: unix:/path")
	fs.StringVar(&c.OVSRunDir, "ovs-rundir", c.OVSRunDir, "`directory` of the bridges' management sockets (default: that of --ovs-db)")
	fs.StringVar(&c.StateDir, "state-dir", c.StateDir, "`directory` for address leases and the copy of the records")
	fs.StringVar(&c.CNISocket, "cni-socket", c.CNISocket, "`path` of the socket that the CNI plugin calls")
	fs.IntVar(&c.MTU, "mtu", c.MTU, "MTU of pods in `bytes`; clamped to what the underlay carries (default: that)")
	fs.StringVar((*string)(&c.MTUOnBlackHole), "mtu-on-blackhole", string(c.MTUOnBlackHole), "what a path that loses large packets does: clamp (pods send smaller ones) or report (log, metric and record only)")
	fs.DurationVar(&c.MTUProbeInterval, "mtu-probe-interval", c.MTUProbeInterval, "`time` between probes of the path to each node")
	fs.Uint16Var(&c.MTUProbePort, "mtu-probe-port", c.MTUProbePort, "UDP `port` of these probes, and of what nodes ask each other through the tunnels, the same on every node; 0 for neither")
	fs.Var(&c.UplinkRate, "uplink-rate", "`rate` that pods share by tenant when they overload the uplink (kernel datapath): bits per second, such as 950M, auto (the link's own), or off")
	fs.StringVar((*string)(&c.BandwidthPolicy), "bandwidth-policy", string(c.BandwidthPolicy), "what becomes of a pod whose rate limit is not valid: strict (it does not start) or lenient (it starts without)")
	fs.Var(&c.ServiceConnections, "service-connection-rate", "most new connections per second of the pods of one namespace on this node to services: a `number`, auto (a sixteenth of the connection table), or off")
	fs.Var(&c.NodeConnections, "node-connection-rate", "most new connections per second of the pods of one namespace through the node (to the outside and to ports of nodes): a `number`, auto (a sixteenth of the connection table), or off")
	fs.IntVar(&c.MaxPods, "max-pods-per-namespace", c.MaxPods, "most `pods` of one namespace on this node (default: as many as there are addresses)")
	fs.Var(&c.VXLANPort, "vxlan-port", "UDP `port` of the tunnels, for a network whose configuration does not name it (default 4789); where it does and this is another, the node is not ready")
	fs.StringVar((*string)(&c.ExitCheck), "exit-check", string(c.ExitCheck), "what becomes of a node from which pods do not reach the outside, or that does not reach its pods: not-ready (it takes no more pods), warn (log, event and metric only) or off (nobody looks)")
	fs.StringVar((*string)(&c.TunnelCheck), "tunnel-check", string(c.TunnelCheck), "what becomes of a node whose firewall or routes keep tunnels' packets of all other nodes back: not-ready (it takes no more pods), warn (log, event and metric only) or off (nobody looks)")
	c.Diag.Register(fs)
	c.Cluster.register(fs)
}

// minProbeInterval keeps probes cheap, bytes and time alike.
const minProbeInterval = 100 * time.Millisecond

// Complete checks the configuration and fills in what follows from the rest.
func (c *Config) Complete() error {
	if c.NodeName == "" || strings.ContainsAny(c.NodeName, "/ \t\n") {
		return fmt.Errorf("--node-name %q is not a node's name", c.NodeName)
	}
	if c.nodeIP != "" {
		ip, err := tunnel.ParseVTEP(c.nodeIP)
		if err != nil {
			return fmt.Errorf("--node-ip: %w", err)
		}
		c.NodeIP = ip
	}
	if err := c.Switch.complete(); err != nil {
		return err
	}
	if !filepath.IsAbs(c.StateDir) {
		return fmt.Errorf("--state-dir %q is not an absolute path", c.StateDir)
	}
	if err := c.PodMTU.check(); err != nil {
		return err
	}
	if c.MTUProbePort != 0 && c.MTUProbePort == uint16(c.VXLANPort) {
		return fmt.Errorf("--mtu-probe-port %d is that of the tunnels (--vxlan-port)", c.MTUProbePort)
	}
	if c.BandwidthPolicy != podlimits.Strict && c.BandwidthPolicy != podlimits.Lenient {
		return fmt.Errorf("--bandwidth-policy %q is none of %s, %s", c.BandwidthPolicy, podlimits.Strict, podlimits.Lenient)
	}
	for flag, check := range map[string]exits.Policy{"--exit-check": c.ExitCheck, "--tunnel-check": c.TunnelCheck} {
		if !check.Valid() {
			return fmt.Errorf("%s %q is none of %s, %s, %s", flag, check, exits.NotReady, exits.Warn, exits.Off)
		}
	}
	if c.MaxPods < 0 {
		return fmt.Errorf("--max-pods-per-namespace %d is less than 0", c.MaxPods)
	}
	if err := c.Cluster.complete(c.CNISocket); err != nil {
		return err
	}
	if !c.Cluster.Enabled {
		if err := c.completeIdentity(); err != nil {
			return err
		}
	}
	return c.Etcd.Complete()
}

// complete checks them, and fills in what follows from the rest.
func (c *Switch) complete() error {
	switch c.Datapath {
	case DatapathAuto, "system", "netdev":
	default:
		return fmt.Errorf("--datapath %q is none of auto, system, netdev", c.Datapath)
	}
	for flag, name := range map[string]string{"--bridge": c.Bridge, "--vtep-bridge": c.VTEPBridge} {
		if err := cniapi.ValidateIfName(name); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	if c.Bridge == c.VTEPBridge {
		return fmt.Errorf("--bridge and --vtep-bridge are both %q: the overlay and the underlay need one each", c.Bridge)
	}
	path, ok := strings.CutPrefix(c.OVSDB, "unix:")
	if !ok || !filepath.IsAbs(path) {
		return fmt.Errorf("--ovs-db %q is not unix:/path: the agent manages the Open vSwitch of its own host only", c.OVSDB)
	}
	if c.OVSRunDir == "" {
		c.OVSRunDir = filepath.Dir(path)
	}
	return nil
}

func (c PodMTU) check() error {
	if c.MTU != 0 && (c.MTU < topology.MinMTU || c.MTU > 65535) {
		return fmt.Errorf("--mtu %d is not %d to 65535", c.MTU, topology.MinMTU)
	}
	if c.MTUOnBlackHole != mtu.Clamp && c.MTUOnBlackHole != mtu.Report {
		return fmt.Errorf("--mtu-on-blackhole %q is none of %s, %s", c.MTUOnBlackHole, mtu.Clamp, mtu.Report)
	}
	if c.MTUProbeInterval < minProbeInterval {
		return fmt.Errorf("--mtu-probe-interval %s is less than %s", c.MTUProbeInterval, minProbeInterval)
	}
	return nil
}

// completeIdentity looks for the node's bundle: the one it was given, and the copy of it
// in the state directory.
func (c *Config) completeIdentity() error {
	c.ownIdentity = true
	own := identity.NewFile(c.StateDir).Path()
	_, err := os.Stat(own)
	switch {
	case c.Etcd.BundleFile != "":
		c.bundle = c.Etcd.BundleFile
		if _, given := os.Stat(c.bundle); errors.Is(given, fs.ErrNotExist) && err == nil {
			// It was taken over before.
			c.bundle, c.Etcd.BundleFile = "", own
		}
	case len(c.Etcd.Endpoints) > 0:
		c.ownIdentity = false
	case err == nil:
		c.Etcd.BundleFile = own
	default:
		return errors.New("--etcd-bundle is missing: make one with `k8s-ovs-controller bundle node` on the controller's machine; with an etcd of your own, --etcd-endpoints; in a Kubernetes cluster, --kubernetes")
	}
	return nil
}
