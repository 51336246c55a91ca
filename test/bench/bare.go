package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
)

// bareKeys and the number of the bridge is the VNI of bare bridges. The tunnel
// ports of both kinds stand side by side in one switch, which gives a packet to
// the port with the packet's very VNI first; the chance that one of the
// few netIDs in use here, which are random, is among them is one in a million.
const bareKeys = 10_000_000

// bareDevice begins the names of bare hosts' devices: like pods', so that the
// node's firewall treats them alike.
const bareDevice = "kovbare"

// bareGateway is what bare hosts send everything to; nobody has it.
var bareGateway = netip.MustParseAddr("192.0.2.254")

// bareHost makes a sandbox on a node with the same devices as a pod's: made by
// the same code, offloads off. Its neighbour entry leads straight to peer.
func (b *bench) bareHost(node, device string, ip, peer netip.Addr, mtu int) (h host, err error) {
	b.pods++
	p, err := b.lab.NewSandbox(node, "bare", fmt.Sprintf("p%d", b.pods), netlab.PodOptions{})
	if err != nil {
		return host{}, err
	}
	n, err := b.lab.Node(node)
	if err != nil {
		return host{}, err
	}
	outside, err := link.Open("/run/netns/" + n.Netns)
	if err != nil {
		return host{}, err
	}
	defer func() { err = errors.Join(err, outside.Close()) }()
	inside, err := link.Open(p.Sandbox())
	if err != nil {
		return host{}, err
	}
	defer func() { err = errors.Join(err, inside.Close()) }()
	if err := outside.CreateVeth(device, inside, link.VethSpec{PeerName: "eth0", MAC: topology.MAC(ip), MTU: mtu}); err != nil {
		return host{}, err
	}
	_, err = inside.ConfigureSandbox(link.SandboxSpec{
		Name: "eth0", MAC: topology.MAC(ip), MTU: mtu, Address: ip, Gateway: bareGateway, GatewayMAC: topology.MAC(peer), OffloadsOff: true,
	})
	return host{p.Netns, ip}, err
}

// bareBridge makes a bridge with two ports, each of which gives to the other.
func (b *bench) bareBridge(ctx context.Context, node, name string, ports [2][]string) error {
	args := []string{"add-br", name, "--", "set", "bridge", name, "datapath_type=netdev", "fail_mode=secure"}
	for i, p := range ports {
		args = append(args, "--", "add-port", name, p[0], "--", "set", "interface", p[0], fmt.Sprintf("ofport_request=%d", i+1))
		args = append(args, p[1:]...)
	}
	if _, err := b.lab.OVS(node).VSCtl(ctx, args...); err != nil {
		return err
	}
	for i := range ports {
		if _, err := b.lab.OVS(node).OFCtl(ctx, "add-flow", name, fmt.Sprintf("in_port=%d,actions=output:%d", i+1, 2-i)); err != nil {
			return err
		}
	}
	return nil
}

// barePair makes two hosts, one on n1 and one on node to, each on a two-flow
// bridge. On two nodes a tunnel joins the bridges.
func (b *bench) barePair(ctx context.Context, to string, mtu int) (path, error) {
	b.bares++
	// 192.0.2.0/24 is set aside for such uses (RFC 5737).
	ips := [2]netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(2*b.bares - 1)}), netip.AddrFrom4([4]byte{192, 0, 2, byte(2 * b.bares)})}
	bridge := fmt.Sprintf("br-bare%d", b.bares)
	var hosts [2]host
	var devices [2]string
	for i, node := range []string{"n1", to} {
		devices[i] = fmt.Sprintf("%s%d%c", bareDevice, b.bares, 'a'+i)
		var err error
		if hosts[i], err = b.bareHost(node, devices[i], ips[i], ips[1-i], mtu); err != nil {
			return path{}, err
		}
	}
	p := path{from: hosts[0], to: hosts[1]}
	if to == "n1" {
		return p, b.bareBridge(ctx, "n1", bridge, [2][]string{{devices[0]}, {devices[1]}})
	}
	for i, node := range []string{"n1", to} {
		other, err := b.lab.Node([]string{to, "n1"}[i])
		if err != nil {
			return path{}, err
		}
		tunnel := []string{
			fmt.Sprintf("vxbare%d", b.bares), "type=vxlan", "options:remote_ip=" + other.VTEP.String(),
			fmt.Sprintf("options:key=%d", bareKeys+b.bares),
		}
		if err := b.bareBridge(ctx, node, bridge, [2][]string{{devices[i]}, tunnel}); err != nil {
			return path{}, err
		}
	}
	return p, nil
}

// removeBare takes the bare bridges away.
func (b *bench) removeBare(ctx context.Context) error {
	var errs []error
	for _, node := range []string{"n1", "n2"} {
		for i := range b.bares {
			_, err := b.lab.OVS(node).VSCtl(ctx, "--if-exists", "del-br", fmt.Sprintf("br-bare%d", i+1))
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
