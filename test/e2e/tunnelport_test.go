package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// tunnelled counts the frames of UDP to that port.
func tunnelled(frames [][]byte, port uint16) (n int) {
	for _, f := range frames {
		// No options between the IP header and UDP.
		if len(f) > 38 && bytes.Equal(f[12:15], []byte{8, 0, 0x45}) && f[23] == wire.ProtoUDP && binary.BigEndian.Uint16(f[36:38]) == port {
			n++
		}
	}
	return n
}

// configuration is the network's record; setConfiguration puts another, as a person does.
func (l *lab) configuration() string {
	l.t.Helper()
	e, err := l.Etcd()
	l.must(err)
	defer func() { _ = e.Close() }() // it was only read from
	r, err := e.Get(l.t.Context(), netlab.EtcdPrefix+"/config")
	l.must(err)
	return string(r.Kvs[0].Value)
}

func (l *lab) setConfiguration(record string) {
	l.t.Helper()
	e, err := l.Etcd()
	l.must(err)
	defer func() { _ = e.Close() }() // an error of Put is told
	_, err = e.Put(l.t.Context(), netlab.EtcdPrefix+"/config", record)
	l.must(err)
}

// notReady starts the node's agent with these arguments, and waits until it says why it
// is not ready.
func (l *lab) notReady(node, why string, args ...string) {
	l.t.Helper()
	l.must(l.SetAgentArgs(node, args...))
	l.must(l.Agent(node).Kill())
	l.must(l.Agent(node).StartUnready(l.t.Context()))
	l.eventually(node+" says why it is not ready", 20*time.Second, func() error {
		if out := l.netns("nodes"); !strings.Contains(out, why) {
			return fmt.Errorf("netns nodes: %s", out)
		}
		return nil
	})
}

// TestTunnelPort: the record names another port than 4789. Pods reach each other at it, and
// nothing leaves at 4789. A node whose flag says otherwise says so, and takes nothing from
// its pods. Who changes the record under the nodes has it put back.
func TestTunnelPort(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{ControllerArgs: []string{"--vxlan-port", "8472"}})
	record := l.configuration()
	if !strings.HasSuffix(record, `,"VXLANPort":8472}`) {
		t.Errorf("the record is %s", record)
	}
	l.pods(quartet)
	var leaves []*wire.Port
	for _, node := range []string{"n1", "n2"} {
		p, err := wire.Open(ns.Path(l.UnderlayNetns()), node)
		l.must(err)
		defer func() { l.must(p.Close()) }()
		leaves = append(leaves, p)
	}
	l.requireMatrix("at 8472", redAndBlue.allowed)
	for _, p := range leaves {
		if at, default4789 := tunnelled(p.Frames(), 8472), tunnelled(p.Frames(), wire.VXLANPort); at == 0 || default4789 > 0 {
			t.Errorf("%d packets of tunnels at 8472, %d at 4789", at, default4789)
		}
	}

	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 20)
	l.notReady("n1", "--vxlan-port 4789 is not the port of this network", "--vxlan-port", "4789")
	l.traffic(run, 50)
	if p, err := l.AddPod(t.Context(), "n1", "red", "c", netlab.PodOptions{}); err == nil {
		t.Errorf("a pod started on a node that is not ready: %v", p)
	}
	l.must(l.SetAgentArgs("n1", "--vxlan-port", "8472"))
	l.must(l.Agent("n1").Restart(t.Context()))
	l.traffic(run, 20)

	l.setConfiguration(strings.Replace(record, "8472", "4789", 1))
	l.eventually("the record is put back", 20*time.Second, func() error {
		if now := l.configuration(); now != record {
			return fmt.Errorf("it is %s", now)
		}
		return nil
	})
	for _, node := range []string{"n1", "n2"} {
		l.eventually(node+" is ready", 20*time.Second, func() error { return l.Agent(node).Ready(t.Context()) })
	}
	l.traffic(run, 50)
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("%d messages, %d lost", rep.Sent(), rep.Lost())
}

// TestTunnelPortChangedMeanwhile: what somebody does to the tunnel's UDP port while no agent runs is put back by the one that
// comes, also with the node's pods there.
func TestTunnelPortChangedMeanwhile(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(quartet)
	l.must(l.Agent("n1").Kill())
	_, err := l.OVS("n1").VSCtl(t.Context(), "set", "interface", "vxlan0", "options:dst_port=4799")
	l.must(err)
	l.must(l.Agent("n1").Start(t.Context()))
	if got, err := l.OVS("n1").VSCtl(t.Context(), "get", "interface", "vxlan0", "options:dst_port"); err != nil || strings.Trim(strings.TrimSpace(got), `"`) != "4789" {
		t.Errorf("the tunnel is at UDP port %s (%v)", got, err)
	}
	l.requireMatrix("after it", redAndBlue.allowed)
}

