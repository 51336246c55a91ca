package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// underlayBridge is the bridge that stands for the network between the nodes.
const underlayBridge = "br-underlay"

// UnderlayNetns is the name of the namespace that is the network between the nodes.
func (l *Lab) UnderlayNetns() string { return l.name + "-underlay" }

// ControllerNetns is the name of the namespace that controller and etcd run in.
func (l *Lab) ControllerNetns() string { return l.name + "-ctl" }

// newNetns makes a namespace that goes with the lab.
func (l *Lab) newNetns(name string) error {
	if err := ns.Create(name); err != nil {
		return err
	}
	err := l.update(func(s *state) error {
		s.Namespaces = append(s.Namespaces, name)
		return nil
	})
	if err != nil {
		err = errors.Join(err, ns.Delete(name))
	}
	return err
}

func (l *Lab) deleteNetns(name string) error {
	if err := ns.Delete(name); err != nil {
		return err
	}
	return l.update(func(s *state) error { s.dropNamespace(name); return nil })
}

// makeUnderlay makes the network between the nodes and the controller's place in it.
func (l *Lab) makeUnderlay(ctx context.Context) error {
	if err := l.newNetns(l.UnderlayNetns()); err != nil {
		return err
	}
	if err := quietIPv6(l.UnderlayNetns()); err != nil {
		return err
	}
	err := ns.IP(ctx, l.UnderlayNetns(),
		// No multicast snooping and no spanning tree: a plain switch.
		"link add name "+underlayBridge+" type bridge stp_state 0 mcast_snooping 0",
		fmt.Sprintf("addr add %s/%d dev %s", Gateway, underlay.Bits(), underlayBridge),
		fmt.Sprintf("addr add %s/32 dev lo", Outside),
		"link set dev "+underlayBridge+" up",
	)
	if err != nil {
		return fmt.Errorf("make the underlay: %w", err)
	}
	if err := ns.Do(l.UnderlayNetns(), func() error { return ns.TxChecksumOff(underlayBridge) }); err != nil {
		return fmt.Errorf("make the underlay: %w", err)
	}
	if err := l.newNetns(l.ControllerNetns()); err != nil {
		return err
	}
	if err := l.Plug(ctx, l.ControllerNetns(), "ctl", netip.PrefixFrom(controllerIP, underlay.Bits())); err != nil {
		return err
	}
	// Whatever a test does to the MTU of nodes, they reach the controller: TCP keeps
	// to the least that either end has.
	return ns.IP(ctx, l.ControllerNetns(), fmt.Sprintf("link set dev eth0 mtu %d", minMTU))
}

// minMTU is the least that a test may give a link of the underlay, bytes.
const minMTU = 1280

// Plug connects a namespace to the underlay: a veth named eth0 in it, with
// addr and a default route, whose other end, named port, is in the underlay's
// bridge. Tests use it to bring in a stranger.
func (l *Lab) Plug(ctx context.Context, netns, port string, addr netip.Prefix) error {
	if err := quietIPv6(netns); err != nil {
		return err
	}
	b := addr.Addr().As4()
	err := ns.IP(ctx, l.UnderlayNetns(),
		fmt.Sprintf("link add name %s type veth peer name eth0 address 02:00:%02x:%02x:%02x:%02x netns %s", port, b[0], b[1], b[2], b[3], netns),
		fmt.Sprintf("link set dev %s master %s up", port, underlayBridge))
	if err != nil {
		return fmt.Errorf("plug %s into the underlay: %w", netns, err)
	}
	err = ns.IP(ctx, netns,
		fmt.Sprintf("addr add %s dev eth0", addr),
		"link set dev eth0 up",
		fmt.Sprintf("route add default via %s", Gateway))
	if err != nil {
		return fmt.Errorf("plug %s into the underlay: %w", netns, err)
	}
	if err := ns.WaitRunning(ctx, netns, "eth0"); err != nil {
		return fmt.Errorf("plug %s into the underlay: %w", netns, err)
	}
	// A wire carries finished checksums. A veth does not, and a switch in user
	// space would hand such packets on as they are. Of the other end it is because eth0
	// would not merge what it receives (GRO), be it told to, as long as that can segment.
	if err := ns.Do(l.UnderlayNetns(), func() error { return ns.TxChecksumOff(port) }); err != nil {
		return err
	}
	return ns.Do(netns, func() error { return ns.TxChecksumOff("eth0") })
}

