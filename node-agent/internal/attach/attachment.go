package attach

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Attachment is one interface of one sandbox on this node.
type Attachment struct {
	cniapi.Attachment
	// Netns is the sandbox's path, as the runtime gave it at ADD.
	Netns string
	// Network is the name of the CNI network, for GC.
	Network string
	// Namespace and Pod are the pod's names.
	Namespace, Pod string
	Address        netip.Addr
	// Port is the OpenFlow port number of the host's end.
	Port uint32
}

// HostIfPrefix begins the name of every host's end, so that the firewall can
// tell them from other devices.
const HostIfPrefix = "kov"

// HostIf is the name of the host's end of the veth pair. It follows from the
// attachment, so it can be found when nothing else is known. 15 characters,
// the most that the kernel allows (IFNAMSIZ).
func HostIf(a cniapi.Attachment) string {
	sum := sha256.Sum256([]byte(a.String()))
	return HostIfPrefix + hex.EncodeToString(sum[:])[:12]
}

// HostIf is the name of the host's end of the veth pair.
func (a Attachment) HostIf() string { return HostIf(a.Attachment) }

// attached is what flows need to know.
func (a Attachment) attached() desired.Attached {
	return desired.Attached{Namespace: a.Namespace, Address: a.Address, Port: a.Port}
}

// lease is what the address pool keeps of the attachment.
func (a Attachment) lease() ipam.Lease {
	return ipam.Lease{
		Address: a.Address, ContainerID: a.ContainerID, IfName: a.IfName, PodNamespace: a.Namespace, PodName: a.Pod,
		Netns: a.Netns, NetworkName: a.Network,
	}
}

func fromLease(l ipam.Lease) Attachment {
	return Attachment{
		Attachment: l.Attachment(), Netns: l.Netns, Network: l.NetworkName, Namespace: l.PodNamespace, Pod: l.PodName, Address: l.Address,
	}
}

// Keys of a pod port's external_ids: the attachment, as it is read back after
// a restart. iface-id and attached-mac are Open vSwitch's own conventions
// (its documentation, "Integration Guide for Centralized Control").
const (
	keyContainer = "k8s-ovs-container"
	keyIfName    = "k8s-ovs-ifname"
	keyNetns     = "k8s-ovs-netns"
	keyNetwork   = "k8s-ovs-network"
	keyNamespace = "k8s-ovs-namespace"
	keyPod       = "k8s-ovs-pod"
	keyAddress   = "k8s-ovs-address"
	keyIfaceID   = "iface-id"
	keyMAC       = "attached-mac"
)

// externalIDs are what the pod port's Interface row carries.
func (a Attachment) externalIDs() map[string]string {
	ids := map[string]string{
		keyContainer: a.ContainerID, keyIfName: a.IfName, keyNetns: a.Netns, keyNamespace: a.Namespace, keyPod: a.Pod,
		keyAddress: a.Address.String(),
		keyIfaceID: a.Namespace + "/" + a.Pod, keyMAC: topology.MAC(a.Address).String(),
	}
	if a.Network != "" {
		ids[keyNetwork] = a.Network
	}
	return ids
}

// fromExternalIDs reads an attachment back; ok is false where the port is no
// pod port of ours.
func fromExternalIDs(ids map[string]string, port uint32) (a Attachment, ok bool, err error) {
	if ids[keyContainer] == "" {
		return Attachment{}, false, nil
	}
	a = Attachment{
		Attachment: cniapi.Attachment{ContainerID: ids[keyContainer], IfName: ids[keyIfName]},
		Netns:      ids[keyNetns], Network: ids[keyNetwork], Namespace: ids[keyNamespace], Pod: ids[keyPod], Port: port,
	}
	if a.Address, err = netip.ParseAddr(ids[keyAddress]); err != nil || !a.Address.Is4() {
		return a, true, fmt.Errorf("attachment %s: address %q in its external_ids is not an IPv4 address", a.Attachment, ids[keyAddress])
	}
	return a, true, nil
}
