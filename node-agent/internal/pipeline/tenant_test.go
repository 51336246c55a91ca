package pipeline

import (
	"slices"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// The flows of a tenant take what [topology.Tenancy] says, by which the steps of a change are
// reasoned about: as receiver, and as the owner of services.
func TestAdmitIsTenancy(t *testing.T) {
	m := sample()
	m.ServiceProxy = OVS
	ids := []netid.ID{netid.Global, 11, 12, 13}
	for _, id := range ids {
		for _, other := range ids {
			for _, both := range []bool{false, true} {
				tenancy := topology.Tenancy{NetID: id}
				if both {
					tenancy.Other, tenancy.Both = other, true
				}
				flows := m.Tenant(Tenant{Slot: 7, NetID: tenancy.NetID, Other: tenancy.Other, Both: tenancy.Both, Known: true, Serves: true})
				for _, sender := range ids {
					if got := takes(flows, TableAdmit, sender, regReceiverSlot.is(7)); got != tenancy.Admits(sender) {
						t.Errorf("%+v: a packet with %d is taken: %v", tenancy, sender, got)
					}
					if got := takes(flows, TableServiceTenant, sender, of.IP(), regServiceSlot.is(7)); got != tenancy.Admits(sender) {
						t.Errorf("%+v: a request with %d is taken: %v", tenancy, sender, got)
					}
				}
			}
		}
	}
}

// takes reports whether a flow of the table lets a sender by.
func takes(flows []of.Flow, table uint8, sender netid.ID, rest ...of.Field) bool {
	anyone, one := of.NewMatch(rest...), of.NewMatch(append([]of.Field{regSender.is(uint32(sender))}, rest...)...)
	return slices.ContainsFunc(flows, func(f of.Flow) bool {
		return f.Table == table && f.Priority == 100 && (f.Match == anyone || f.Match == one)
	})
}
