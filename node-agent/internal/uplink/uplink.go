// Package uplink lets the pods of a node share the uplink fairly when they
// overload it: by tenant, and then by pod.
//
// It owns one hfsc tree, at the root of the device with the VTEP address: a class
// for each tenant with pods here, in it one for each pod, and one beside the
// tenants for what is the node's own. Packets find their class by their priority,
// which the bridge and the firewall set; one without a class is in the node's. The
// package never touches a discipline that somebody else configured.
package uplink

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/tc"
)

// Devices are the node's network devices with their traffic control; [link.NS] and [tc.Control] are.
type Devices interface {
	Link(name string) (link.Link, bool, error)
	LinkByIndex(index int) (link.Link, bool, error)
	Speed(name string) (bits uint64, ok bool, err error)
	RootQdisc(name string) (tc.RootQdisc, error)
	RootQdiscs() ([]tc.RootQdisc, error)
	AddHFSC(name string, major uint16, classes ...tc.HFSCClass) error
	DeleteHFSC(name string, major uint16) error
	HFSCClasses(name string) ([]tc.HFSCClass, error)
	SetHFSCClass(name string, major uint16, c tc.HFSCClass) error
	QueueFairly(name string, major, minor uint16) error
	DeleteHFSCClass(name string, major, minor uint16) error
}

// Pauses after a failure: the first, and the longest. A tree that fails when it is
// new is taken away again, and each time costs the node packets.
const firstPause, maxPause = time.Second, time.Minute

// Uplink is the sharing of one node. It belongs to one goroutine.
type Uplink struct {
	devices Devices
	rate    Rate
	log     *slog.Logger
	// unable is why it cannot be done at all.
	unable string
	was    state
	// only is the index of the one device that may have the tree, 0 for none; it is
	// nowhere else. Negative before that is known.
	only   int
	failed failure
	pauses backoff.Pauses
}

// failure is the last one, if the last attempt failed.
type failure struct {
	device string
	err    error
	until  time.Time
}

// state is what was said about the uplink.
type state struct {
	device string
	rate   uint64
	// why it is not shared, and whether somebody should see to that.
	why  string
	warn bool
}

// New makes an Uplink.
func New(devices Devices, rate Rate, log *slog.Logger) *Uplink {
	return &Uplink{devices: devices, rate: rate, log: log, only: -1, pauses: backoff.Pauses{First: firstPause, Last: maxPause}}
}

// Ensure shares the device between the pods and returns the rate that they share,
// bits per second, or 0 where they do not. It changes only what differs, and takes
// its tree from every other device. pods is nil while they are not known, and their
// classes stay then. Call it every few seconds, and when pods, tenants or devices
// changed. After an error it does nothing and returns the same for a while, which
// grows to a minute.
func (u *Uplink) Ensure(device string, pods []Pod) (rate uint64, err error) {
	if u.failed.device == device && time.Now().Before(u.failed.until) {
		return 0, u.failed.err
	}
	now, err := u.ensure(device, pods)
	if err != nil {
		return 0, u.fail(device, fmt.Errorf("sharing the uplink: %w", err))
	}
	u.failed = failure{}
	u.pauses.Reset()
	warn := now.warn || u.rate.Bits > 0
	now.warn = false
	if now != u.was {
		u.say(now, warn)
		u.was = now
	}
	return now.rate, nil
}

func (u *Uplink) fail(device string, err error) error {
	if u.failed.device != device {
		u.pauses.Reset()
	}
	u.failed = failure{device: device, err: err, until: time.Now().Add(u.pauses.Next())}
	return err
}

// Deny says why the uplink cannot be shared at all.
func (u *Uplink) Deny(why string) { u.unable = why }

// Remove takes the tree from every device.
func (u *Uplink) Remove() error {
	u.only = -1
	return u.keepOnly(0)
}

func (u *Uplink) say(now state, warn bool) {
	const unshared = "pods do not share the uplink fairly"
	switch {
	case now.rate > 0:
		u.log.Info("pods share the uplink by tenant", "link", now.device, "rate", now.rate)
	case warn:
		u.log.Warn(unshared, "link", now.device, "why", now.why)
	default:
		u.log.Info(unshared, "link", now.device, "why", now.why)
	}
}

