package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/world"
)

// asItShould waits until a node is exactly what the lab's pods make of it.
func (l *lab) asItShould(when, node string) {
	l.t.Helper()
	n, err := world.Of(l.Lab, node)
	l.must(err)
	n.Foreign = foreign
	if err := n.Await(context.WithoutCancel(l.t.Context()), 30*time.Second); err != nil {
		l.t.Errorf("%s: %v", when, err)
	}
}

// TestWorld: the comparison of a node with what should be there finds nothing where all is
// well; takes everything of a pod that is said to be gone for a leftover; misses everything
// of one that is not there; and finds what nobody owns.
func TestWorld(t *testing.T) {
	l := up(t, netlab.Options{Nodes: 1})
	ctx := t.Context()
	l.pod("n1", "red/stays")
	p, err := l.AddPod(ctx, "n1", "blue", "gone", netlab.PodOptions{IngressBandwidth: 5e6, EgressBandwidth: 5e6})
	l.must(err)
	l.asItShould("two pods", "n1")
	n, err := world.Of(l.Lab, "n1")
	l.must(err)
	// The agent keeps the firewall's table of tenants every few seconds: what is in it comes last.
	names := func(n world.Node, each ...string) {
		t.Helper()
		l.eventually("the differences", 20*time.Second, func() error {
			found, err := n.Differences(ctx)
			l.must(err)
			for _, what := range each {
				if !slices.ContainsFunc(found, func(line string) bool { return strings.Contains(line, what) }) {
					return fmt.Errorf("%q is not among\n%s", what, strings.Join(found, "\n"))
				}
			}
			return nil
		})
	}
	ifb := "koi" + strings.TrimPrefix(p.HostInterface, "kov")
	without := n
	without.Pods = []netlab.Pod{l.get("red/stays")}
	names(without,
		"the agent lists blue/gone", "address "+p.IP.String()+" is leased to blue/gone", "port "+p.HostInterface, "interface "+p.HostInterface,
		"device "+p.HostInterface, "device "+ifb, "a flow is of port", "firewall table k8s-ovs-fair has "+p.IP.String(), "chain t-blue",
	)
	other := p
	other.Name, other.ContainerID, other.HostInterface, other.IP = "absent", "0123", "kov0123", p.IP.Next()
	with := n
	with.Pods = append(with.Pods, other)
	names(with,
		"blue/absent (container 0123, "+other.IP.String()+"): the agent does not know it", "without a lease", "has no port kov0123", "device kov0123 is missing",
		"k8s-ovs-fair does not have its address "+other.IP.String(), "pod blue/absent: CNI CHECK",
	)
	// What nobody owns.
	_, err = l.NodeExec(ctx, "n1", "ip", "link", "add", "kovleft", "type", "veth", "peer", "name", "stray")
	l.must(err)
	_, err = l.OVS("n1").VSCtl(ctx, "--id=@q", "create", "QoS", "type=linux-noop", "--", "create", "Queue", "dscp=1")
	l.must(err)
	l.must(os.WriteFile(filepath.Join(l.StateDir("n1"), ".records.json.new"), nil, 0o600))
	_, err = l.OVS("n1").OFCtl(ctx, "add-flow", "br0", "cookie=0x30000000999,table=0,priority=1,in_port=999,actions=drop")
	l.must(err)
	names(n, "device kovleft (veth) is no pod's", "of table QoS is used by nobody", "of table Queue is used by nobody", "file .records.json.new")
}
