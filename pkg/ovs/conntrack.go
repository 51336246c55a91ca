package ovs

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// UserspaceConnections are how many connections the userspace datapath tracks, and how
// many it has room for (dpctl/ct-get-nconns and ct-get-maxconns, ovs-dpctl(8)). It fails
// where there is no bridge on that datapath.
func (c *Client) UserspaceConnections(ctx context.Context) (used, size uint64, err error) {
	read := func(command string) (n uint64, err error) {
		out, err := c.control(ctx, command, "netdev@ovs-netdev")
		if err == nil {
			n, err = strconv.ParseUint(strings.TrimSpace(out), 10, 64)
		}
		if err != nil {
			return 0, fmt.Errorf("connections of the userspace datapath: %w", err)
		}
		return n, nil
	}
	if size, err = read("dpctl/ct-get-maxconns"); err != nil {
		return 0, 0, err
	}
	used, err = read("dpctl/ct-get-nconns")
	return used, size, err
}
