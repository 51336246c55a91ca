package services

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// TestAttacks: a tenant that makes services and endpoints as it likes, and sends what
// it likes, reaches no other, and breaks nobody's services.
func TestAttacks(t *testing.T) {
	l := newLab(t, pipeline.OVS)
	web, dns := vip.String()+":80", vip.String()+":53"
	for _, tc := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"endpoints that cannot be", func(t *testing.T) {
			var all []service.Service
			odd := []string{"255.255.255.255", "224.0.0.1", "127.0.0.1", hairpin, "169.254.77.1", gateway.String(), "172.11.8.9", vip.String(), "10.96.0.99"}
			for i, affinity := range []time.Duration{0, time.Hour} {
				for j, endpoint := range odd {
					s := svc(tcpPort(endpoint), udpPort(53, endpoint))
					s.Key.Name, s.Affinity = fmt.Sprintf("odd-%d-%d", i, j), affinity
					for k := range s.Ports {
						s.Ports[k].VIP = vipOf(100 + 20*i + j)
					}
					all = append(all, s)
				}
			}
			l.set(append(all, svc(tcpPort("a1")))...)
			l.repaired, l.ahead = 0, l.ahead+readEvery
			l.ok(l.table.Resync(t.Context()))
			if l.repaired > 0 {
				t.Errorf("the switch does not keep %d of the flows and groups as they were written", l.repaired)
			}
			l.reach("a2", web, "a1 172.11.0.3")
			for _, s := range all {
				_, _ = l.udp("a2", s.Ports[1].VIP.String()+":53").c.Write([]byte("x"))
			}
			l.reach("a2", web, "a1 172.11.0.3")
		}},
		{"an endpoint that is another tenant's service", func(t *testing.T) {
			other := service.Service{Key: service.Key{Namespace: "b", Name: "dns"}, Ports: []service.Port{udpPort(8080, "b1")}}
			other.Ports[0].VIP = vipOf(11)
			l.set(svc(udpPort(53, vipOf(11).String())), other)
			u := l.udp("a2", dns)
			for range 3 { // an open connection too
				u.reach(10, "refused")
			}
		}},
		{"an address that becomes another tenant's service", func(t *testing.T) {
			l.set(svc(tcpPort("g1"), udpPort(53, "g1")))
			c := l.open("a2", web, "g1 172.11.0.3")
			defer c.Close()
			mine, global := l.udp("a2", dns), l.udp("g1", dns)
			mine.reach(10, "g1 172.11.0.3")
			global.reach(10, "g1 "+hairpin)
			other := svc(tcpPort("b1"), udpPort(53, "b1"))
			other.Key.Namespace = "b"
			l.set(other)
			l.ok(l.table.Resync(context.Background()))
			if echo(c, patience) {
				t.Error("the old tenant's connection goes on through the new tenant's service")
			}
			mine.reach(10, "nothing")
			global.reach(10, "b1 172.11.0.5")
			l.reach("a2", web, "nothing")
		}},
		{"ICMP errors about another tenant's connection", func(t *testing.T) {
			l.set(svc(udpPort(53, "a1")))
			u := l.udp("a2", dns)
			u.reach(10, "a1 172.11.0.3")
			port := u.c.LocalAddr().(*net.UDPAddr).Port
			before := l.refusedByTenant()
			for i, about := range []string{dns, podAddr(0).String() + ":8080"} {
				l.unreachable("b1", fmt.Sprintf("%s:%d", podAddr(1), port), about)
				l.eventually("the forged error is dropped", func() bool { return l.refusedByTenant() == before+i+1 })
			}
			u.reach(10, "a1 172.11.0.3") // and no error
			l.unreachable("a1", fmt.Sprintf("%s:%d", podAddr(1), port), podAddr(0).String()+":8080")
			u.failed() // it would have had one
		}},
		{"whatever connection tracking says", func(t *testing.T) {
			l.set(svc(tcpPort("a1", "b1", remote.String()), udpPort(53, "a1", "b1", remote.String())))
			for _, sender := range []string{
				"in_port=12,dl_src=0a:58:ac:0b:00:04,%s,nw_src=172.11.0.4",
				"in_port=1,tun_id=11,tun_src=" + peer.String() + ",tun_dst=" + self.String() + ",%s,nw_src=" + remote.String(),
			} {
				for _, packet := range []string{
					"udp,udp_src=8080,udp_dst=5000", "tcp,tcp_src=8080,tcp_dst=5000", "udp,nw_frag=first,udp_src=1,udp_dst=2", "udp,nw_frag=later",
					"icmp,icmp_type=3,icmp_code=3", "icmp,icmp_type=11", "icmp,icmp_type=12",
				} {
					for _, state := range []string{"trk,new", "trk,est", "trk,est,rpl", "trk,est,rpl,snat", "trk,est,dnat", "trk,rel,rpl,snat", "trk,inv"} {
						text := l.AppCtl("ofproto/trace", "br0", fmt.Sprintf(sender, packet)+",nw_ttl=64,nw_dst=172.11.0.3", "--ct-next", state)
						if !strings.Contains(text, "ct(table=40,zone=65520,nat)") || strings.Contains(text, "output port is 11") {
							t.Errorf("%s (%s) is not tracked, or gets through:\n%s", packet, state, text)
						}
					}
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l.t = t
			t.Cleanup(func() {
				row := attacks.Row{By: attacks.Tenant, Name: tc.name, Datapath: ovstest.Datapath(), Tried: 1}
				if t.Failed() {
					row.Delivered = 1
				}
				if err := attacks.Record(row); err != nil {
					t.Error(err)
				}
			})
			tc.run(t)
		})
	}
}

// refusedByTenant is how many packets Admit refused: their sender is of another tenant
// than their receiver.
func (l *lab) refusedByTenant() (n int) {
	l.t.Helper()
	l.AppCtl("revalidator/purge") // what the datapath counted reaches the flows
	for _, m := range refused.FindAllStringSubmatch(l.OFCtl("dump-flows", "br0", "table=45"), -1) {
		i, err := strconv.Atoi(m[1])
		l.ok(err)
		n += i
	}
	return n
}

var refused = regexp.MustCompile(`n_packets=(\d+), .*actions=drop`)

// unreachable sends from a pod, to the client's address, that its UDP datagrams to
// server find no port (RFC 792).
func (l *lab) unreachable(from, client, server string) {
	l.t.Helper()
	src, dst := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(client)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(server))
	about := make([]byte, 28)
	about[0], about[8], about[9] = 0x45, 64, byte(service.UDP)
	binary.BigEndian.PutUint16(about[2:], 38)
	copy(about[12:], src.IP.To4())
	copy(about[16:], dst.IP.To4())
	binary.BigEndian.PutUint16(about[10:], checksum(about[:20]))
	binary.BigEndian.PutUint16(about[20:], uint16(src.Port))
	binary.BigEndian.PutUint16(about[22:], uint16(dst.Port))
	binary.BigEndian.PutUint16(about[24:], 18)
	packet := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, about...)
	binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	l.ok(ns.Do(l.id+from, func() error {
		c, err := net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: src.IP})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(packet)
		return err
	}))
}

// checksum is that of the Internet (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func vipOf(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 0, byte(n)}) }
