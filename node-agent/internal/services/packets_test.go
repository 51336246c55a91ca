package services

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// hairpin is whom a pod that reaches itself takes for its client.
const hairpin = "169.254.77.2"

// TestPackets sends real packets to services of every kind.
func TestPackets(t *testing.T) {
	l := newLab(t, pipeline.OVS)
	l.serve("node")
	web := vip.String() + ":80"
	dns := vip.String() + ":53"
	for _, tc := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"all endpoints get connections, with the client's own address", func(t *testing.T) {
			l.set(svc(tcpPort("a1", "g1")))
			seen := map[string]bool{}
			for range 40 {
				seen[l.answer("a2", web)] = true
			}
			if len(seen) != 2 || !seen["a1 172.11.0.3"] || !seen["g1 172.11.0.3"] {
				t.Errorf("answers %v", seen)
			}
			l.reach("a2", podAddr(0).String()+":8080", "a1 172.11.0.3") // past the service
		}},
		{"a pod reaches itself", func(t *testing.T) {
			l.set(svc(tcpPort("a1"), udpPort(53, "a1")))
			l.reach("a1", web, "a1 "+hairpin)
			u := l.udp("a1", dns)
			u.reach(10, "a1 "+hairpin)
			u.reach(4000, "a1 "+hairpin)
		}},
		{"tenants", func(t *testing.T) {
			l.set(svc(tcpPort("a1")))
			l.reach("a2", web, "a1 172.11.0.3")
			l.reach("b1", web, "nothing")
			l.reach("g1", web, "a1 172.11.0.5")
		}},
		{"endpoints made by hand do not reach another tenant", func(t *testing.T) {
			l.set(svc(tcpPort("b1"), udpPort(53, "b1")))
			l.reach("a1", web, "nothing")
			l.udp("a1", dns).reach(10, "nothing")
			l.reach("g1", web, "b1 172.11.0.5")
		}},
		{"endpoints made by hand that are no endpoints", func(t *testing.T) {
			l.set(svc(tcpPort("10.96.0.11")))
			l.reach("a1", web, "refused")
			vtep := svc(udpPort(53, self.String()))
			vtep.Ports[0].Endpoints[0].Port = 4789
			l.set(vtep)
			l.udp("a1", dns).reach(10, "nothing")
			l.AppCtl("revalidator/purge")
			if flows := l.OFCtl("dump-flows", "br0", "table=50,udp,udp_dst=4789"); !strings.Contains(flows, "n_packets=1,") {
				t.Errorf("the bridge let a tunnel packet through:\n%s", flows)
			}
		}},
		{"a public service", func(t *testing.T) {
			s := svc(tcpPort("g1"))
			s.Key = service.Key{Namespace: "b", Name: "public"}
			l.set(s)
			l.reach("a1", web, "g1 172.11.0.2")
			s.Key.Name = "own"
			l.set(s)
			l.reach("a1", web, "nothing")
		}},
		{"endpoints on the host network are for everybody", func(t *testing.T) {
			l.set(svc(tcpPort(self.String()), udpPort(53, self.String())))
			l.reach("a1", web, "node 172.11.0.2")
			l.reach("b1", web, "node 172.11.0.4")
			l.udp("b1", dns).reach(4000, "node 172.11.0.4")
		}},
		{"an endpoint outside is for the service's tenant alone", func(t *testing.T) {
			outside := "198.18.0.77" // no node's
			l.ip("node", "addr add "+outside+"/32 dev lo")
			l.set(svc(tcpPort(outside)))
			l.reach("a1", web, "node 172.11.0.2")
			l.reach("b1", web, "nothing")
		}},
		{"without endpoints", func(t *testing.T) {
			l.set(svc(tcpPort(), udpPort(53)))
			// At once, and not only when asked again; a busy machine may be late.
			var took []time.Duration
			for len(took) < 5 && (took == nil || slices.Min(took) > patience) {
				start := time.Now()
				l.reach("a1", web, "refused")
				l.udp("a1", dns).reach(10, "refused")
				l.reach("a1", "10.96.99.99:80", "refused") // nobody's
				took = append(took, time.Since(start))
			}
			if slices.Min(took) > patience {
				t.Errorf("the refusals took %v", took)
			}
			l.reach("b1", web, "nothing")
		}},
		{"fragments both ways, also as the first packet", func(t *testing.T) {
			l.set(svc(udpPort(53, "a1", "g1")))
			for range 5 {
				u := l.udp("a2", dns)
				u.reach(4000, "a1 172.11.0.3", "g1 172.11.0.3")
				u.reach(20000, "a1 172.11.0.3", "g1 172.11.0.3")
			}
			// Of two UDP ports a first packet's fragments do not tell which; later ones
			// belong to a connection.
			l.set(svc(udpPort(53, "a1"), udpPort(54, "a1")))
			u := l.udp("a2", dns)
			u.reach(10, "a1 172.11.0.3")
			u.reach(4000, "a1 172.11.0.3")
		}},
		{"a closed port of an endpoint", func(t *testing.T) {
			s := svc(udpPort(53, "a1"))
			s.Ports[0].Endpoints[0].Port = 9
			l.set(s)
			u := l.udp("a2", dns)
			u.reach(10, "refused") // the ICMP error is about the service's address
		}},
		{"a closed port of a pod that reaches itself", func(t *testing.T) {
			s := svc(udpPort(53, "a1"))
			s.Ports[0].Endpoints[0].Port = 9
			l.set(s)
			l.udp("a1", dns).reach(10, "refused")
		}},
		{"a client that has closed its port", func(t *testing.T) {
			s := svc(udpPort(53, "a1"))
			s.Ports[0].Endpoints[0].Port = 8081
			l.set(s)
			l.closedClient("a2", "a1", podAddr(0).String()+":8081", dns)
			l.closedClient("a1", "a1", podAddr(0).String()+":8081", dns) // itself
		}},
		{"UDP clients move when their endpoint goes", func(t *testing.T) {
			l.set(svc(udpPort(53, "a1")))
			u := l.udp("a2", dns)
			u.reach(10, "a1 172.11.0.3")
			l.set(svc(udpPort(53, "g1")))
			l.ok(l.table.Resync(context.Background()))
			u.reach(10, "g1 172.11.0.3")
		}},
		{"TCP connections outlive the endpoint", func(t *testing.T) {
			l.set(svc(tcpPort("a1")))
			c := l.open("a2", web, "a1 172.11.0.3")
			defer c.Close()
			l.set(svc(tcpPort("g1")))
			l.reach("a2", web, "g1 172.11.0.3")
			if !echo(c, busy) {
				t.Error("the open connection is broken")
			}
		}},
		{"a tenant change cuts and connects", func(t *testing.T) {
			l.set(svc(tcpPort("g1")))
			c := l.open("a2", web, "g1 172.11.0.3")
			defer c.Close()
			if _, _, err := l.base.SetRecords(context.Background(), records(11)); err != nil {
				t.Fatal(err)
			}
			l.settle()
			l.reach("b1", web, "g1 172.11.0.4")
			_, _, err := l.base.SetRecords(context.Background(), records(10))
			l.ok(err)
			l.settle()
			l.reach("b1", web, "nothing")
			if !echo(c, busy) {
				t.Error("its own tenant's connection is broken")
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l.t = t
			tc.run(t)
		})
	}
}

