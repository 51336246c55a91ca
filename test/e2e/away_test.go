package e2e

import (
	"errors"
	"strings"
	"testing"
)

// TestChangedWhileAgentAway: what somebody changes of a pod's port and device while the agent is away is put right by its
// start: the pod has its address and its tenant, and reaches what it should.
func TestChangedWhileAgentAway(t *testing.T) {
	m := upMachine(t)
	ctx := t.Context()
	was := m.get("red/a")
	foreign := m.pod("n1", "blue/a")
	for _, c := range []change{
		{name: "the pod's port with another tenant's name", do: "ovs-vsctl set interface $POD external_ids:k8s-ovs-namespace=blue"},
		{name: "the pod's port with an address of another node", do: "ovs-vsctl set interface $POD external_ids:k8s-ovs-address=172.11.0.77"},
		{name: "the pod's port with another pod's address", do: "ovs-vsctl set interface $POD external_ids:k8s-ovs-address=" + m.get("red/c").IP.String() + " -- remove interface $POD external_ids attached-mac"},
		{name: "the pod's port without its name", do: "ovs-vsctl clear interface $POD external_ids"},
		{name: "the pod's port with another sandbox", do: "ovs-vsctl set interface $POD external_ids:k8s-ovs-netns=/run/netns/none"},
		{name: "the pod's port made a tunnel", do: "ovs-vsctl set interface $POD type=vxlan options:remote_ip=10.9.9.9"},
		{name: "the pod's port deleted", do: "ovs-vsctl del-port $POD"},
		{name: "the pod's host end renamed", do: "ip link set $POD down; ip link set $POD name foo; ip link set foo up; ovs-vsctl set interface $POD external_ids:k8s-ovs-netns=/run/netns/none"},
		{name: "the pod's host end deleted", do: "ip link del $POD"},
		{name: "the pod's host end in another namespace", do: elsewhere("$POD")},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := m.in(t)
			m.must(m.Agent("n1").Kill())
			m.shell(there(c.do))
			m.must(m.Agent("n1").Start(ctx))
			m.await("after its start", func() error {
				return errors.Join(m.well(), m.ready(), m.CNICheck(ctx, was))
			})
			m.newcomer("after its start")
			if _, err := m.PodExec(ctx, foreign, "ping", "-c1", "-W1", was.IP.String()); err == nil {
				t.Errorf("%s reaches %s, of another tenant", foreign, was)
			}
			if out, err := m.PodExec(ctx, was, "ip", "-4", "-o", "addr", "show", "dev", "eth0"); err != nil || !strings.Contains(out, was.IP.String()) {
				t.Errorf("%s has not its address %s: %v: %s", was, was.IP, err, out)
			}
			m.asItShould(c.name, "n1")
		})
	}
}
