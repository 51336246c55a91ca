package attach

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// Mend puts right what others changed of the host's ends: their names, what they are ports of, up,
// their MTU (where w has one), their queueing discipline, that they merge nothing where it may not be, and the settings that keep the node's own stack away. It returns which it mended, which
// are gone, and why some could not be mended: a pod may change its own end, or delete it, at any time.
func (k Netlink) Mend(wires []Wire) (mended, gone []string, failed map[string]error, err error) {
	have, foreign, err := k.ends()
	if err != nil {
		return nil, nil, nil, err
	}
	lost := slices.DeleteFunc(slices.Clone(wires), func(w Wire) bool { return have[w.HostIf].Name != "" })
	failed = map[string]error{}
	if len(lost) > 0 {
		mended, failed = k.rename(lost)
	}
	if len(mended) > 0 {
		if have, foreign, err = k.ends(); err != nil {
			return mended, nil, failed, err
		}
	}
	var there []string
	var ends []link.Link
	for _, w := range wires {
		l, ok := have[w.HostIf]
		if !ok {
			if failed[w.HostIf] == nil {
				gone = append(gone, w.HostIf)
			}
			continue
		}
		there, ends = append(there, w.HostIf), append(ends, l)
		did, err := k.mend(w, l, foreign[l.Master])
		if err != nil && k.stays(l) {
			failed[w.HostIf] = err
		} else if err == nil && did && !slices.Contains(mended, w.HostIf) {
			mended = append(mended, w.HostIf)
		}
	}
	loud, err := k.Host.EnsureQuiet(there...)
	// Those of limits are told by who compares these.
	queued, queueErr := k.Shaper.EnsureGates(ends...)
	err = errors.Join(err, queueErr)
	for _, name := range append(loud, queued...) {
		if !slices.Contains(mended, name) {
			mended = append(mended, name)
		}
	}
	return mended, gone, failed, err
}

// ends are the node's devices by name, and which of them, by index, take frames of their ports.
func (k Netlink) ends() (have map[string]link.Link, foreign map[int]bool, err error) {
	links, err := k.Host.Links()
	have, foreign = make(map[string]link.Link, len(links)), map[int]bool{}
	for _, l := range links {
		have[l.Name], foreign[l.Index] = l, takesFrames(l)
	}
	return have, foreign, err
}

// takesFrames reports whether master, which a host's end is a port of, takes its frames past the
// switch: a bridge of the kernel hands them to its other ports, beside all flows. With the kernel's
// datapath host's ends are ports of the datapath's own device.
func takesFrames(master link.Link) bool { return master.Type != "openvswitch" }

// mend puts right one end that is there, and reports whether something was wrong.
func (k Netlink) mend(w Wire, l link.Link, enslaved bool) (did bool, err error) {
	var errs []error
	if l.Master != 0 && enslaved {
		did, errs = true, append(errs, k.Host.Free(w.HostIf))
	}
	if w.MTU != 0 && l.MTU != w.MTU {
		_, err := k.Host.SetMTU(w.HostIf, w.MTU)
		did, errs = true, append(errs, err)
	}
	if w.NoOffload { // the userspace datapath drops what is longer than the MTU
		merged, err := k.Host.EnsureNoGRO(w.HostIf)
		did, errs = did || merged, append(errs, err)
	}
	if !l.Up {
		_, err := k.Host.SetUp(w.HostIf)
		did, errs = true, append(errs, err)
	}
	return did, errors.Join(errs...)
}

// Name gives the host's ends back their names that somebody changed, and returns which, and why some
// could not be. A sandbox that is gone, or has no device of that name any more, has none.
func (k Netlink) Name(wires []Wire) (named []string, failed map[string]error, err error) {
	have, _, err := k.ends()
	if err != nil {
		return nil, nil, err
	}
	named, failed = k.rename(slices.DeleteFunc(slices.Clone(wires), func(w Wire) bool { return have[w.HostIf].Name != "" }))
	return named, failed, nil
}

// rename gives ends their names that have not got them. No pod can keep others from theirs.
func (k Netlink) rename(wires []Wire) (named []string, failed map[string]error) {
	failed = map[string]error{}
	for _, w := range wires {
		did, err := k.renameOne(w)
		if err != nil {
			failed[w.HostIf] = err
		} else if did {
			named = append(named, w.HostIf)
		}
	}
	return named, failed
}

func (k Netlink) renameOne(w Wire) (did bool, err error) {
	sandbox, err := link.Open(w.Netns)
	if err != nil {
		return false, nil // the pod is gone, or whoever makes its device anew says what is wrong
	}
	defer sandbox.Close()
	end, ok, err := k.Host.HostEnd(sandbox, w.IfName, w.MAC)
	// A pod that renames its devices gets no other end for its own.
	if err != nil || !ok || strings.HasPrefix(end.Name, HostIfPrefix) {
		return false, err
	}
	if err := k.Host.Rename(end, w.HostIf); err != nil && k.stays(end) {
		return false, fmt.Errorf("somebody had renamed the node's end of a pod's device: %w; while it has another name it is no port of the switch", err)
	} else if err != nil {
		return false, nil
	}
	return true, nil
}

// stays reports whether an end that could not be changed is there still: a pod may delete its device at
// any time, and then there is nothing to say.
func (k Netlink) stays(end link.Link) bool {
	_, there, err := k.Host.LinkByIndex(end.Index)
	return there || err != nil
}
