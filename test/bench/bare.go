package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// barePath gives the pods of a pair a second address each, and the pair's two ports two flows
// that stand before the whole pipeline: what comes from the one goes to the other, over the tunnel
// where they are on two nodes. That is what a bridge with two ports and two flows does, and its
// packets take the same devices, so nothing but the pipeline differs. The pods know each other's
// hardware address, so nothing of a packet is changed on the way. The agents would take the flows
// out: see withoutAgents.
func (b *bench) barePath(ctx context.Context, pair podPair) (path, error) {
	b.bares++
	pods := [2]netlab.Pod{pair.from, pair.to}
	var hosts [2]host
	for i, p := range pods {
		// 192.0.2.0/24 is set aside for such uses (RFC 5737).
		hosts[i] = host{p.Netns, netip.AddrFrom4([4]byte{192, 0, 2, byte(2*b.bares + i)})}
	}
	for i, p := range pods {
		own, peer := hosts[i].ip, hosts[1-i].ip
		err := ns.IP(ctx, p.Netns,
			fmt.Sprintf("address add %s/32 dev eth0", own),
			fmt.Sprintf("route add %s dev eth0 src %s", peer, own),
			fmt.Sprintf("neighbour add %s dev eth0 lladdr %s nud permanent", peer, pods[1-i].MAC))
		if err == nil {
			err = b.bareFlows(ctx, p, pods[1-i], own, peer)
		}
		if err != nil {
			return path{}, err
		}
	}
	return path{from: hosts[0], to: hosts[1]}, nil
}

// bareFlows lets a pod's node give its packets from own to peer, and peer's to it.
func (b *bench) bareFlows(ctx context.Context, pod, other netlab.Pod, own, peer netip.Addr) error {
	const flow = "cookie=%#x,priority=65535,ip,in_port=%s,nw_src=%s,actions=%s"
	if other.Node == pod.Node {
		return b.addFlow(ctx, pod.Node, flow, addedCookie, pod.HostInterface, own, "output:"+other.HostInterface)
	}
	there, err := b.lab.Node(other.Node)
	if err != nil {
		return err
	}
	tunnel := fmt.Sprintf("set_field:%#x->tun_id,set_field:%s->tun_dst,output:vxlan0", addedValue, there.VTEP)
	if err := b.addFlow(ctx, pod.Node, flow, addedCookie, pod.HostInterface, own, tunnel); err != nil {
		return err
	}
	return b.addFlow(ctx, pod.Node, flow, addedCookie, "vxlan0", peer, "output:"+pod.HostInterface)
}

// addFlow adds a flow to a node's br0, as ovs-ofctl writes it.
func (b *bench) addFlow(ctx context.Context, node, format string, args ...any) error {
	_, err := b.lab.OVS(node).OFCtl(ctx, "add-flow", "br0", fmt.Sprintf(format, args...))
	return err
}

// removeAdded takes out of a node's br0 the flows that this program put in.
func (b *bench) removeAdded(ctx context.Context, node string) error {
	_, err := b.lab.OVS(node).OFCtl(ctx, "del-flows", "br0", fmt.Sprintf("cookie=%#x/-1", addedCookie))
	return err
}

// withoutAgents calls f while no agent runs, which would put the flows right, and takes out
// afterwards what f has added to them.
func (b *bench) withoutAgents(ctx context.Context, f func() error) error {
	nodes := []string{"n1", "n2"}
	for _, n := range nodes {
		if err := b.lab.Agent(n).Stop(); err != nil {
			return err
		}
	}
	if err := f(); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := b.removeAdded(ctx, n); err != nil {
			return err
		}
		if err := b.startAgent(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) startAgent(ctx context.Context, node string) error {
	if b.inDaemonSet {
		return b.lab.Agent(node).StartInCluster(ctx, b.bin)
	}
	return b.lab.Agent(node).Start(ctx)
}
