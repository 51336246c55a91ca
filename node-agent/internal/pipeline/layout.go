package pipeline

import (
	"slices"

	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
)

// This file names what the flows share: tables, registers, the metadata, zones of
// connection tracking and the mark of their connections. Nothing else of a packet or a
// connection carries anything: no packet mark, no ct_label.
//
// Numbers stay what they are. Those of services are in flows that another owner writes, in
// flows that the switch learned, and in packets under way through connection tracking,
// which all outlive the bundle that brings a new generation. A new stage takes a free
// number between its neighbours.

// The tables, in the order in which packets pass them: see [Stages].
const (
	TableSource          uint8 = 0
	TablePeer            uint8 = 2
	TableTenant          uint8 = 5
	TableARP             uint8 = 10
	TableJudge           uint8 = 12
	TableEgressAdmin     uint8 = 13
	TableEgress          uint8 = 14
	TableEgressBaseline  uint8 = 15
	TableIngressAdmin    uint8 = 16
	TableIngress         uint8 = 17
	TableIngressBaseline uint8 = 18
	TableJudged          uint8 = 19
	TableRoute           uint8 = 20
	TableNew             uint8 = 21
	TableService         uint8 = 22
	TableServiceTenant   uint8 = 23
	TableAffinity        uint8 = 24 // learned flows only
	TableBalance         uint8 = 25
	TableEndpoint        uint8 = 26
	TableChosen          uint8 = 27
	TableReceive         uint8 = 28
	TableReply           uint8 = 30
	TableReplied         uint8 = 31
	TableDeliver         uint8 = 40
	TableAdmit           uint8 = 45
	TableCommit          uint8 = 47
	TableHost            uint8 = 50
	TableSize            uint8 = 60
	TableOutput          uint8 = 65
	TableDeniedEgress    uint8 = 66
	TableDeniedIngress   uint8 = 67
	// TableNudge is reached by no packet.
	TableNudge uint8 = 250
)

// tableLeave is the first of the stages that every packet passes once it is decided where it
// leaves. A stage that all of them have to pass goes before it, and takes its place here.
const tableLeave = TableSize

// Stage is one table.
type Stage struct {
	Table          uint8
	Name, Question string
	// To are the tables that its packets can go on to, in this order.
	To []uint8
}

// Stages are all tables, in their order. A packet goes on to a higher one only, except
// by way of connection tracking, after which it is routed anew, and the choice of an
// endpoint.
func Stages() []Stage {
	return []Stage{
		{TableSource, "Source", "who sent this?", []uint8{TablePeer, TableTenant, TableARP, TableRoute, TableReceive}},
		{TablePeer, "Peer", "does a peer with a list of netIDs have the sender's address?", []uint8{TableReceive}},
		{TableTenant, "Tenant", "which netID does the sender have?", []uint8{TableRoute}},
		{TableARP, "ARP", "what is the MAC of x?", []uint8{tableLeave}},
		{TableJudge, "Judge", "can it be judged?", []uint8{TableEgressAdmin, TableJudged, TableRoute, TableReply, TableDeliver}},
		{TableEgressAdmin, "Egress admin", "what does the cluster's administrator say of its sender?", []uint8{TableEgress, TableIngressAdmin, TableDeniedEgress}},
		{TableEgress, "Egress", "may its sender send it?", []uint8{TableEgressBaseline, TableIngressAdmin, TableDeniedEgress}},
		{TableEgressBaseline, "Egress baseline", "what does the administrator say where nothing isolates the sender?", []uint8{TableIngressAdmin, TableDeniedEgress}},
		{TableIngressAdmin, "Ingress admin", "what does the cluster's administrator say of its receiver?", []uint8{TableIngress, TableJudged, TableDeniedIngress}},
		{TableIngress, "Ingress", "may its receiver get it?", []uint8{TableIngressBaseline, TableJudged, TableDeniedIngress}},
		{TableIngressBaseline, "Ingress baseline", "what does the administrator say where nothing isolates the receiver?", []uint8{TableJudged, TableDeniedIngress}},
		{TableJudged, "Judged", "where was it going?", []uint8{TableRoute, TableReply, TableDeliver}},
		{TableRoute, "Route", "where does it go?", []uint8{TableJudge, TableRoute, TableNew, TableService, TableReceive, TableHost, tableLeave}},
		{TableNew, "New", "may the sender's namespace open another connection?", []uint8{TableBalance}},
		{TableService, "Service", "whose service is it?", []uint8{TableRoute, TableServiceTenant, TableHost}},
		{TableServiceTenant, "Service tenant", "may the sender use it?", []uint8{TableRoute, TableHost}},
		{TableAffinity, "Affinity", "which endpoint has this client?", nil},
		{TableBalance, "Balance", "which endpoint?", []uint8{TableRoute, TableAffinity, TableEndpoint, TableHost}},
		{TableEndpoint, "Endpoint", "is the client's endpoint still one?", []uint8{TableRoute, TableChosen}},
		{TableChosen, "Chosen", "was another chosen meanwhile?", []uint8{TableAffinity, TableEndpoint}},
		{TableReceive, "Receive", "must it be judged for its receiver?", []uint8{TableJudge, TableReply, TableDeliver}},
		{TableReply, "Reply", "may it be an answer to translate back?", []uint8{TableReplied, TableDeliver}},
		{TableReplied, "Replied", "beside kube-proxy: is it one?", []uint8{TableDeliver}},
		{TableDeliver, "Deliver", "whose address is it?", []uint8{TableDeliver, TableAdmit, TableHost}},
		{TableAdmit, "Admit", "may the sender reach it?", []uint8{TableCommit}},
		{TableCommit, "Commit", "is it a new connection to a selected pod?", []uint8{tableLeave}},
		{TableHost, "Host", "may it go to the node itself, and beyond?", []uint8{tableLeave}},
		{TableSize, "Size", "is it larger than its path carries?", []uint8{TableOutput}},
		{TableOutput, "Output", "by which port does it leave?", nil},
		{TableDeniedEgress, "Denied egress", "how many were not to be sent?", nil},
		{TableDeniedIngress, "Denied ingress", "how many were not to be received?", nil},
	}
}

