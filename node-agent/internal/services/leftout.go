package services

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Who wrote an endpoint cannot be told from it: labels and targetRef are the author's
// too. So what is left out is what nobody needs and what leads somewhere by the node's
// doing. Addresses of nodes stay, since those of pods on the host's network are such: from
// tun0 a pod reaches a node's ports whether a service names them or not. Those of pods stay,
// since the bridge checks the tenant after it has translated.

// admit is what of a service pods are sent to, and what it names besides.
func (t *Table) admit(s service.Service) (service.Service, []service.LeftOut) {
	left := slices.Clone(s.LeftOut)
	ports := slices.Clone(s.Ports)
	for i, p := range ports {
		ports[i].Endpoints = slices.DeleteFunc(slices.Clone(p.Endpoints), func(e service.Endpoint) bool {
			reason := t.refuses(p.Protocol, e)
			if reason != "" {
				left = append(left, service.LeftOut{Protocol: p.Protocol, Endpoint: e, Reason: reason})
			}
			return reason != ""
		})
	}
	if len(left) == len(s.LeftOut) {
		return s, left
	}
	slices.SortFunc(left, service.LeftOut.Compare)
	s.Ports = ports
	return s, slices.Compact(left)
}

// refuses is why pods are not sent to an endpoint; "" where they are.
func (t *Table) refuses(p service.Protocol, e service.Endpoint) service.Reason {
	net := t.view.Of(e.Address)
	switch {
	case net.Services.Contains(e.Address):
		return service.InServiceNetwork
	case net.Cluster.Contains(e.Address) && topology.IsGateway(e.Address, t.view.Of(netip.IPv4Unspecified()).Subnet.Bits()):
		return service.IsGateway
	// A node takes these at all its addresses, of which a record names one.
	case p == service.UDP && !net.Cluster.Contains(e.Address) && t.cfg.TunnelPorts != nil && slices.Contains(t.cfg.TunnelPorts(), e.Port):
		return service.IsTunnel
	}
	return ""
}

// note keeps what of a service is left out, and tells when that changed.
func (t *Table) note(s service.Service, left []service.LeftOut) {
	if slices.Equal(t.left[s.Key], left) {
		return
	}
	if len(left) == 0 {
		delete(t.left, s.Key)
	} else {
		t.left[s.Key] = left
	}
	if t.cfg.LeftOut != nil {
		t.cfg.LeftOut(s, left)
	}
}

// LeftOut counts the endpoints that services name and that no pod is sent to.
func (t *Table) LeftOut() map[service.Reason]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := map[service.Reason]int{}
	for left := range maps.Values(t.left) {
		for _, l := range left {
			counts[l.Reason]++
		}
	}
	return counts
}
