package underlay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
	"github.com/k8s-ovs/k8s-ovs/pkg/link"
)

// Keys of the bridge's external_ids.
const (
	// keyConfig holds the addresses and routes of the local port.
	keyConfig = "k8s-ovs-underlay"
	// keyUplink holds the name of the uplink; only on a bridge this package made.
	keyUplink = "k8s-ovs-uplink"
	// keyVTEP holds the node's address.
	keyVTEP = "k8s-ovs-vtep"
	// keyDevice holds the local port that keyConfig was read from: see [memory].
	keyDevice = "k8s-ovs-device"
)

// memoryFile is the copy of what the bridge remembers, in the state directory: the
// database of Open vSwitch may be lost.
const memoryFile = "underlay.json"

// memory is what a bridge's local port had when it was last seen whole. It is for what
// goes away with that device, and for nothing else: what somebody changes while the
// device stands is taken into the memory, not undone by it.
type memory struct {
	Bridge string     `json:"bridge"`
	VTEP   netip.Addr `json:"vtep"`
	// Uplink and UplinkMAC are the device that leads outside; empty on a bridge that
	// this package did not make.
	Uplink    string      `json:"uplink,omitempty"`
	UplinkMAC string      `json:"uplinkMAC,omitempty"`
	Config    link.Config `json:"config"`
	// Device is the local port that Config was read from, as boot id and index: two
	// devices of one name are told apart by it. Empty in the memory of an older release.
	Device string `json:"device,omitempty"`
	// Lent is that the uplink got what went with that device: see [Lender]. Only the copy says it.
	Lent bool `json:"lent,omitempty"`
}

// incarnation names a device for [memory.Device].
func (s *Setup) incarnation(l link.Link) string { return fmt.Sprintf("%s/%d", s.cfg.BootID, l.Index) }

// recall is what the bridge of the address vtep remembers, else what the copy does; nil
// where there is neither. row reports whether the bridge is in the database.
func (s *Setup) recall(vtep netip.Addr) (m *memory, row bool, err error) {
	bridges, err := s.ovs.Bridges()
	if err != nil {
		return nil, false, err
	}
	for _, b := range bridges {
		if b.ExternalIDs[keyConfig] == "" {
			continue
		}
		c, err := link.DecodeConfig(b.ExternalIDs[keyConfig])
		if err != nil {
			return nil, false, fmt.Errorf("bridge %s, external_ids:%s: %w; remove it (ovs-vsctl remove bridge %s external_ids %s)", b.Name, keyConfig, err, b.Name, keyConfig)
		}
		was, _ := netip.ParseAddr(b.ExternalIDs[keyVTEP])
		own := b.ExternalIDs[keyUplink] != ""
		if hasAddress(c, vtep) || own && b.Name == s.cfg.Bridge {
			m := &memory{Bridge: b.Name, VTEP: was, Uplink: b.ExternalIDs[keyUplink], Config: c, Device: b.ExternalIDs[keyDevice]}
			if copied := s.loadCopy(); copied != nil && copied.Bridge == m.Bridge && copied.Uplink == m.Uplink {
				m.UplinkMAC = copied.UplinkMAC
			}
			return m, true, nil
		}
	}
	copied := s.loadCopy()
	if copied == nil || copied.Uplink == "" || copied.Bridge != s.cfg.Bridge {
		return nil, false, nil
	}
	_, row = s.ovs.Bridge(copied.Bridge)
	return copied, row, nil
}

// remember takes m into the database and the copy, where it says something new.
func (s *Setup) remember(ctx context.Context, m memory) error {
	err := s.ovs.SetExternalIDs(ctx, m.Bridge, map[string]string{
		keyConfig: m.Config.Encode(), keyVTEP: m.VTEP.String(), keyUplink: m.Uplink, keyDevice: m.Device,
	})
	if err != nil {
		return err
	}
	s.saveCopy(m)
	return nil
}

// observe reads what the local port has now, and remembers it. What is read while the
// device goes away is not worth it: it is set down before its routes go, and its
// addresses after them.
func (s *Setup) observe(ctx context.Context, m memory) error {
	before, ok, err := s.ns.Link(m.Bridge)
	if err != nil || !ok || !before.Up {
		return err
	}
	c, err := s.ns.ReadWhole(m.Bridge)
	if errors.Is(err, link.ErrNoLink) {
		return nil
	}
	if err != nil || !hasAddress(c, m.VTEP) {
		return err
	}
	after, ok, err := s.ns.Link(m.Bridge)
	if err != nil || !ok || !after.Up || after.Index != before.Index {
		return err
	}
	m.Config, m.Device, m.Lent = kept(m.Config, c, m.VTEP), s.incarnation(after), false
	return s.remember(ctx, m)
}

// kept is what is remembered of what a device has: its routes, and of its addresses
// those that were remembered before. One that came later is somebody's who will put it
// back himself, if it is still this node's then (a VRRP address may be another's).
func kept(before, now link.Config, vtep netip.Addr) link.Config {
	known := func(p netip.Prefix) bool {
		return p.Addr() == vtep || slices.Contains(before.Addresses, p) || slices.Contains(before.Beyond.Addresses, p)
	}
	unknown := func(p netip.Prefix) bool { return !known(p) }
	now.Addresses = slices.DeleteFunc(slices.Clone(now.Addresses), unknown)
	now.Beyond.Addresses = slices.DeleteFunc(slices.Clone(now.Beyond.Addresses), unknown)
	return now
}

func (s *Setup) copyPath() string {
	if s.cfg.StateDir == "" {
		return ""
	}
	return filepath.Join(s.cfg.StateDir, memoryFile)
}

// loadCopy is the copy on disk, else what was written there last; nil where there is none that can
// be used.
func (s *Setup) loadCopy() *memory {
	if m := s.readCopy(); m != nil {
		s.copied = m
	}
	return s.copied
}

// readCopy is the copy on disk; nil where there is none that can be used.
func (s *Setup) readCopy() *memory {
	if s.copyPath() == "" {
		return nil
	}
	data, err := os.ReadFile(s.copyPath())
	var m memory
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && s.unread.News(err) {
			s.log.Warn("the copy of the underlay's configuration cannot be used", "path", s.copyPath(), "error", err)
		}
		return nil
	}
	s.unread.Over()
	return &m
}

// saveCopy writes the copy where the disk has another, or none. It is only needed while Open
// vSwitch or its database is away, so a failure (a full disk) is told and no more.
func (s *Setup) saveCopy(m memory) {
	data, err := json.Marshal(m)
	if err != nil {
		panic("underlay: " + err.Error()) // the types above always encode
	}
	path := s.copyPath()
	if path == "" {
		s.copied = &m
		return
	}
	if has, err := os.ReadFile(path); err != nil || !bytes.Equal(has, data) {
		if err := atomicfile.Write(path, data, 0o600); err != nil {
			if s.unsaved.News(err) {
				s.log.Error("the copy of the underlay's configuration is out of date: it is needed when Open vSwitch or its database is away", "path", path, "error", err)
			}
			return
		}
	}
	s.copied = &m
	s.unsaved.Over()
}

// forget takes the memory away.
func (s *Setup) forget() {
	s.copied = nil
	if path := s.copyPath(); path != "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Error("the copy of the underlay's configuration stays", "path", path, "error", err)
		}
	}
}
