// Package topology has the records that make up the network: its
// configuration, its nodes and its tenants, as they stand in etcd, and the
// rules that make each of them valid.
//
// It is pure: it decodes, validates and computes; it never reads or writes.
package topology

import (
	"encoding/json"
	"fmt"
	"net/netip"

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
	// Network is the cluster network: every pod address is in it. IPv4.
	Network netip.Prefix `json:"Network"`
	// HostSubnetLength is the number of host bits in a node subnet: 10 is a /22.
	HostSubnetLength int `json:"HostSubnetLength"`
	// ServiceNetwork is where service addresses come from. IPv4.
	ServiceNetwork netip.Prefix `json:"ServiceNetwork"`
	// PluginName is MultiTenant or SingleTenant.
	PluginName string `json:"PluginName"`
	// VXLANPort is the UDP port of the tunnels, the same on every node. 0 (absent, as in
	// records of the first k8s-ovs): the record does not say; it is [tunnel.VXLANPort]
	// where nodes are not told otherwise.
	VXLANPort tunnel.Port `json:"VXLANPort,omitempty"`
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
	if err := json.Unmarshal(data, &c); err != nil {
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
	if err := validPrefix("Network", c.Network); err != nil {
		return err
	}
	if err := validPrefix("ServiceNetwork", c.ServiceNetwork); err != nil {
		return err
	}
	if c.Network.Overlaps(c.ServiceNetwork) {
		return fmt.Errorf("network configuration: Network %s overlaps ServiceNetwork %s", c.Network, c.ServiceNetwork)
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

// NodeBits is the prefix length of a node subnet.
func (c Config) NodeBits() int { return 32 - c.HostSubnetLength }

func validPrefix(field string, p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return fmt.Errorf("network configuration: %s is missing or not a prefix such as 172.11.0.0/16", field)
	case !p.Addr().Is4():
		return fmt.Errorf("network configuration: %s %s is not IPv4", field, p)
	case p.Masked() != p:
		return fmt.Errorf("network configuration: %s %s has bits set after its length; did you mean %s?", field, p, p.Masked())
	case p.Bits() == 0 || p.Addr().IsMulticast() || p.Addr().IsLoopback():
		return fmt.Errorf("network configuration: %s %s cannot hold host addresses", field, p)
	}
	return nil
}
