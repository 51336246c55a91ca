package services

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/nodeflows"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
	"github.com/k8s-ovs/k8s-ovs/pkg/service"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// ruleKinds are those of the area of what policies allow.
var ruleKinds = map[pipeline.Kind]flowstore.Kind{
	pipeline.KindRule: "rule", pipeline.KindSubject: "subject", pipeline.KindAllowed: "allowed", pipeline.KindPort: "port",
}

// ruleArea is that area.
func ruleArea() flowstore.Area {
	cookie, mask := pipeline.Policies()
	return flowstore.Area{Name: "policy", Cookie: cookie, Mask: mask, Kinds: []flowstore.Kind{"rule", "subject", "allowed", "port"}}
}

// direction is what policies say of the pods of a lab in one direction: who is isolated, and
// what is allowed all the same.
type direction struct {
	isolated []string
	allows   []policy.Allow
}

func isolated(names ...string) direction { return direction{isolated: names} }

// and allows subjects and peers to meet on ports, which are "tcp 8080", or none for all. Peers
// are pods, addresses or prefixes, or none for everybody.
func (d direction) and(subject string, peers []string, ports ...string) direction {
	a := policy.Allow{
		Name: fmt.Sprint(peers, ports), Subjects: []netip.Addr{addrOf(subject)},
		Peers: policy.Peers{Any: len(peers) == 0}, AnyPort: len(ports) == 0,
	}
	for _, p := range peers {
		prefix, err := netip.ParsePrefix(p)
		if err != nil {
			prefix = netip.PrefixFrom(addrOf(p), 32)
		}
		a.Peers.Prefixes = append(a.Peers.Prefixes, prefix)
	}
	for _, p := range ports {
		protocol, number, _ := strings.Cut(p, " ")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			panic(err)
		}
		a.Ports = append(a.Ports, policy.PortRange{Protocol: map[string]service.Protocol{"tcp": service.TCP, "udp": service.UDP}[protocol], First: uint16(n), Last: uint16(n)})
	}
	d.allows = append(slices.Clip(d.allows), a)
	return d
}

// addrOf is the address of a pod, or the one written.
func addrOf(name string) netip.Addr {
	if i := slices.Index(podNames, name); i >= 0 {
		return podAddr(i)
	}
	return netip.MustParseAddr(name)
}

// police makes ingress and egress what policies say, and returns when packets follow.
func (l *lab) police(ingress, egress direction) {
	l.t.Helper()
	l.midstream(ingress, egress, false)
}

func (l *lab) midstream(ingress, egress direction, on bool) {
	l.t.Helper()
	table := func(d direction) policy.Table { return policy.Table{Allows: d.allows} }
	c := policy.Compiled{Ingress: table(ingress), Egress: table(egress), Network: netip.MustParsePrefix("172.11.0.0/16")}
	pods := map[uint32]pipeline.PodPolicy{}
	for i, name := range podNames {
		pods[uint32(10+i)] = pipeline.PodPolicy{Ingress: slices.Contains(ingress.isolated, name), Egress: slices.Contains(egress.isolated, name), Midstream: on}
	}
	key := policy.Key{Namespace: "a", Name: "p"}
	l.setRules(l.rules.Add(map[policy.Key]policy.Compiled{key: c}))
	l.ok(l.base.SetPolicies(context.Background(), pods))
	l.setRules(l.rules.Set(map[policy.Key]policy.Compiled{key: c}))
	l.settle()
}

func (l *lab) setRules(owners []pipeline.RuleOwner) {
	l.t.Helper()
	var c flowstore.Change
	for _, o := range owners {
		c.Set(flowstore.Owner{Kind: ruleKinds[o.Kind], Name: o.Name}, flowstore.Want{Flows: o.Flows})
	}
	_, err := l.store.Set(context.Background(), c)
	l.ok(err)
}

// tracked is what is known of connections of selected pods.
func (l *lab) tracked() string {
	l.t.Helper()
	return l.AppCtl("dpctl/dump-conntrack", fmt.Sprintf("zone=%d", pipeline.ZonePolicy))
}

// server is a socket of UDP at a pod that answers nobody by itself.
type server struct {
	l *lab
	c *net.UDPConn
}

func (l *lab) server(name string, port int) server {
	l.t.Helper()
	c, err := ns.ListenUDP(ns.Path(l.id+name), fmt.Sprintf("0.0.0.0:%d", port))
	l.ok(err)
	l.t.Cleanup(func() { _ = c.Close() })
	return server{l, c}
}

