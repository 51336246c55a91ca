package policies

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// logged is a log of what policies deny, and what it has written.
type logged struct {
	*DropLog
	w     *world
	wrote sync.Mutex
	lines bytes.Buffer
	// packets are those that the switch counted, err is why it does not say so.
	packets atomic.Uint64
	err     error
}

func (w *world) logged() *logged {
	l := &logged{w: w}
	l.DropLog = NewDropLog(w.table, func(context.Context) (uint64, error) { return l.packets.Load(), l.err })
	l.log = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}}))
	return l
}

// Write implements io.Writer.
func (l *logged) Write(line []byte) (int, error) {
	l.wrote.Lock()
	defer l.wrote.Unlock()
	return l.lines.Write(line)
}

// deny has packets of a connection be denied.
func (l *logged) deny(d pipeline.Denied, packets int) {
	for range packets {
		l.packets.Add(1)
		l.Take(d)
	}
}

// told are the lines since it was asked last.
func (l *logged) told() []string {
	l.wrote.Lock()
	defer l.wrote.Unlock()
	text := strings.TrimSpace(l.lines.String())
	l.lines.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func (l *logged) expect(when string, want ...string) {
	l.w.t.Helper()
	if diff := cmp.Diff(want, l.told()); diff != "" {
		l.w.t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}

// denied is TCP to a port of one pod from another.
func denied(from, to netip.Addr, port uint16) pipeline.Denied {
	return pipeline.Denied{Source: from, Destination: to, Protocol: 6, Port: port}
}

// A line says whose packet it was, which way it went, with whom, and which policies deny it.
func TestDropLog(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		l := w.logged()
		far := netip.MustParseAddr(client)
		view := withCluster(shopWith(1, client), 1, denying("base", "db"))
		view = withStrangers(view, 1, true, client)
		w.see(view)
		w.add(web1, "web-1", app("web"))
		w.add(db1, "db-1", app("db"))
		l.deny(denied(db1, web1, 8080), 1)
		l.expect("by NetworkPolicy", `msg="denied by policy" pod=shop/web-1 direction=ingress peer=shop/db-1 protocol=TCP port=8080 policies=[shop/a]`)
		l.deny(denied(far, db1, 80), 1)
		l.expect("by ClusterNetworkPolicy", `msg="denied by policy" pod=shop/db-1 direction=ingress peer=`+client+` protocol=TCP port=80 clusterPolicies=[base]`)

		ping := denied(netip.MustParseAddr("172.11.4.1"), web1, 0)
		ping.Protocol = 1
		l.deny(ping, 1)
		l.expect("a node", `msg="denied by policy" pod=shop/web-1 direction=ingress peer="node n2" protocol=ICMP policies=[shop/a]`)
		out := denied(web1, far, 8080)
		out.Egress, out.SentTo = true, netip.MustParseAddrPort("10.96.0.10:80")
		l.deny(out, 1)
		l.expect("to a service, by what is not there any more", `msg="denied by policy" pod=shop/web-1 direction=egress peer=`+client+` protocol=TCP port=8080 service=10.96.0.10:80 policies=[]`)
		gone := denied(far, netip.MustParseAddr("172.11.0.77"), 9)
		gone.Protocol = 47
		l.deny(gone, 1)
		l.expect("a pod that is gone", `msg="denied by policy" pod=172.11.0.77 direction=ingress peer=`+client+` protocol=47`)
	})
}

