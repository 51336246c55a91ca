package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// portAlone measures what of an ADD is Open vSwitch's: a veth is made and put
// on a bridge of n1 that has nothing else, until it has its OpenFlow number. No
// plugin, no agent, no flows. The bridge is another one, but ovs-vswitchd looks at
// all ports of all bridges whenever a device or a port comes.
func (b *bench) portAlone(ctx context.Context) (took []time.Duration, err error) {
	const bridge = "br-port"
	if _, err := b.lab.OVS("n1").VSCtl(ctx, "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev", "fail_mode=secure"); err != nil {
		return nil, err
	}
	defer func() {
		_, gone := b.lab.OVS("n1").VSCtl(ctx, "del-br", bridge)
		err = errors.Join(err, gone)
	}()
	client, err := ovs.Connect(ctx, ovs.Config{Endpoint: b.lab.OVS("n1").DB()})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	node, err := b.lab.Node("n1")
	if err != nil {
		return nil, err
	}
	outside, err := link.Open(ns.Path(node.Netns))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, outside.Close()) }()
	boxes, err := b.sandboxes(1, func(int) string { return "bare" })
	if err != nil {
		return nil, err
	}
	inside, err := link.Open(boxes[0].pod.Sandbox())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, inside.Close()) }()
	spec := link.VethSpec{PeerName: "eth0", MAC: topology.MAC(netip.MustParseAddr("192.0.2.254")), MTU: 1450}
	for i := range b.times(60, 6) {
		device := fmt.Sprintf("kovbarep%d", i)
		began := time.Now()
		if err := outside.CreateVeth(device, inside, spec); err != nil {
			return nil, err
		}
		if err := client.AddPort(ctx, bridge, ovs.PortSpec{Name: device}); err != nil {
			return nil, err
		}
		if _, err := client.WaitOfport(ctx, device); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
		if err := client.DeletePort(ctx, bridge, device); err != nil {
			return nil, err
		}
		if err := outside.DeleteVeth(device); err != nil {
			return nil, err
		}
	}
	return took, nil
}
