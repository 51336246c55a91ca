package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// server answers for a pod with its name: each connection, and each datagram.
type server struct {
	tcp net.Listener
	udp *net.UDPConn
}

// serve has a pod answer.
func (c *cluster) serve(p netlab.Pod) error {
	at := netip.AddrPortFrom(p.IP, serverPort).String()
	tcp, err := ns.ListenTCP(p.Sandbox(), at)
	if err != nil {
		return err
	}
	udp, err := ns.ListenUDP(p.Sandbox(), at)
	if err != nil {
		return errors.Join(err, tcp.Close())
	}
	s := &server{tcp, udp}
	c.mu.Lock()
	c.servers[p.String()] = s
	c.mu.Unlock()
	go s.serveTCP(p.String())
	go s.serveUDP(p.String())
	return nil
}

// unserve ends that.
func (c *cluster) unserve(p pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, there := c.servers[p.String()]; there {
		s.close()
		delete(c.servers, p.String())
	}
}

// close ends what serves.
func (s *server) close() { _, _ = s.tcp.Close(), s.udp.Close() }

func (s *server) serveTCP(name string) {
	for {
		conn, err := s.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // whoever asked is gone
		}
		_, _ = conn.Write([]byte(name)) // a lost answer shows
		_ = conn.Close()
	}
}

func (s *server) serveUDP(name string) {
	buf := make([]byte, 100)
	for {
		_, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else it is an error about an answer before
			_, _ = s.udp.WriteToUDPAddrPort([]byte(name), from) // a lost answer shows
		}
	}
}

// answerTime is how long nobody answers who is not going to.
const answerTime = 700 * time.Millisecond

// ask has a pod ask at an address, and says who answers; nobody where none does.
func ask(ctx context.Context, from netlab.Pod, network string, at netip.AddrPort) string {
	var conn net.Conn
	var err error
	if network == "tcp4" {
		conn, err = ns.DialTCP(from.Sandbox(), at.String(), answerTime)
	} else {
		err = ns.DoPath(from.Sandbox(), func() (err error) { conn, err = (&net.Dialer{}).DialContext(ctx, network, at.String()); return err })
	}
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	if network == "udp4" {
		if _, err := fmt.Fprint(conn, "who?"); err != nil {
			return ""
		}
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(buf[:n]))
}
