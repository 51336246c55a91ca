package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Config is the configuration of a device: what is lost with it, and can be put on
// another. Its JSON form is stable.
type Config struct {
	// Addresses are IPv4, Routes those of IPv4's main table.
	Addresses []netip.Prefix `json:"addresses"`
	Routes    []Route        `json:"routes,omitempty"`
	// Beyond is what only [NS.ReadWhole] reads.
	Beyond Beyond `json:"beyond,omitzero"`
}

// Beyond is the rest of a device's configuration. It stands apart in [Config] so that
// programs which know only addresses and routes of IPv4's main table pass it over.
type Beyond struct {
	// Addresses are IPv6, but for those that the kernel gives by itself (link-local).
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Routes are those of IPv6, and those of other tables than main.
	Routes []Route `json:"routes,omitempty"`
}

// ReadConfig reads the IPv4 configuration of a device, without what the kernel makes
// by itself (routes that follow from addresses).
func (n *NS) ReadConfig(name string) (Config, error) {
	l, err := n.Existing(name)
	if err != nil {
		return Config{}, err
	}
	var c Config
	if c.Addresses, err = n.addresses(l.Index); err != nil {
		return Config{}, err
	}
	routes, err := n.routes(l.Index)
	if err != nil {
		return Config{}, err
	}
	c.Routes = movable(routes)
	return c, nil
}

// ReadWhole is [NS.ReadConfig] with IPv6 and the other tables.
func (n *NS) ReadWhole(name string) (Config, error) {
	c, err := n.ReadConfig(name)
	if err != nil {
		return Config{}, err
	}
	l, err := n.Existing(name)
	if err != nil {
		return Config{}, err
	}
	addrs, err := n.allAddresses(unix.AF_INET6)
	if err != nil {
		return Config{}, err
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && a.LinkIndex == l.Index && !p.Addr().IsLinkLocalUnicast() {
			c.Beyond.Addresses = append(c.Beyond.Addresses, p)
		}
	}
	routes, err := n.routesBeyond(l.Index)
	if err != nil {
		return Config{}, err
	}
	c.Beyond.Routes = movable(routes)
	return c, nil
}

// movable are the routes that the kernel does not make by itself, in the order in which
// they can be added: those on the link come before those whose next hop needs them,
// narrow before wide: the default route is last.
func movable(routes []Route) []Route {
	out := slices.DeleteFunc(routes, func(r Route) bool { return r.Protocol == unix.RTPROT_KERNEL })
	slices.SortStableFunc(out, func(a, b Route) int {
		if a.Via.IsValid() != b.Via.IsValid() {
			if a.Via.IsValid() {
				return 1
			}
			return -1
		}
		return b.Dst.Bits() - a.Dst.Bits()
	})
	if len(out) == 0 {
		return nil
	}
	return out
}

func (c Config) allAddresses() []netip.Prefix {
	return slices.Concat(c.Addresses, c.Beyond.Addresses)
}
func (c Config) allRoutes() []Route { return slices.Concat(c.Routes, c.Beyond.Routes) }

// Empty reports whether nothing is configured.
func (c Config) Empty() bool { return len(c.allAddresses())+len(c.allRoutes()) == 0 }

// ApplyConfig sets the device up and adds what it lacks of c, in order; a route
// replaces one of the same destination and metric, also of another device. It takes
// nothing else away. It reports whether anything was missing.
func (n *NS) ApplyConfig(name string, c Config) (changed bool, err error) {
	changed, err = n.SetUp(name)
	if err != nil {
		return changed, err
	}
	for _, a := range c.allAddresses() {
		did, err := n.EnsureAddress(name, a)
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	for _, r := range c.allRoutes() {
		did, err := n.EnsureRoute(name, r)
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// RestoreConfig is [NS.ApplyConfig], but nobody loses anything by it: an address that
// another device has by now, and a route in whose place there is another one, are
// left out. They are returned, as text for people.
func (n *NS) RestoreConfig(name string, c Config) (leftOut []string, err error) {
	if _, err := n.SetUp(name); err != nil {
		return nil, err
	}
	for _, a := range c.allAddresses() {
		owner, owned, err := n.AddressOwner(a.Addr())
		if err != nil {
			return leftOut, err
		}
		if owned && owner.Name != name {
			leftOut = append(leftOut, fmt.Sprintf("address %s: %s has it", a, owner.Name))
			continue
		}
		if _, err := n.EnsureAddress(name, a); err != nil {
			return leftOut, err
		}
	}
	for _, r := range c.allRoutes() {
		added, err := n.addRoute(name, r)
		if err != nil {
			// Its next hop may have been on a network that was left out.
			leftOut = append(leftOut, err.Error())
		} else if !added {
			leftOut = append(leftOut, fmt.Sprintf("route to %s: there is another", r.Dst))
		}
	}
	return leftOut, nil
}

// RemoveConfig takes what c lists from the device. What is not there is no error.
func (n *NS) RemoveConfig(name string, c Config) error {
	var errs []error
	for _, r := range slices.Backward(c.allRoutes()) {
		errs = append(errs, n.DeleteRoute(name, r))
	}
	for _, a := range slices.Backward(c.allAddresses()) {
		errs = append(errs, n.DeleteAddress(name, a))
	}
	return errors.Join(errs...)
}

// Encode is the configuration as one line of JSON.
func (c Config) Encode() string {
	data, err := json.Marshal(c)
	if err != nil {
		panic("link: " + err.Error()) // the types above always encode
	}
	return string(data)
}

// DecodeConfig reads what Encode wrote.
func DecodeConfig(s string) (Config, error) {
	var c Config
	if err := json.Unmarshal([]byte(s), &c); err != nil {
		return Config{}, fmt.Errorf("saved network configuration %q: %w", s, err)
	}
	return c, nil
}
