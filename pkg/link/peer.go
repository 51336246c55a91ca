package link

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// HostEnd is the device of n that is the other end of the sandbox's veth device peerName, whatever
// its name; ok is false where there is none, as where a pod has put a device of its own in the place,
// or where that device has another hardware address than mac: the path of a sandbox may by now lead to
// somebody else's. The sandbox is only asked where to look: that the two are a pair is what the kernel
// says of the device in n, which nobody in a sandbox can forge.
func (n *NS) HostEnd(sandbox *NS, peerName string, mac net.HardwareAddr) (l Link, ok bool, err error) {
	inside, err := sandbox.nl.LinkByName(peerName)
	if notFound(err) {
		return Link{}, false, nil
	}
	if err != nil {
		return Link{}, false, fmt.Errorf("network device %s of sandbox %s: %w", peerName, sandbox.path, err)
	}
	peer := inside.Attrs()
	if inside.Type() != "veth" || peer.ParentIndex <= 0 || !bytes.Equal(peer.HardwareAddr, mac) {
		return Link{}, false, nil
	}
	// A sandbox without a number has no pair with n.
	id, err := n.nl.GetNetNsIdByFd(int(sandbox.file.Fd()))
	if err != nil || id < 0 {
		if err != nil {
			err = fmt.Errorf("number of sandbox %s: %w", sandbox.path, err)
		}
		return Link{}, false, err
	}
	raw, err := n.nl.LinkByIndex(peer.ParentIndex)
	if notFound(err) {
		return Link{}, false, nil
	}
	if err != nil {
		return Link{}, false, fmt.Errorf("other end of %s in sandbox %s: %w", peerName, sandbox.path, err)
	}
	end := raw.Attrs()
	if raw.Type() != "veth" || end.NetNsID != id || end.ParentIndex != peer.Index {
		return Link{}, false, nil
	}
	return linkOf(raw), true, nil
}

// DeleteStray removes the sandbox's device peerName, with its other end wherever that is, where it is a veth with that
// hardware address and n has no other end of it; it reports whether it did. What another network plugin made
// has another address, and the pair of a pod that has renamed its devices has its other end in n.
func (n *NS) DeleteStray(sandbox *NS, peerName string, mac net.HardwareAddr) (deleted bool, err error) {
	inside, ok, err := sandbox.Link(peerName)
	if err != nil || !ok || inside.Type != "veth" || !bytes.Equal(inside.MAC, mac) {
		return false, err
	}
	if _, ok, err := n.HostEnd(sandbox, peerName, mac); ok || err != nil {
		return false, err
	}
	if err := sandbox.nl.LinkDel(byIndex(inside)); err != nil && !notFound(err) {
		return false, fmt.Errorf("deleting %s in sandbox %s: %w", peerName, sandbox.path, err)
	}
	return true, nil
}

// Rename gives the device another name. It may be down afterwards: before Linux 6.2 only a
// device that is down takes another name.
func (n *NS) Rename(l Link, name string) error {
	err := n.nl.LinkSetName(byIndex(l), name)
	if errors.Is(err, unix.EBUSY) {
		if err = n.nl.LinkSetDown(byIndex(l)); err == nil {
			err = n.nl.LinkSetName(byIndex(l), name)
		}
	}
	if err != nil {
		return fmt.Errorf("renaming %s to %s: %w", l.Name, name, err)
	}
	return nil
}

// Free takes the device out of what it is a port of; one that is no port is no error.
func (n *NS) Free(name string) error {
	l, err := n.Existing(name)
	if err != nil || l.Master == 0 {
		return err
	}
	if err := n.nl.LinkSetNoMaster(byIndex(l)); err != nil {
		return fmt.Errorf("taking %s out of device %d, which it is a port of: %w", name, l.Master, err)
	}
	return nil
}