// A pod that floods has its share of the log, all of them have a bounded one, and what is left out
// is told: by the pod's next line, and by the switch's count.
func TestDropLogBounded(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		l := w.logged()
		l.packets.Store(1000) // before this agent
		w.see(shopWith(1, client))
		w.add(web1, "web-1", app("web"))
		w.add(db1, "db-1", app("web"))
		ctx, stop := context.WithCancel(w.t.Context())
		ended := make(chan struct{})
		go func() { l.Run(ctx); close(ended) }()
		synctest.Wait()
		l.deny(denied(db1, web1, 8080), 500)
		l.packets.Add(100) // which the switch's meter kept from the agent
		l.deny(denied(web1, db1, 80), 1)
		lines := l.told()
		if len(lines) != podAtOnce+1 || !strings.Contains(lines[podAtOnce], "pod=shop/db-1") {
			t.Errorf("%d lines of a flood, and then %q", len(lines)-1, lines[len(lines)-1])
		}
		time.Sleep(time.Second)
		l.deny(denied(db1, web1, 8080), 1)
		l.expect("a second later", `msg="denied by policy" pod=shop/web-1 direction=ingress peer=shop/db-1 protocol=TCP port=8080 policies=[shop/a] leftOut=480`)
		time.Sleep(leftOutEvery)
		synctest.Wait()
		l.expect("in the end", `msg="denied by policy and left out of the log" count=580 pods=[]`)
		time.Sleep(2 * leftOutEvery)
		synctest.Wait()
		l.expect("nothing new")
		if len(l.pods) > 0 {
			t.Errorf("%d pods are remembered", len(l.pods))
		}

		l.deny(denied(db1, web1, 8080), 500)
		time.Sleep(leftOutEvery)
		synctest.Wait()
		if lines := l.told(); len(lines) != podAtOnce+1 || lines[podAtOnce] != `msg="denied by policy and left out of the log" count=480 pods=[shop/web-1]` {
			t.Errorf("after another flood %q", lines)
		}
		all := 0
		for i := range 250 {
			l.deny(denied(web1, netip.AddrFrom4([4]byte{172, 11, 1, byte(i)}), 80), 10)
		}
		if all = len(l.told()); all != allAtOnce {
			t.Errorf("%d lines at once of all pods", all)
		}
		l.packets.Store(7) // of meters that were made anew: those 2,500 are nobody's to count
		time.Sleep(leftOutEvery)
		synctest.Wait()
		l.expect("meters are made anew")
		l.deny(denied(db1, web1, 8080), 2*podAtOnce)
		time.Sleep(leftOutEvery)
		synctest.Wait()
		if lines := l.told(); len(lines) != podAtOnce+1 || !strings.Contains(lines[podAtOnce], "count=20 ") {
			t.Errorf("after meters were made anew: %q", lines)
		}
		stop()
		<-ended
	})
}

// Where the switch has no meters, nothing is logged, and that is said once.
func TestDropLogWithoutMeters(t *testing.T) {
	inTime(t, Copy{}, func(w *world) {
		l := w.logged()
		l.err = flowstore.ErrDisconnected
		l.tell(w.t.Context())
		l.expect("without a switch")
		l.err = &of.SwitchError{Type: 12, Code: 10}
		l.tell(w.t.Context())
		if lines := l.told(); len(lines) != 1 || !strings.Contains(lines[0], "the switch has no meters for that") {
			t.Errorf("%q", lines)
		}
		l.tell(w.t.Context())
		l.expect("again")
	})
}

// TestNamesNodes: a node is known by each of its addresses, of either family.
func TestNamesNodes(t *testing.T) {
	n := topology.Node{Host: "n1", HostIP: netip.MustParseAddr("198.18.0.1"), Subnet: netip.MustParsePrefix("172.11.4.0/22")}
	n.Subnets = []netip.Prefix{n.Subnet, netip.MustParsePrefix("fd00:1:2:3::/64")}
	table := &Table{nodes: nodes{list: []topology.Node{n}}}
	for _, a := range []string{"198.18.0.1", "172.11.4.1", "172.11.7.255", "fd00:1:2:3::ac0b:401", "fd00:1:2:3::ac0b:7ff"} {
		if got := table.who(netip.MustParseAddr(a)); got != "node n1" {
			t.Errorf("%s is %q, want node n1", a, got)
		}
	}
	for _, a := range []string{"172.11.4.2", "fd00:1:2:3::ac0b:402", "fd00:1:2:3::1"} {
		if got := table.who(netip.MustParseAddr(a)); got != a {
			t.Errorf("%s is %q", a, got)
		}
	}
}