// NewStranger makes a further host in the underlay that is no node: a
// namespace LAB-NAME with address addr. It goes with the lab.
func (l *Lab) NewStranger(ctx context.Context, name string, addr netip.Addr) (netns string, err error) {
	if !underlay.Contains(addr) {
		return "", fmt.Errorf("stranger %s: %s is not in the underlay %s", name, addr, underlay)
	}
	netns = l.name + "-" + name
	if err := l.newNetns(netns); err != nil {
		return "", err
	}
	return netns, l.Plug(ctx, netns, name, netip.PrefixFrom(addr, underlay.Bits()))
}

// Cut makes the underlay drop all that a node, or a member of etcd, sends and receives. It sees
// its link up, as when a switch further on fails.
func (l *Lab) Cut(ctx context.Context, node string) error { return l.portState(ctx, node, 0) }

// Heal undoes Cut.
func (l *Lab) Heal(ctx context.Context, node string) error { return l.portState(ctx, node, 3) }

// SetMTU changes the MTU of a node's link at both ends, bytes, as its operator does
// with the card and the switch's port.
func (l *Lab) SetMTU(ctx context.Context, node string, mtu int) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	n, err := s.node(node)
	if err != nil {
		return err
	}
	return errors.Join(
		ns.IP(ctx, l.UnderlayNetns(), fmt.Sprintf("link set dev %s mtu %d", node, mtu)),
		ns.IP(ctx, n.Netns, fmt.Sprintf("link set dev eth0 mtu %d", mtu)))
}

// Narrow makes the underlay drop, without a word, what a node sends to others and
// receives from them in packets above mtu bytes, while all links keep their MTU: a black
// hole. 0 mends it.
func (l *Lab) Narrow(ctx context.Context, node string, mtu int) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	if _, err := s.node(node); err != nil {
		return err
	}
	// Together they are one transaction; nft(8) deletes only what is there.
	rules := fmt.Sprintf("table bridge %[1]s\ndelete table bridge %[1]s\n", node)
	if mtu != 0 {
		rules += fmt.Sprintf(`table bridge %[1]s {
			chain narrow { type filter hook forward priority 0;
			iifname %[1]s meta length > %[2]d drop
			oifname %[1]s meta length > %[2]d drop
			}
		}`, node, mtu)
	}
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(l.UnderlayNetns(), cmd.Run); err != nil {
		return fmt.Errorf("narrow the underlay at %s: %w: %s", node, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// portState sets a bridge port's state: 0 disabled, 3 forwarding (bridge(8)).
func (l *Lab) portState(ctx context.Context, node string, state int) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	if _, member := s.Processes[node]; !member {
		if _, err := s.node(node); err != nil {
			return err
		}
	}
	// Not `ip link`: what it sends does not change the state of a port that is up.
	out, err := exec.CommandContext(ctx, "bridge", "-n", l.UnderlayNetns(), "link", "set", "dev", node, "state", strconv.Itoa(state)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("underlay port of %s: %w: %s", node, err, bytes.TrimSpace(out))
	}
	return nil
}

// unplug removes a port from the underlay at once; the kernel takes its time
// with the namespace at the other end.
func (l *Lab) unplug(ctx context.Context, port string) error {
	return ns.IP(ctx, l.UnderlayNetns(), "link del dev "+port)
}

// SetCarrier takes the node's link down (false), as when its cable is pulled, or up.
func (l *Lab) SetCarrier(ctx context.Context, node string, up bool) error {
	s, err := l.read()
	if err != nil {
		return err
	}
	if _, err := s.node(node); err != nil {
		return err
	}
	return ns.IP(ctx, l.UnderlayNetns(), "link set dev "+node+" "+map[bool]string{true: "up", false: "down"}[up])
}

// quietIPv6 keeps the underlay free of IPv6's own packets: the lab's underlay is
// IPv4. Pods keep theirs, as with a container runtime.
func quietIPv6(netns string) error {
	return ns.Do(netns, func() error {
		for _, conf := range []string{"all", "default"} {
			path := filepath.Join("/proc/sys/net/ipv6/conf", conf, "disable_ipv6")
			if err := os.WriteFile(path, []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("switch off IPv6 in %s: %w", netns, err)
			}
		}
		return nil
	})
}
