package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

// TestPodsComeAndGo: nobody loses a packet because pods of others come and go, on
// one node or between nodes.
func TestPodsComeAndGo(t *testing.T) {
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "red/b", "red/c"}, "n2": {"red/d", "red/e", "red/f"}})
	pods, err := l.Pods()
	l.must(err)
	p, err := probe.Open(netlab.Endpoints(pods))
	l.must(err)
	defer func() { l.must(p.Close()) }()
	run := p.Start(probe.Exactly(everybody), probe.RunOptions{Interval: 10 * time.Millisecond, Protocols: []probe.Protocol{probe.UDP}})
	l.traffic(run, 20)
	for i := range 10 { // with the race detector a plugin needs a second to end
		for _, namespace := range []string{"red", "blue"} {
			l.must(l.DelPod(t.Context(), l.pod("n1", fmt.Sprintf("%s/passing%d", namespace, i))))
		}
	}
	l.traffic(run, 20)
	report := run.Stop()
	if err := report.Err(); err != nil {
		t.Errorf("while pods came and went: %v", err)
	}
}

// TestSystemRoutes: with an ovs-vswitchd that also reads the kernel's routes, as it
// does where it is the node's own service, all is the same.
func TestSystemRoutes(t *testing.T) {
	apart := tenants{"red": "1", "blue": "2"}.allowed
	l := up(t, netlab.Options{SystemRoutes: true})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}, "n2": {"red/b", "blue/b"}})
	l.requireMatrix("at first", apart)
	l.must(l.OVS("n1").KillVswitchd())
	l.must(l.OVS("n1").StartVswitchd(t.Context()))
	l.waitMatrix("after ovs-vswitchd has started anew", 30*time.Second, apart)
}