// reach connects from a pod and checks who answers, or that nobody does.
func (l *lab) reach(from, dst string, want ...string) {
	l.t.Helper()
	l.expect(func() string { return l.tcp(from, dst) }, want...)
}

// reach sends n bytes and checks who sends them back, or that nobody does.
func (u udp) reach(n int, want ...string) {
	u.l.t.Helper()
	u.l.expect(func() string { return u.ask(n) }, want...)
}

// open connects as reach does and leaves the connection open.
func (l *lab) open(from, dst, want string) net.Conn {
	l.t.Helper()
	var c net.Conn
	l.expect(func() (answer string) { c, answer = l.dial(from, dst); return answer }, want)
	if c == nil {
		l.t.FailNow()
	}
	return c
}

// answer is who answers a connection from a pod.
func (l *lab) answer(from, dst string) (who string) {
	l.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if who = l.tcp(from, dst); who != "nothing" || time.Now().After(deadline) {
			return who
		}
	}
}

// expect asks once, and again while there is no answer where one is expected: on a
// busy machine it may take longer than one where none is.
func (l *lab) expect(ask func() string, want ...string) {
	l.t.Helper()
	got := ask()
	for end := time.Now().Add(10 * time.Second); got == "nothing" && !slices.Contains(want, got) && time.Now().Before(end); {
		got = ask()
	}
	if !slices.Contains(want, got) {
		l.t.Errorf("got %q, want %q", got, want)
	}
}

