package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Config is the IPv4 configuration of a device: what is lost with it, and can be
// put on another. Its JSON form is stable.
type Config struct {
	Addresses []netip.Prefix `json:"addresses"`
	Routes    []Route        `json:"routes,omitempty"`
}

// ReadConfig reads the configuration of a device, without what the kernel makes
// by itself (routes that follow from addresses).
func (n *NS) ReadConfig(name string) (Config, error) {
	l, err := n.must(name)
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
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_KERNEL {
			c.Routes = append(c.Routes, r)
		}
	}
	// Routes on the link come before those whose next hop needs them, narrow
	// before wide: the default route is last.
	slices.SortStableFunc(c.Routes, func(a, b Route) int {
		if a.Via.IsValid() != b.Via.IsValid() {
			if a.Via.IsValid() {
				return 1
			}
			return -1
		}
		return b.Dst.Bits() - a.Dst.Bits()
	})
	return c, nil
}

// ApplyConfig sets the device up and adds what it lacks of c, in order; it takes
// nothing away. It reports whether anything was missing.
func (n *NS) ApplyConfig(name string, c Config) (changed bool, err error) {
	changed, err = n.SetUp(name)
	if err != nil {
		return changed, err
	}
	for _, a := range c.Addresses {
		did, err := n.EnsureAddress(name, a)
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	for _, r := range c.Routes {
		did, err := n.EnsureRoute(name, r)
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// RemoveConfig takes what c lists from the device. What is not there is no error.
func (n *NS) RemoveConfig(name string, c Config) error {
	var errs []error
	for _, r := range slices.Backward(c.Routes) {
		errs = append(errs, n.DeleteRoute(name, r))
	}
	for _, a := range slices.Backward(c.Addresses) {
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
