package pipeline

import (
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// Allowance is how many new connections to services a namespace may make: per second,
// and at once after a pause. The zero value is as many as it likes.
type Allowance struct{ Rate, Burst uint32 }

// The numbers of the meters of namespaces are above those of ports, and of
// [MeterTooLarge]: two for each of [MaxMetered] namespaces. Above those are the meters of
// pods' connections, and of what policies deny. The kernel's datapath has 200,000 at most.
const (
	firstTenantMeter = MeterTooLarge + 1
	MaxMetered       = 1 << 15
	firstPodMeter    = firstTenantMeter + 2*MaxMetered + 1
)

// TenantMeters are the numbers of the meters of a namespace.
type TenantMeters struct {
	// New is that of its new connections to services, TooLarge of its packets that are
	// too large for their path; 0 for none.
	New, TooLarge uint32
}

// MetersOf are the meters of the namespace with a number below [MaxMetered].
func MetersOf(number uint32) TenantMeters {
	return TenantMeters{New: firstTenantMeter + 2*number, TooLarge: firstTenantMeter + 2*number + 1}
}

// OfTenant reports whether a meter is a namespace's.
func OfTenant(meter uint32) bool { return meter >= firstTenantMeter && meter < firstPodMeter }

// ConnectionsOf is the number of the meter of the new connections of the selected pod with that
// port, 1 to 65279.
func ConnectionsOf(port uint32) uint32 { return firstPodMeter + port }

// OfConnections reports whether a meter is one of a selected pod's connections.
func OfConnections(meter uint32) bool { return meter > firstPodMeter && meter < firstDeniedMeter }

// ConnectionsMeter is that meter, for what the pod may.
func ConnectionsMeter(port uint32, a Allowance) of.Meter {
	return packetMeter(ConnectionsOf(port), a)
}

// CountsTooLarge reports whether a meter counts packets that are too large for their path.
func CountsTooLarge(meter uint32) bool {
	return meter == MeterTooLarge || OfTenant(meter) && (meter-firstTenantMeter)%2 == 1
}

// fairly are the flows by which namespaces do not take from each other what the node
// has once: entries of its connection table, and answers to packets that are too large.
func (m Model) fairly(t Tenant) []of.Flow {
	var flows []of.Flow
	if t.Meters.New != 0 && m.ServiceProxy == OVS {
		f := t.own(flow(TableNew, 100, to(TableBalance), nil, regSenderSlot.is(t.Slot)))
		f.Meter = t.Meters.New
		flows = append(flows, f)
	}
	if t.Meters.TooLarge != 0 && m.Measures() {
		f := t.own(tellTooLarge(110, regSenderSlot.is(t.Slot)))
		f.Meter = t.Meters.TooLarge
		flows = append(flows, f)
	}
	return flows
}

// TenantMeters are the meters that the flows of t refer to, with what it may.
func (m Model) TenantMeters(t Tenant, a Allowance) []of.Meter {
	var meters []of.Meter
	for _, f := range m.fairly(t) {
		rate := Allowance{tooLargePerSecond, tooLargePerSecond}
		if f.Meter == t.Meters.New {
			rate = a
		}
		meters = append(meters, packetMeter(f.Meter, rate))
	}
	return meters
}

// packetMeter lets so many packets pass.
func packetMeter(id uint32, a Allowance) of.Meter {
	return of.Meter{
		ID: id, Flags: of.MeterPktps | of.MeterBurst | of.MeterStats,
		Bands: []of.Band{{Rate: a.Rate, Burst: a.Burst}},
	}
}
