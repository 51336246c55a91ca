package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Subscribe wakes up the caller after devices, IPv4 addresses or IPv4 routes of
// the namespace changed. Several changes may make one wake-up; so may a change that
// was lost in a full buffer. The channel is closed when ctx ends, or when the
// kernel's messages cannot be read any more.
func (n *NS) Subscribe(ctx context.Context) (<-chan struct{}, error) {
	var sock *nl.NetlinkSocket
	err := n.Do(func() (err error) {
		sock, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribing to changes of the network configuration: %w", err)
	}
	out := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, sock.Close)
	go func() {
		defer close(out)
		defer func() {
			if stop() {
				sock.Close()
			}
		}()
		for {
			// ENOBUFS: messages were lost, so something changed.
			if _, _, err := sock.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				return
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, nil
}
