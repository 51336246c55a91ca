package services

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// part is what one service contributes to the picture.
type part struct {
	service service.Service
	public  bool
	flows   []string // keys
	groups  []uint32
}

// portKey is what a service port is known by.
type portKey struct {
	vip      netip.Addr
	protocol service.Protocol
	port     uint16
}

func keyOf(p service.Port) portKey { return portKey{p.VIP, p.Protocol, p.Port} }

// numbers are those of service ports, which are their groups'.
type numbers map[uint32]portKey

// assign returns the number of a service port. It follows from the port, so that
// an agent that restarts finds its flows unchanged; of two that would have the same, one
// gets the next free.
func (n numbers) assign(k portKey) uint32 {
	for id := pipeline.PortNumber(k.vip, k.protocol, k.port); ; id = id%of.GroupMax + 1 {
		owner, taken := n[id]
		if !taken || owner == k {
			n[id] = k
			return id
		}
	}
}

// change collects what a bundle changes.
type change struct {
	t *Table
	// flows and groups are those that the change is about, as they were.
	flows  map[string]of.Flow
	groups map[uint32]of.GroupEntry
}

// replace makes the part of one service what is wanted.
func (c *change) replace(key service.Key) {
	t := c.t
	old := t.parts[key]
	wanted, left := t.admit(t.wanted[key])
	wanted.Key = key
	t.note(wanted, left)
	// What both have must not go and come.
	if len(wanted.Ports) > 0 {
		p := part{service: wanted, public: t.isPublic(wanted)}
		flows, groups := t.compile(wanted, p.public)
		for _, f := range flows {
			p.flows = append(p.flows, c.addFlow(f))
		}
		for _, g := range groups {
			p.groups = append(p.groups, g.ID)
			c.addGroup(g)
		}
		t.parts[key] = p
	} else {
		delete(t.parts, key)
	}
	for _, f := range old.flows {
		c.dropFlow(f)
	}
	for _, id := range old.groups {
		c.dropGroup(id)
	}
	t.later(moved(old.service, wanted)...)
}

func (c *change) addFlow(f of.Flow) (key string) {
	key = f.Key()
	have, ok := c.t.flows[key]
	if !ok {
		have = &shared[of.Flow]{}
		c.t.flows[key] = have
		if f.Table == pipeline.TableReply {
			c.t.endpoints++
		}
	}
	c.wasFlow(key, have.value)
	have.value, have.owners = f, have.owners+1
	return key
}

func (c *change) dropFlow(key string) {
	have := c.t.flows[key]
	c.wasFlow(key, have.value)
	if have.owners--; have.owners == 0 {
		delete(c.t.flows, key)
		if have.value.Table == pipeline.TableReply {
			c.t.endpoints--
		}
	}
}

func (c *change) wasFlow(key string, f of.Flow) {
	if _, noted := c.flows[key]; !noted {
		c.flows[key] = f
	}
}

func (c *change) addGroup(g of.GroupEntry) {
	have, ok := c.t.groups[g.ID]
	if !ok {
		have = &shared[of.GroupEntry]{}
		c.t.groups[g.ID] = have
	}
	c.wasGroup(g.ID, have.value)
	have.value, have.owners = g, have.owners+1
}

func (c *change) dropGroup(id uint32) {
	have := c.t.groups[id]
	c.wasGroup(id, have.value)
	if have.owners--; have.owners == 0 {
		delete(c.t.groups, id)
		delete(c.t.ids, id)
	}
}

func (c *change) wasGroup(id uint32, g of.GroupEntry) {
	if _, noted := c.groups[id]; !noted {
		c.groups[id] = g
	}
}

// mods are the change as a bundle's parts: groups before the flows that refer to
// them, and what goes last.
func (c *change) mods() []of.Mod {
	var set, add, del, unset []of.Mod
	for id, was := range c.groups {
		now, ok := c.t.groups[id]
		switch {
		case !ok:
			unset = append(unset, of.DeleteGroup(id))
		case !now.value.Equal(was):
			set = append(set, of.SetGroup(now.value))
		}
	}
	for key, was := range c.flows {
		now, ok := c.t.flows[key]
		switch {
		case !ok:
			del = append(del, remove(was))
		case !now.value.Equal(was):
			add = append(add, of.AddFlow(now.value))
		}
	}
	return slices.Concat(set, add, del, unset)
}

// remove is how a flow goes: the way back from an endpoint that connections may
// still be open to stays as long as it is used.
func remove(f of.Flow) of.Mod {
	if lingers(f) {
		return of.AddFlow(pipeline.Lingering(f))
	}
	return of.DeleteFlow(f)
}

func lingers(f of.Flow) bool {
	_, udp := pipeline.UDPEndpoint(f)
	return !udp && pipeline.DecodeCookie(f.Cookie).Kind == pipeline.KindEndpoint
}

