package attach

import (
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// result is the answer to ADD. The routes are those in the sandbox's main table.
func result(node Node, at Attachment) *cniapi.Result {
	r := &cniapi.Result{
		HostIfName: at.HostIf(), HostMAC: cniapi.MAC(at.hostMAC),
		SandboxIfName: at.IfName, MAC: cniapi.MAC(at.MAC), Sandbox: at.Netns, MTU: node.MTU.Route,
	}
	for i, address := range at.Addresses {
		gateway := node.Gateways[i]
		r.IPs = append(r.IPs, cniapi.IP{Address: host(address), Gateway: gateway})
		if !at.apart {
			all := netip.PrefixFrom(gateway, 0).Masked()
			r.Routes = append(r.Routes, cniapi.Route{Dst: host(gateway)}, cniapi.Route{Dst: all, GW: gateway})
		}
	}
	return r
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
