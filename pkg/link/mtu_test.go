package link

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestCreateVethPrepares(t *testing.T) {
	node, sandbox := space(t), space(t)
	spec := pair
	spec.Prepare = func() error {
		l, ok, err := node.Link("ovs1")
		if err != nil || !ok || !l.Up || l.Carrier {
			t.Errorf("to be prepared: %+v, %t, %v; want it up without carrier", l, ok, err)
		}
		return nil
	}
	noErr(t, node.CreateVeth("ovs1", sandbox, spec))
	noErr(t, node.DeleteVeth("ovs1"))
	refused := errors.New("refused")
	spec.Prepare = func() error { return refused }
	if err := node.CreateVeth("ovs1", sandbox, spec); !errors.Is(err, refused) || !strings.Contains(err.Error(), "ovs1") {
		t.Errorf("error %v", err)
	}
	if ok, _ := node.LinkExists("ovs1"); ok {
		t.Error("a pair that could not be prepared is left")
	}
}

// TestSetPairMTU: both ends and the routes follow, and what was there without them
// stays as it is.
func TestSetPairMTU(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	_, err := sandbox.ConfigureSandbox(pod)
	noErr(t, err)
	ip(t, sandbox, "route add 198.51.100.0/24 via 172.11.0.1 dev eth0")
	for _, step := range []struct {
		device, route, wantRoute int
	}{
		{1450, 1300, 1300}, // send less
		{1300, 1300, 0},    // take less
		{1300, 0, 0},
		{1450, 1300, 1300}, // take more
		{1450, 1450, 0},    // send more
		{1200, 0, 0},       // both at once
		{9000, 0, 0},
		{1500, 1400, 1400},
	} {
		spec := pod
		spec.MTU, spec.RouteMTU = step.device, step.route
		for round := range 2 {
			changed, err := node.SetPairMTU("ovs1", sandbox, spec)
			noErr(t, err)
			if changed && round == 1 {
				t.Errorf("%+v: changed again", step)
			}
		}
		host, _, err := node.Link("ovs1")
		noErr(t, err)
		if host.MTU != step.device {
			t.Errorf("%+v: the host's end has MTU %d", step, host.MTU)
		}
		diff, err := sandbox.CheckSandbox(spec)
		noErr(t, err)
		if len(diff) > 0 {
			t.Errorf("%+v: %v", step, diff)
		}
		l, _, _ := sandbox.Link("eth0")
		routes, err := sandbox.routes(l.Index)
		noErr(t, err)
		for _, r := range routes {
			if own := r.Dst.String() == "198.51.100.0/24"; own && r.MTU != 0 || !own && r.MTU != step.wantRoute {
				t.Errorf("%+v: route %+v", step, r)
			}
		}
		if len(routes) != 3 {
			t.Errorf("%+v: routes %+v", step, routes)
		}
	}
	ip(t, sandbox, "route del default")
	if _, err := node.SetPairMTU("ovs1", sandbox, pod); err != nil {
		t.Fatal(err)
	}
	if routes := ip(t, sandbox, "route show default"); routes != "" {
		t.Errorf("a route that the pod removed is back: %s", routes)
	}
	if _, err := node.SetPairMTU("absent", sandbox, pod); !errors.Is(err, ErrNoLink) {
		t.Errorf("host's end gone: %v", err)
	}
	ip(t, sandbox, "link del eth0")
	if _, err := node.SetPairMTU("ovs1", sandbox, pod); !errors.Is(err, ErrNoLink) {
		t.Errorf("pair gone: %v", err)
	}
}