// closedClient: a client asks a service and closes its socket; so the endpoint's answer
// finds no port, and the endpoint learns that.
func (l *lab) closedClient(client, server, listen, dst string) {
	l.t.Helper()
	var endpoint *net.UDPConn
	l.ok(ns.Do(l.id+server, func() (err error) {
		endpoint, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(listen)))
		return err
	}))
	u := l.udp(client, dst)
	_, err := u.c.Write([]byte("x"))
	l.ok(err)
	_ = endpoint.SetDeadline(time.Now().Add(10 * time.Second))
	_, from, err := endpoint.ReadFromUDPAddrPort(make([]byte, 10))
	l.ok(err)
	l.ok(endpoint.Close()) // and again as one that is connected, which gets errors
	l.ok(u.c.Close())
	var back *net.UDPConn
	l.ok(ns.Do(l.id+server, func() (err error) {
		back, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(listen)), net.UDPAddrFromAddrPort(from))
		return err
	}))
	defer back.Close()
	_, err = back.Write([]byte("x"))
	l.ok(err)
	udp{l, back}.failed()
}

// TestAffinity: a client stays with its endpoint until it paused for the timeout, or
// the endpoint is gone.
func TestAffinity(t *testing.T) {
	l := newLab(t, pipeline.OVS)
	web := vip.String() + ":80"
	sticky := func(endpoints ...string) service.Service {
		s := svc(tcpPort(endpoints...))
		s.Affinity = 10 * time.Second
		return s
	}
	l.set(sticky("a1", "a2", "g1"))
	first := map[string]string{}
	for _, client := range []string{"a1", "a2", "g1"} {
		first[client] = l.answer(client, web)
		for range 15 {
			l.reach(client, web, first[client])
		}
	}
	server, _, _ := strings.Cut(first["a2"], " ")
	others := map[string][]string{"a1": {"a2", "g1"}, "a2": {"a1", "g1"}, "g1": {"a1", "a2"}}[server]
	l.set(sticky(others...))
	moved := l.answer("a2", web)
	if strings.HasPrefix(moved, server+" ") {
		t.Errorf("with %s gone the client reaches %q", server, moved)
	}
	// The endpoint's return changes nothing.
	l.set(sticky("a1", "a2", "g1"))
	for range 15 {
		l.reach("a2", web, moved)
	}
	deadline := time.Now().Add(60 * time.Second)
	for strings.Contains(l.OFCtl("dump-flows", "br0", "table=24"), "nw_src=172.11.0.3") {
		if time.Now().After(deadline) {
			t.Fatal("the client is remembered for ever")
		}
		time.Sleep(50 * time.Millisecond)
	}
	// Choices of the last 10 s are cached in the datapath; real timeouts are longer.
	l.AppCtl("revalidator/purge")
	seen := map[string]bool{}
	for range 15 {
		seen[l.answer("a2", web)] = true
	}
	if len(seen) != 1 {
		t.Errorf("after the pause the client is not kept: %v", seen)
	}
}

