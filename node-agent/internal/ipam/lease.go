package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/detached"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
)

// Lease is what an attachment has of the node's subnets.
type Lease struct {
	// Addresses are one, or one of each subnet in their order, and MAC what follows from
	// them; Allocate sets both.
	Addresses    []netip.Addr `json:"-"`
	ContainerID  string       `json:"containerID"`
	IfName       string       `json:"ifName"`
	MAC          cniapi.MAC   `json:"mac,omitempty"`
	PodNamespace string       `json:"podNamespace,omitempty"`
	PodName      string       `json:"podName,omitempty"`
	// PodUID and NamespaceUID tell both from others of the same names; empty where they are
	// not known.
	PodUID       string `json:"podUID,omitempty"`
	NamespaceUID string `json:"namespaceUID,omitempty"`
	// Netns is the sandbox's path, NetworkName the CNI network's name and Limits the
	// pod's at first: with them a lease is enough to make the attachment's port anew.
	Netns       string        `json:"netns,omitempty"`
	NetworkName string        `json:"networkName,omitempty"`
	Limits      limits.Limits `json:"limits,omitzero"`
	// Since is when it was given out; Allocate sets it.
	Since time.Time `json:"since"`
	// Leaving is that the attachment was taken off the network, and what is left of it
	// is still to be removed: nobody else has the address before.
	Leaving bool `json:"leaving,omitempty"`
}

// Attachment is the key of the lease: an attachment has one lease at most.
func (l Lease) Attachment() cniapi.Attachment {
	return cniapi.Attachment{ContainerID: l.ContainerID, IfName: l.IfName}
}

// FullError says that every address of the subnet is leased, or was freed too short a time ago.
type FullError struct {
	Subnet netip.Prefix
	// Leased is how many addresses are; Leaving of them are those of attachments that
	// are leaving. Waiting are free, and not to be given out yet.
	Leased, Leaving, Waiting int
}

func (e *FullError) Error() string {
	leaving := ""
	if e.Leaving > 0 {
		leaving = fmt.Sprintf(", %d of them to pods that were detached and are not wholly removed yet", e.Leaving)
	}
	if e.Waiting > 0 {
		return fmt.Sprintf("no address left now: %d of node subnet %s are leased%s, and the other %d were freed and may still be in the sets of NetworkPolicies: they are given out when a k8s-ovs-controller has taken them out of these, and not before 10 s", e.Leased, e.Subnet, leaving, e.Waiting)
	}
	return fmt.Sprintf("no address left: all %d of node subnet %s are leased%s; remove pods, or give nodes larger subnets (HostSubnetLength)", e.Leased, e.Subnet, leaving)
}

// TakenError says that the address of a lease that was made before has another holder.
type TakenError struct{ Holder Lease }

func (e *TakenError) Error() string {
	return fmt.Sprintf("address %s is leased to %s (pod %s/%s)", e.Holder.first(), e.Holder.Attachment(), e.Holder.PodNamespace, e.Holder.PodName)
}

// StorageError says that the pool's file cannot be written: the disk is full, or read
// only, which passes when that does, or the folder was deleted: see package detached.
type StorageError struct {
	Path  string
	Cause error
}

func (e *StorageError) Error() string {
	if errors.Is(e.Cause, detached.Err) {
		return fmt.Sprintf("the leases of addresses cannot be written to %s: %v", e.Path, e.Cause)
	}
	return fmt.Sprintf("the leases of addresses cannot be written to %s: %v; free some space there", e.Path, e.Cause)
}

// Unwrap is the cause.
func (e *StorageError) Unwrap() error { return e.Cause }
