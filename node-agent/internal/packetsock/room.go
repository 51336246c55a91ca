package packetsock

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// What packets that wait for the userspace datapath have, bytes. A pod fills only
// its own; the uplink's is for all peers at once.
const (
	// podRoom is 1365 small packets, or 455 of 1500 bytes.
	podRoom = 1 << 20
	// uplinkRoom is 10,900 small packets, or 3640 of 1500 bytes: 44 ms at 1 Gbit/s.
	uplinkRoom = 8 << 20
)

// Switch is asked which process is ovs-vswitchd; [ovs.Client] is one.
type Switch interface {
	ProcessID(ctx context.Context) (int, error)
}

// Host knows devices; [link.NS] is one.
type Host interface {
	Link(name string) (link.Link, bool, error)
}

// Room is what packets have while they wait for ovs-vswitchd. It belongs to one goroutine.
type Room struct {
	Switch Switch
	Host   Host
	// Missed counts packets that had none.
	Missed prometheus.Counter
	Logger *slog.Logger
	failed backoff.Trouble
}

// Make gives packets room while they wait for ovs-vswitchd, and counts those that
// had none; uplink is the device by which peers' come in, empty for none of its own.
// ovs-vswitchd makes a port's socket, with the machine's default size, when it
// takes the port in or follows its MTU, so every pass looks at all of them. Without it
// the node works; it loses packets as soon as ovs-vswitchd is busy.
func (r *Room) Make(ctx context.Context, uplink string) {
	found, err := r.tendSockets(ctx, uplink)
	r.Missed.Add(float64(found.Missed))
	if r.failed.News(err) {
		r.Logger.Warn("packets have little room while they wait for ovs-vswitchd: some are lost whenever it is busy", "error", err)
	}
}

func (r *Room) tendSockets(ctx context.Context, name string) (Found, error) {
	pid, err := r.Switch.ProcessID(ctx)
	if err != nil {
		return Found{}, err
	}
	uplink := 0
	if name != "" {
		l, _, err := r.Host.Link(name)
		if err != nil {
			return Found{}, err
		}
		uplink = l.Index
	}
	return Tend(pid, func(ifindex int) int {
		if ifindex == uplink {
			return uplinkRoom
		}
		return podRoom
	})
}
