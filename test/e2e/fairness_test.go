package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

const (
	// tableSize is how many connections a node has room for in these tests, floodRate
	// how many a flood asks for per second: all of them in two seconds.
	tableSize = 20_000
	floodRate = 10_000
	// asks is how many connections a tenant makes beside the flood.
	asks = 20
	// blueWeb is the address of service blue/web.
	blueWeb = "10.96.10.2:80"
)

// onKernel says that the lab's nodes have the kernel datapath.
var onKernel = os.Getenv("NETLAB_DATAPATH") == "system"

// kernelTable is the size of the kernel's connection table.
const kernelTable = "/proc/sys/net/netfilter/nf_conntrack_max"

// shrinkTable makes the connection table of a node's services small.
func (l *lab) shrinkTable(node string) {
	l.t.Helper()
	if !onKernel {
		_, err := l.OVS(node).AppCtl(l.t.Context(), "dpctl/ct-set-maxconns", strconv.Itoa(tableSize))
		l.must(err)
		return
	}
	was, err := os.ReadFile(kernelTable)
	l.must(err)
	l.must(os.WriteFile(kernelTable, []byte(strconv.Itoa(tableSize)), 0))
	l.t.Cleanup(func() { l.must(os.WriteFile(kernelTable, was, 0)) })
}

// tableUsed is how many connections a node's table has.
func (l *lab) tableUsed(node string) int {
	l.t.Helper()
	var out string
	var err error
	if onKernel {
		out, err = l.NodeExec(l.t.Context(), node, "cat", "/proc/sys/net/netfilter/nf_conntrack_count")
	} else {
		out, err = l.OVS(node).AppCtl(l.t.Context(), "dpctl/ct-get-nconns")
	}
	l.must(err)
	n, err := strconv.Atoi(strings.TrimSpace(out))
	l.must(err)
	return n
}

// connectionFlood is new connections that some pods ask for together.
type connectionFlood struct {
	sent atomic.Int64
	stop func()
}

// floodConnections has pods ask for connections to an address, each packet for another
// one, floodRate a second of all of them, until it is stopped.
func (l *lab) floodConnections(protocol uint8, to netip.AddrPort, pods ...string) *connectionFlood {
	l.t.Helper()
	a := &connectionFlood{}
	end := make(chan struct{})
	var floods sync.WaitGroup
	for _, name := range pods {
		p := l.get(name)
		port, err := wire.Open(p.Sandbox(), "eth0")
		l.must(err)
		gateway, me := l.gatewayMAC(name), l.mac(name)
		floods.Go(func() {
			defer func() { _ = port.Close() }()
			const every = 5 * time.Millisecond
			tick := time.NewTicker(every)
			defer tick.Stop()
			for {
				select {
				case <-end:
					return
				case <-tick.C:
				}
				for range floodRate * int(every) / int(time.Second) / len(pods) {
					segment := opening(protocol, p.IP, to)
					if port.Send(wire.Ethernet(gateway, me, wire.TypeIPv4, wire.IPv4(p.IP, to.Addr(), protocol, segment))) == nil {
						a.sent.Add(1)
					}
				}
			}
		})
	}
	var once sync.Once
	a.stop = func() { once.Do(func() { close(end); floods.Wait() }) }
	l.t.Cleanup(a.stop)
	return a
}

// opening is the first packet of a connection from a port of no one's.
func opening(protocol uint8, from netip.Addr, to netip.AddrPort) []byte {
	source := uint16(1024 + rand.IntN(1<<16-1024))
	if protocol == wire.ProtoUDP {
		return wire.UDP(source, to.Port(), []byte("x"))
	}
	return syn(from, source, to)
}

const protoTCP = 6

// syn is a TCP segment that asks for a connection (RFC 9293, section 3.1).
func syn(from netip.Addr, source uint16, to netip.AddrPort) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b[0:], source)
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], rand.Uint32())
	b[12], b[13] = 5<<4, 2 // five words, SYN
	binary.BigEndian.PutUint16(b[14:], 64240)
	// The checksum covers addresses, protocol and length as well.
	s, d := from.As4(), to.Addr().As4()
	pseudo := append(append(append([]byte{}, s[:]...), d[:]...), 0, protoTCP, 0, byte(len(b)))
	var sum uint32
	for _, part := range [][]byte{pseudo, b} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return b
}

// connects makes connections one after the other and returns how many were made.
func (l *lab) connects(from, to string) (made int) {
	l.t.Helper()
	sandbox := l.get(from).Sandbox()
	for range asks {
		c, err := ns.DialTCP(sandbox, to, time.Second)
		if err != nil {
			continue
		}
		made++
		_ = c.Close()
	}
	return made
}

