package underlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
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
	ns  *link.NS
	log *slog.Logger
	// path of the file that remembers; empty for none.
	path string
	boot string
	// stopped is what was on, by the devices' indices; nil until the file was read.
	stopped map[int][]string
	// left is what could not be switched off.
	left backoff.Trouble
}

// mergingFile is in the state directory: whoever gives the features back may have no Open vSwitch.
const mergingFile = "merging.json"

// mergingRecord is the content of [mergingFile].
type mergingRecord struct {
	// BootID is of the machine's run: after a boot devices have what the machine gives them.
	BootID string `json:"bootID"`
	// Devices are the features that were on, by index.
	Devices map[int][]string `json:"devices"`
}

func newMerging(cfg Config, ns *link.NS) *merging {
	m := &merging{ns: ns, log: cfg.Logger, boot: cfg.BootID}
	if cfg.StateDir != "" {
		m.path = filepath.Join(cfg.StateDir, mergingFile)
	}
	return m
}

// ResumeMerging gives devices the features back that a [Setup] has switched off, where Open
// vSwitch ended before [Setup.Remove] could be called. cfg is that of the Setup.
func ResumeMerging(cfg Config, ns *link.NS) { newMerging(cfg.withDefaults(), ns).resume(nil) }

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
func (m *merging) observe(devices []string) error {
	var left []string
	for _, device := range devices {
		stack, err := m.ns.Stack(device)
		if err != nil {
			return err
		}
		for _, l := range stack {
			if !merges(l) {
				continue
			}
			on, _, err := m.ns.Merging(l.Name)
			if err != nil && !errors.Is(err, link.ErrNoLink) {
				left = append(left, fmt.Sprintf("%s: %v", l.Name, err))
			}
			left = append(left, described(l, on)...)
		}
	}
	m.say(left)
	return nil
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
	stopped := m.load()
	was := len(stopped[l.Index])
	for _, f := range features {
		if !slices.Contains(stopped[l.Index], f) {
			stopped[l.Index] = append(stopped[l.Index], f)
		}
	}
	if len(stopped[l.Index]) != was {
		m.save()
	}
}

// resume gives all devices but those what they had, and forgets them.
func (m *merging) resume(but []link.Link) {
	gone := false
	for index, features := range m.load() {
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
		delete(m.stopped, index)
		gone = true
	}
	if gone {
		m.save()
	}
}

// load is what is remembered of this run of the machine.
func (m *merging) load() map[int][]string {
	if m.stopped != nil {
		return m.stopped
	}
	m.stopped = map[int][]string{}
	if m.path == "" {
		return m.stopped
	}
	data, err := os.ReadFile(m.path)
	var r mergingRecord
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("which features of the uplink were on cannot be read; they are not given back", "path", m.path, "error", err)
	}
	if err == nil && r.BootID == m.boot && r.Devices != nil {
		m.stopped = r.Devices
	}
	return m.stopped
}

// save writes the file. It is only for giving back, so a failure is told and no more.
func (m *merging) save() {
	if m.path == "" {
		return
	}
	data, err := json.Marshal(mergingRecord{m.boot, m.stopped})
	if err != nil {
		panic("underlay: " + err.Error()) // the types above always encode
	}
	if len(m.stopped) == 0 {
		err = os.Remove(m.path)
	} else {
		err = atomicfile.Write(m.path, data, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Error("which features of the uplink were on is not remembered: switch them on yourself when it is the uplink no more", "path", m.path, "features", m.stopped, "error", err)
	}
}
