package underlay

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/backoff"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// merging has the uplink hand on packets as they came over the wire. ovs-vswitchd reads them from
// a packet socket into buffers of the device's MTU, and drops what the kernel or the device has
// made one of several segments of a TCP connection (GRO, LRO): connections in bulk to the node,
// and answers to pods' masqueraded ones, would crawl. What was on is given back when the device
// leads to the bridge no more. While the uplink is lent the addresses it stays off: nothing is
// lost then, the node only takes each segment by itself.
type merging struct {
	ns   *link.NS
	log  *slog.Logger
	boot string
	// record is what was on.
	record *record[mergingRecord]
	// left is what could not be switched off.
	left backoff.Trouble
}

// mergingFile is in the state directory. It is apart from [memoryFile], as it says something of
// devices for one run of the machine, whatever becomes of the bridge.
const mergingFile = "merging.json"

// mergingRecord is the content of [mergingFile].
type mergingRecord struct {
	// BootID is of the machine's run: after a boot devices have what the machine gives them.
	BootID string `json:"bootID"`
	// Devices are the features that were on, by index.
	Devices map[int][]string `json:"devices"`
}

func newMerging(cfg Config, ns *link.NS) *merging {
	return &merging{ns: ns, log: cfg.Logger, boot: cfg.BootID, record: newRecord[mergingRecord](cfg, mergingFile)}
}

// merges reports whether packets may be merged as they come in by the device: by one that hands
// on what another has received they are not.
func merges(l link.Link) bool {
	switch l.Type {
	case "bridge", "bond", "team", "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "tuntap", "openvswitch":
		return false
	}
	return !l.Loopback
}

// stop switches off what merges packets on the device and on all that it stands on, gives those
// that are none of these any more what they had, and reports whether anything was on. What cannot
// be switched off is said once.
func (m *merging) stop(uplink string) (changed bool, err error) {
	stack, err := m.ns.Stack(uplink)
	if err != nil {
		return false, err
	}
	var left []string
	for _, l := range slices.DeleteFunc(slices.Clone(stack), func(l link.Link) bool { return !merges(l) }) {
		did, still, err := m.stopOne(l)
		changed = changed || did
		if err != nil {
			still = append(still, fmt.Sprintf("%s: %v", l.Name, err))
		}
		left = append(left, still...)
	}
	m.say(left)
	m.resume(stack)
	return changed, nil
}

// stopOne is [merging.stop] of one device; left is what of it is still on.
func (m *merging) stopOne(l link.Link) (changed bool, left []string, err error) {
	on, fixed, err := m.ns.Merging(l.Name)
	if errors.Is(err, link.ErrNoLink) {
		return false, nil, nil
	}
	ours := slices.DeleteFunc(slices.Clone(on), func(f string) bool { return slices.Contains(fixed, f) })
	if err != nil || len(ours) == 0 {
		return false, described(l, fixed), err
	}
	m.remember(l, ours) // before: whatever happens, it can be given back
	if err := m.ns.SetMerging(l.Name, ours, false); err != nil {
		return false, described(l, on), err
	}
	still, _, err := m.ns.Merging(l.Name)
	if err != nil || len(still) == len(on) {
		return false, described(l, still), err
	}
	m.log.Info("packets that the uplink receives are merged no more, since ovs-vswitchd would drop those longer than the MTU", "device", l.Name, "features", ours)
	return true, described(l, still), nil
}

// observe says what merges on the devices of a bridge that somebody else made: they are his.
func (m *merging) observe(devices []link.Link) {
	var left []string
	for _, l := range devices {
		if !merges(l) {
			continue
		}
		on, _, err := m.ns.Merging(l.Name)
		if err != nil && !errors.Is(err, link.ErrNoLink) {
			left = append(left, fmt.Sprintf("%s: %v", l.Name, err))
		}
		left = append(left, described(l, on)...)
	}
	m.say(left)
}

func described(l link.Link, features []string) []string {
	if len(features) == 0 {
		return nil
	}
	return []string{l.Name + ": " + strings.Join(features, ", ")}
}

// say warns of what still merges, where it is not what was said last.
func (m *merging) say(left []string) {
	if len(left) == 0 {
		m.left.Over()
		return
	}
	if why := errors.New(strings.Join(left, "; ")); m.left.News(why) {
		m.log.Warn("the uplink merges packets that it receives, and ovs-vswitchd drops those longer than the MTU: connections in bulk to this node and from its pods to the outside may crawl; "+
			"switch the features off (ethtool -K DEVICE gro off lro off rx-gro-hw off), or, of a virtual machine, have its host give the device none", "features", why)
	}
}

// remember adds to what was on.
func (m *merging) remember(l link.Link, features []string) {
	stopped := m.stopped()
	for _, f := range features {
		if !slices.Contains(stopped[l.Index], f) {
			stopped[l.Index] = append(stopped[l.Index], f)
		}
	}
	m.set(stopped)
}

// resume gives all devices but those what they had, and forgets them.
func (m *merging) resume(but []link.Link) {
	stopped, gone := m.stopped(), len(but) == 0
	for index, features := range stopped {
		if slices.ContainsFunc(but, func(l link.Link) bool { return l.Index == index }) {
			continue
		}
		l, ok, err := m.ns.LinkByIndex(index)
		if err == nil && ok {
			err = m.ns.SetMerging(l.Name, features, true)
		}
		switch {
		case err != nil && !errors.Is(err, link.ErrNoLink):
			m.log.Warn("a device that is the uplink no more does not merge packets again; switch it on yourself (ethtool -K DEVICE FEATURE on)", "device", l.Name, "features", features, "error", err)
		case err == nil && ok:
			m.log.Info("a device merges packets that it receives again, as it did before it was the uplink", "device", l.Name, "features", features)
		}
		delete(stopped, index)
		gone = true
	}
	if gone {
		m.set(stopped)
	} else {
		m.record.flush()
	}
}

// stopped is what was on in this run of the machine, by the devices' indices.
func (m *merging) stopped() map[int][]string {
	if r := m.record.get(); r != nil && r.BootID == m.boot && r.Devices != nil {
		return maps.Clone(r.Devices)
	}
	return map[int][]string{}
}

// set remembers what was on.
func (m *merging) set(stopped map[int][]string) {
	if len(stopped) == 0 {
		m.record.set(nil)
		return
	}
	m.record.set(&mergingRecord{m.boot, stopped})
}
