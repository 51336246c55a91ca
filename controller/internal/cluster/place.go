package cluster

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// silence is for how long the agent at a node's address must not have reported
// before the node may move to another one: longer than an agent's restart, or a
// reboot, so that neither lets somebody else speak for the node.
const silence = 2 * time.Minute

// claim is the first InternalIP of a Node, and whose that is now. A kubelet writes
// its Node's addresses as it likes, so they are no proof of anything.
type claim struct {
	node    string
	address netip.Addr
	// has is the address of the record that the Node has already; not valid for none.
	has netip.Addr
	// record is what stands at the claimed address; nil for nothing.
	record *topology.Node
	// holder is the Node that has that record by its UID; empty where that Node is
	// gone, or the record follows none.
	holder string
	// namesake reports that a Node called as the record's Host, and not this one,
	// claims the address as well, and that no live Node has the record.
	namesake bool
	// taken is another Node that has the address by this plan already; empty for none.
	taken string
	// silent reports that the agent at has was not heard for long enough.
	silent bool
}

// verdict is what becomes of a claim.
type verdict int

const (
	// stays: the record at the claimed address is the Node's own.
	stays verdict = iota
	// begins: the Node has no record yet, and has its place at the claimed address.
	begins
	// moves: the Node's record goes to the claimed address, with its subnet.
	moves
	// waits: the Node's record stays where it is, until its old address is silent
	// or an operator confirms the new one.
	waits
	// refused: the claimed address is another's.
	refused
)

// judge is the one place where it is decided who may have an address:
// docs/kubernetes.md, "Whose address it is". It says why not.
func (c claim) judge() (verdict, string) {
	confirm := fmt.Sprintf("`netns nodes confirm %s %s`", c.node, c.address)
	switch {
	case c.has == c.address:
		return stays, ""
	case c.holder != "":
		return refused, fmt.Sprintf("its InternalIP %s is the address of node %s, which keeps it%s: give each kubelet its own with --node-ip, or delete Node %s if that machine is gone", c.address, c.holder, c.kept(), c.holder)
	case c.record != nil && c.record.UID == "" && c.record.Host != c.node:
		return refused, fmt.Sprintf("its InternalIP %s is the address of host %s, whose record follows no Node%s: give the kubelet its own with --node-ip, or say with %s --force that it is this node", c.address, orNobody(c.record.Host), c.kept(), confirm)
	case c.namesake:
		return refused, fmt.Sprintf("its InternalIP %s is the address of node %s, which is registered anew%s: give each kubelet its own with --node-ip", c.address, c.record.Host, c.kept())
	case c.taken != "":
		return refused, fmt.Sprintf("its InternalIP %s is that of node %s too%s: give each kubelet its own with --node-ip", c.address, c.taken, c.kept())
	case !c.has.IsValid():
		return begins, ""
	case c.silent, c.record != nil && c.record.UID == "":
		return moves, ""
	}
	return waits, fmt.Sprintf("its InternalIP is %s now; its place in the network stays at %s until the agent there has not reported for %v, or an operator runs %s", c.address, c.has, silence, confirm)
}

// kept says where the Node is in spite of what it claims.
func (c claim) kept() string {
	if !c.has.IsValid() {
		return ""
	}
	return fmt.Sprintf(", and this node's place in the network stays at %s", c.has)
}

func orNobody(host string) string {
	if host == "" {
		return "without a name"
	}
	return host
}
