package ovs

import (
	"context"
	"fmt"
	"regexp"
)

// dpifName is how ovs-vswitchd calls the datapath of a type.
func dpifName(datapath string) string { return datapath + "@ovs-" + datapath }

// DatapathPorts are the names of the ports that the datapath of a type has (dpctl/show, ovs-vswitchd(8)), which
// may be others than ovs-vswitchd believes. It fails where there is no bridge on that datapath.
func (c *Client) DatapathPorts(ctx context.Context, datapath string) ([]string, error) {
	out, err := c.control(ctx, "dpctl/show", dpifName(datapath))
	if err != nil {
		return nil, fmt.Errorf("ports of datapath %s: %w", datapath, err)
	}
	return parseDatapathPorts(out), nil
}

// datapathPort matches a port where dpctl/show lists it.
var datapathPort = regexp.MustCompile(`(?m)^ *port [0-9]+: (\S+)`)

func parseDatapathPorts(out string) (names []string) {
	for _, port := range datapathPort.FindAllStringSubmatch(out, -1) {
		names = append(names, port[1])
	}
	return names
}
