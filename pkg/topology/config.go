// Package topology has the records that make up the network: its
// configuration, its nodes and its tenants, as they stand in etcd, and the
// rules that make each of them valid.
//
// It is pure: it decodes, validates and computes; it never reads or writes.
package topology

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Plugin names, as they stand in Config.PluginName.
const (
	// MultiTenant isolates namespaces from each other.
	MultiTenant = "k8s-ovs-multitenant"
	// SingleTenant lets all pods reach all.
	SingleTenant = "k8s-ovs-subnet"
)

// Config is the record <prefix>/config: the network as a whole.
type Config struct {
	// Name selects the sub-tree of all other records.
	Name string `json:"Name"`
	// Network is the cluster network: every pod address is in it, or in another of
	// Networks.
	Network netip.Prefix `json:"Network"`
	// HostSubnetLength is the number of host bits in a node subnet of IPv4: 10 is a /22.
	// Those of IPv6 are a /64.
	HostSubnetLength int `json:"HostSubnetLength"`
	// ServiceNetwork is where service addresses come from, or another of ServiceNetworks.
	ServiceNetwork netip.Prefix `json:"ServiceNetwork"`
	// PluginName is MultiTenant or SingleTenant.
	PluginName string `json:"PluginName"`
	// VXLANPort is the UDP port of the tunnels, the same on every node. 0 (absent, as in
	// records of the first k8s-ovs): the record does not say; it is [tunnel.VXLANPort]
	// where nodes are not told otherwise.
	VXLANPort tunnel.Port `json:"VXLANPort,omitempty"`
	// Networks are all cluster networks, one of IPv4 and one of IPv6, beginning with
	// Network; absent where that is the only one. So are ServiceNetworks.
	Networks        []netip.Prefix `json:"Networks,omitempty"`
	ServiceNetworks []netip.Prefix `json:"ServiceNetworks,omitempty"`
	// Rest is what a newer release has written beside that.
	Rest Rest `json:"-"`
}

// configRecord is a configuration without its rest.
type configRecord Config

var configFields = fieldsOf[Config]()

// MarshalJSON writes the form in etcd.
func (c Config) MarshalJSON() ([]byte, error) { return c.Rest.written(configRecord(c)) }

// UnmarshalJSON reads the form in etcd.
func (c *Config) UnmarshalJSON(data []byte) error {
	var p configRecord
	rest, err := configFields.read(data, &p)
	if err != nil {
		return err
	}
	*c = Config(p)
	c.Rest = rest
	return nil
}

// DefaultConfig is what a controller writes when there is no configuration
// and its flags do not say otherwise.
func DefaultConfig() Config {
	return Config{
		Name:             "k8ssdn",
		Network:          netip.MustParsePrefix("172.11.0.0/16"),
		HostSubnetLength: 10,
		ServiceNetwork:   netip.MustParsePrefix("10.96.0.0/12"),
		PluginName:       MultiTenant,
	}
}

