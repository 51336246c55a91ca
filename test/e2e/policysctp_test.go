package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// Ports of SCTP that these tests ask: red/web calls the first "assoc", red/far the second.
const sctpOfWeb, sctpOfFar = 9, 10

// sctpStep is what policies are in force, and which ways of SCTP are open then: where the switch knows its
// ports, and where it does not.
type sctpStep struct {
	name              string
	policies, cluster map[string]string
	open, without     func(w way) bool
}

func sctpIn(w way) bool       { return w.to == "red/web" }
func sctpOut(w way) bool      { return w.from == "red/web" }
func sctpAll(way) bool        { return true }
func sctpNone(way) bool       { return false }
func sctpIn9(w way) bool      { return sctpIn(w) && w.port == sctpOfWeb }
func sctpBut9(w way) bool     { return !sctpIn9(w) }
func sctpNear(w way) bool     { return w.from == "red/near" }
func sctpNear9(w way) bool    { return sctpNear(w) && w.port == sctpOfWeb }
func sctpOut10(w way) bool    { return sctpOut(w) && w.port == sctpOfFar }
func sctpButOut10(w way) bool { return !sctpOut10(w) }

// also is the step with more ways open, which its policies are not about.
func (s sctpStep) also(more func(w way) bool) sctpStep {
	open, without := s.open, s.without
	s.open = func(w way) bool { return open(w) || more(w) }
	s.without = func(w way) bool { return without(w) || more(w) }
	return s
}

// sctpPolicies are those of NetworkPolicy.
func sctpPolicies() []sctpStep {
	inwards := func(rules string) map[string]string {
		return map[string]string{"red/web": "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [" + rules + "]}"}
	}
	outwards := func(rules string) map[string]string {
		return map[string]string{"red/web": "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [" + rules + "]}"}
	}
	const near, far = "from: [{podSelector: {matchLabels: {app: near}}}]", "to: [{podSelector: {matchLabels: {app: far}}}]"
	ingress := func(name, rules string, open, without func(w way) bool) sctpStep {
		return sctpStep{name, inwards(rules), nil, open, without}.also(sctpOut)
	}
	egress := func(name, rules string, open, without func(w way) bool) sctpStep {
		return sctpStep{name, outwards(rules), nil, open, without}.also(sctpIn)
	}
	return []sctpStep{
		ingress("nothing allowed", "", sctpNone, sctpNone),
		ingress("a number", "{"+near+", ports: [{port: 80}]}, {"+near+", ports: [{protocol: SCTP, port: 9}]}", sctpNear9, sctpNone),
		ingress("a name", "{"+near+", ports: [{protocol: SCTP, port: assoc}]}", sctpNear9, sctpNone),
		ingress("all of SCTP", "{"+near+", ports: [{protocol: SCTP}]}", sctpNear, sctpNear),
		ingress("a name, of TCP", "{ports: [{port: assoc}]}", sctpNone, sctpNone),
		egress("nothing allowed, outwards", "", sctpNone, sctpNone),
		egress("a number, outwards", "{"+far+", ports: [{protocol: SCTP, port: 10}]}", sctpOut10, sctpNone),
		egress("a range, outwards", "{ports: [{protocol: SCTP, port: 10, endPort: 20}]}", sctpOut10, sctpNone),
		egress("a name, outwards", "{"+far+", ports: [{protocol: SCTP, port: assoc}]}", sctpOut10, sctpNone),
		egress("all of SCTP, outwards", "{ports: [{protocol: SCTP}]}", sctpOut, sctpOut),
	}
}

