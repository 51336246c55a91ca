package ovs

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// FlowCache is how many flows a datapath has, and how many ovs-vswitchd lets it have now: between 1,000 and
// other_config:flow-limit, as many as it can look after. Refused counts the packets since it began whose flow
// found no room; 0 where it does not count them.
type FlowCache struct{ Flows, Limit, Refused uint64 }

// FlowCache asks for the flows of the datapath of a type (upcall/show and coverage/read-counter,
// ovs-vswitchd(8)); it goes through none of them. It fails where there is no bridge on that datapath.
func (c *Client) FlowCache(ctx context.Context, datapath string) (FlowCache, error) {
	out, err := c.control(ctx, "upcall/show")
	if err != nil {
		return FlowCache{}, fmt.Errorf("flows of datapath %s: %w", datapath, err)
	}
	f, ok := parseFlowCache(out, dpifName(datapath))
	if !ok {
		return f, fmt.Errorf("flows of datapath %s: upcall/show does not tell of them: %q", datapath, out)
	}
	// Not all releases have this counter.
	if out, err := c.control(ctx, "coverage/read-counter", "upcall_flow_limit_hit"); err == nil {
		f.Refused, _ = strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	}
	return f, nil
}

// parseFlowCache reads what upcall/show says of a datapath.
func parseFlowCache(out, dpif string) (f FlowCache, ok bool) {
	lines := strings.Split(out, "\n")
	for i, line := range lines {
		if line == dpif+":" && i+1 < len(lines) {
			var avg, most uint64
			n, _ := fmt.Sscanf(strings.Join(strings.Fields(lines[i+1]), " "), "flows : (current %d) (avg %d) (max %d) (limit %d)", &f.Flows, &avg, &most, &f.Limit)
			return f, n == 4
		}
	}
	return f, false
}

// flowPort matches the port that a flow's packets come from.
var flowPort = regexp.MustCompile(`\bin_port\(([^)]*)\)`)

// FlowsByPort counts the flows of the datapath of a type by the port that their packets come from. All of them
// are listed by ovs-vswitchd, which does nothing else meanwhile: it is not for tens of thousands.
func (c *Client) FlowsByPort(ctx context.Context, datapath string) (map[string]uint64, error) {
	out, err := c.control(ctx, "dpctl/dump-flows", "--names", dpifName(datapath))
	if err != nil {
		return nil, fmt.Errorf("list the flows of datapath %s: %w", datapath, err)
	}
	counts := map[string]uint64{}
	for line := range strings.Lines(out) {
		if port := flowPort.FindStringSubmatch(line); port != nil {
			counts[port[1]]++
		}
	}
	return counts, nil
}