// TestConnectionFollowsMTU: a TCP connection that is sending goes on, with segments
// of the new size, smaller and larger.
func TestConnectionFollowsMTU(t *testing.T) {
	node, sandbox := space(t), space(t)
	noErr(t, node.CreateVeth("ovs1", sandbox, pair))
	noErr(t, node.Loud("ovs1"))
	_, err := sandbox.ConfigureSandbox(pod)
	noErr(t, err)
	_, err = node.EnsureAddress("ovs1", host(pod.Gateway))
	noErr(t, err)
	_, err = node.SetMAC("ovs1", gwMAC)
	noErr(t, err)
	_, err = node.EnsureRoute("ovs1", Route{Dst: host(pod.Address)})
	noErr(t, err)
	var listener net.Listener
	noErr(t, node.Do(func() (err error) {
		listener, err = net.Listen("tcp4", pod.Gateway.String()+":0")
		return err
	}))
	defer listener.Close()
	received := make(chan int64, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			received <- -1
			return
		}
		n, _ := io.Copy(io.Discard, conn)
		received <- n
	}()
	var conn *net.TCPConn
	noErr(t, sandbox.Do(func() error {
		c, err := net.DialTimeout("tcp4", listener.Addr().String(), 5*time.Second)
		conn, _ = c.(*net.TCPConn)
		return err
	}))
	var sent atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		defer conn.Close()
		for buf := make([]byte, 64<<10); ctx.Err() == nil; time.Sleep(time.Millisecond) {
			n, err := conn.Write(buf)
			sent.Add(int64(n))
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for _, m := range []struct{ device, route, want int }{{1450, 0, 1450}, {1450, 1300, 1300}, {1300, 1300, 1300}, {1200, 1200, 1200}, {9000, 1400, 1400}, {9000, 9000, 9000}} {
		spec := pod
		spec.MTU, spec.RouteMTU = m.device, m.route
		_, err := node.SetPairMTU("ovs1", sandbox, spec)
		noErr(t, err)
		deadline := time.Now().Add(10 * time.Second)
		for before := sent.Load(); ; time.Sleep(time.Millisecond) {
			pmtu := 0
			raw, err := conn.SyscallConn()
			noErr(t, err)
			noErr(t, raw.Control(func(fd uintptr) {
				if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
					pmtu = int(info.Pmtu)
				}
			}))
			if pmtu == m.want && sent.Load() > before+1<<20 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v: the connection sends %d bytes at most, and has sent %d", m, pmtu, sent.Load()-before)
			}
		}
	}
	stop()
	noErr(t, <-done)
	if n := <-received; n != sent.Load() {
		t.Errorf("received %d of %d bytes", n, sent.Load())
	}
}

// TestMTUBesideAnotherDefault: another device's default route of the same metric stays,
// before ours and behind it, and CHECK tells of it.
func TestMTUBesideAnotherDefault(t *testing.T) {
	for _, how := range []string{"append", "prepend"} {
		node, sandbox := space(t), space(t)
		noErr(t, node.CreateVeth("ovs1", sandbox, pair))
		_, err := sandbox.ConfigureSandbox(pod)
		noErr(t, err)
		ip(t, sandbox, "link add other type veth peer name other2")
		ip(t, sandbox, "link set other up")
		ip(t, sandbox, "addr add 192.0.2.2/24 dev other")
		ip(t, sandbox, "route "+how+" default via 192.0.2.1 dev other")
		for _, mtu := range []int{1400, 1450, 1300} {
			for _, route := range []int{mtu, mtu - 100} {
				spec := pod
				spec.MTU, spec.RouteMTU = mtu, route
				for round := range 2 {
					changed, err := node.SetPairMTU("ovs1", sandbox, spec)
					noErr(t, err)
					if changed && round == 1 {
						t.Errorf("%s, %d, %d: changed again", how, mtu, route)
					}
				}
				diff, err := sandbox.CheckSandbox(spec)
				noErr(t, err)
				want := []string{"another device has a default route beside that through eth0: packets go by either of them"}
				if d := cmp.Diff(want, diff); d != "" {
					t.Errorf("%s, %d, %d (-want +got):\n%s", how, mtu, route, d)
				}
				all := ip(t, sandbox, "route show default")
				if strings.Count(all, "default") != 2 || !strings.Contains(all, "default via 192.0.2.1 dev other") {
					t.Errorf("%s, %d, %d: default routes\n%s", how, mtu, route, all)
				}
			}
		}
	}
}
