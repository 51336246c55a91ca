package bridge

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// kernel is a node with Open vSwitch on the kernel datapath, of which only tunnels matter. As the real one,
// ovs-vswitchd follows the database when it looks at it (Sync), makes a device where a port needs one that no
// port needed at the look before, and never looks at a device again.
type kernel struct {
	Switch
	devices map[string]link.Link
	// rows are the tunnel ports in the database by the names of their devices, known those that
	// ovs-vswitchd has seen there.
	rows, known map[string]string
	// makes is that ovs-vswitchd can make devices.
	makes bool
	// away is why ovs-vswitchd does not look.
	away error
	// renamed are devices that somebody has called otherwise, by their UDP ports.
	renamed map[uint16]link.Link
	// silent is that the userspace datapath does not say which ports it has.
	silent error
	// deleted counts ports that were taken out of the database.
	deleted int
}

func newKernel(tunnels desired.Tunnels) *kernel {
	k := &kernel{devices: map[string]link.Link{}, rows: map[string]string{}, known: map[string]string{}, makes: true}
	for _, t := range tunnels {
		k.rows[t.KernelDevice()] = t.Name
	}
	k.look()
	return k
}

func (k *kernel) look() {
	for device := range k.rows {
		if k.known[device] == "" && k.makes {
			made := link.Link{Name: device, Type: "vxlan", Up: true, Carrier: true, MTU: tunnel.KernelDeviceMTU, Master: 3}
			if device == GatewayPort { // hostnet sets it up
				made = link.Link{Name: device, Type: "tuntap", TxQueue: link.DefaultTxQueue}
			}
			k.devices[device] = made
		}
	}
	for device := range k.known {
		if k.rows[device] == "" {
			delete(k.devices, device)
		}
	}
	k.known = map[string]string{}
	for device, name := range k.rows {
		k.known[device] = name
	}
}

// deviceOf is what the device of a port is called.
func deviceOf(spec ovs.PortSpec) string {
	if spec.Type == "internal" {
		return spec.Name
	}
	return "vxlan_sys_" + spec.Options["dst_port"]
}

func (k *kernel) Sync(context.Context) error {
	if k.away == nil {
		k.look()
	}
	return k.away
}

func (k *kernel) DatapathPorts(context.Context, string) ([]string, error) {
	return append(slices.Sorted(maps.Keys(k.devices)), "ovs-netdev"), k.silent
}

func (k *kernel) DeletePort(_ context.Context, _, name string) error {
	k.deleted++
	for device, n := range k.rows {
		if n == name {
			delete(k.rows, device)
		}
	}
	return nil
}

func (k *kernel) EnsurePort(_ context.Context, _ string, spec ovs.PortSpec) (bool, error) {
	k.rows[deviceOf(spec)] = spec.Name
	return true, nil
}

func (k *kernel) WaitOfport(_ context.Context, name string) (uint32, error) {
	for device, n := range k.rows {
		if n == name {
			if _, ok := k.devices[device]; !ok {
				return 0, &ovs.PortError{Port: name}
			}
			return map[string]uint32{"vxlan0": 1, GatewayPort: gatewayOfport, "vxlan1": 3}[name], nil
		}
	}
	return 0, errors.New("there is no such port")
}

func (k *kernel) Link(name string) (link.Link, bool, error) {
	l, ok := k.devices[name]
	return l, ok, nil
}

func (k *kernel) SetUp(name string) (bool, error) {
	l := k.devices[name]
	l.Up = true
	k.devices[name] = l
	return true, nil
}

func (k *kernel) SetMTU(name string, mtu int) (bool, error) {
	l := k.devices[name]
	l.MTU = mtu
	k.devices[name] = l
	return true, nil
}

func (k *kernel) SetTxQueue(name string, length int) (bool, error) {
	l := k.devices[name]
	l.TxQueue = length
	k.devices[name] = l
	return true, nil
}

func (k *kernel) Links() ([]link.Link, error) { return slices.Collect(maps.Values(k.devices)), nil }

func (k *kernel) ExternalVXLAN(port uint16) (link.Link, bool, error) {
	l, ok := k.renamed[port]
	return l, ok, nil
}

func (k *kernel) Rename(l link.Link, name string) error {
	clear(k.renamed)
	l.Name, l.Up = name, false
	k.devices[name] = l
	return nil
}

