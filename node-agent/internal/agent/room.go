package agent

import (
	"context"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/packetsock"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// Room for packets that wait for the userspace datapath, bytes. A pod fills only
// its own; the uplink's is for all peers at once.
const (
	// podRoom is 1365 small packets, or 455 of 1500 bytes.
	podRoom = 1 << 20
	// uplinkRoom is 10,900 small packets, or 3640 of 1500 bytes: 44 ms at 1 Gbit/s.
	uplinkRoom = 8 << 20
)

// makeRoom gives packets room while they wait for ovs-vswitchd, and counts those that
// had none. ovs-vswitchd makes a port's socket, with the machine's default size, when it
// takes the port in or follows its MTU, so every pass looks at all of them. Without it
// the node works; it loses packets as soon as ovs-vswitchd is busy.
func (n *node) makeRoom(ctx context.Context) {
	if n.datapath != ovs.DatapathNetdev {
		return
	}
	found, err := n.tendSockets(ctx)
	n.metrics.missed.Add(float64(found.Missed))
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && said != n.noRoom {
		n.log.Warn("packets have little room while they wait for ovs-vswitchd: some are lost whenever it is busy", "error", err)
	}
	n.noRoom = said
}

func (n *node) tendSockets(ctx context.Context) (packetsock.Found, error) {
	pid, err := n.ovs.ProcessID(ctx)
	if err != nil {
		return packetsock.Found{}, err
	}
	uplink := 0
	if name := n.agreement.under.Uplink; name != "" {
		l, _, err := n.host.Link(name)
		if err != nil {
			return packetsock.Found{}, err
		}
		uplink = l.Index
	}
	return packetsock.Tend(pid, func(ifindex int) int {
		if ifindex == uplink {
			return uplinkRoom
		}
		return podRoom
	})
}
