// Package peercred says who is at the other end of a Unix socket.
package peercred

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// Of returns the process, user and group at the other end of a connection when it was
// made, or when that end began to listen (SO_PEERCRED, unix(7)). The process is 0 when
// it is in a PID namespace that this one does not see.
func Of(conn *net.UnixConn) (unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return unix.Ucred{}, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return unix.Ucred{}, err
	}
	return *cred, nil
}
