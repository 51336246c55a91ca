// Package podroutes tells whether what the node itself has for pods goes to the bridge: its own packets, and
// what it forwards to them, which is answers from outside and what comes to ports of the node. The node has one
// route to all pods. Somebody's route to a part of them, or a rule of routing, has precedence over it: of
// WireGuard's AllowedIPs, of a network of Docker or libvirt, by hand.
//
// It looks and judges, and changes nothing: that route has an owner. The service network needs no look: what
// goes there is translated before it is routed, by the bridge or by kube-proxy.
package podroutes

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Host is the node's routes; [link.NS] has them.
type Host interface {
	Parts(network netip.Prefix) ([]link.Part, error)
	Ruled() (bool, error)
	PathsTo(src netip.Addr, ips []netip.Addr) map[netip.Addr]link.Path
	// PathTo says why there is no path; [link.ErrNoRoute] where the node's routes lead nowhere.
	PathTo(ip netip.Addr) (link.Path, error)
	PathOf(src netip.Addr, device string, ip netip.Addr) (link.Path, error)
}

// Pods are those that packets are to reach.
type Pods struct {
	// Device leads to all of them: the bridge's gateway port.
	Device string
	// Network has them all, Own those of this node, Subnets those of all nodes.
	Network, Own netip.Prefix
	Subnets      []netip.Prefix
	// Outside is the device by which answers come in from Beyond, an address that is not of this network; empty
	// for none.
	Outside string
	Beyond  netip.Addr
}

// Check is nil where the node's packets to pods go to the bridge; else it says what leads them elsewhere, and
// what to do.
//
// It lists the node's routes once, whatever the number of nodes: where only the kernel's own rules are in force
// nothing else decides. The kernel itself is asked of the ends of the node's own subnet, for its own packets and
// for answers; of those of all others', some 30 microseconds each, only where there are further rules.
func Check(host Host, pods Pods) error {
	parts, err := host.Parts(pods.Network)
	if err != nil {
		return err
	}
	for _, part := range parts {
		if part.Device == pods.Device {
			continue
		}
		// A route that no node's subnet has anything to do with takes no packet from a pod.
		if subnet, ok := overlapped(pods, part.Dst); ok {
			return partial(pods, part, subnet)
		}
	}
	asked := []netip.Prefix{pods.Own}
	ruled, err := host.Ruled()
	if err != nil {
		return err
	}
	if ruled {
		asked = append(asked, pods.Subnets...)
	}
	return ask(host, pods, asked)
}

// overlapped is the subnet of pods that dst has a part in, the node's own first.
func overlapped(pods Pods, dst netip.Prefix) (netip.Prefix, bool) {
	if pods.Own.Overlaps(dst) {
		return pods.Own, true
	}
	i := slices.IndexFunc(pods.Subnets, dst.Overlaps)
	if i < 0 {
		return netip.Prefix{}, false
	}
	return pods.Subnets[i], true
}

func partial(pods Pods, part link.Part, subnet netip.Prefix) error {
	if part.Local {
		return fmt.Errorf("the node itself has the address %s, on %s, which is of the pods of %s: what it has for a pod with that address does not reach it; take it away (ip address del %s/LENGTH dev %s), or give what made it another network than the pods' %s",
			part.Dst.Addr(), part.Device, subnet, part.Dst.Addr(), part.Device, pods.Network)
	}
	where, del := " by "+part.Device, " dev "+part.Device
	if part.Device == "" {
		where, del = " that drops packets", ""
	}
	return fmt.Errorf("the node has a route to %s%s, which are addresses of pods (%s): what it has for them, answers from outside too, does not reach them; take it away (ip route del %s%s), or give what made it (WireGuard's AllowedIPs, a network of Docker or libvirt) another network than the pods' %s",
		part.Dst, where, subnet, part.Dst, del, pods.Network)
}

// ask has the kernel say where packets to the ends of subnets go.
func ask(host Host, pods Pods, subnets []netip.Prefix) error {
	var ends []netip.Addr
	for _, s := range subnets {
		ends = append(ends, s.Masked().Addr(), topology.ForwarderOf(s))
	}
	ways := host.PathsTo(netip.Addr{}, ends)
	for i, ip := range ends {
		way, ok := ways[ip]
		if !ok {
			var err error
			if way, err = host.PathTo(ip); err != nil && !errors.Is(err, link.ErrNoRoute) {
				return fmt.Errorf("whether the node's routes lead packets to pods cannot be seen: %w", err)
			}
		}
		if way.Link.Name != pods.Device {
			return elsewhere(pods, subnets[i/2], ip, way.Link.Name, "")
		}
	}
	if pods.Outside == "" {
		return nil
	}
	for _, ip := range ends[:2] { // those of the node's own subnet
		way, err := host.PathOf(pods.Beyond, pods.Outside, ip)
		switch {
		case errors.Is(err, link.ErrNoRoute): // perhaps for where it comes from: that answers do not come back the exits tell
		case err != nil:
			return err
		case way.Link.Name != pods.Device:
			return elsewhere(pods, pods.Own, ip, way.Link.Name, fmt.Sprintf(" from %s iif %s", pods.Beyond, pods.Outside))
		}
	}
	return nil
}

func elsewhere(pods Pods, subnet netip.Prefix, ip netip.Addr, device, from string) error {
	return fmt.Errorf("the node's routes and rules lead packets to %s, an address of the pods of %s, to %s and not to %s: such packets do not reach pods; see ip route get %s%s, and take away the rule of ip rule list, or the route, that does",
		ip, subnet, cmp.Or(device, "nowhere"), pods.Device, ip, from)
}
