package plugin

import (
	"io"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
)

// Indexes into the interfaces of a result.
const (
	hostInterface = iota
	sandboxInterface
)

// printResult writes the result in the version of the configuration.
func printResult(w io.Writer, r cniapi.Result, c conf) error {
	// An older version's result has no MTU fields, though the library's type has.
	withMTU, err := version.GreaterThanOrEqualTo(c.CNIVersion, "1.1.0")
	if err != nil {
		return cniapi.Errorf(cniapi.CodeDecode, "cniVersion: %w", err)
	}
	res, err := toResult(r, c.DNS, withMTU).GetAsVersion(c.CNIVersion)
	if err != nil {
		return cniapi.Errorf(cniapi.CodeIncompatibleVersion, "cniVersion: %w", err)
	}
	if err := res.PrintTo(w); err != nil {
		return cniapi.Errorf(cniapi.CodeIO, "writing the result: %w", err)
	}
	return nil
}

// toResult is the result in the newest form.
func toResult(r cniapi.Result, dns types.DNS, withMTU bool) *types100.Result {
	mtu := func(n int) int {
		if withMTU {
			return n
		}
		return 0
	}
	res := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			hostInterface:    {Name: r.HostIfName, Mac: r.HostMAC.String(), Mtu: mtu(r.MTU)},
			sandboxInterface: {Name: r.SandboxIfName, Mac: r.MAC.String(), Mtu: mtu(r.MTU), Sandbox: r.Sandbox},
		},
		DNS: dns,
	}
	for _, a := range r.IPs {
		res.IPs = append(res.IPs, &types100.IPConfig{Interface: types100.Int(sandboxInterface), Address: ipNet(a.Address), Gateway: ip(a.Gateway)})
	}
	for _, rt := range r.Routes {
		res.Routes = append(res.Routes, &types.Route{Dst: ipNet(rt.Dst), GW: ip(rt.GW), MTU: mtu(rt.MTU)})
	}
	return res
}

// ip is nil for the zero address.
func ip(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: ip(p.Addr()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
