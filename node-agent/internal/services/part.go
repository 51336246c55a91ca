package services

import (
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
)

// part is what one service contributes to the picture.
type part struct {
	service service.Service
	public  bool
	// ids are the numbers of those of its ports that have endpoints.
	ids []uint32
}

// portKey is what a service port is known by.
type portKey struct {
	vip      netip.Addr
	protocol service.Protocol
	port     uint16
}

func keyOf(p service.Port) portKey { return portKey{p.VIP, p.Protocol, p.Port} }

// numbers are those of service ports, which are their groups', and how many services
// have each.
type numbers map[uint32]numbered

type numbered struct {
	port  portKey
	users int
}

// assign returns the number of a service port. It follows from the port, so that
// an agent that restarts finds its flows unchanged; of two that would have the same, one
// gets the next free.
func (n numbers) assign(k portKey) uint32 {
	for id := pipeline.PortNumber(k.vip, k.protocol, k.port); ; id = id%of.GroupMax + 1 {
		have := n[id]
		if have.users == 0 || have.port == k {
			n[id] = numbered{k, have.users + 1}
			return id
		}
	}
}

func (n numbers) release(id uint32) {
	have := n[id]
	if have.users--; have.users == 0 {
		delete(n, id)
	} else {
		n[id] = have
	}
}

// replace makes one service what is wanted, and returns its part of the picture.
func (t *Table) replace(key service.Key) (w flowstore.Want) {
	old := t.parts[key]
	wanted, left := t.admit(t.wanted[key])
	wanted.Key = key
	wanted, left = t.fit(wanted, left)
	t.note(wanted, left)
	t.room.takes(key.Namespace, old.service, wanted)
	if len(wanted.Ports) > 0 {
		p := part{service: wanted, public: t.isPublic(wanted)}
		w.Flows, w.Groups = t.compile(wanted, p.public)
		for _, g := range w.Groups {
			p.ids = append(p.ids, g.ID)
		}
		t.parts[key] = p
	} else {
		delete(t.parts, key)
	}
	for _, id := range old.ids {
		t.ids.release(id)
	}
	t.later(moved(old.service, wanted)...)
	return w
}

// retire is what a flow becomes that no service has. What the switch learned stays: it
// goes by itself. The way back from an endpoint that connections may still be open to
// stays as long as it is used.
func retire(f of.Flow) (of.Flow, bool) {
	c := pipeline.DecodeCookie(f.Cookie)
	if f.Table == pipeline.TableAffinity {
		return f, true
	}
	if _, udp := pipeline.UDPEndpoint(f); udp || c.Kind != pipeline.KindEndpoint || c.Generation != pipeline.Version {
		return f, false
	}
	return pipeline.Lingering(f), true
}

// compile is what a service needs.
func (t *Table) compile(s service.Service, public bool) (flows []of.Flow, groups []of.GroupEntry) {
	model := t.view.Model
	slot, _ := t.view.Slot(s.Namespace)
	udp := map[netip.Addr]int{}
	for _, p := range s.Ports {
		if p.Protocol == service.UDP {
			udp[p.VIP]++
		}
	}
	for _, vip := range s.Addresses() {
		if !model.Serves(vip) {
			t.cfg.Logger.Error("a service is cut off from pods: its address is outside of the service network, and beside kube-proxy, or in the pod network, nobody could check who may use it; choose a service network that has all addresses of services",
				"tenant", s.Namespace, "service", s.Name, "address", vip, "serviceNetwork", model.Of(vip).Services)
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
			if t.view.Of(e.Address).Cluster.Contains(e.Address) || !t.view.HasNode(e.Address) {
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
