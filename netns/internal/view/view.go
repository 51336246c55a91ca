// Package view makes what `netns` shows out of the records: rows, their fields
// and their states. Field names in JSON and YAML are stable.
//
// It is pure.
package view

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/plan"
	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// States of a namespace and of a node.
const (
	// Ready: what the record says is confirmed; the node has all records in its flows.
	Ready = "ready"
	// Pending: the controller has yet to act on the record.
	Pending = "pending"
	// Invalid: the record does not parse.
	Invalid = "invalid"
	// Behind: the node lacks newer records.
	Behind = "behind"
	// NotLive: the node has a subnet but its agent does not report.
	NotLive = "notLive"
	// NotReady: the agent reports why pods of the node do not reach what they should.
	NotReady = "notReady"
	// NoSubnet: the node waits for the controller to give it a subnet.
	NoSubnet = "noSubnet"
	// NoRecord: an agent reports for a node that has no record.
	NoRecord = "noRecord"
)

// Namespace is one row of `netns list`.
type Namespace struct {
	Namespace string `json:"namespace"`
	// NetID is the confirmed one, which nodes program; null for none yet.
	NetID *netid.ID `json:"netID"`
	// Global reports that it reaches all and all reach it.
	Global bool `json:"global"`
	// NetworkWith is the other namespaces with the same netID.
	NetworkWith []string `json:"networkWith"`
	// State is ready, pending or invalid.
	State string `json:"state"`
	// Message says what a state other than ready is about.
	Message string `json:"message"`
	// Declared is the network that an annotation of the Kubernetes Namespace
	// names; empty for none. Forced reports that a change by hand stands over it.
	Declared string `json:"declared,omitempty"`
	Forced   bool   `json:"forced,omitempty"`
	// Request is the pending request, as it is typed; empty for none. RequestedBy is
	// who made it, where that is known.
	Request     string `json:"request"`
	RequestedBy string `json:"requestedBy,omitempty"`
	// LastRequest is what became of the last one, where the records say something
	// about it; else null.
	LastRequest *Outcome `json:"lastRequest"`
}

// Detail is what `netns show` shows.
type Detail struct {
	Namespace
	// Reaches is the other namespaces that it reaches and that reach it.
	Reaches []string `json:"reaches"`
	// Revision is the etcd revision of the record.
	Revision int64 `json:"revision"`
	// Nodes says which nodes have the record in their flows.
	Nodes Progress `json:"nodes"`
	// Limited are its pods that have a limit.
	Limited []Limited `json:"limited"`
	// Policies are its NetworkPolicies; null where no API server can have any.
	Policies []Policy `json:"policies"`
	// NotEnforcedOn are the live nodes that do not enforce NetworkPolicy.
	NotEnforcedOn []string `json:"notEnforcedOn"`
	// ClusterPolicies are the ClusterNetworkPolicies whose subject has pods of it; null where
	// no API server can have any. ClusterNotEnforcedOn are the live nodes that do not enforce
	// those.
	ClusterPolicies      []ClusterPolicy `json:"clusterPolicies"`
	ClusterNotEnforcedOn []string        `json:"clusterNotEnforcedOn"`
}

// Outcome is what became of a request.
type Outcome struct {
	// Outcome is done, unchanged, refused, waiting or withdrawn; left out where the
	// record does not say.
	Outcome topology.Outcome `json:"outcome,omitempty"`
	Message string           `json:"message"`
	// By is who asked; left out where that is not known.
	By   string    `json:"by,omitempty"`
	Time time.Time `json:"time"`
}

// Progress says how far a revision is in the flows of the nodes.
type Progress struct {
	// Live is the number of nodes that report; Applied of them have the
	// revision in their flows.
	Live    int `json:"live"`
	Applied int `json:"applied"`
	// Lagging are the live nodes that do not have it yet.
	Lagging []string `json:"lagging"`
	// NotLive are the nodes with a subnet that do not report.
	NotLive []string `json:"notLive"`
}

