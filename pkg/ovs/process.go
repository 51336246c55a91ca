package ovs

import (
	"context"
	"fmt"
	"net"

	"github.com/k8s-ovs/k8s-ovs/pkg/peercred"
)

// ProcessID is that of ovs-vswitchd as this process sees it; 0 when it is in a PID
// namespace that this process does not see.
func (c *Client) ProcessID(ctx context.Context) (int, error) {
	conn, err := c.dialControl(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	cred, err := peercred.Of(conn.Conn.(*net.UnixConn))
	if err != nil {
		return 0, fmt.Errorf("who serves %s: %w", conn.RemoteAddr(), err)
	}
	return int(cred.Pid), nil
}
