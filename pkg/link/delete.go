package link

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/k8s-ovs/k8s-ovs/pkg/faultpoint"
	"github.com/k8s-ovs/k8s-ovs/pkg/link/internal/dump"
)

// Device names a network device and says of which type it is.
type Device struct{ Name, Type string }

// goingGroup is the group ("group" of ip-link(8)) that devices have when they are about
// to go: a number that nobody else uses by custom.
const goingGroup = 0x6b6f7667

// DeleteDevices removes network devices of n, with their peers, in one request: to remove
// one, the kernel waits some 10 ms until no processor uses it, and all other changes
// of devices with it; of many it waits once. A device that is not there is no error; one
// of another type is left alone, with one. There is one error for each device.
func (n *NS) DeleteDevices(devices ...Device) []error {
	errs := make([]error, len(devices))
	var there []Link
	for i, d := range devices {
		l, ok, err := n.Link(d.Name)
		switch {
		case err != nil:
			errs[i] = err
		case ok && l.Type != d.Type:
			errs[i] = fmt.Errorf("network device %s is of type %s, not a %s: left alone", d.Name, l.Type, d.Type)
		case ok:
			there = append(there, l)
		}
	}
	if len(there) == 0 || len(there) > 1 && n.deleteTogether(there) == nil {
		return errs
	}
	// One by one it is known what is wrong with which.
	for i, d := range devices {
		if errs[i] == nil {
			errs[i] = n.DeleteLink(d.Name)
		}
	}
	return errs
}

// deleteTogether makes links a group and removes that.
func (n *NS) deleteTogether(links []Link) error {
	var ours []int
	for _, l := range links {
		err := n.nl.LinkSetGroup(byIndex(l), goingGroup)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("network device %s: %w", l.Name, err)
		}
		faultpoint.Here("device", "to be deleted")
		ours = append(ours, l.Index)
	}
	all, err := dump.Whole(n.nl.LinkList)
	if err != nil {
		return fmt.Errorf("listing network devices: %w", err)
	}
	for _, l := range all {
		if a := l.Attrs(); a.Group == goingGroup && !slices.Contains(ours, a.Index) {
			return fmt.Errorf("network device %s is in the group of those that go, and is to stay", a.Name)
		}
	}
	err = n.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(goingGroup)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting %d network devices: %w", len(links), err)
	}
	return nil
}

// DeleteLink removes a network device of n; with it, its peer. One that is not
// there is no error.
func (n *NS) DeleteLink(name string) error {
	l, ok, err := n.Link(name)
	if err != nil || !ok {
		return err
	}
	if err := n.nl.LinkDel(byIndex(l)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting network device %s: %w", name, err)
	}
	return nil
}

// DeleteVeth is [NS.DeleteLink] for what [NS.CreateVeth] made. It refuses to
// delete a device of another kind, so that a name from a damaged record cannot
// take the node off the network.
func (n *NS) DeleteVeth(hostName string) error {
	return n.DeleteDevices(Device{hostName, "veth"})[0]
}