// sctpClusterPolicies are those of ClusterNetworkPolicy, both tiers.
func sctpClusterPolicies() []sctpStep {
	cluster := func(tier, direction, rules string) map[string]string {
		return map[string]string{"web": "{tier: " + tier + ", priority: 7, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}, " + direction + ": [" + rules + "]}"}
	}
	const port9, port10 = "protocols: [{sctp: {destinationPort: {number: 9}}}]", "protocols: [{sctp: {destinationPort: {range: {start: 10, end: 20}}}}]"
	const from, to, called = "from: [{namespaces: {}}]", "to: [{namespaces: {}}]", "protocols: [{destinationNamedPort: assoc}]"
	const accept9, deny = "{action: Accept, " + from + ", " + port9 + "}, ", "{action: Deny, " + from + "}"
	nobody := map[string]string{"red/web": `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`}
	by9 := map[string]string{"red/web": `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{ports: [{protocol: SCTP, port: 9}]}]}`}
	var all []sctpStep
	for _, tier := range []string{"Admin", "Baseline"} {
		all = append(all,
			sctpStep{tier + " denies a number", nil, cluster(tier, "ingress", "{action: Deny, "+from+", "+port9+"}"), sctpBut9, sctpOut},
			sctpStep{tier + " denies a name", nil, cluster(tier, "ingress", "{action: Deny, "+from+", "+called+"}"), sctpBut9, sctpOut},
			sctpStep{tier + " accepts a number", nil, cluster(tier, "ingress", accept9+deny), sctpIn9, sctpNone}.also(sctpOut),
			sctpStep{tier + " denies a range, outwards", nil, cluster(tier, "egress", "{action: Deny, "+to+", "+port10+"}"), sctpButOut10, sctpIn},
			sctpStep{tier + " denies a name, outwards", nil, cluster(tier, "egress", "{action: Deny, "+to+", "+called+"}"), sctpButOut10, sctpIn},
		)
	}
	return append(all,
		sctpStep{"Admin accepts over a NetworkPolicy", nobody, cluster("Admin", "ingress", accept9+deny), sctpIn9, sctpNone}.also(sctpOut),
		sctpStep{"Admin passes on to a NetworkPolicy", by9, cluster("Admin", "ingress", "{action: Pass, "+from+", "+port9+"}, "+deny), sctpIn9, sctpNone}.also(sctpOut),
		sctpStep{"Baseline behind a NetworkPolicy", by9, cluster("Baseline", "ingress", deny), sctpIn9, sctpNone}.also(sctpOut),
	)
}

// TestPolicySCTP: where the switch knows the ports of SCTP, rules with them count. Where it does
// not, rules of NetworkPolicy with them allow nothing and those of ClusterNetworkPolicy deny all of SCTP, and the
// policy says so; a rule with all of SCTP counts everywhere.
func TestPolicySCTP(t *testing.T) {
	c := policed(t, netlab.Options{})
	assoc := func(number int32) corev1.ContainerPort {
		return corev1.ContainerPort{Name: "assoc", ContainerPort: number, Protocol: corev1.ProtocolSCTP}
	}
	c.labelled("n1", "red/web", "web", assoc(sctpOfWeb))
	c.labelled("n1", "red/near", "near")
	c.labelled("n2", "pink/far", "other")
	c.labelled("n2", "red/far", "far", assoc(sctpOfFar))
	// red/web is always selected. An answer under way when a pod becomes selected is taken for a request
	// where ports are not known.
	c.clusterPolicy("always", "{tier: Baseline, priority: 1000, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}, ingress: ["+ofTeam("Deny", "none")+"]}")
	c.waitSelected("n1", 1)
	ways := c.sctpWays()
	requires := func(when string, open func(w way) bool) {
		t.Helper()
		c.eventuallyEach(policyLooks, when, policyTime, func() error {
			var all sync.WaitGroup
			wrong := make([]error, len(ways))
			for i, w := range ways {
				all.Go(func() {
					arrived, answered, err := w.associate()
					if want := open(w.way); err != nil || arrived != want || answered != want {
						wrong[i] = fmt.Errorf("%s -> %s:%d: an INIT of SCTP arrives: %t, its answer: %t (%v)", w.from, w.to, w.port, arrived, answered, err)
					}
				})
			}
			all.Wait()
			return errors.Join(wrong...)
		})
	}
	requires("without policies", sctpAll)
	for _, step := range append(sctpPolicies(), sctpClusterPolicies()...) {
		open := step.open
		if !onKernel {
			open = step.without
		}
		for name, spec := range step.policies {
			c.policy(name, spec)
		}
		for name, spec := range step.cluster {
			c.clusterPolicy(name, spec)
		}
		requires(step.name, open)
		for name := range step.policies {
			c.withdraw(name)
		}
		for name := range step.cluster {
			c.withdrawCluster(name)
		}
	}
	requires("taken away", sctpAll)
	c.requireToldOfSCTP()
}