// compile is what a service needs.
func (t *Table) compile(s service.Service, public bool) (flows []of.Flow, groups []of.GroupEntry) {
	model := t.model
	slot, _ := t.cfg.Base.Slot(s.Namespace)
	udp := map[netip.Addr]int{}
	for _, p := range s.Ports {
		if p.Protocol == service.UDP {
			udp[p.VIP]++
		}
	}
	for _, vip := range s.Addresses() {
		if !model.Serves(vip) {
			t.cfg.Logger.Error("a service is cut off from pods: its address is outside of the service network, and beside kube-proxy, or in the pod network, nobody could check who may use it; choose a service network that has all addresses of services",
				"tenant", s.Namespace, "service", s.Name, "address", vip, "serviceNetwork", model.ServiceNetwork)
		}
		flows = append(flows, model.ServiceAddress(pipeline.ServiceAddress{VIP: vip, Slot: slot, Public: public})...)
	}
	for _, p := range s.Ports {
		// kube-proxy chooses by itself; and without endpoints the node refuses.
		if model.ServiceProxy == pipeline.OVS && len(p.Endpoints) > 0 {
			f, g := model.ServicePort(pipeline.ServicePort{
				ID: t.ids.assign(keyOf(p)), Port: p, Affinity: s.Affinity, OnlyUDP: p.Protocol == service.UDP && udp[p.VIP] == 1,
			})
			flows, groups = append(flows, f...), append(groups, g)
		}
		for _, e := range p.Endpoints {
			flows = append(flows, model.Endpoint(p.Protocol, e)...)
		}
	}
	return flows, groups
}

// isPublic reports whether every tenant may use a service: it was named, or its
// endpoints are nodes, which every tenant reaches anyway.
func (t *Table) isPublic(s service.Service) bool {
	if t.public[s.Key] {
		return true
	}
	found := false
	for _, p := range s.Ports {
		for _, e := range p.Endpoints {
			if t.model.Network.Contains(e.Address) || !t.cfg.Base.HasNode(e.Address) {
				return false
			}
			found = true
		}
	}
	return found
}

var zone = pipeline.ZoneService

// moved are the UDP connections whose endpoint is none any more: their clients do
// not know, so the next packet must find another one.
func moved(old, now service.Service) []of.CTFilter {
	stays := map[portKey]map[service.Endpoint]bool{}
	for _, p := range now.Ports {
		stays[keyOf(p)] = map[service.Endpoint]bool{}
		for _, e := range p.Endpoints {
			stays[keyOf(p)][e] = true
		}
	}
	var gone []of.CTFilter
	for _, p := range old.Ports {
		for _, e := range p.Endpoints {
			if p.Protocol == service.UDP && !stays[keyOf(p)][e] {
				gone = append(gone, of.CTFilter{
					Zone: &zone, Protocol: uint8(service.UDP),
					Orig: of.CTTuple{Dst: p.VIP, DstPort: p.Port}, Reply: of.CTTuple{Src: e.Address, SrcPort: e.Port},
				})
			}
		}
	}
	return gone
}

// actual is what a switch has for services.
type actual struct {
	flows  map[string]of.Flow
	groups map[uint32]of.GroupEntry
}

// readSwitch reads all but what the switch learned by itself.
func readSwitch(ctx context.Context, sw Switch) (actual, error) {
	cookie, mask := pipeline.Services()
	stats, err := sw.Flows(ctx, of.FlowFilter{Cookie: cookie, CookieMask: mask})
	if err != nil {
		return actual{}, fmt.Errorf("services: %w", err)
	}
	list, err := sw.Groups(ctx)
	if err != nil {
		return actual{}, fmt.Errorf("services: %w", err)
	}
	a := actual{make(map[string]of.Flow, len(stats)), make(map[uint32]of.GroupEntry, len(list))}
	for _, s := range stats {
		if s.Table != pipeline.TableAffinity {
			a.flows[s.Key()] = s.Flow
		}
	}
	for _, g := range list {
		a.groups[g.ID] = g
	}
	return a, nil
}

// difference is what makes the switch into the picture, and the connections to UDP
// endpoints that are not in it.
func (a actual) difference(flows map[string]*shared[of.Flow], groups map[uint32]*shared[of.GroupEntry]) (mods []of.Mod, gone []of.CTFilter) {
	for _, id := range slices.Sorted(maps.Keys(groups)) {
		if g := groups[id].value; !a.groups[id].Equal(g) {
			mods = append(mods, of.SetGroup(g))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(flows)) {
		if f := flows[key].value; !a.flows[key].Equal(f) {
			mods = append(mods, of.AddFlow(f))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a.flows)) {
		f := a.flows[key]
		if _, stays := flows[key]; stays {
			continue
		}
		if lingers(f) && pipeline.DecodeCookie(f.Cookie).Generation == pipeline.Version {
			if f.IdleTimeout == 0 {
				mods = append(mods, remove(f))
			}
			continue
		}
		mods = append(mods, of.DeleteFlow(f))
		if e, ok := pipeline.UDPEndpoint(f); ok {
			gone = append(gone, of.CTFilter{Zone: &zone, Protocol: uint8(service.UDP), Reply: of.CTTuple{Src: e.Address, SrcPort: e.Port}})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.groups)) {
		if _, stays := groups[id]; !stays {
			mods = append(mods, of.DeleteGroup(id))
		}
	}
	return mods, gone
}
