package attach

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/bridge"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/ipam"
	"github.com/k8s-ovs/k8s-ovs/pkg/cniapi"
	"github.com/k8s-ovs/k8s-ovs/pkg/limits"
	"github.com/k8s-ovs/k8s-ovs/pkg/ovs"
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
	// UIDs are those of both, which their names do not say.
	UIDs UIDs
	// Addresses are one or two, in the order of the node's subnets; none where nothing is
	// known of the attachment but its key.
	Addresses []netip.Addr
	MAC       net.HardwareAddr
	// Port is the OpenFlow port number of the host's end.
	Port uint32
	// Limits of the pod.
	Limits limits.Limits

	// mtu is what its devices were given by this process; zero where that was another.
	mtu MTU
	// told is what its flows were made for last.
	told desired.Attached
	// apart is that another device of its sandbox has the default route.
	apart bool
	// hostMAC is the hardware address of the host's end, which the kernel chose; none where
	// another process made it.
	hostMAC net.HardwareAddr
	// mended is that its limits were put right before: it may be its pod's doing.
	mended bool
	// missed is in how many looks one after the other neither its device nor its sandbox was there.
	missed int
	// trouble is why it has no network.
	trouble trouble
}

// UIDs tell a Kubernetes Namespace and a pod from others that have their names before or after
// them. Each is empty where it is not known: outside of Kubernetes, where the runtime does not
// say, and of what an earlier release attached.
type UIDs struct{ Namespace, Pod string }

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

// port is the pod's port of the bridge.
func (a Attachment) port(node Node) ovs.PortSpec {
	return ovs.PortSpec{
		Name: a.HostIf(), OfportRequest: a.wants(node), ExternalIDs: a.externalIDs(), SharedQoS: portQoS, NotPoliced: true,
	}
}

// wants is the number that its port asks for: it follows from the first address.
func (a Attachment) wants(node Node) uint32 { return bridge.PodOfport(node.Subnets[0], a.Addresses[0]) }

// lease is what the address pool keeps of the attachment.
func (a Attachment) lease() ipam.Lease {
	return ipam.Lease{
		Addresses: a.Addresses, MAC: cniapi.MAC(a.MAC), ContainerID: a.ContainerID, IfName: a.IfName, PodNamespace: a.Namespace, PodName: a.Pod,
		PodUID: a.UIDs.Pod, NamespaceUID: a.UIDs.Namespace, Netns: a.Netns, NetworkName: a.Network, Limits: a.Limits,
	}
}

// fromLease is the attachment as its lease has it, at the number that its port asks for.
func fromLease(node Node, l ipam.Lease) Attachment {
	a := Attachment{
		Attachment: l.Attachment(), Netns: l.Netns, Network: l.NetworkName, Namespace: l.PodNamespace, Pod: l.PodName,
		UIDs:      UIDs{Namespace: l.NamespaceUID, Pod: l.PodUID},
		Addresses: l.Addresses, MAC: net.HardwareAddr(l.MAC), Limits: l.Limits,
	}
	a.Port = a.wants(node)
	return a
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
	keyPodUID    = "k8s-ovs-pod-uid"
	// keyNamespaceUID is as of ADD: the lease has what became known later.
	keyNamespaceUID = "k8s-ovs-namespace-uid"
	// keyAddress is the first address, keyAddresses all of them, with spaces, where
	// there are two.
	keyAddress   = "k8s-ovs-address"
	keyAddresses = "k8s-ovs-addresses"
	keyLimits    = "k8s-ovs-limits"
	keyIfaceID   = "iface-id"
	keyMAC       = "attached-mac"
)

// names are the external_ids that the pod's port has for as long as it is there; the empty value where it has none.
func (a Attachment) names() [11][2]string {
	addresses := ""
	if list := topology.Listed(a.Addresses); list != nil {
		addresses = strings.Trim(fmt.Sprint(list), "[]")
	}
	return [...][2]string{
		{keyContainer, a.ContainerID}, {keyIfName, a.IfName}, {keyNetns, a.Netns}, {keyNetwork, a.Network}, {keyNamespace, a.Namespace}, {keyPod, a.Pod}, {keyPodUID, a.UIDs.Pod},
		{keyAddress, a.Addresses[0].String()}, {keyAddresses, addresses},
		{keyIfaceID, a.Namespace + "/" + a.Pod}, {keyMAC, a.MAC.String()},
	}
}

// externalIDs are what the pod port's Interface row carries.
func (a Attachment) externalIDs() map[string]string {
	ids := map[string]string{keyNamespaceUID: a.UIDs.Namespace, keyLimits: encodeLimits(a.Limits)}
	for _, name := range a.names() {
		ids[name[0]] = name[1]
	}
	maps.DeleteFunc(ids, func(_, value string) bool { return value == "" })
	return ids
}

// encodeLimits is their JSON; nothing for none.
func encodeLimits(l limits.Limits) string {
	if l == (limits.Limits{}) {
		return ""
	}
	data, err := json.Marshal(l)
	if err != nil {
		panic("attach: " + err.Error()) // numbers always encode
	}
	return string(data)
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
		UIDs: UIDs{Namespace: ids[keyNamespaceUID], Pod: ids[keyPodUID]},
	}
	if a.Addresses, err = decodeAddresses(ids[keyAddress], ids[keyAddresses]); err != nil {
		return a, true, fmt.Errorf("attachment %s: addresses in its external_ids: %w", a.Attachment, err)
	}
	if a.MAC, err = net.ParseMAC(ids[keyMAC]); err != nil {
		a.MAC = topology.MAC(a.Addresses[0])
	}
	return a, true, nil
}

// decodeAddresses reads the first address and the list beside it.
func decodeAddresses(first, list string) ([]netip.Addr, error) {
	address, err := netip.ParseAddr(first)
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, s := range strings.Fields(list) {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return topology.Unlisted(address, all)
}

// decodeLimits reads what encodeLimits wrote.
func decodeLimits(s string) (l limits.Limits, err error) {
	if s == "" {
		return l, nil
	}
	if err := json.Unmarshal([]byte(s), &l); err != nil {
		return limits.Limits{}, fmt.Errorf("external_ids:%s is %q: %w", keyLimits, s, err)
	}
	return l, nil
}