// TestBackers: the device of each tunnel is there, up and wide, whatever somebody has made of it, and Open
// vSwitch's database is changed only where nothing less makes it anew.
func TestBackers(t *testing.T) {
	vtep := netip.MustParseAddr("198.18.0.1")
	second := desired.Tunnel{Tunnel: tunnel.Tunnel{Name: "vxlan1", Type: tunnel.VXLAN, Port: 8472, Family: tunnel.IPv4}, Ofport: 3}
	spec := Spec{Name: "br0", Datapath: ovs.DatapathSystem, VTEP: vtep, TunnelSource: vtep, Tunnels: append(desired.NodeTunnels(vtep, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789}), second)}
	const device = "vxlan_sys_8472"
	type change func(k *kernel, l link.Link) *link.Link // nil: it is gone
	for name, tc := range map[string]struct {
		change  change
		mended  []string
		deleted int
	}{
		"nothing": {func(_ *kernel, l link.Link) *link.Link { return &l }, nil, 0},
		"down":    {func(_ *kernel, l link.Link) *link.Link { l.Up = false; return &l }, []string{device + " was down"}, 0},
		"down, and an MTU for all devices": {
			func(_ *kernel, l link.Link) *link.Link { l.Up, l.MTU = false, 1400; return &l }, []string{device + " was down", device + " had an MTU of 1400"}, 0,
		},
		"without a carrier": {
			func(_ *kernel, l link.Link) *link.Link { l.Carrier = false; return &l }, []string{device + " had no carrier"}, 1,
		},
		"down, and without a carrier": {
			func(_ *kernel, l link.Link) *link.Link { l.Up, l.Carrier = false, false; return &l }, []string{device + " was down", device + " had no carrier"}, 1,
		},
		"a wider one": {func(_ *kernel, l link.Link) *link.Link { l.MTU = 65485; return &l }, nil, 0},
		"gone":        {func(*kernel, link.Link) *link.Link { return nil }, []string{device + " was gone"}, 1},
		"called otherwise": {
			func(k *kernel, l link.Link) *link.Link {
				l.Name = "foo"
				k.renamed = map[uint16]link.Link{8472: l}
				return nil
			}, []string{device + " was called foo"}, 0,
		},
		"gone, and somebody else's in the port's place": {
			func(k *kernel, l link.Link) *link.Link {
				l.Name, l.Master = "cilium_vxlan", 0
				k.renamed = map[uint16]link.Link{8472: l}
				return nil
			}, []string{device + " was gone"}, 1,
		},
		"in its place one that is no port of Open vSwitch": {
			func(_ *kernel, l link.Link) *link.Link { l.Master = 0; return &l }, []string{device + " was gone"}, 1,
		},
		"an ovs-vswitchd that is starting": {
			func(k *kernel, _ link.Link) *link.Link { k.known = map[string]string{}; return nil }, nil, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(spec.Tunnels)
			l := k.devices[device]
			if now := tc.change(k, l); now != nil {
				k.devices[device] = *now
			} else {
				delete(k.devices, device)
			}
			mended, err := EnsureBackers(t.Context(), k, k, spec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.mended, mended); diff != "" || k.deleted != tc.deleted {
				t.Errorf("mended (-want +got), and %d ports deleted, want %d:\n%s", k.deleted, tc.deleted, diff)
			}
			for _, tun := range spec.Tunnels {
				if l := k.devices[tun.KernelDevice()]; !l.Up || !l.Carrier || l.MTU < tunnel.KernelDeviceMTU || l.Master == 0 || k.rows[l.Name] != tun.Name {
					t.Errorf("%s is %+v, and its port %q", tun.KernelDevice(), l, k.rows[l.Name])
				}
			}
			if again, err := EnsureBackers(t.Context(), k, k, spec); err != nil || again != nil {
				t.Errorf("again: %v, %v", again, err)
			}
		})
	}
}

// TestBackersMissing: a device that cannot be had is named, and while ovs-vswitchd is away no port is given up.
func TestBackersMissing(t *testing.T) {
	vtep := netip.MustParseAddr("198.18.0.1")
	spec := Spec{Name: "br0", Datapath: ovs.DatapathSystem, VTEP: vtep, Tunnels: desired.NodeTunnels(vtep, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789})}
	k := newKernel(spec.Tunnels)
	delete(k.devices, "vxlan_sys_4789")
	k.away = errors.New("ovs-vswitchd is away")
	if _, err := EnsureBackers(t.Context(), k, k, spec); !errors.Is(err, k.away) || k.deleted != 0 {
		t.Errorf("%v, %d ports deleted", err, k.deleted)
	}
	k.away, k.makes = nil, false
	if _, err := EnsureBackers(t.Context(), k, k, spec); err == nil || !strings.Contains(err.Error(), "UDP port 4789") || k.rows["vxlan_sys_4789"] == "" {
		t.Errorf("%v; ports %v", err, k.rows)
	}
	k.makes = true
	if mended, err := EnsureBackers(t.Context(), k, k, spec); err != nil || len(mended) != 1 {
		t.Errorf("when it can be had: %v, %v", mended, err)
	}
}

