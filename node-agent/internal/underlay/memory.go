package underlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/k8s-ovs/k8s-ovs/pkg/link"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
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

// memoryFile is the memory in the state directory. The bridge's external_ids have a copy of
// most of it, for an agent that has lost that directory; the database may be lost as well.
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
	// Lent is that the uplink got what went with that device: see [Lender].
	Lent bool `json:"lent,omitempty"`
}

// incarnation names a device for [memory.Device].
func (s *Setup) incarnation(l link.Link) string { return fmt.Sprintf("%s/%d", s.cfg.BootID, l.Index) }

// own reports whether the bridge is the one of that name and this package made it.
func (m memory) own(bridge string) bool { return m.Uplink != "" && m.Bridge == bridge }

// ids is m in the external_ids of its bridge.
func (m memory) ids() map[string]string {
	return map[string]string{keyConfig: m.Config.Encode(), keyVTEP: m.VTEP.String(), keyUplink: m.Uplink, keyDevice: m.Device}
}

// noIDs takes all away that this package has in a bridge's external_ids.
func noIDs() map[string]string {
	return map[string]string{keyConfig: "", keyVTEP: "", keyUplink: "", keyDevice: "", keyMAC: ""}
}

// shared is what the [Lender] and each [Setup] of an agent have in common.
type shared struct {
	// turn is held by who moves addresses.
	turn   sync.Mutex
	record *record[memory]
	// compared is that the record was compared with the database. Who has turn has it.
	compared bool
	// merging is what the uplink does with packets that it receives. Who has turn has it.
	merging *merging
}

func newShared(cfg Config, ns *link.NS) *shared {
	return &shared{record: newRecord[memory](cfg, memoryFile), merging: newMerging(cfg, ns)}
}

// remembered is the memory, and whether its bridge is in the database; nil where there is none, or
// it is of a bridge that somebody else made and deleted. Who calls it has turn.
func (s *Setup) remembered() (m *memory, row bool, err error) {
	bridges, err := s.ovs.Bridges()
	if err != nil {
		return nil, false, err
	}
	if !s.compared {
		if err := s.compare(bridges); err != nil {
			return nil, false, err
		}
		s.compared = true
	}
	if m = s.record.get(); m == nil {
		return nil, false, nil
	}
	row = slices.ContainsFunc(bridges, func(b ovs.Bridge) bool { return b.Name == m.Bridge })
	if !row && !m.own(s.cfg.Bridge) {
		return nil, false, nil
	}
	return m, row, nil
}

// recall is what is remembered that matters to where vtep belongs: see [Setup.remembered].
func (s *Setup) recall(vtep netip.Addr) (m *memory, row bool, err error) {
	m, row, err = s.remembered()
	if m != nil && !m.own(s.cfg.Bridge) && !hasAddress(m.Config, vtep) {
		return nil, false, err
	}
	return m, row, err
}

// compare has the record say what the database says, once for each agent: the row is written before
// the file. Where they differ an older agent ran meanwhile, which knows less of the file, or the file
// could not be written, or is lost.
func (s *Setup) compare(bridges []ovs.Bridge) error {
	file := s.record.get()
	row, err := s.fromRows(bridges, file)
	if err != nil || row == nil {
		return err
	}
	if file != nil && file.Bridge == row.Bridge {
		row.Lent = file.Lent
		if file.Uplink == row.Uplink {
			row.UplinkMAC = file.UplinkMAC
		}
	}
	s.record.set(row)
	return nil
}

// fromRows is what the database remembers: of the bridge whose local port has its address, else of
// that of the file, else of the one that this package makes, else of any. Any counts for nothing where
// the file has the one that this package made, whose row is gone: what another bridge remembers is from before.
func (s *Setup) fromRows(bridges []ovs.Bridge, file *memory) (best *memory, err error) {
	rank := 0
	for _, b := range bridges {
		vtep, err := netip.ParseAddr(b.ExternalIDs[keyVTEP])
		if err != nil || b.ExternalIDs[keyConfig] == "" {
			continue
		}
		c, err := link.DecodeConfig(b.ExternalIDs[keyConfig])
		if err != nil {
			return nil, fmt.Errorf("bridge %s, external_ids:%s: %w; remove it (ovs-vsctl remove bridge %s external_ids %s)", b.Name, keyConfig, err, b.Name, keyConfig)
		}
		local, _, err := s.ns.Describe(b.Name)
		if err != nil {
			return nil, err
		}
		m := &memory{Bridge: b.Name, VTEP: vtep, Uplink: b.ExternalIDs[keyUplink], Config: c, Device: b.ExternalIDs[keyDevice]}
		r := 1
		switch {
		case has(local, vtep):
			r = 4
		case file != nil && file.Bridge == b.Name:
			r = 3
		case m.own(s.cfg.Bridge):
			r = 2
		}
		if r == 1 && file != nil && file.own(s.cfg.Bridge) {
			continue
		}
		if r > rank {
			best, rank = m, r
		}
	}
	return best, nil
}

// remember takes m into the database and the record. The database is first: see [Setup.compare].
func (s *Setup) remember(ctx context.Context, m memory) error {
	if err := s.ovs.SetExternalIDs(ctx, m.Bridge, m.ids()); err != nil {
		return err
	}
	s.record.set(&m)
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