// next is who sent the next datagram, if one comes in time.
func (s server) next(wait time.Duration) (from netip.AddrPort, err error) {
	_ = s.c.SetReadDeadline(time.Now().Add(wait))
	_, from, err = s.c.ReadFromUDPAddrPort(make([]byte, 100))
	return from, err
}

// send sends to a client, and reports whether it gets that in time.
func (s server) send(to udp, at netip.AddrPort, wait time.Duration) bool {
	s.l.t.Helper()
	_, err := s.c.WriteToUDPAddrPort([]byte("news"), at)
	s.l.ok(err)
	_ = to.c.SetReadDeadline(time.Now().Add(wait))
	_, err = to.c.Read(make([]byte, 100))
	return err == nil
}

// alive waits until an open connection carries something again, which TCP takes its time for.
func (l *lab) alive(c net.Conn) {
	l.t.Helper()
	l.eventually("the connection goes on", func() bool { return echo(c, patience) })
}

var (
	nobody  = direction{}
	a1Addr  = podAddr(0).String() + ":8080"
	webPort = vip.String() + ":80"
	dnsPort = vip.String() + ":53"
)

// TestPolicyPackets sends real packets to and from pods that policies select.
func TestPolicyPackets(t *testing.T) {
	l := newLab(t, pipeline.OVS)
	l.serve("node")
	l.set(svc(tcpPort("a1"), udpPort(53, "a1")))
	for _, tc := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"one pod may, on one port", func(t *testing.T) {
			l.police(isolated("a1").and("a1", []string{"a2"}, "tcp 8080"), nobody)
			l.reach("a2", a1Addr, "a1 172.11.0.3")
			l.reach("g1", a1Addr, "nothing")
			l.udp("a2", a1Addr).reach(10, "nothing")
			l.reach("a1", podAddr(1).String()+":8080", "a2 172.11.0.2") // its own way out, and the answers
			l.udp("a1", podAddr(3).String()+":8080").reach(10, "g1 172.11.0.2")
			l.reach("a2", podAddr(3).String()+":8080", "g1 172.11.0.3")
		}},
		{"through a service, whose address no policy names", func(t *testing.T) {
			l.police(isolated("a1").and("a1", []string{"a2"}, "tcp 8080", "udp 8080"), isolated("a2").and("a2", []string{"a1"}))
			l.reach("a2", webPort, "a1 172.11.0.3")
			l.reach("g1", webPort, "nothing")
			l.udp("a2", dnsPort).reach(10, "a1 172.11.0.3")
			l.udp("g1", dnsPort).reach(10, "nothing")
			l.reach("a2", podAddr(3).String()+":8080", "nothing")
			l.police(isolated("a1").and("a1", []string{"a2", "g1"}, "tcp 8080"), isolated("a2"))
			l.reach("a2", webPort, "nothing")
			l.reach("g1", webPort, "a1 172.11.0.5")
		}},
		{"revoked and given back, both ways, and nobody else is", func(t *testing.T) {
			both, one := isolated("a1").and("a1", []string{"a2"}).and("a1", []string{"g1"}), isolated("a1").and("a1", []string{"g1"})
			l.police(both, nobody)
			news := l.server("a1", 9000)
			for _, dst := range []string{a1Addr, webPort} {
				mine, other := l.open("a2", dst, "a1 172.11.0.3"), l.open("g1", dst, "a1 172.11.0.5")
				l.alive(mine)
				l.alive(other)
				u := l.udp("a2", podAddr(0).String()+":9000")
				_, err := u.c.Write([]byte("x"))
				l.ok(err)
				client, err := news.next(busy)
				l.ok(err)
				if !news.send(u, client, busy) {
					t.Error("the client has no answer")
				}
				l.police(one, nobody)
				if echo(mine, patience) {
					t.Errorf("%s: the connection goes on that is not allowed any more", dst)
				}
				if news.send(u, client, patience) {
					t.Error("the answers go on of what is not allowed any more")
				}
				l.alive(other)
				l.police(both, nobody)
				l.alive(mine)
				l.alive(other)
				if !news.send(u, client, busy) {
					t.Error("given back, the answers do not go on")
				}
				_, _ = mine.Close(), other.Close()
			}
		}},
		{"what a pod may not send", func(t *testing.T) {
			l.police(nobody, isolated("a1").and("a1", []string{"a2"}, "tcp 8080"))
			l.reach("a1", podAddr(1).String()+":8080", "a2 172.11.0.2")
			l.udp("a1", podAddr(1).String()+":8080").reach(10, "nothing")
			l.reach("a1", podAddr(3).String()+":8080", "nothing")
			l.reach("g1", a1Addr, "a1 172.11.0.5") // it answers whoever may ask
			l.udp("g1", a1Addr).reach(10, "a1 172.11.0.5")
		}},
		{"a pod reaches itself", func(t *testing.T) {
			l.police(isolated("a1"), isolated("a1"))
			l.reach("a1", webPort, "a1 "+hairpin)
			u := l.udp("a1", dnsPort)
			u.reach(10, "a1 "+hairpin)
			u.reach(4000, "a1 "+hairpin)
			l.reach("a2", webPort, "nothing")
		}},
		{"a pod and its node", func(t *testing.T) {
			l.police(isolated("a1"), isolated("a1"))
			l.reach("node", a1Addr, "a1 172.11.0.1")
			l.udp("a1", self.String()+":8080").reach(10, "node 172.11.0.2")
			l.udp("a1", self.String()+":8080").reach(4000, "node 172.11.0.2")
		}},
		{"a port of the node is not the node", func(t *testing.T) {
			l.nft(`add table ip proxy; delete table ip proxy; add table ip proxy;
				add chain ip proxy pre { type nat hook prerouting priority dstnat; };
				add rule ip proxy pre ip daddr ` + self.String() + ` tcp dport 30080 dnat to ` + a1Addr + `;
				add chain ip proxy post { type nat hook postrouting priority 90; };
				add rule ip proxy post iifname tun0 oifname tun0 snat to 172.11.3.255`)
			node := self.String() + ":30080"
			l.police(nobody, nobody)
			l.reach("b1", node, "a1 172.11.3.255")
			l.police(isolated("a1"), nobody)
			l.reach("b1", node, "nothing")
			l.reach("node", a1Addr, "a1 172.11.0.1")
			l.police(isolated("a1").and("a1", []string{"172.11.3.255"}), nobody)
			l.reach("b1", node, "a1 172.11.3.255")
		}},
		{"outside", func(t *testing.T) {
			outside := "198.18.0.77" // no node's
			l.ip("node", "addr add "+outside+"/32 dev lo")
			t.Cleanup(func() { l.ip("node", "addr del "+outside+"/32 dev lo") })
			far := svc(tcpPort(outside))
			far.Name, far.Ports[0].VIP = "far", vipOf(12)
			l.set(svc(tcpPort("a1"), udpPort(53, "a1")), far)
			l.police(nobody, isolated("a1"))
			l.reach("a1", outside+":8080", "nothing")
			l.reach("a1", vipOf(12).String()+":80", "nothing")
			l.police(nobody, isolated("a1").and("a1", []string{"198.18.0.0/24"}, "tcp 8080"))
			l.reach("a1", outside+":8080", "node 172.11.0.2")
			l.reach("a1", vipOf(12).String()+":80", "node 172.11.0.2")
		}},
		{"another tenant's, though a policy names them", func(t *testing.T) {
			l.police(isolated("a1").and("a1", []string{"b1", "g1"}), nobody)
			l.reach("b1", a1Addr, "nothing")
			l.udp("b1", a1Addr).reach(10, "nothing")
			l.reach("g1", a1Addr, "a1 172.11.0.5")
			if text := l.tracked(); strings.Contains(text, "172.11.0.4") || !strings.Contains(text, "172.11.0.5") {
				t.Errorf("another tenant's connections are known, or its own are not:\n%s", text)
			}
		}},
		{"fragments", func(t *testing.T) {
			l.police(isolated("a1").and("a1", []string{"a2"}, "udp 8080"), isolated("a2").and("a2", []string{"a1"}, "udp 8080"))
			for _, dst := range []string{a1Addr, dnsPort} {
				u := l.udp("a2", dst)
				u.reach(4000, "a1 172.11.0.3")
				u.reach(20000, "a1 172.11.0.3")
			}
			l.udp("g1", a1Addr).reach(4000, "nothing")
			l.police(isolated("a1"), nobody)
			l.udp("a2", a1Addr).reach(4000, "nothing")
		}},
		{"ICMP errors about what is allowed", func(t *testing.T) {
			l.police(isolated("a1").and("a1", []string{"a2"}, "udp 9"), isolated("a2").and("a2", []string{"a1"}, "udp 9"))
			l.udp("a2", podAddr(0).String()+":9").reach(10, "refused")
			s := svc(tcpPort("a1"), udpPort(53, "a1"), udpPort(9, "a1"))
			s.Ports[2].Endpoints[0].Port = 9
			l.set(s)
			l.udp("a2", vip.String()+":9").reach(10, "refused")
		}},
		{"ICMP errors about nothing", func(t *testing.T) {
			l.police(isolated("a1").and("a1", nil), nobody)
			before := l.droppedBy(pipeline.PolicyState)
			l.unreachable("a2", podAddr(0).String()+":4000", podAddr(1).String()+":4001")
			l.eventually("it is dropped", func() bool { return l.droppedBy(pipeline.PolicyState) == before+1 })
		}},
		{"datagrams that nobody answers", func(t *testing.T) {
			l.police(isolated("a1").and("a1", []string{"a2"}), isolated("a2").and("a2", []string{"a1"}))
			l.ok(l.base.SetAllowances(context.Background(), pipeline.Allowance{Rate: 50, Burst: 50}, nil))
			t.Cleanup(func() {
				l.ok(l.base.SetAllowances(context.Background(), pipeline.Allowance{Rate: 16384, Burst: 16384}, nil))
			})
			silent := l.server("a1", 9000)
			l.ok(silent.c.SetReadBuffer(1 << 20))
			u := l.udp("a2", podAddr(0).String()+":9000")
			for n := range 500 {
				_, err := u.c.Write([]byte("x"))
				l.ok(err)
				if _, err := silent.next(busy); err != nil {
					t.Fatalf("datagram %d of a connection is lost: %v", n, err)
				}
			}
			lost := 0
			for range 200 { // each another connection
				_, err := l.udp("a2", podAddr(0).String()+":9000").c.Write([]byte("x"))
				l.ok(err)
			}
			for range 200 {
				if _, err := silent.next(patience); err != nil {
					lost++
					break
				}
			}
			if lost == 0 {
				t.Error("200 connections at once are let through where 50 may be")
			}
		}},
		{"datagrams from before the pod was selected", func(t *testing.T) {
			l.police(nobody, nobody)
			server, err := ns.ListenUDP(ns.Path(l.id+"a1"), podAddr(0).String()+":9001")
			l.ok(err)
			defer server.Close()
			clientAt := func(port int) *net.UDPConn {
				client, err := ns.ListenUDP(ns.Path(l.id+"a2"), netip.AddrPortFrom(podAddr(1), uint16(port)).String())
				l.ok(err)
				t.Cleanup(func() { _ = client.Close() })
				return client
			}
			client := clientAt(40001)
			carries := func(from, to *net.UDPConn, wait time.Duration) bool {
				_ = to.SetReadDeadline(time.Now().Add(wait))
				_, err := from.WriteToUDPAddrPort([]byte("x"), to.LocalAddr().(*net.UDPAddr).AddrPort())
				l.ok(err)
				_, err = to.Read(make([]byte, 1))
				return err == nil
			}
			if !carries(client, server, busy) || !carries(server, client, busy) {
				t.Fatal("without policies nothing passes")
			}
			l.midstream(isolated("a1"), nobody, true)
			if !carries(server, client, busy) { // the server speaks first, and may
				t.Error("what the server sends does not pass")
			}
			if carries(client, server, patience) {
				t.Error("what the client may not send any more passes as if it answered")
			}
			l.midstream(isolated("a1").and("a1", []string{"a2"}, "udp 9001"), nobody, true)
			if !carries(server, client, busy) || !carries(client, server, busy) || !carries(server, client, busy) {
				t.Error("what is allowed does not go on")
			}
			l.police(isolated("a1"), nobody)
			if carries(server, client, patience) || carries(client, server, patience) {
				t.Error("it goes on though its client may not any more")
			}
			client = clientAt(40002)
			l.midstream(nobody, isolated("a2"), true)
			if !carries(server, client, busy) {
				t.Error("what a server sends to a client does not pass")
			}
			if carries(client, server, patience) {
				t.Error("what a client may not send any more passes as if it answered")
			}
		}},
		{"a connection from before the pod was selected", func(t *testing.T) {
			l.police(nobody, nobody)
			listener, err := ns.ListenTCP(ns.Path(l.id+"a1"), "0.0.0.0:9001")
			l.ok(err)
			defer listener.Close()
			conn, err := ns.DialTCP(ns.Path(l.id+"a2"), podAddr(0).String()+":9001", 5*time.Second)
			l.ok(err)
			defer conn.Close()
			at, err := listener.Accept()
			l.ok(err)
			defer at.Close()
			carries := func(from, to net.Conn, wait time.Duration) bool {
				_ = to.SetReadDeadline(time.Now().Add(wait))
				_, err := from.Write([]byte("x"))
				l.ok(err)
				_, err = io.ReadFull(to, make([]byte, 1))
				return err == nil
			}
			may := isolated("a1").and("a1", []string{"a2"}, "tcp 9001")
			l.midstream(may, nobody, true)
			for range 3 { // the server speaks first
				if !carries(at, conn, busy) || !carries(conn, at, busy) {
					t.Fatal("it does not go on")
				}
			}
			l.police(may, nobody)
			if !carries(at, conn, busy) || !carries(conn, at, busy) {
				t.Fatal("it does not go on afterwards")
			}
			l.police(isolated("a1"), nobody)
			if carries(at, conn, patience) || carries(conn, at, patience) {
				t.Error("it goes on though its client may not any more")
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l.t = t
			tc.run(t)
		})
	}
}