// Written are the tables whose flows are the agent's alone: all but the one that the switch
// learns flows into.
func Written() (tables []uint8) {
	for _, s := range Stages() {
		if s.Table != TableAffinity {
			tables = append(tables, s.Table)
		}
	}
	return tables
}

// register is one of Open vSwitch's registers.
type register int

// The registers: see [Registers].
const (
	regSender       register = 0
	regSenderSlot   register = 1
	regOutPort      register = 2
	regServiceSlot  register = 3
	regPathMTU      register = 4
	regProxied      register = 5
	regServicePort  register = 6
	regEndpoint     register = 7
	regEndpointPort register = 8
	regChosen       register = 9
	regTooLarge     register = 10
	regError        register = 11
	regReceiverSlot register = 12
	regTunnelDst    register = 13
	regPolicy       register = 14
	regScratch      register = 15
)

// Values of regProxied.
const (
	proxiedRequest = 1
	proxiedAnswer  = 2
)

// Bits of regPolicy.
const (
	policySelected uint32 = 1 << iota // policies say something of the sender, a pod of this node
	policyJudged                      // it is, or goes to be
	policyReceives                    // it was judged on its way to its receiver
	policyCommits                     // it begins a connection, which is to be known once the tenant check let it pass
	policyNode                        // the connection is from a node or to one
)

// portIn is, in regOutPort, the port by which the packet came: OFPP_IN_PORT in the 16 bits
// that an output to a register's port takes (ovs-actions(7)).
const portIn = of.PortInPort & 0xffff

// Register says what a register is for.
type Register struct {
	Number int
	Name   string
	// Bits are how many are used, from the lowest.
	Bits  int
	Holds string
	// SetBy and ReadBy are the tables whose flows set it, and match it or use what it holds.
	SetBy, ReadBy []uint8
}