// Node is one row of `netns nodes`.
type Node struct {
	Node    string `json:"node"`
	Address string `json:"address"`
	// Subnet is empty while the node has none.
	Subnet string `json:"subnet"`
	// Live reports that the agent reports. Without that, Datapath and the fields from
	// Pods to AppliedRevision are empty.
	Live     bool   `json:"live"`
	Datapath string `json:"datapath"`
	// MTU of the node's pods; 0 where that is not known.
	MTU             int    `json:"mtu"`
	Pods            int    `json:"pods"`
	Version         string `json:"version"`
	AppliedRevision int64  `json:"appliedRevision"`
	// VXLANPort is the UDP port of the node's tunnels; 0 where that is not known.
	VXLANPort tunnel.Port `json:"vxlanPort"`
	// CarriesMTU is what the node's paths carry of a pod's packet, bytes; 0 where that
	// is not known. MTULimit names what limits it.
	CarriesMTU int    `json:"carriesMTU"`
	MTULimit   string `json:"mtuLimit"`
	// State is ready, notReady, behind, notLive, noSubnet, noRecord or invalid.
	State   string `json:"state"`
	Message string `json:"message"`
}

// Statuses is what live nodes report, by address.
type Statuses map[netip.Addr]topology.NodeStatus

// Namespaces is all rows of `netns list`, in order of name.
func Namespaces(s topology.Snapshot) []Namespace {
	ids := plan.IDs(s)
	sharing := byID(ids)
	rows := make([]Namespace, 0, len(s.Namespaces))
	for _, n := range s.Namespaces {
		rows = append(rows, namespace(n, ids, sharing))
	}
	for name, reason := range plan.InvalidNamespaces(s) {
		rows = append(rows, Namespace{Namespace: name, NetworkWith: []string{}, State: Invalid, Message: reason})
	}
	slices.SortFunc(rows, func(a, b Namespace) int { return strings.Compare(a.Namespace, b.Namespace) })
	return rows
}

// Show is the detail of the namespace whose record n has revision rev.
func Show(s topology.Snapshot, n topology.Namespace, rev int64, statuses Statuses, limits Limits, policies Policies) Detail {
	ids := plan.IDs(s)
	d := Detail{
		Namespace: namespace(n, ids, byID(ids)),
		Reaches:   orEmpty(plan.Reaches(ids, n.NetName)),
		Revision:  rev,
		Nodes:     Applied(s, statuses, rev),
		Limited:   limits.of(n.NetName),

		NotEnforcedOn:        notEnforcing(statuses, topology.EnforcesNetworkPolicy),
		ClusterNotEnforcedOn: notEnforcing(statuses, topology.EnforcesClusterNetworkPolicy),
	}
	if n.UID != "" { // its Namespace's, in Kubernetes
		d.Policies, d.ClusterPolicies = policies.of(n.NetName), policies.cluster(n.NetName)
	}
	return d
}

func namespace(n topology.Namespace, ids map[string]netid.ID, sharing map[netid.ID][]string) Namespace {
	row := Namespace{Namespace: n.NetName, NetworkWith: []string{}, Declared: n.Declared, Forced: n.Forced}
	row.State, row.Message = namespaceState(n)
	if n.Action != topology.None {
		row.Request, row.RequestedBy = plan.Of(n).String(), n.By
	}
	if st := n.Status; st != nil {
		row.LastRequest = &Outcome{Outcome: st.Outcome, Message: st.Message, By: st.By, Time: st.Time.UTC()}
	}
	if id, ok := ids[n.NetName]; ok {
		row.NetID, row.Global = &id, id.IsGlobal()
		for _, other := range sharing[id] {
			if other != n.NetName {
				row.NetworkWith = append(row.NetworkWith, other)
			}
		}
	}
	return row
}

func namespaceState(n topology.Namespace) (state, message string) {
	switch {
	case n.Effective != nil && n.Change.UnderWay():
		return Pending, fmt.Sprintf("nodes are taking up its change from netID %d to %d%s", n.Change.Origin(*n.Effective), n.Change.Goal(*n.Effective), by(n.Change.By))
	case n.Action != topology.None:
		return Pending, fmt.Sprintf("%s is requested%s", plan.Of(n), by(n.By))
	case n.Effective == nil && n.NetID == nil:
		return Pending, "waits for a netID"
	case n.Effective == nil || n.NetID != nil && *n.NetID != int64(*n.Effective):
		return Pending, fmt.Sprintf("netID %d, written by hand, waits for the controller's check", *n.NetID)
	}
	return Ready, ""
}

// by names who asked, if that is known.
func by(who string) string {
	if who == "" {
		return ""
	}
	return " by " + who
}