// TestPolicyKubeProxy: beside kube-proxy requests are judged with the endpoint's address, when
// the node brings them back, and answers before the node gets them.
func TestPolicyKubeProxy(t *testing.T) {
	l := newLab(t, pipeline.KubeProxy)
	l.set(svc(tcpPort("a1"), udpPort(53, "a1")))
	l.nft(fmt.Sprintf(`add table ip proxy; add chain ip proxy pre { type nat hook prerouting priority dstnat; };
		add rule ip proxy pre ip daddr %s tcp dport 80 dnat to %s; add rule ip proxy pre ip daddr %s udp dport 53 dnat to %s`, vip, a1Addr, vip, a1Addr))
	ingress, egress := isolated("a1").and("a1", []string{"a2", "g1"}), isolated("a2").and("a2", []string{"a1"})
	for name, tc := range map[string]struct{ in, out, revokedIn, revokedOut direction }{
		"ingress": {ingress, nobody, isolated("a1").and("a1", []string{"g1"}), nobody},
		"egress":  {nobody, egress, nobody, isolated("a2")},
		"both":    {ingress, egress, isolated("a1").and("a1", []string{"g1"}), egress},
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			l.police(tc.in, tc.out)
			mine, other := l.open("a2", webPort, "a1 172.11.0.3"), l.open("g1", webPort, "a1 172.11.0.5")
			defer mine.Close()
			defer other.Close()
			direct := l.open("a2", a1Addr, "a1 172.11.0.3")
			defer direct.Close()
			u := l.udp("a2", dnsPort)
			u.reach(10, "a1 172.11.0.3")
			u.reach(4000, "a1 172.11.0.3")
			l.police(tc.revokedIn, tc.revokedOut)
			if echo(mine, patience) || echo(direct, patience) {
				t.Error("a connection goes on that is not allowed any more")
			}
			u.reach(10, "nothing")
			l.alive(other)
			l.police(tc.in, tc.out)
			l.alive(mine)
			l.alive(direct)
			u.reach(10, "a1 172.11.0.3")
		})
	}
}

