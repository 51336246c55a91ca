package topology

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Node is the record subnets/<nodeIP>: a host that takes part in the overlay.
type Node struct {
	// Host is the node's name.
	Host string `json:"Host"`
	// HostIP is its VTEP address and the last part of the record's key.
	HostIP netip.Addr `json:"HostIP"`
	// Subnet is the node subnet; not valid (written "") while it has none.
	Subnet netip.Prefix `json:"Subnet"`
	// Assign asks the controller for a subnet.
	Assign bool `json:"Assign"`
	// Status says why the last request was refused.
	Status *Status `json:"Status,omitempty"`
	// UID is that of the Kubernetes Node that the record follows; empty for a node
	// that registered itself.
	UID string `json:"UID,omitempty"`
	// Identity tells the node's credentials apart from those of an earlier node of the
	// same name; drawn anew for each bundle. Empty where UID does that.
	Identity string `json:"Identity,omitempty"`
	// HostIPs and Subnets are all addresses and subnets of the node, of IPv4 and of IPv6,
	// beginning with HostIP and Subnet; absent where these are the only ones.
	HostIPs []netip.Addr   `json:"HostIPs,omitempty"`
	Subnets []netip.Prefix `json:"Subnets,omitempty"`
	// Rest is what a newer release has written beside that.
	Rest Rest `json:"-"`
}

// nodeRecord is a node without its rest.
type nodeRecord Node

var nodeFields = fieldsOf[Node]()

// MarshalJSON writes the form in etcd.
func (n Node) MarshalJSON() ([]byte, error) { return n.Rest.written(nodeRecord(n)) }

// UnmarshalJSON reads the form in etcd. Of a record with a field of another form it reads the others: its
// subnet is not to be given to another node.
func (n *Node) UnmarshalJSON(data []byte) error {
	var p nodeRecord
	rest, err := nodeFields.read(data, &p)
	*n = Node(p)
	n.Rest = rest
	return err
}

// Equal reports whether the records say the same.
func (n Node) Equal(o Node) bool {
	status := n.Status == o.Status || n.Status != nil && o.Status != nil && *n.Status == *o.Status
	return status && n.Assign == o.Assign && n.Rest == o.Rest && n.SameClaim(o)
}

// SameClaim reports whether the records say the same of who the node is and where: their [Node.Claim].
func (n Node) SameClaim(o Node) bool {
	return n.Host == o.Host && n.HostIP == o.HostIP && n.Subnet == o.Subnet && n.UID == o.UID && n.Identity == o.Identity &&
		slices.Equal(n.HostIPs, o.HostIPs) && slices.Equal(n.Subnets, o.Subnets)
}

// Claim is what nodes that hold the record must agree on for it to be put back in an etcd that has lost it:
// docs/restored-etcd.md. A field belongs to it only when every release that reports what it holds knows it.
func (n Node) Claim() Node {
	return Node{Host: n.Host, HostIP: n.HostIP, Subnet: n.Subnet, UID: n.UID, Identity: n.Identity, HostIPs: n.HostIPs, Subnets: n.Subnets}
}

// PodSubnets are all subnets of a valid node, in the order of the cluster networks.
func (n Node) PodSubnets() []netip.Prefix {
	all, _ := Unlisted(n.Subnet, n.Subnets)
	return all
}

// WithSubnet is the node with another first subnet, or, not valid, with none.
func (n Node) WithSubnet(p netip.Prefix) Node {
	n.Subnet = p
	switch {
	case !p.IsValid():
		n.Subnets = nil
	case len(n.Subnets) > 0:
		n.Subnets = slices.Concat([]netip.Prefix{p}, n.Subnets[1:])
	}
	return n
}

// Gateways are the node's own addresses in its subnets, in their order: [Node.Gateway],
// and in a second one the address that belongs to it. No pod has one of them.
func (n Node) Gateways() []netip.Addr { return n.inEach(GatewayOf) }

// Forwarders are the addresses under which pods see what the node forwards and masquerades, in the order of its
// subnets: [ForwarderOf] the first, and in a second one the address that belongs to it. No pod has one of them.
func (n Node) Forwarders() []netip.Addr { return n.inEach(ForwarderOf) }

// inEach is an address of the first subnet, and those that belong to it in others.
func (n Node) inEach(of func(netip.Prefix) netip.Addr) []netip.Addr {
	subnets := n.PodSubnets()
	if len(subnets) == 0 {
		return nil
	}
	addresses := []netip.Addr{of(subnets[0])}
	for _, s := range subnets[1:] {
		addresses = append(addresses, Twin(s, addresses[0]))
	}
	return addresses
}

