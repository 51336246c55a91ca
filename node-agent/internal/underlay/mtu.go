package underlay

import "fmt"

// Narrowest is the device with the least MTU of those that u's tunnel packets leave
// by, and its MTU, bytes: 0 where that is for routes to say, as the address is on
// loopback. It only reads.
func (s *Setup) Narrowest(u Underlay) (name string, mtu int, err error) {
	tops := []string{u.Uplink} // the bridge's local port follows it
	if u.Uplink == "" {
		if tops, err = s.withPorts(u.Link); err != nil {
			return "", 0, err
		}
	}
	for _, top := range tops {
		stack, err := s.ns.Stack(top)
		if err != nil {
			return "", 0, fmt.Errorf("underlay: %w", err)
		}
		for _, l := range stack {
			if l.Loopback {
				return "", 0, nil
			}
			if mtu == 0 || l.MTU < mtu {
				name, mtu = l.Name, l.MTU
			}
		}
	}
	return name, mtu, nil
}

// withPorts is the device and, where it is an internal port of an Open vSwitch
// bridge, the network devices that this bridge has.
func (s *Setup) withPorts(name string) ([]string, error) {
	names := []string{name}
	port, ok := s.ovs.Port(name)
	if !ok || port.Type != "internal" {
		return names, nil
	}
	ports, err := s.ovs.Ports(port.Bridge)
	if err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	for _, p := range ports {
		if p.Type != "" && p.Type != "system" || p.Name == name {
			continue
		}
		exists, err := s.ns.LinkExists(p.Name)
		if err != nil {
			return nil, fmt.Errorf("underlay: %w", err)
		}
		if exists {
			names = append(names, p.Name)
		}
	}
	return names, nil
}
