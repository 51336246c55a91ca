package exits

import (
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// explain looks for what keeps packets back that did not pass, of the first way that is closed.
func (c *Check) explain(gw Gateway, way link.Path, got passes) error {
	lost, why := "", ""
	switch outside := way.Link.Name; {
	case !got.out:
		lost = "what pods send to the outside does not get out of the node"
		why = c.closedOut(gw.Device, outside)
	case !got.back:
		lost = "answers to what pods send to the outside do not get back to them"
		why = c.closedBack(gw.Device, outside)
	case !got.toPods:
		lost = "what the node sends to its pods does not get to them, so the kubelet's probes fail"
		why = fmt.Sprintf("somebody's firewall or routing rules keep back what leaves by %[1]s; have it accepted (iptables -I OUTPUT -o %[1]s -j ACCEPT, or the same in nft list ruleset)", gw.Device)
	default:
		lost = "what its pods answer the node does not get to it, so the kubelet's probes fail"
		why = fmt.Sprintf("somebody's firewall drops what comes in by %[1]s; have it accept at least what belongs to connections that the node began (iptables -I INPUT -i %[1]s -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT, or the same in nft list ruleset)", gw.Device)
	}
	if used, size, full := c.full(); full {
		why = fmt.Sprintf("the node's connection table is full (%d connections of %d), and the kernel drops what would begin another; give it more room (sysctl -w net.netfilter.nf_conntrack_max=NUMBER), or see whose they are (conntrack -L)", used, size)
	}
	return fmt.Errorf("%s: %s", lost, why)
}

// full reports whether the node's connection table has no room: hardly any, as some connections end while others
// are refused.
func (c *Check) full() (used, size uint64, full bool) {
	used, size, err := c.host.Fill()
	return used, size, err == nil && size > 0 && used >= size-size/20
}

// accept is what a firewall has to have for pods.
func accept(gateway string) string {
	return fmt.Sprintf("where a FORWARD chain drops by default, have it accept what comes from and goes to %[1]s (iptables -I FORWARD -i %[1]s -j ACCEPT; iptables -I FORWARD -o %[1]s -j ACCEPT, or the same in nft list ruleset)", gateway)
}

// closedOut is what keeps packets from gateway to the device outside.
func (c *Check) closedOut(gateway, outside string) string {
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/" + gateway + "/forwarding"} {
		if value, err := c.host.Sysctl(key); err == nil && value != "1" {
			return fmt.Sprintf("%s is %s; set it to 1", key, value)
		}
	}
	return fmt.Sprintf("somebody's firewall or routing rules keep packets from %s to %s back, or have them untracked (notrack), so that they cannot be given the node's address; %s", gateway, outside, accept(gateway))
}

// closedBack is what keeps answers that come in by the device outside from gateway.
func (c *Check) closedBack(gateway, outside string) string {
	key := "net/ipv4/conf/" + outside + "/forwarding"
	if value, err := c.host.Sysctl(key); err == nil && value != "1" {
		return fmt.Sprintf("%s is %s; set it to 1", key, value)
	}
	return fmt.Sprintf("somebody's firewall, or its reverse path filter, drops packets from %s to %s; %s", outside, gateway, accept(gateway))
}
