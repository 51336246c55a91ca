// Package cniapi is what the CNI plugin and the node agent say to each other:
// one JSON request and one JSON response per connection, over a unix stream
// socket, each followed by a newline and at most [MaxMessage] bytes long. The
// plugin keeps its side of the connection open until it has the response.
//
// Both sides check a request with [Request.Validate]. The plugin's start-up
// is part of every pod's start-up, so this package imports little: the standard
// library and what is small of ours (test/deps has the list), and must stay that way.
package cniapi

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	// DefaultSocket is where the agent listens unless it is told otherwise.
	DefaultSocket = "/run/k8s-ovs/cni.sock"
	// Version of the messages in this package. It changes only when an older
	// reader would do the wrong thing with a newer message: unknown fields are
	// ignored by both sides.
	Version = 1
	// MaxMessage bounds a request or a response, bytes. The largest real one is
	// GC's list of attachments: 1 MiB has room for about 9,000.
	MaxMessage = 1 << 20
	// RequestTimeout bounds the agent's work on one request. It leaves room for a
	// namespace whose netID is not known yet, and ends well before the kubelet's
	// own limit for starting a sandbox (runtime-request-timeout, 2 minutes).
	RequestTimeout = 30 * time.Second
	// ClientTimeout bounds a whole call as seen by the plugin. It is longer than
	// RequestTimeout, so that the agent's error is heard, not the socket's.
	ClientTimeout = RequestTimeout + 5*time.Second
)

// Command is what the runtime asks of the plugin (CNI_COMMAND).
type Command string

// The commands of CNI specification 1.1.0 that need the agent.
const (
	Add    Command = "ADD"
	Del    Command = "DEL"
	Check  Command = "CHECK"
	Status Command = "STATUS"
	GC     Command = "GC"
)

// Attachment names one interface of one sandbox: the key of everything that
// is kept about it (CNI specification, section "Lifecycle & Ordering").
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// String is "containerID/ifName".
func (a Attachment) String() string { return a.ContainerID + "/" + a.IfName }

// Request is what the plugin asks of the agent.
type Request struct {
	// Version is the package's Version on the plugin's side.
	Version int     `json:"version"`
	Command Command `json:"command"`
	// ContainerID, Netns and IfName are CNI_CONTAINERID, CNI_NETNS and
	// CNI_IFNAME. Netns may be empty for DEL: the sandbox may be gone.
	ContainerID string `json:"containerID,omitempty"`
	Netns       string `json:"netns,omitempty"`
	IfName      string `json:"ifName,omitempty"`
	// PodNamespace, PodName and PodUID are K8S_POD_NAMESPACE, K8S_POD_NAME and
	// K8S_POD_UID of CNI_ARGS. ADD has the first two always; DEL may have none.
	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodUID       string `json:"podUID,omitempty"`
	// NetworkName is "name" of the network configuration.
	NetworkName string `json:"networkName,omitempty"`
	// CNIVersion is "cniVersion" of the network configuration; for logs.
	CNIVersion string `json:"cniVersion,omitempty"`
	// Bandwidth is nil where the runtime sets no limits.
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
	// PrevResult is what ADD returned, as the runtime remembers it; for CHECK.
	PrevResult *PrevResult `json:"prevResult,omitempty"`
	// ValidAttachments is, for GC, all attachments of NetworkName that still
	// exist; empty and not nil when there are none. What it does not list goes.
	ValidAttachments []Attachment `json:"validAttachments,omitzero"`
}

// Attachment is the key of the interface that the request is about.
func (r Request) Attachment() Attachment {
	return Attachment{ContainerID: r.ContainerID, IfName: r.IfName}
}

// Bandwidth is runtimeConfig.bandwidth (CNI conventions, "bandwidth"): rates
// in bits per second, bursts in bits. Ingress is traffic to the pod, egress
// from it. A rate of 0 is no limit; a burst of 0 leaves it to the agent.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// PrevResult is the part of a CNI result that CHECK compares. Other plugins of
// a chain may have added interfaces and addresses of their own.
type PrevResult struct {
	Interfaces []PrevInterface `json:"interfaces,omitempty"`
	IPs        []PrevIP        `json:"ips,omitempty"`
}

// PrevInterface is one of a result's interfaces. Sandbox is empty for those on
// the host; MTU, in bytes, is 0 before CNI 1.1.0.
type PrevInterface struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"`
	MTU     int    `json:"mtu,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
}

// PrevIP is one of a result's addresses.
type PrevIP struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	// Interface is an index into PrevResult.Interfaces, or nil.
	Interface *int `json:"interface,omitempty"`
}

// Response is the agent's answer. Error is nil on success; Result is set on
// the success of ADD only.
type Response struct {
	Version int     `json:"version"`
	Result  *Result `json:"result,omitempty"`
	Error   *Error  `json:"error,omitempty"`
}

// Result is what ADD made.
type Result struct {
	// HostIfName and HostMAC are the host's end of the veth pair.
	HostIfName string `json:"hostIfName"`
	HostMAC    MAC    `json:"hostMAC,omitempty"`
	// SandboxIfName and MAC are the pod's end, Sandbox the path of its network
	// namespace as the runtime gave it.
	SandboxIfName string `json:"sandboxIfName"`
	MAC           MAC    `json:"mac"`
	Sandbox       string `json:"sandbox"`
	// IPs are the pod's addresses: one, or one of IPv4 and then one of IPv6.
	IPs    []IP    `json:"-"`
	Routes []Route `json:"routes,omitempty"`
	// MTU is the largest packet that the pod sends, bytes: its routes', where its device's is larger.
	MTU int `json:"mtu,omitempty"`
}

// IP is an address of a pod.
type IP struct {
	// Address has its prefix length on the interface.
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// Route is a route in the sandbox. An MTU of 0 means the interface's.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	GW  netip.Addr   `json:"gw,omitzero"`
	MTU int          `json:"mtu,omitempty"`
}

// Validate says whether the result is whole; what it says is the agent's fault.
func (r Result) Validate() error {
	switch {
	case r.SandboxIfName == "" || r.Sandbox == "":
		return fmt.Errorf("result lacks the sandbox interface")
	case r.HostIfName == "":
		return fmt.Errorf("result lacks the host interface")
	case len(r.MAC) == 0:
		return fmt.Errorf("result lacks the MAC of %s", r.SandboxIfName)
	case len(r.IPs) == 0 || slices.ContainsFunc(r.IPs, func(ip IP) bool { return !ip.Address.IsValid() }):
		return fmt.Errorf("result lacks the address of %s", r.SandboxIfName)
	}
	for i, rt := range r.Routes {
		if !rt.Dst.IsValid() {
			return fmt.Errorf("route %d of the result lacks its destination", i)
		}
	}
	return nil
}

// MAC is a hardware address that is written as text, 0a:58:ac:0b:00:05.
type MAC net.HardwareAddr

// String is the usual form with colons.
func (m MAC) String() string { return net.HardwareAddr(m).String() }

// MarshalText writes the usual form with colons.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads every form that net.ParseMAC does; empty is no address.
func (m *MAC) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*m = nil
		return nil
	}
	hw, err := net.ParseMAC(string(text))
	if err != nil {
		return err
	}
	*m = MAC(hw)
	return nil
}
