package attach

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
)

// plugAgain makes ports anew that Open vSwitch has refused, though their devices are there: it tries
// again by itself only when a device changes. It comes after the devices were put right. Each attempt has
// ovs-vswitchd look at all ports twice, so those that fail have longer and longer pauses.
func (a *Attacher) plugAgain(ctx context.Context, node Node) (int, error) {
	ports, err := a.ports.Ports(node.Bridge)
	if err != nil {
		return 0, err
	}
	refused := map[string]string{}
	for _, p := range ports {
		if p.Ofport == 0 && p.Error != "" {
			refused[p.Name] = p.Error
		}
	}
	var keys []cniapi.Attachment
	for _, at := range a.List() {
		if refused[at.HostIf()] != "" && at.trouble.port.over() {
			keys = append(keys, at.Attachment)
		}
	}
	var mended atomic.Int32
	err = a.each(ctx, keys, func(ctx context.Context, node Node, at Attachment) error {
		if exists, err := a.kernel.Exists(at.HostIf()); err != nil || !exists {
			return err // see remake
		}
		did, err := a.replug(ctx, node, at)
		if did && err == nil {
			a.log.Warn("Open vSwitch had refused a pod's port: made anew", "tenant", at.Namespace, "pod", at.Pod, "device", at.HostIf(), "why", refused[at.HostIf()])
			mended.Add(1)
		}
		return err
	})
	return int(mended.Load()), err
}

// trouble is what keeps a pod from its network.
type trouble struct {
	// told is what was said last of why it has none.
	told backoff.Trouble
	// port is of a port that Open vSwitch refuses, pair of a device that is deleted as soon as it
	// is made, which was at made.
	port, pair retry
	made       time.Time
}

// retry is when something is worth another attempt. The zero value has made none.
type retry struct {
	pauses backoff.Pauses
	until  time.Time
}

const (
	// What fails again and again is tried again after such pauses.
	firstPause, lastPause = 5 * time.Second, 5 * time.Minute
	// soonGone is how long a device stands that is not deleted at once: there is a look every 5 s.
	soonGone = 10 * time.Second
)

// pause begins the next pause.
func (r *retry) pause() {
	if time.Since(r.until) > lastPause {
		r.pauses = backoff.Pauses{First: firstPause, Last: lastPause}
	}
	r.until = time.Now().Add(r.pauses.Next())
}

// over reports whether no pause is on.
func (r *retry) over() bool { return !time.Now().Before(r.until) }

// complain says once why one pod has no network, which is no reason to keep others from theirs.
func (a *Attacher) complain(at Attachment, why error) {
	news := at.trouble.told.News(why)
	a.put(at)
	if !news {
		return
	}
	a.log.Warn("a pod has no network, and it cannot be put right: delete the pod, so that it is made anew",
		"tenant", at.Namespace, "pod", at.Pod, "addresses", at.Addresses, "device", at.HostIf(), "sandbox", at.Netns, "error", why)
}

// replug makes the port of at anew, and follows its number; did is false where Open vSwitch refuses it.
func (a *Attacher) replug(ctx context.Context, node Node, at Attachment) (did bool, err error) {
	if err := a.ports.DeletePort(ctx, node.Bridge, at.HostIf()); err != nil {
		return false, err
	}
	if err := a.ports.Sync(ctx); err != nil {
		return false, err
	}
	if err := a.ports.AddPort(ctx, node.Bridge, at.port(node)); err != nil {
		return false, err
	}
	port, err := a.awaitNumber(ctx, node, at)
	var refused *ovs.PortError
	if errors.As(err, &refused) {
		at.trouble.port.pause()
		a.complain(at, err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, a.renumber(ctx, node, at, port)
}