// forwarded is the answer of a1 to what the node forwards and masquerades: its own processes
// have the gateway's address, this the last of the node's subnet.
const forwarded = "a1 172.11.3.255"

// TestKubeProxy: the node translates, the bridge checks tenants both ways.
func TestKubeProxy(t *testing.T) {
	l := newLab(t, pipeline.KubeProxy)
	l.serve("node")
	web := vip.String() + ":80"
	translate := func(to string) {
		rules := fmt.Sprintf(`add table ip proxy; delete table ip proxy; add table ip proxy;
			add chain ip proxy pre { type nat hook prerouting priority dstnat; };
			add rule ip proxy pre ip daddr %s tcp dport 80 dnat to %s:8080;
			add rule ip proxy pre ip daddr %s udp dport 53 dnat to %s:8080;
			add rule ip proxy pre ip daddr %s udp dport 54 dnat to %s:9;
			add rule ip proxy pre ip daddr %s tcp dport 30080 dnat to %s:8080`, vip, to, vip, to, vip, to, self, to)
		out, err := exec.Command("ip", "netns", "exec", l.id+"node", "nft", rules).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	l.set(svc(tcpPort("a1"), udpPort(53, "a1")))
	translate(podAddr(0).String())
	l.reach("a2", web, "a1 172.11.0.3")
	l.reach("g1", web, "a1 172.11.0.5")
	l.reach("b1", web, "nothing")
	u := l.udp("a2", vip.String()+":53")
	u.reach(10, "a1 172.11.0.3")
	u.reach(4000, "a1 172.11.0.3")
	l.udp("a2", vip.String()+":54").reach(10, "refused") // the ICMP error is about the service's address
	l.reach("a2", podAddr(0).String()+":8080", "a1 172.11.0.3")
	l.reach("b1", podAddr(0).String()+":8080", "nothing")
	l.reach("b1", self.String()+":30080", forwarded) // ports of the node are public

	l.set(svc(tcpPort("b1")))
	translate(podAddr(2).String())
	l.reach("a2", web, "nothing")
	l.reach("g1", web, "b1 172.11.0.5")

	l.set(svc(tcpPort(self.String())))
	translate(self.String())
	l.reach("b1", web, "node 172.11.0.4")
}

// TestNodePort: beside the bridge the node serves ports of its own, to pods as well.
func TestNodePort(t *testing.T) {
	l := newLab(t, pipeline.OVS)
	outside := netip.MustParseAddr("192.0.2.10")
	out, err := exec.Command("ip", "netns", "exec", l.id+"node", "nft", fmt.Sprintf(`add table ip proxy;
		add chain ip proxy pre { type nat hook prerouting priority dstnat; };
		add rule ip proxy pre ip daddr %s tcp dport 30080 dnat to %s:8080;
		add rule ip proxy pre ip daddr { %s, %s } tcp dport 80 dnat to %s:8080;
		add chain ip proxy out { type nat hook output priority -100; };
		add rule ip proxy out ip daddr %s tcp dport 80 dnat to %s:8080`, self, podAddr(0), vip, outside, podAddr(0), vip, podAddr(0))).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.reach("a2", self.String()+":30080", forwarded)
	l.reach("b1", self.String()+":30080", forwarded)
	l.reach("a1", self.String()+":30080", "a1 172.11.0.1") // itself: as the gateway, as nobody keeps a pod from itself
	l.reach("b1", vip.String()+":80", "refused")           // never by the node
	l.reach("b1", outside.String()+":80", forwarded)       // an external IP
	s := svc(tcpPort("a1"))
	s.Ports[0].VIP = outside // a service's own address, where the service network does not have it
	l.set(s)
	l.reach("b1", outside.String()+":80", "nothing")
	l.reach("a2", outside.String()+":80", "a1 172.11.0.3")
	l.ip("node", "route add "+vip.String()+"/32 dev lo src "+self.String())
	l.reach("node", vip.String()+":80", "a1 172.11.0.1") // as the gateway, not as another address of the node
}

// TestTrace: plain traffic between pods is not tracked; SCTP is translated as the
// rest, though this machine may not be able to send it.
func TestTrace(t *testing.T) {
	l := newLab(t, pipeline.OVS)
	remote := remote.String()
	sctp := service.Port{VIP: vip, Protocol: service.SCTP, Port: 80, Endpoints: ends([]string{"a2"})}
	l.set(svc(tcpPort("a2", remote), udpPort(53, "a2"), sctp))
	from := func(packet string) string {
		return l.AppCtl("ofproto/trace", "br0", "in_port=10,dl_src=0a:58:ac:0b:00:02,dl_dst=0a:58:ac:0b:00:01,"+packet+",nw_src=172.11.0.2",
			"--ct-next", "trk,new", "--ct-next", "trk,new,dnat")
	}
	for _, packet := range []string{"tcp,tcp_src=5000,tcp_dst=8080", "udp,udp_src=5000,udp_dst=8080", "icmp,icmp_type=8", "sctp,sctp_src=8080,sctp_dst=1"} {
		if text := from(packet + ",nw_ttl=64,nw_dst=" + podAddr(1).String()); strings.Contains(text, "ct(") || !strings.Contains(text, "output port is 11") {
			t.Errorf("%s is tracked, or not delivered:\n%s", packet, text)
		}
	}
	text := from("sctp,sctp_src=5000,sctp_dst=80,nw_ttl=64,nw_dst=" + vip.String() + ",ct_state=new|trk,ct_nw_src=172.11.0.2,ct_nw_dst=" + vip.String() + ",ct_nw_proto=132,ct_tp_src=5000,ct_tp_dst=80")
	if groups := l.OFCtl("dump-groups", "br0"); !strings.Contains(text, fmt.Sprintf("group:%d", pipeline.PortNumber(vip, service.SCTP, 80))) || strings.Count(groups, "nat(dst=172.11.0.3:8080)") != 3 {
		t.Errorf("SCTP is not translated:\n%s\n%s", text, groups)
	}

	tunnel := func(packet string) string {
		return l.AppCtl("ofproto/trace", "br0", "in_port=1,tun_id=10,tun_src="+peer.String()+",tun_dst="+self.String()+","+packet+",nw_ttl=64,nw_src="+remote+",nw_dst="+podAddr(0).String(),
			"--ct-next", "trk,est,rpl")
	}
	if text := tunnel("tcp,tcp_src=8080,tcp_dst=5000"); !strings.Contains(text, "ct(table=40,zone=65520,nat)") || !strings.Contains(text, "output port is 10") {
		t.Errorf("a remote endpoint's answer is not translated back:\n%s", text)
	}
	if text := tunnel("tcp,tcp_src=5000,tcp_dst=80"); strings.Contains(text, "ct(") || !strings.Contains(text, "output port is 10") {
		t.Errorf("a remote pod's packet is tracked, or not delivered:\n%s", text)
	}
}

// BenchmarkRoundTrip is a packet to a pod and back: by the pod's address, and by a
// service's, whose packets are tracked in both directions.
func BenchmarkRoundTrip(b *testing.B) {
	l := newLab(b, pipeline.OVS)
	l.set(svc(udpPort(53, "a1")))
	for _, tc := range []struct{ name, dst string }{{"plain", podAddr(3).String() + ":8080"}, {"service", vip.String() + ":53"}} {
		b.Run(tc.name, func(b *testing.B) {
			u := l.udp("a2", tc.dst)
			for b.Loop() {
				if got := u.ask(100); got == "nothing" || got == "refused" {
					b.Fatal(got)
				}
			}
		})
	}
}