// requireToldOfSCTP returns when policies with ports of SCTP have said that they do not count, or fails where they
// say so and do count.
func (c *cluster) requireToldOfSCTP() {
	c.t.Helper()
	told := func(kind, begins string) error {
		all := c.api.Events()
		if slices.ContainsFunc(all, func(e *corev1.Event) bool {
			return e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == "web" && e.Reason == "PolicyNotHonoured" &&
				strings.HasPrefix(e.Message, begins) && strings.Contains(e.Message, ": n1, n2.")
		}) {
			return nil
		}
		return fmt.Errorf("there are %v", all)
	}
	for kind, begins := range map[string]string{
		"NetworkPolicy": "ingress[1]: ports of SCTP", "ClusterNetworkPolicy": "for pods on nodes whose Open vSwitch does not know ports of SCTP",
	} {
		if !onKernel {
			c.eventually("an Event about the "+kind, policyTime, func() error { return told(kind, begins) })
		} else if told(kind, begins) == nil {
			c.t.Errorf("a %s is said not to count, and it does", kind)
		}
	}
}

const sctp = "ip4:132"

// sctpWay is a way with the socket of who is asked, and of who asks. Each socket gets all of SCTP that comes to its
// pod from anybody, or from the other one.
type sctpWay struct {
	way
	server, client net.PacketConn
	toServer       *net.IPAddr
	toClient       *net.IPAddr
}

// sctpWays are the ways that TestPolicySCTP asks. No two of them are one connection where ports are not known,
// but for those that differ by nothing else.
func (c *cluster) sctpWays() []*sctpWay {
	c.t.Helper()
	listen := func(pod string) (conn net.PacketConn, at *net.IPAddr) {
		p := c.get(pod)
		c.must(ns.DoPath(p.Sandbox(), func() (err error) { conn, err = net.ListenPacket(sctp, ""); return err }))
		c.t.Cleanup(func() { _ = conn.Close() })
		return conn, &net.IPAddr{IP: p.IP.AsSlice()}
	}
	var all []*sctpWay
	for _, w := range []way{
		{"red/near", "red/web", sctp, sctpOfWeb}, {"red/near", "red/web", sctp, sctpOfFar}, {"pink/far", "red/web", sctp, sctpOfWeb},
		{"red/web", "red/far", sctp, sctpOfWeb}, {"red/web", "red/far", sctp, sctpOfFar},
	} {
		s := &sctpWay{way: w}
		s.server, s.toServer = listen(w.to)
		s.client, s.toClient = listen(w.from)
		all = append(all, s)
	}
	return all
}

// sctpPorts are the ports from which associations are asked for.
var sctpPorts atomic.Uint32

// associate asks for an association, from a new port, answers where that arrives, and reports whether it did and
// whether the answer came back.
func (w *sctpWay) associate() (arrived, answered bool, err error) {
	source := uint16(1<<15 | sctpPorts.Add(1)&0x7fff)
	if _, err := w.client.WriteTo(sctpChunk(1, source, w.port, 0), w.toServer); err != nil {
		return false, false, err
	}
	if arrived, err = comesBySCTP(w.server, source, w.port); !arrived {
		return false, false, err
	}
	if _, err := w.server.WriteTo(sctpChunk(2, w.port, source, sctpTag), w.toClient); err != nil {
		return true, false, err
	}
	answered, err = comesBySCTP(w.client, w.port, source)
	return true, answered, err
}

// comesBySCTP reports whether a packet with these ports comes to a socket, in the time that a denied one takes.
func comesBySCTP(to net.PacketConn, source, destination uint16) (bool, error) {
	if err := to.SetReadDeadline(time.Now().Add(denied)); err != nil {
		return false, err
	}
	for b := make([]byte, 100); ; {
		n, _, err := to.ReadFrom(b)
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if n >= 4 && binary.BigEndian.Uint16(b) == source && binary.BigEndian.Uint16(b[2:]) == destination {
			return true, nil
		}
	}
}

// sctpTag is the tag by which the one who asks for an association knows its packets.
const sctpTag = 7

// sctpChunk is an INIT chunk (1) or what acknowledges one (2) (RFC 9260, sections 3.1, 3.3.2 and 3.3.3).
func sctpChunk(kind byte, source, destination uint16, verification uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, source)
	b = binary.BigEndian.AppendUint16(b, destination)
	b = binary.BigEndian.AppendUint32(b, verification)
	b = append(b, 0, 0, 0, 0)     // checksum
	b = append(b, kind, 0, 0, 20) // of 20 bytes
	for _, v := range []uint32{sctpTag, 1 << 16, 1<<16 | 1, 1} {
		b = binary.BigEndian.AppendUint32(b, v) // tag, window, streams out and in, TSN
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}