// TestListed: a tunnel's port that somebody took out of the userspace datapath is made anew, and no other.
func TestListed(t *testing.T) {
	vtep := netip.MustParseAddr("198.18.0.1")
	spec := Spec{Name: "br0", Datapath: ovs.DatapathNetdev, VTEP: vtep, Tunnels: desired.NodeTunnels(vtep, tunnel.Encap{Type: tunnel.VXLAN, Port: 4789})}
	const port = "vxlan_sys_4789"
	silent := errors.New("ovs-vswitchd does not answer")
	for name, tc := range map[string]struct {
		change  func(k *kernel)
		mended  []string
		deleted int
		err     error
	}{
		"all there":                       {func(*kernel) {}, nil, 0, nil},
		"taken out":                       {func(k *kernel) { delete(k.devices, port) }, []string{port + " was not in the datapath"}, 1, nil},
		"an ovs-vswitchd that starts":     {func(k *kernel) { clear(k.devices); clear(k.known) }, nil, 0, nil},
		"an ovs-vswitchd that is away":    {func(k *kernel) { clear(k.devices); k.away = silent }, nil, 0, silent},
		"nobody knows which ports it has": {func(k *kernel) { clear(k.devices); k.silent = silent }, nil, 0, silent},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(spec.Tunnels)
			tc.change(k)
			mended, err := EnsureBackers(t.Context(), k, k, spec)
			if diff := cmp.Diff(tc.mended, mended); diff != "" || k.deleted != tc.deleted || !errors.Is(err, tc.err) {
				t.Errorf("%v; mended (-want +got), and %d ports deleted, want %d:\n%s", err, k.deleted, tc.deleted, diff)
			}
			if _, there := k.devices[port]; !there && tc.err == nil {
				t.Error("it is not there")
			}
		})
	}
}

// TestGateway: the gateway port has a device that carries packets, whatever somebody has made of it; one that has another
// name, or that its owner has set down, is not made anew for that.
func TestGateway(t *testing.T) {
	spec := Spec{Name: "br0", Datapath: ovs.DatapathNetdev, Gateway: netip.MustParseAddr("172.11.0.1"), MTU: 1450}
	for name, tc := range map[string]struct {
		change  func(k *kernel, l link.Link) *link.Link // nil: it is gone
		mended  string
		deleted int
	}{
		"nothing":       {func(_ *kernel, l link.Link) *link.Link { return &l }, "", 0},
		"down":          {func(_ *kernel, l link.Link) *link.Link { l.Up, l.Carrier = false, false; return &l }, "", 0},
		"gone":          {func(*kernel, link.Link) *link.Link { return nil }, "tun0 was gone", 1},
		"no queue":      {func(_ *kernel, l link.Link) *link.Link { l.TxQueue = 0; return &l }, "tun0 had a queue of length 0", 0},
		"a short queue": {func(_ *kernel, l link.Link) *link.Link { l.TxQueue = 10; return &l }, "", 0},
		"no carrier":    {func(_ *kernel, l link.Link) *link.Link { l.Carrier = false; return &l }, "tun0 had no carrier", 1},
		"the kernel datapath's, which has no queue": {func(_ *kernel, l link.Link) *link.Link { l.Type, l.TxQueue = "openvswitch", 0; return &l }, "", 0},
		"called otherwise": {
			func(k *kernel, l link.Link) *link.Link {
				l.Name = "foo0"
				k.devices["foo0"] = l
				return nil
			}, "", 0,
		},
		"an ovs-vswitchd that is starting": {
			func(k *kernel, _ link.Link) *link.Link { k.known = map[string]string{}; return nil }, "", 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(nil)
			k.rows[GatewayPort] = GatewayPort
			k.look()
			l := k.devices[GatewayPort]
			l.Up, l.Carrier, l.MAC = true, true, topology.MAC(spec.Gateway)
			if now := tc.change(k, l); now != nil {
				k.devices[GatewayPort] = *now
			} else {
				delete(k.devices, GatewayPort)
			}
			if mended, err := EnsureGateway(t.Context(), k, k, spec); err != nil || mended != tc.mended || k.deleted != tc.deleted {
				t.Errorf("mended %q (%v), %d ports deleted; want %q, %d", mended, err, k.deleted, tc.mended, tc.deleted)
			}
			if again, err := EnsureGateway(t.Context(), k, k, spec); err != nil || again != "" {
				t.Errorf("again: %q, %v", again, err)
			}
		})
	}
	k := newKernel(nil)
	k.rows[GatewayPort] = GatewayPort
	k.away = errors.New("ovs-vswitchd is away")
	if _, err := EnsureGateway(t.Context(), k, k, spec); !errors.Is(err, k.away) || k.deleted != 0 {
		t.Errorf("without ovs-vswitchd: %v, %d ports deleted", err, k.deleted)
	}
}