// GatewayOf is the first address of a node's first subnet, which is of IPv4.
func GatewayOf(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// ForwarderOf is the last address of a node's first subnet, which is of IPv4.
func ForwarderOf(subnet netip.Prefix) netip.Addr {
	first := subnet.Masked().Addr()
	return WithLow32(first, Low32(first)|^uint32(0)>>subnet.Bits())
}

// IsGateway reports whether an address of a cluster network is one of some node's [Node.Gateways], where node subnets of
// IPv4 have so many bits: its low 32 bits are those of the node's address in IPv4, whichever family it is of.
func IsGateway(a netip.Addr, bits int) bool {
	four := WithLow32(netip.IPv4Unspecified(), Low32(a))
	subnet, err := four.Prefix(bits)
	return err == nil && GatewayOf(subnet) == four
}

// ID is what the node's identity carries beside its name: see docs/identities.md.
func (n Node) ID() string {
	if n.Identity != "" {
		return n.Identity
	}
	return n.UID
}

// ParseNode decodes the node record that stands under key (the node's
// address). It does not check the subnet against the configuration: see
// [Node.Validate].
func ParseNode(key string, data []byte) (Node, error) {
	var n Node
	if err := n.UnmarshalJSON(data); err != nil {
		return Node{}, fmt.Errorf("node record %s is not valid JSON of its form: %w", key, err)
	}
	addr, err := netip.ParseAddr(key)
	if err != nil {
		return Node{}, fmt.Errorf("node record %s: its key is not an address", key)
	}
	// IPv6 addresses have several spellings: two records must not be one node.
	if addr.String() != key {
		return Node{}, fmt.Errorf("node record %s: its key must be written %s", key, addr)
	}
	if !n.HostIP.IsValid() {
		return Node{}, fmt.Errorf("node record %s: HostIP is missing", key)
	}
	if n.HostIP != addr {
		return Node{}, fmt.Errorf("node record %s: HostIP is %s; it must be the address in the key", key, n.HostIP)
	}
	return n, nil
}

// Ready reports whether the node has its subnet and may be a peer.
func (n Node) Ready() bool { return n.Subnet.IsValid() }

// Gateway is the first address of the node subnet: the node's own in the overlay.
func (n Node) Gateway() netip.Addr {
	if !n.Ready() {
		return netip.Addr{}
	}
	return GatewayOf(n.Subnet)
}

// Validate says whether the node can take part in network c: its address
// outside of the pod and service networks, its subnet a node subnet of c.
func (n Node) Validate(c Config) error {
	ip := n.HostIP
	switch {
	case !ip.IsValid():
		return fmt.Errorf("node %s: HostIP is missing", n.Host)
	case tunnel.CheckVTEP(ip) != nil:
		return fmt.Errorf("node %s: HostIP %w", n.Host, tunnel.CheckVTEP(ip))
	case c.Network.Contains(ip):
		return fmt.Errorf("node %s: HostIP %s is inside the pod network %s", n.Host, ip, c.Network)
	case c.ServiceNetwork.Contains(ip):
		return fmt.Errorf("node %s: HostIP %s is inside the service network %s", n.Host, ip, c.ServiceNetwork)
	}
	if err := n.validHostIPs(); err != nil {
		return fmt.Errorf("node %s: HostIPs: %w", n.Host, err)
	}
	subnets, err := Unlisted(n.Subnet, n.Subnets)
	if err != nil {
		return fmt.Errorf("node %s: Subnets: %w", n.Host, err)
	}
	networks := c.PodNetworks()
	for i, s := range subnets {
		if i >= len(networks) {
			return fmt.Errorf("node %s: Subnets has %s, and the network configuration only %v: take it out", n.Host, s, networks)
		}
		if bits := c.nodeBits(networks[i]); s.Masked() != s || s.Bits() != bits || !networks[i].Contains(s.Addr()) {
			return fmt.Errorf("node %s: Subnet %s is not a /%d of the pod network %s", n.Host, s, bits, networks[i])
		}
	}
	return nil
}

func (n Node) validHostIPs() error {
	all, err := Unlisted(n.HostIP, n.HostIPs)
	if err != nil || len(all) == 1 {
		return err
	}
	return oneOfEach("the list", all, func(a netip.Addr) netip.Addr { return a })
}

// NodeStatus is the record status/<nodeIP>: what a live node has applied. It
// is written under a lease and goes with the node.
type NodeStatus struct {
	Host   string     `json:"Host"`
	HostIP netip.Addr `json:"HostIP"`
	// Revision is the etcd revision of the newest record that is in the node's flows.
	Revision int64 `json:"Revision"`
	// Version of the agent.
	Version string `json:"Version"`
	// Datapath is "system" or "netdev".
	Datapath string `json:"Datapath"`
	// MTU of the node's pods, bytes.
	MTU int `json:"MTU"`
	// Subnet is what the node's pods have their addresses from; not valid (absent)
	// as long as the node is not set up.
	Subnet netip.Prefix `json:"Subnet,omitzero"`
	// VXLANPort is the UDP port that the node's tunnels have; 0 (absent) as long as the
	// node is not set up, and of agents that do not say it.
	VXLANPort tunnel.Port `json:"VXLANPort,omitempty"`
	// Pods attached on the node.
	Pods int `json:"Pods"`
	// Message is empty, or what keeps the node from applying newer records.
	Message string `json:"Message,omitempty"`
	// Warning is empty, or what people should know of a node that is ready.
	Warning string `json:"Warning,omitempty"`
	// Identity is the user of etcd that the agent writes as; empty where it has none
	// of its own.
	Identity string `json:"Identity,omitempty"`
	// Issuer is the key of the CA that says so (the AuthorityKeyId of its certificate, RFC
	// 5280, 4.2.1.1), in hexadecimal digits.
	Issuer string `json:"Issuer,omitempty"`
	// Enforces names what the node enforces beside tenants: [EnforcesNetworkPolicy],
	// [EnforcesClusterNetworkPolicy]. Agents that do not name one do not enforce it.
	Enforces []string `json:"Enforces,omitempty"`
	// Lacks names what policies can ask for and the node's switch does not know:
	// [LacksSCTPPorts]. What a rule allows by that, it does not allow there.
	Lacks []string `json:"Lacks,omitempty"`
	// Held is what the node knows of records that etcd has lost; nil while it has lost none.
	Held *Held `json:"Held,omitempty"`
}