// ParseConfig decodes and validates a Config record.
func ParseConfig(data []byte) (Config, error) {
	var c Config
	if err := c.UnmarshalJSON(data); err != nil {
		return Config{}, fmt.Errorf("network configuration is not valid JSON of its form: %w", err)
	}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Validate says what is wrong with the configuration, naming the field.
func (c Config) Validate() error {
	if c.Name == "" {
		return fmt.Errorf("network configuration: Name is empty")
	}
	for _, r := range c.Name {
		if r == '/' || r < ' ' {
			return fmt.Errorf("network configuration: Name %q may not contain %q: it is part of a key", c.Name, r)
		}
	}
	if err := validNetworks("Network", c.Network, c.Networks); err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	if err := validNetworks("ServiceNetwork", c.ServiceNetwork, c.ServiceNetworks); err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	for _, n := range c.PodNetworks() {
		if i := slices.IndexFunc(c.AllServiceNetworks(), n.Overlaps); i >= 0 {
			return fmt.Errorf("network configuration: Network %s overlaps ServiceNetwork %s", n, c.AllServiceNetworks()[i])
		}
	}
	// Two host bits leave a gateway and one pod.
	if max := 32 - c.Network.Bits(); c.HostSubnetLength < 2 || c.HostSubnetLength > max {
		return fmt.Errorf("network configuration: HostSubnetLength %d is not 2 to %d, the host bits of Network %s", c.HostSubnetLength, max, c.Network)
	}
	switch c.PluginName {
	case MultiTenant, SingleTenant:
	default:
		return fmt.Errorf("network configuration: PluginName %q is neither %q nor %q", c.PluginName, MultiTenant, SingleTenant)
	}
	return nil
}

// Single reports whether the network has one tenant only.
func (c Config) Single() bool { return c.PluginName == SingleTenant }

// NodeBits is the prefix length of a node subnet of Network.
func (c Config) NodeBits() int { return c.nodeBits(c.Network) }

// nodeBits is the prefix length of a node subnet of one of the cluster networks.
func (c Config) nodeBits(network netip.Prefix) int {
	if network.Addr().Is4() {
		return 32 - c.HostSubnetLength
	}
	return nodeBitsIPv6
}

// nodeBitsIPv6 is that of IPv6: a link's, whose low 32 bits a pod's IPv4 address fits in
// (RFC 4291, section 2.5.4).
const nodeBitsIPv6 = 64

// PodNetworks are all cluster networks of a valid configuration.
func (c Config) PodNetworks() []netip.Prefix {
	all, _ := Unlisted(c.Network, c.Networks)
	return all
}

// AllServiceNetworks are all networks of services of a valid configuration.
func (c Config) AllServiceNetworks() []netip.Prefix {
	all, _ := Unlisted(c.ServiceNetwork, c.ServiceNetworks)
	return all
}

// Equal reports whether two configurations say the same.
func (c Config) Equal(d Config) bool {
	return c.Name == d.Name && c.Network == d.Network && c.HostSubnetLength == d.HostSubnetLength && c.ServiceNetwork == d.ServiceNetwork &&
		c.PluginName == d.PluginName && c.VXLANPort == d.VXLANPort && c.Rest == d.Rest &&
		slices.Equal(c.Networks, d.Networks) && slices.Equal(c.ServiceNetworks, d.ServiceNetworks)
}

// validNetworks says what is wrong with the network in a field and the list beside it,
// whose field is the plural.
func validNetworks(field string, first netip.Prefix, list []netip.Prefix) error {
	if err := validPrefix(field, first); err != nil {
		return err
	}
	all, err := Unlisted(first, list)
	if err != nil {
		return fmt.Errorf("%ss: %w", field, err)
	}
	for _, p := range all[1:] {
		if err := validPrefix(field+"s", p); err != nil {
			return err
		}
	}
	if len(all) > 1 {
		return oneOfEach(field+"s", all, netip.Prefix.Addr)
	}
	return serves(field, first.Addr())
}

// oneOfEach says what is wrong with a list of what has an address, in a field.
func oneOfEach[T any](field string, list []T, address func(T) netip.Addr) error {
	if len(list) > 2 || !address(list[0]).Is4() || len(list) == 2 && !address(list[1]).Is6() {
		return fmt.Errorf("%s %v are not one of IPv4 and then one of IPv6", field, list)
	}
	for _, v := range list {
		if err := serves("its address", address(v)); err != nil {
			return fmt.Errorf("%s has %v: %w; take it out", field, v, err)
		}
	}
	return nil
}

// serves is the one place where records are refused for their family; docs/design.md has
// the others that serve IPv4 only.
func serves(field string, a netip.Addr) error {
	if a.Is4() {
		return nil
	}
	return fmt.Errorf("%s %s is not IPv4, and this release serves no other", field, a)
}

func validPrefix(field string, p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return fmt.Errorf("%s is missing or not a prefix such as 172.11.0.0/16", field)
	case p.Masked() != p:
		return fmt.Errorf("%s %s has bits set after its length; did you mean %s?", field, p, p.Masked())
	case p.Bits() == 0 || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().Is4In6():
		return fmt.Errorf("%s %s cannot hold host addresses", field, p)
	}
	return nil
}
