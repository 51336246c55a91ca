package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// TestPolicySCTP: where the switch knows the ports of SCTP, rules with them count. Where it does
// not they allow nothing, and the policy says so; a rule with all of SCTP counts everywhere.
func TestPolicySCTP(t *testing.T) {
	c := policed(t, netlab.Options{})
	c.labelled("n1", "red/web", "web")
	c.labelled("n1", "red/near", "near")
	heard := c.hearSCTP("red/web")
	reaches := func(want bool) func() error {
		return func() error {
			if got := c.initSCTP("red/near", "red/web", 9, heard); got != want {
				return fmt.Errorf("an INIT of SCTP arrives: %t", got)
			}
			return nil
		}
	}
	c.eventually("without policies", policyTime, reaches(true))
	c.policy("red/web", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`)
	c.eventually("nothing allowed", policyTime, reaches(false))
	c.policy("red/web", `
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{podSelector: {matchLabels: {app: near}}}]
  ports: [{port: 80}]
- from: [{podSelector: {matchLabels: {app: near}}}]
  ports: [{protocol: SCTP, port: 9}]
`)
	told := func(e *corev1.Event) bool {
		return e.InvolvedObject.Name == "web" && e.Reason == "PolicyNotHonoured" && strings.HasPrefix(e.Message, "ingress[1]: ports of SCTP") && strings.Contains(e.Message, ": n1, n2.")
	}
	if onKernel {
		c.eventually("port 9 allowed", policyTime, reaches(true))
	} else {
		c.eventually("an Event about the policy", policyTime, func() error {
			if all := c.api.Events(); !slices.ContainsFunc(all, told) {
				return fmt.Errorf("there are %v", all)
			}
			return nil
		})
		c.must(reaches(false)())
	}
	c.policy("red/web", `
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{podSelector: {matchLabels: {app: near}}}]
  ports: [{protocol: SCTP}]
`)
	c.eventually("all of SCTP allowed", policyTime, reaches(true))
	if onKernel && slices.ContainsFunc(c.api.Events(), told) {
		t.Error("a policy is said not to count, and it does")
	}
}

const sctp = "ip4:132"

// hearSCTP opens a socket of a pod that gets all of SCTP that comes to it.
func (c *cluster) hearSCTP(pod string) net.PacketConn {
	c.t.Helper()
	var conn net.PacketConn
	c.must(ns.DoPath(c.get(pod).Sandbox(), func() (err error) { conn, err = net.ListenPacket(sctp, ""); return err }))
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// initSCTP asks for an association, from a new port, and reports whether that arrives.
func (c *cluster) initSCTP(from, to string, port uint16, heard net.PacketConn) bool {
	c.t.Helper()
	var conn net.Conn
	c.must(ns.DoPath(c.get(from).Sandbox(), func() (err error) { conn, err = net.Dial(sctp, c.get(to).IP.String()); return err }))
	defer func() { _ = conn.Close() }()
	source := 1<<15 | uint16(time.Now().UnixNano())
	_, err := conn.Write(sctpINIT(source, port))
	c.must(err)
	c.must(heard.SetReadDeadline(time.Now().Add(denied)))
	for b := make([]byte, 100); ; {
		n, _, err := heard.ReadFrom(b)
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			return false
		}
		c.must(err)
		if n >= 4 && binary.BigEndian.Uint16(b) == source {
			return true
		}
	}
}

// sctpINIT is an INIT chunk (RFC 9260, sections 3.1 and 3.3.2).
func sctpINIT(source, destination uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, source)
	b = binary.BigEndian.AppendUint16(b, destination)
	b = append(b, make([]byte, 8)...) // verification tag, checksum
	b = append(b, 1, 0, 0, 20)        // INIT of 20 bytes
	for _, v := range []uint32{7, 1 << 16, 1<<16 | 1, 1} {
		b = binary.BigEndian.AppendUint32(b, v) // tag, window, streams out and in, TSN
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}
