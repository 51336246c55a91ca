package ovs

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ProcessID is that of ovs-vswitchd as this process sees it (SO_PEERCRED, unix(7)); 0
// when it is in a PID namespace that this process does not see.
func (c *Client) ProcessID(ctx context.Context) (int, error) {
	conn, err := c.dialControl(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("who serves %s: %w", conn.RemoteAddr(), err)
	}
	return int(cred.Pid), nil
}
