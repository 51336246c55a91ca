package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/desired"
	"github.com/k8s-ovs/k8s-ovs/pkg/tunnel"
)

// Pods may not make tunnel packets for a port that other nodes may still have.
func TestTunnelsGuardOtherPorts(t *testing.T) {
	type state struct {
		Port   tunnel.Port
		Moving bool
		Others []tunnel.Port
		Ready  bool
	}
	n := picture{self: labSelf.HostIP}
	for _, step := range []struct {
		what string
		p    desired.TunnelPort
		want state
	}{
		{"a new node", desired.TunnelPort{}, state{4789, false, nil, true}},
		{"the record changes while pods are here", desired.TunnelPort{Record: 8472, Has: 4789, Pods: 1}, state{4789, false, []tunnel.Port{8472}, false}},
		{"it is put back", desired.TunnelPort{Record: 4789, Has: 4789, Pods: 1}, state{4789, false, []tunnel.Port{8472}, true}},
		{"it changes again, and the pods are gone", desired.TunnelPort{Record: 8472, Has: 4789}, state{8472, true, []tunnel.Port{4789}, true}},
		{"the bridge has not got it yet", desired.TunnelPort{Record: 8472, Has: 4789}, state{8472, true, []tunnel.Port{4789}, true}},
		{"and stays", desired.TunnelPort{Record: 8472, Has: 8472, Pods: 1}, state{8472, false, []tunnel.Port{4789}, true}},
	} {
		n.tunnels.decide(step.p)
		has := map[string]tunnel.Port{"theirs": 5000}
		if step.p.Has != 0 {
			has[desired.NodeTunnel] = step.p.Has
		}
		got := state{n.tunnels.as.Port, n.moves(step.p.Has != 0, has), n.guarded(), n.tunnels.why == nil}
		if len(got.Others) == 0 {
			got.Others = nil
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s: %s", step.what, diff)
		}
	}
}

// Endpoints may be at none of the ports that nodes take tunnel packets and probes at.
func TestTakenPorts(t *testing.T) {
	p := &picture{self: labSelf.HostIP}
	taken, unprobed := p.takenPorts(4790), p.takenPorts(0)
	if diff := cmp.Diff([]uint16{4790}, taken()); diff != "" {
		t.Errorf("before a port is decided: %s", diff)
	}
	p.tunnels.decide(desired.TunnelPort{Record: 8472, Has: 4789, Pods: 1})
	if diff := cmp.Diff([]uint16{8472, 4789, 4790}, taken()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]uint16{8472, 4789}, unprobed()); diff != "" {
		t.Errorf("without probes: %s", diff)
	}
}