// Registers are all registers in use. A packet that comes in has 0 in each.
func Registers() []Register {
	return []Register{
		regSender.of("sender", 32, "netID of the sender, 0 is global",
			[]uint8{TableSource, TablePeer, TableTenant}, []uint8{TableServiceTenant, TableAdmit, TableOutput}),
		regSenderSlot.of("sender slot", 32, "slot of the sender's namespace, 0 where no pod of this node sent it",
			[]uint8{TableSource}, []uint8{TableTenant, TableNew, TableOutput}),
		regOutPort.of("out port", 16, "port by which the packet leaves",
			[]uint8{TableARP, TableRoute, TableDeliver, TableHost}, []uint8{TableCommit, TableOutput}),
		regServiceSlot.of("service slot", 32, "slot of a service's namespace",
			[]uint8{TableService}, []uint8{TableServiceTenant}),
		regPathMTU.of("path MTU", 16, "what the path to the peer carries, bytes, where that is less than pods' devices do",
			[]uint8{TableRoute}, []uint8{TableSize}),
		regProxied.of("proxied", 2, "beside kube-proxy: 1 a request that the node translated, 2 an answer to one",
			[]uint8{TableSource, TableRoute, TableReplied}, []uint8{TableRoute, TableDeliver}),
		regServicePort.of("service port", 32, "number of a service port (session affinity)",
			[]uint8{TableBalance}, []uint8{TableAffinity, TableEndpoint}),
		regEndpoint.of("endpoint", 32, "address of the endpoint chosen",
			[]uint8{TableAffinity, TableEndpoint}, []uint8{TableEndpoint}),
		regEndpointPort.of("endpoint port", 16, "port of the endpoint chosen",
			[]uint8{TableAffinity, TableEndpoint}, []uint8{TableEndpoint}),
		regChosen.of("chosen", 1, "1 once a choice was made for this packet",
			[]uint8{TableEndpoint, TableChosen}, []uint8{TableAffinity, TableEndpoint}),
		regTooLarge.of("too large", 1, "1 for a packet that is larger than its path carries",
			[]uint8{TableSize}, []uint8{TableOutput}),
		regError.of("error", 1, "1 once a client's ICMP error was sent to be translated",
			[]uint8{TableRoute}, []uint8{TableRoute}),
		regReceiverSlot.of("receiver slot", 32, "slot of the receiving pod's namespace",
			[]uint8{TableDeliver}, []uint8{TableAdmit}),
		regTunnelDst.of("tunnel destination", 32, "VTEP of the peer to which the packet goes",
			[]uint8{TableRoute}, []uint8{TableOutput}),
		regPolicy.of("policy", 5, "bits: sender selected, judged, on the receiver's side, to be committed, from or to a node",
			[]uint8{TableSource, TableJudge, TableJudged, TableRoute, TableReceive},
			[]uint8{TableJudge, TableEgressAdmin, TableEgress, TableEgressBaseline, TableIngressAdmin, TableIngress, TableIngressBaseline, TableJudged, TableRoute, TableReceive, TableCommit}),
		regScratch.of("scratch", 32, "an address while an ARP answer is made",
			[]uint8{TableARP}, []uint8{TableARP}),
	}
}

func (r register) of(name string, bits int, holds string, setBy, readBy []uint8) Register {
	return Register{int(r), name, bits, holds, slices.Clip(setBy), slices.Clip(readBy)}
}

// field is the register as a field.
func (r register) field() of.FieldID { return of.FieldReg(int(r)) }

// whole is all of it, to be moved.
func (r register) whole() of.FieldRange { return of.Whole(r.field()) }

// lowest is its lowest bit.
func (r register) lowest() of.FieldRange { return of.Bits(r.field(), 0, 0) }

// is matches packets for which it holds v.
func (r register) is(v uint32) of.Field { return of.Reg(int(r), v) }

// isOne matches packets for which its lowest bit is 1.
func (r register) isOne() of.Field { return of.RegMasked(int(r), 1, 1) }

// has matches packets for which the bits of on are 1, and those of off are 0.
func (r register) has(on, off uint32) of.Field { return of.RegMasked(int(r), on, on|off) }

// mark makes bits of it 1.
func (r register) mark(bits uint32) of.Action { return of.SetField(r.has(bits, 0)) }

// set makes it hold v.
func (r register) set(v uint32) of.Action { return of.SetField(r.is(v)) }

// The metadata holds, for a packet that policies judge and that was sent to a service, where
// the sender sent it: what the service's connection says of that is gone by then.
var (
	sentToPort    = of.Range(of.FieldMetadata, 0, 16)
	sentToAddress = of.Range(of.FieldMetadata, 16, 32)
)

// Zones of connection tracking. The node's own is 0; these are no other's.
const (
	// ZonePolicy has the connections of pods that policies select. Marked are those that are
	// known: one that nobody answers counts as new for good.
	ZonePolicy uint16 = 65519
	// ZoneService has the connections to services, translated to their endpoints.
	ZoneService uint16 = 65520
	// ZoneHairpin has those of pods that are their own endpoints.
	ZoneHairpin uint16 = 65521
)

// The mark of connections in ZonePolicy, and two bits that it never has. The flows behind which a packet is allowed
// ask for the one, those where it is denied for the other: so neither is cached with a mask that would do for the
// other, and what ovs-vswitchd has cached it takes away and makes anew when policies change, in place of changing it
// where it is. There, that of the userspace datapath may change what is cached for other packets, and leave this for
// good as it was (Open vSwitch before 3.1.3: "dpif-netdev: Fix dpif_netdev_flow_put").
const (
	known       uint32 = 1
	markAllowed uint32 = 1 << 30
	markDenied  uint32 = 1 << 31
)
