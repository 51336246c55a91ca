package ovs

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Actions are what a datapath does with a packet, as Open vSwitch writes them, with ports by their names.
type Actions string

// Trace asks what the bridge of that name does with a packet of the flow (ofproto/trace, ovs-vswitchd(8)). Nothing
// is sent, and nothing learned of it.
func (c *Client) Trace(ctx context.Context, bridge, flow string) (Actions, error) {
	out, err := c.control(ctx, "ofproto/trace", "--names", bridge, flow)
	if err != nil {
		return "", fmt.Errorf("what bridge %s does with %s: %w", bridge, flow, err)
	}
	a, ok := parseTrace(out)
	if !ok {
		return "", fmt.Errorf("what bridge %s does with %s: ofproto/trace does not tell: %q", bridge, flow, out)
	}
	return a, nil
}

func parseTrace(out string) (a Actions, ok bool) {
	for line := range strings.Lines(out) {
		if text, is := strings.CutPrefix(line, "Datapath actions: "); is {
			a, ok = Actions(strings.TrimSpace(text)), true // the last is that of the whole
		}
	}
	return a, ok
}

// Reach reports whether a packet gets to the port.
func (a Actions) Reach(port string) bool {
	return regexp.MustCompile(`(^|[,(])` + regexp.QuoteMeta(port) + `($|[,)])`).MatchString(string(a))
}

// Detunnelled reports whether a tunnel takes the packet.
func (a Actions) Detunnelled() bool { return strings.Contains(string(a), "tnl_pop(") }

var pushVLAN = regexp.MustCompile(`push_vlan\((?:[^)]*,)?vid=([0-9]+)`)

// VLAN is the one that the packet is tagged with on its way; 0 for none.
func (a Actions) VLAN() int {
	m := pushVLAN.FindStringSubmatch(string(a))
	if m == nil {
		return 0
	}
	vlan, _ := strconv.Atoi(m[1])
	return vlan
}

// Learned reports whether the bridge has heard anybody at the port with that number in the VLAN, 0 for none, of late
// (fdb/show, ovs-vswitchd(8)). One that has heard nobody anywhere goes by flows that do not learn: of that it is true, too.
func (c *Client) Learned(ctx context.Context, bridge string, port uint32, vlan int) (bool, error) {
	out, err := c.control(ctx, "fdb/show", bridge)
	if err != nil {
		return false, fmt.Errorf("whom bridge %s has heard: %w", bridge, err)
	}
	return parseLearned(out, port, vlan), nil
}

func parseLearned(out string, port uint32, vlan int) bool {
	anybody := false
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] == "port" { // the heading
			continue
		}
		anybody = true
		if words[0] == strconv.FormatUint(uint64(port), 10) && words[1] == strconv.Itoa(vlan) {
			return true
		}
	}
	return !anybody
}

// ForgetNeighbours has the userspace datapath forget the hardware addresses that tunnels' packets are sent to (tnl/neigh/flush), and
// what it has cached: it learns one of an answer that it translates itself.
func (c *Client) ForgetNeighbours(ctx context.Context) error {
	if _, err := c.control(ctx, "tnl/neigh/flush"); err != nil {
		return fmt.Errorf("have neighbours forgotten: %w", err)
	}
	return c.PurgeFlows(ctx)
}

// PurgeFlows has all datapaths forget the flows that they have cached (revalidator/purge): what comes next is translated anew.
func (c *Client) PurgeFlows(ctx context.Context) error {
	if _, err := c.control(ctx, "revalidator/purge"); err != nil {
		return fmt.Errorf("have cached flows forgotten: %w", err)
	}
	return nil
}