// byID is the namespaces that have each netID, in order: one pass, where
// asking for each namespace would be quadratic.
func byID(ids map[string]netid.ID) map[netid.ID][]string {
	all := map[netid.ID][]string{}
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		all[ids[name]] = append(all[ids[name]], name)
	}
	return all
}

// Nodes is all rows of `netns nodes`, in order of address. newest is the
// revision of the newest record.
func Nodes(s topology.Snapshot, statuses Statuses, mtus topology.MTUs, newest int64) []Node {
	rows := make([]Node, 0, len(s.Nodes))
	for addr, n := range s.Nodes {
		status, live := statuses[addr]
		row := nodeRow(n.Host, addr, status, live)
		if n.Ready() {
			row.Subnet = n.Subnet.String()
		}
		if row.Message == "" && n.Status != nil && !n.Ready() {
			row.Message = n.Status.Message + by(n.Status.By)
		}
		row.packets(mtus, addr)
		switch {
		case !n.Ready():
			row.State = NoSubnet
		case !live:
			row.State = NotLive
		case status.Revision < newest:
			row.State = Behind
		case status.Message != "":
			row.State = NotReady
		default:
			row.State = Ready
		}
		rows = append(rows, row)
	}
	for addr, status := range statuses {
		if _, ok := s.Nodes[addr]; !ok {
			row := nodeRow(status.Host, addr, status, true)
			row.State = NoRecord
			rows = append(rows, row)
		}
	}
	for key, reason := range s.Invalid {
		if address, ok := strings.CutPrefix(key, "subnets/"); ok {
			rows = append(rows, Node{Address: address, State: Invalid, Message: reason})
		}
	}
	slices.SortFunc(rows, func(a, b Node) int { return compareAddresses(a.Address, b.Address) })
	return rows
}

func nodeRow(host string, addr netip.Addr, status topology.NodeStatus, live bool) Node {
	row := Node{Node: host, Address: addr.String(), Live: live}
	if live {
		row.Datapath, row.MTU, row.Pods, row.VXLANPort = status.Datapath, status.MTU, status.Pods, status.VXLANPort
		row.Version, row.AppliedRevision, row.Message = status.Version, status.Revision, cmp.Or(status.Message, status.Warning)
	}
	return row
}

// packets fills in how large the node's packets may be, and says so where it holds
// the others back.
func (n *Node) packets(mtus topology.MTUs, addr netip.Addr) {
	m, ok := mtus.Nodes[addr]
	if !ok {
		return
	}
	n.MTU, n.CarriesMTU, n.MTULimit = m.Sends, m.Carries, m.Limit
	var messages []string
	if n.Message != "" {
		messages = append(messages, n.Message)
	}
	if mtus.HoldsBack(addr) {
		messages = append(messages, fmt.Sprintf("its MTU lags behind the others': it carries %d, by %s", m.Carries, m.Limit))
	}
	if m.BlackHoles != "" {
		messages = append(messages, "large packets are lost on the way to "+m.BlackHoles+" (black hole)")
	}
	n.Message = strings.Join(messages, "; ")
}

// compareAddresses puts 192.0.2.9 before 192.0.2.10, and what is no address last.
func compareAddresses(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	switch {
	case errX == nil && errY == nil:
		return x.Compare(y)
	case errX == nil:
		return -1
	case errY == nil:
		return 1
	}
	return strings.Compare(a, b)
}

// Applied says which nodes of s have revision rev in their flows. Only nodes
// with a subnet count: others hold no pods and no tunnels.
func Applied(s topology.Snapshot, statuses Statuses, rev int64) Progress {
	p := Progress{Lagging: []string{}, NotLive: []string{}}
	for addr, n := range s.Nodes {
		status, live := statuses[addr]
		switch {
		case !n.Ready():
		case !live:
			p.NotLive = append(p.NotLive, n.Host)
		case status.Revision >= rev:
			p.Live++
			p.Applied++
		default:
			p.Live++
			p.Lagging = append(p.Lagging, n.Host)
		}
	}
	slices.Sort(p.Lagging)
	slices.Sort(p.NotLive)
	return p
}

// Done reports that no live node lags.
func (p Progress) Done() bool { return len(p.Lagging) == 0 }

// orEmpty makes an empty list [] in JSON, not null.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