// TestPolicyRemote: peers on another node, through real tunnels.
func TestPolicyRemote(t *testing.T) {
	l := newLab(t, pipeline.OVS)
	l.other()
	far := remote.String() + ":8080"
	l.set(svc(tcpPort(remote.String()), udpPort(53, remote.String())))
	l.police(isolated("a1").and("a1", []string{remote.String()}, "tcp 8080"), isolated("a1"))
	l.reach("remote", a1Addr, "a1 172.11.4.9")
	l.udp("remote", a1Addr).reach(10, "nothing")
	l.reach("a1", far, "nothing")
	l.reach("a1", webPort, "nothing")
	l.reach("a2", far, "remote 172.11.0.3")
	may := isolated("a1").and("a1", []string{remote.String()})
	l.police(isolated("a1"), may)
	l.reach("remote", a1Addr, "nothing")
	c := l.open("a1", webPort, "remote 172.11.0.2")
	defer c.Close()
	l.reach("a1", far, "remote 172.11.0.2")
	u := l.udp("a1", dnsPort)
	u.reach(10, "remote 172.11.0.2")
	u.reach(4000, "remote 172.11.0.2")
	l.police(nobody, isolated("a1"))
	if echo(c, patience) {
		t.Error("a connection goes on that is not allowed any more")
	}
	u.reach(10, "nothing")
	l.police(nobody, may)
	l.alive(c)
}

// nft runs a script in the node.
func (l *lab) nft(script string) {
	l.t.Helper()
	if out, err := exec.Command("ip", "netns", "exec", l.id+"node", "nft", script).CombinedOutput(); err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
}

// droppedBy is how many packets were dropped for a reason.
func (l *lab) droppedBy(r pipeline.Reason) (n uint64) {
	l.t.Helper()
	l.AppCtl("revalidator/purge") // what the datapath counted reaches the flows
	result, err := l.store.Resync(context.Background(), nodeflows.AreaName)
	l.ok(err)
	for _, f := range result.Found {
		if pipeline.DecodeCookie(f.Cookie).Reason == r {
			n += f.Packets
		}
	}
	return n
}
