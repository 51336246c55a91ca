package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/wire"
)

// TestFlowCacheFull: a pod that fills the cache of flows which all pods share is named by metric and status,
// and the node goes on.
func TestFlowCacheFull(t *testing.T) {
	long(t)
	l := up(t, netlab.Options{})
	l.pods(map[string][]string{"n1": {"red/a", "blue/a"}})
	// As on a node that cannot look after more: else the limit grows with the flows.
	const limit = 2000
	_, err := l.OVS("n1").VSCtl(t.Context(), "set", "Open_vSwitch", ".", fmt.Sprintf("other_config:flow-limit=%d", limit))
	l.must(err)
	port, me, from := l.open(l.get("red/a").Sandbox(), "eth0"), l.mac("red/a"), l.get("red/a")
	end := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for n := uint32(0); ; {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			for range 50 {
				// The gateway gets them all, and each has its own address replaced: a flow of its own.
				n++
				to := net.HardwareAddr(binary.BigEndian.AppendUint32([]byte{2, 0}, n%(12*limit)))
				_ = port.Send(wire.Ethernet(to, me, wire.TypeIPv4, wire.IPv4(from.IP, from.Gateway, wire.ProtoUDP, wire.UDP(1000, 9, nil))))
			}
		}
	})
	var once sync.Once
	stop := func() { once.Do(func() { close(end); flood.Wait() }) }
	t.Cleanup(stop)
	l.eventually("the status names the pod", time.Minute, func() error {
		if out := l.netns("nodes"); !strings.Contains(out, "flow cache is full") || !strings.Contains(out, "of pod red/a") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	// A switch that is too slow for all these packets empties the cache again and again.
	if n, most := l.metric("n1", "k8s_ovs_datapath_flows"), l.metric("n1", "k8s_ovs_datapath_flows_limit"); n < 10 || most != limit {
		t.Errorf("the metrics tell of %v flows, and of at most %v", n, most)
	}
	stop()
	l.eventually("the status says no more of it", 2*time.Minute, func() error {
		if out := l.netns("nodes"); strings.Contains(out, "flow cache") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}