func (u *Uplink) ensure(device string, pods []Pod) (state, error) {
	l, ok, err := u.devices.Link(device)
	if err != nil {
		return state{}, err
	}
	if !ok || l.Loopback {
		return state{device: device, why: "the node's address is not on a device that leads outside"}, u.keepOnly(0)
	}
	rate, why, err := u.rateOf(device)
	if err != nil {
		return state{}, err
	}
	q, err := u.devices.RootQdisc(device)
	if err != nil {
		return state{}, err
	}
	if why == "" && q.Major != 0 && !isOurs(q) {
		why = fmt.Sprintf("it has a queueing discipline of somebody else: %s %x:", q.Kind, q.Major)
		return state{device: device, why: why, warn: true}, u.keepOnly(0)
	}
	if why != "" {
		return state{device: device, why: why}, u.keepOnly(0)
	}
	if err := u.keepOnly(l.Index); err != nil {
		return state{}, err
	}
	err = u.grow(device, pods, rate, !isOurs(q))
	if errors.Is(err, tc.ErrNoHFSC) {
		u.Deny(err.Error())
		return state{device: device, why: u.unable, warn: true}, nil
	}
	return state{device: device, rate: rate}, err
}

// grow makes the tree what it should be; fresh where there is none. One that is new
// and cannot be finished goes again, as does one that loses what has no class. Any
// other stays after an error: it does most of what it should, and to take it away
// loses packets.
func (u *Uplink) grow(device string, pods []Pod, rate uint64, fresh bool) error {
	if fresh {
		if err := u.devices.AddHFSC(device, major, trunk(rate)...); err != nil {
			return err
		}
	}
	err := u.bring(device, pods, rate, fresh)
	switch {
	case err == nil:
		return nil
	case fresh || u.loses(device):
		return errors.Join(err, u.devices.DeleteHFSC(device, major))
	}
	return fmt.Errorf("%w (the classes stay; to have all made anew: tc qdisc del dev %s root)", err, device)
}

// loses reports whether the tree has no class for the rest. Where that cannot be
// read it most likely has.
func (u *Uplink) loses(device string) bool {
	have, err := u.devices.HFSCClasses(device)
	return err == nil && !slices.ContainsFunc(have, func(c tc.HFSCClass) bool { return c.Minor == own })
}

// rateOf is the rate to share, or why there is none.
func (u *Uplink) rateOf(device string) (rate uint64, why string, err error) {
	switch {
	case u.rate.Off:
		return 0, "--uplink-rate=off", nil
	case u.unable != "":
		return 0, u.unable, nil
	case u.rate.Bits > 0:
		return u.rate.Bits, "", nil
	}
	rate, known, err := u.devices.Speed(device)
	switch {
	case err != nil:
		return 0, "", err
	case !known:
		return 0, "the speed of the link is not known: name it with --uplink-rate", nil
	case rate > MaxAuto:
		return 0, fmt.Sprintf("one queue for a link of %d bit/s costs more than it is worth: ask for it with --uplink-rate", rate), nil
	}
	return rate, "", nil
}

// bring makes the classes of the device's tree what they should be.
func (u *Uplink) bring(device string, pods []Pod, rate uint64, fresh bool) error {
	if fresh {
		if err := u.devices.QueueFairly(device, major, own); err != nil {
			return err
		}
	}
	have, err := u.devices.HFSCClasses(device)
	if err != nil {
		return err
	}
	for _, c := range plan(have, pods, rate) {
		if c.remove {
			err = u.devices.DeleteHFSCClass(device, major, c.class.Minor)
		} else {
			err = u.devices.SetHFSCClass(device, major, c.class)
		}
		if err == nil && c.queue {
			err = u.devices.QueueFairly(device, major, c.class.Minor)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keepOnly takes our tree from all devices but the one with index keep, 0 for none.
// As nobody else makes one it looks for others only when the device is another.
func (u *Uplink) keepOnly(keep int) error {
	if u.only == keep {
		return nil
	}
	roots, err := u.devices.RootQdiscs()
	if err != nil {
		return err
	}
	var errs []error
	for _, q := range roots {
		if q.Link == keep || !isOurs(q) {
			continue
		}
		l, ok, err := u.devices.LinkByIndex(q.Link)
		if err == nil && ok {
			err = u.devices.DeleteHFSC(l.Name, major)
		}
		errs = append(errs, err)
	}
	if err = errors.Join(errs...); err == nil {
		u.only = keep
	}
	return err
}

// isOurs: nobody else has this number for what has no class.
func isOurs(q tc.RootQdisc) bool {
	return q.Kind == "hfsc" && q.Major == major && q.Default == own
}