// blueServes gives tenant blue a service of its own.
func (c *cluster) blueServes(pod string) {
	c.t.Helper()
	vip := netip.MustParseAddrPort(blueWeb).Addr().String()
	port, tcp, name := int32(8080), corev1.ProtocolTCP, "tcp"
	c.must(c.api.Put(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "blue", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: vip, Ports: []corev1.ServicePort{{Name: name, Protocol: tcp, Port: 80}}},
	}))
	c.must(c.api.Put(&discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "blue", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{c.get(pod).IP.String()}}},
	}))
	c.answers(c.get(pod))
	c.eventually("blue/web is served", 30*time.Second, func() error {
		conn, err := ns.DialTCP(c.get("blue/a").Sandbox(), blueWeb, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}

// refusedConnections is how many of a namespace a limit has refused on a node.
func (l *lab) refusedConnections(node, namespace, limit string) float64 {
	l.t.Helper()
	n, _, _ := l.findMetric(node, fmt.Sprintf(`k8s_ovs_connections_refused_total{limit=%q,namespace=%q}`, limit, namespace))
	return n
}

// TestFairnessServices: what one tenant's pods ask of services, whatever it is and
// however many pods do, leaves room for another tenant's connections.
func TestFairnessServices(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "red/c", "red/d", "red/near", "blue/a", "blue/near"}, "n2": {"red/far"}})
	c := l.inCluster("red/near", "red/far")
	c.blueServes("blue/near")
	l.shrinkTable("n1")
	l.waitTableSize("n1", "service-connections", tableSize)
	to := netip.MustParseAddrPort(web)
	for _, tc := range []struct {
		name     string
		protocol uint8
		at       []string // endpoints
		by       []string
	}{
		{"SYN flood of one pod", protoTCP, []string{"red/near", "red/far"}, []string{"red/a"}},
		{"UDP flood from random ports", wire.ProtoUDP, []string{"red/near", "red/far"}, []string{"red/a"}},
		{"SYN flood to an endpoint on another node", protoTCP, []string{"red/far"}, []string{"red/a"}},
		{"SYN flood of many pods", protoTCP, []string{"red/near", "red/far"}, []string{"red/a", "red/b", "red/c", "red/d"}},
	} {
		c.endpoints(tc.at...)
		c.waitBuckets("n1", 2*len(tc.at)+1)
		before := l.refusedConnections("n1", "red", "service-connections")
		a := l.floodConnections(tc.protocol, to, tc.by...)
		l.eventually(tc.name+": more was asked for than there is room for", time.Minute, func() error {
			if n := a.sent.Load(); n < 4*tableSize {
				return fmt.Errorf("%d packets sent", n)
			}
			return nil
		})
		made, used := l.connects("blue/a", blueWeb), l.tableUsed("n1")
		t.Logf("%s: %d packets sent, %d of %d entries used, %d of %d connections of the other tenant made", tc.name, a.sent.Load(), used, tableSize, made, asks)
		l.attack(attacks.Tenant, tc.name+": another tenant's connections to services", func() (tried, delivered int) { return asks, asks - made })
		if used >= tableSize*3/4 {
			t.Errorf("%s: %d of %d entries are used", tc.name, used, tableSize)
		}
		a.stop()
		l.eventually(tc.name+": the metric tells of it", 30*time.Second, func() error {
			if n := l.refusedConnections("n1", "red", "service-connections"); n <= before {
				return fmt.Errorf("%v refused", n)
			}
			return nil
		})
		if n := l.refusedConnections("n1", "blue", "service-connections"); n != 0 {
			t.Errorf("%s: %v connections of the other tenant were refused", tc.name, n)
		}
	}
}

// nodeTable is how many connections a node's own stack tracks.
func (l *lab) nodeTable(node string) int {
	l.t.Helper()
	out, err := l.NodeExec(l.t.Context(), node, "cat", "/proc/sys/net/netfilter/nf_conntrack_count")
	l.must(err)
	n, err := strconv.Atoi(strings.TrimSpace(out))
	l.must(err)
	return n
}

// waitTableSize waits until a node's agent guards a connection table of that size, or of
// any where size is 0.
func (l *lab) waitTableSize(node, limit string, size float64) {
	l.t.Helper()
	l.eventually("the agent knows the table's size", 30*time.Second, func() error {
		if n, found, _ := l.findMetric(node, fmt.Sprintf("k8s_ovs_connections_size{limit=%q}", limit)); !found || size != 0 && n != size {
			return fmt.Errorf("it is %v", n)
		}
		return nil
	})
}