// TestTunnelPortFromFlags: a cluster whose agents were all told another port, and whose record
// says nothing, keeps its network when the record takes over and the flags go. Nothing is lost,
// also where a flag goes too soon.
func TestTunnelPortFromFlags(t *testing.T) {
	long(t)
	const flag = "--vxlan-port=8472"
	l := up(t, netlab.Options{AgentArgs: []string{flag}})
	record := l.configuration()
	if strings.Contains(record, "VXLANPort") {
		t.Errorf("the record is %s", record)
	}
	l.pods(quartet)
	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 20)
	l.notReady("n1", "write VXLANPort 8472 into it")
	l.traffic(run, 20)
	l.setConfiguration(strings.TrimSuffix(record, "}") + `,"VXLANPort":8472}`)
	l.eventually("n1 is ready", 20*time.Second, func() error { return l.Agent("n1").Ready(t.Context()) })
	l.must(l.SetAgentArgs("n2"))
	l.must(l.Agent("n2").Restart(t.Context()))
	l.traffic(run, 50)
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("%d messages, %d lost", rep.Sent(), rep.Lost())
	l.pod("n1", "red/c")
	l.requireMatrix("by the record", redAndBlue.allowed)
	if now := l.configuration(); !strings.HasSuffix(now, `"VXLANPort":8472}`) {
		t.Errorf("the record is %s", now)
	}
	log, err := os.ReadFile(filepath.Join(l.Dir(), "log", "controller.log"))
	if l.must(err); strings.Contains(string(log), "put back") {
		t.Error("the controller undid what all nodes have")
	}
}

// TestTunnelPortMoves: the documented way to another port: agents away, the record changed, agents
// told the same.
func TestTunnelPortMoves(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	ctx := t.Context()
	l.pods(quartet)
	for _, node := range []string{"n1", "n2"} {
		l.must(l.Agent(node).Stop())
	}
	l.requireMatrix("without agents", redAndBlue.allowed)
	l.setConfiguration(strings.TrimSuffix(l.configuration(), "}") + `,"VXLANPort":8472}`)
	for _, node := range []string{"n1", "n2"} {
		l.must(l.SetAgentArgs(node, "--vxlan-port", "8472"))
		l.must(l.Agent(node).Start(ctx))
		out, err := l.OVS(node).VSCtl(ctx, "get", "interface", "vxlan0", "options:dst_port")
		if l.must(err); !strings.Contains(out, "8472") {
			t.Errorf("%s has its tunnels at %s", node, out)
		}
	}
	l.waitMatrix("at the new port", 10*time.Second, redAndBlue.allowed)
	// Pods may not make packets for the port of before either, which others may still have.
	if rules := l.node("n1", "nft", "list", "table", "ip", "k8s-ovs"); !strings.Contains(rules, "udp dport 8472") || !strings.Contains(rules, "udp dport 4789") {
		t.Errorf("rules of n1:\n%s", rules)
	}
}

// TestUpgradeTunnelPort: agents of the release before, all told the same port, read a record
// that names it, which they know nothing of, and are upgraded one by one without their flags.
func TestUpgradeTunnelPort(t *testing.T) {
	long(t)
	old := previousRelease(t)
	l := up(t, netlab.Options{Bare: true})
	ctx := t.Context()
	c := l.serveCluster("red", "blue")
	c.must(l.StartInCluster(ctx, old))
	for _, node := range []string{"n1", "n2"} {
		c.must(l.SetAgentArgs(node, "--vxlan-port", "8472"))
		c.must(l.Agent(node).StartInCluster(ctx, old))
	}
	l.pods(quartet)
	run := l.run(probe.Exactly(redAndBlue.allowed))
	l.traffic(run, 20)
	c.must(l.Controller().Stop())
	c.must(l.StartInCluster(ctx, binDir))
	record := l.configuration()
	if strings.Contains(record, "VXLANPort") {
		t.Errorf("the record is %s", record)
	}
	record = strings.TrimSuffix(record, "}") + `,"VXLANPort":8472}`
	l.setConfiguration(record)
	l.traffic(run, 20)
	for _, node := range []string{"n1", "n2"} {
		c.must(l.SetAgentArgs(node))
		c.must(l.Agent(node).Stop())
		l.traffic(run, 20)
		c.must(l.Agent(node).StartInCluster(ctx, binDir))
		l.traffic(run, 50)
	}
	rep := run.Stop()
	if err := rep.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("%d messages, %d lost", rep.Sent(), rep.Lost())
	l.requireMatrix("upgraded", redAndBlue.allowed)
	if now := l.configuration(); now != record {
		t.Errorf("the record is %s", now)
	}
}
