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

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// Devices are the node's network devices; [link.NS] is one.
type Devices interface {
	Link(name string) (link.Link, bool, error)
	LinkByIndex(index int) (link.Link, bool, error)
	Speed(name string) (bits uint64, ok bool, err error)
	RootQdiscs() ([]link.RootQdisc, error)
	AddHFSC(name string, major, deflt uint16) error
	DeleteHFSC(name string, major uint16) error
	HFSCClasses(name string) ([]link.HFSCClass, error)
	SetHFSCClass(name string, major uint16, c link.HFSCClass) error
	QueueFairly(name string, major, minor uint16) error
	DeleteHFSCClass(name string, major, minor uint16) error
}

// Uplink is the sharing of one node. It belongs to one goroutine.
type Uplink struct {
	devices Devices
	rate    Rate
	log     *slog.Logger
	// unable is why it cannot be done at all.
	unable string
	was    state
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
	return &Uplink{devices: devices, rate: rate, log: log}
}

// Ensure shares the device between the pods and returns the rate that they share,
// bits per second, or 0 where they do not. It changes only what differs, and takes
// its tree from every other device. pods is nil while they are not known, and their
// classes stay then. Call it every few seconds, and when pods, tenants or devices
// changed.
func (u *Uplink) Ensure(device string, pods []Pod) (rate uint64, err error) {
	now, err := u.ensure(device, pods)
	if err != nil {
		return 0, fmt.Errorf("sharing the uplink: %w", err)
	}
	warn := now.warn || u.rate.Bits > 0
	now.warn = false
	if now != u.was {
		u.say(now, warn)
		u.was = now
	}
	return now.rate, nil
}

// Deny says why the uplink cannot be shared at all.
func (u *Uplink) Deny(why string) { u.unable = why }

// Remove takes the tree from every device.
func (u *Uplink) Remove() error {
	roots, err := u.devices.RootQdiscs()
	if err != nil {
		return err
	}
	return u.removeBut(roots, 0)
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
	roots, err := u.devices.RootQdiscs()
	if err != nil {
		return state{}, err
	}
	if !ok || l.Loopback {
		return state{device: device, why: "the node's address is not on a device that leads outside"}, u.removeBut(roots, 0)
	}
	rate, why, err := u.rateOf(device)
	if err != nil {
		return state{}, err
	}
	i := slices.IndexFunc(roots, func(q link.RootQdisc) bool { return q.Link == l.Index })
	ours := i >= 0 && isOurs(roots[i])
	if why == "" && i >= 0 && !ours && roots[i].Major != 0 {
		why = fmt.Sprintf("it has a queueing discipline of somebody else: %s %x:", roots[i].Kind, roots[i].Major)
		return state{device: device, why: why, warn: true}, u.removeBut(roots, 0)
	}
	if why != "" {
		return state{device: device, why: why}, u.removeBut(roots, 0)
	}
	if err := u.removeBut(roots, l.Index); err != nil {
		return state{}, err
	}
	if !ours {
		err = u.devices.AddHFSC(device, major, own)
	}
	if err == nil {
		err = u.bring(device, pods, rate)
	}
	if err == nil {
		return state{device: device, rate: rate}, nil
	}
	// A tree that cannot be changed is worse than none: it is made anew.
	err = errors.Join(err, u.devices.DeleteHFSC(device, major))
	if errors.Is(err, link.ErrNoHFSC) {
		u.Deny(err.Error())
		return state{device: device, why: u.unable, warn: true}, nil
	}
	return state{}, err
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
func (u *Uplink) bring(device string, pods []Pod, rate uint64) error {
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

// removeBut takes our tree from all devices but the one with index keep.
func (u *Uplink) removeBut(roots []link.RootQdisc, keep int) error {
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
	return errors.Join(errs...)
}

// isOurs: nobody else has this number for what has no class.
func isOurs(q link.RootQdisc) bool {
	return q.Kind == "hfsc" && q.Major == major && q.Default == own
}