// TestFairnessOutside: what one tenant's pods ask of the world leaves room in the node's
// own table for another tenant's connections.
func TestFairnessOutside(t *testing.T) {
	long(t)
	o := netlab.Options{}
	if !onKernel {
		// The size of this machine's table is not the test's to change.
		o.AgentArgs = []string{"--node-connection-rate=300"}
	}
	l := up(t, o)
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "blue/a"}, "n2": {"red/c"}})
	size := 0.0
	if onKernel {
		l.shrinkTable("n1")
		size = tableSize
	}
	l.waitTableSize("n1", "node-connections", size)
	l.echo(ns.Path(l.UnderlayNetns()), netlab.Outside)
	world := netip.AddrPortFrom(netlab.Outside, 5000)
	// Another port than the echo's: nobody answers, so entries stay for two minutes.
	silent := netip.AddrPortFrom(netip.MustParseAddr("198.18.0.99"), 9)
	for _, tc := range []struct {
		name     string
		protocol uint8
	}{{"SYN flood", protoTCP}, {"UDP flood", wire.ProtoUDP}} {
		before := l.nodeTable("n1")
		a := l.floodConnections(tc.protocol, silent, "red/a", "red/b")
		l.eventually(tc.name+": enough was asked for", time.Minute, func() error {
			if n := a.sent.Load(); n < 2*tableSize {
				return fmt.Errorf("%d packets sent", n)
			}
			return nil
		})
		made, used := l.connects("blue/a", world.String()), l.nodeTable("n1")
		a.stop()
		t.Logf("%s: %d packets sent, %d entries used, %d of %d connections of the other tenant made", tc.name, a.sent.Load(), used-before, made, asks)
		l.attack(attacks.Tenant, tc.name+" to the outside: another tenant's connections to the outside", func() (tried, delivered int) { return asks, asks - made })
		most := tableSize * 3 / 4
		if !onKernel {
			most = before + int(a.sent.Load())/8
		}
		if used > most {
			t.Errorf("%s: %d entries are used, want %d at most", tc.name, used, most)
		}
		l.eventually(tc.name+": the metric tells of it", 30*time.Second, func() error {
			if n := l.refusedConnections("n1", "red", "node-connections"); n == 0 {
				return fmt.Errorf("%v refused", n)
			}
			return nil
		})
		if n := l.refusedConnections("n1", "blue", "node-connections"); n != 0 {
			t.Errorf("%s: %v connections of the other tenant were refused", tc.name, n)
		}
	}
}

// TestFairnessPorts: what one tenant's pods ask of one address outside leaves ports to there for another
// tenant's connections. All leave with the node's address.
func TestFairnessPorts(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "blue/a"}})
	l.waitTableSize("n1", "node-connections", 0)
	resolver := netip.AddrPortFrom(netlab.Outside, 53)
	l.answersQuestions(resolver)
	if answered := l.questions("blue/a", resolver); answered != asks {
		t.Fatalf("%d of %d questions are answered without a flood", answered, asks)
	}
	a := l.floodConnections(wire.ProtoUDP, resolver, "red/a", "red/b")
	// As the ports are random, some are asked for twice.
	l.eventually("more was asked for than there are ports", time.Minute, func() error {
		if n := a.sent.Load(); n < 100_000 {
			return fmt.Errorf("%d packets sent", n)
		}
		return nil
	})
	answered, used := l.questions("blue/a", resolver), l.nodeTable("n1")
	a.stop()
	t.Logf("%d packets sent, %d entries used, %d of %d questions of the other tenant answered", a.sent.Load(), used, answered, asks)
	l.attack(attacks.Tenant, "UDP flood of one address outside: another tenant's questions to there", func() (tried, delivered int) { return asks, asks - answered })
	if used > 45_000 {
		t.Errorf("%d entries are used", used)
	}
	l.eventually("the metric tells of it", 30*time.Second, func() error {
		if n := l.refusedConnections("n1", "red", "node-ports"); n == 0 {
			return fmt.Errorf("%v refused", n)
		}
		return nil
	})
	if n := l.refusedConnections("n1", "blue", "node-ports"); n != 0 {
		t.Errorf("%v connections of the other tenant were refused", n)
	}
}

// question is what is answered, and not what a flood sends.
const question = "who?"

// answersQuestions has the outside answer questions at an address.
func (l *lab) answersQuestions(at netip.AddrPort) {
	l.t.Helper()
	c, err := ns.ListenUDP(ns.Path(l.UnderlayNetns()), at.String())
	l.must(err)
	l.t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if string(buf[:n]) == question {
				_, _ = c.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	}()
}

// questions asks that address, each time from another port, and returns how many questions were
// answered. Like a resolver it asks again where there is no answer: what was lost on a busy machine is not the
// flood's doing.
func (l *lab) questions(from string, to netip.AddrPort) (answered int) {
	l.t.Helper()
	for range asks {
		var c net.Conn
		l.must(ns.DoPath(l.get(from).Sandbox(), func() (err error) { c, err = net.Dial("udp4", to.String()); return err }))
		for range 3 {
			_, err := c.Write([]byte(question))
			l.must(err)
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 100)); err == nil {
				answered++
				break
			}
		}
		_ = c.Close()
	}
	return answered
}

// TestFairnessAddresses: a namespace cannot take all addresses of a node where the
// agent is told how many pods it may have.
func TestFairnessAddresses(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{HostSubnetLength: 3, AgentArgs: []string{"--max-pods-per-namespace=3"}}) // five pods a node
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "red/c"}})
	if _, err := l.AddPod(t.Context(), "n1", "red", "d", netlab.PodOptions{}); err == nil || !strings.Contains(err.Error(), "--max-pods-per-namespace") {
		t.Errorf("a fourth pod: %v", err)
	}
	l.pod("n1", "blue/a")
	l.must(l.DelPod(t.Context(), l.get("red/b")))
	l.pod("n1", "red/e")
}
