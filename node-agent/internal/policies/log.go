package policies

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/flowstore"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/hostnet"
	"github.com/k8s-ovs/k8s-ovs/node-agent/internal/pipeline"
	of "github.com/k8s-ovs/k8s-ovs/pkg/openflow"
	"github.com/k8s-ovs/k8s-ovs/pkg/policy"
)

const (
	// linesOfPod and linesOfAll bound the log of what policies deny, lines a second; podAtOnce and
	// allAtOnce are as many after a pause.
	linesOfPod, podAtOnce = 10, 20
	linesOfAll, allAtOnce = 100, 200
	// leftOutEvery is how often it says how many it has left out, countsEvery how often it asks for
	// what was counted until it knows from where to count.
	leftOutEvery, countsEvery = 10 * time.Second, time.Second
	// podsLeftOut is how many pods that names, those with the most.
	podsLeftOut = 5
)

// DropLog logs the packets that policies deny: each in a line that says whose it was and by which
// policies, as many as are bearable, and how many it has left out. Its methods may be called at
// once.
type DropLog struct {
	table *Table
	// denied is how many were counted, by the switch ([nodeflows.Table.Denied]) and past it
	// ([hostnet.Judge.Total]).
	denied func(ctx context.Context) (uint64, error)
	log    *slog.Logger
	now    func() time.Time

	mu   sync.Mutex
	all  allowance
	pods map[netip.Addr]*allowance
	// lines are those since the switch's count was last read, which was counted then, where known.
	lines          int
	counted        uint64
	known, without bool
	// missing is how many the log lacks that it has not told of.
	missing int
}

// allowance is what may be logged: so many lines at the time, more as time goes by. leftOut is how
// many were not since the last one.
type allowance struct {
	lines   float64
	at      time.Time
	leftOut int
}

// NewDropLog logs what it is told of, with what t knows.
func NewDropLog(t *Table, denied func(ctx context.Context) (uint64, error)) *DropLog {
	now := t.cfg.Now()
	return &DropLog{table: t, denied: denied, log: t.cfg.Logger, now: t.cfg.Now, all: allowance{lines: allAtOnce, at: now}, pods: map[netip.Addr]*allowance{}}
}

// Take takes in a packet that policies denied.
func (l *DropLog) Take(d pipeline.Denied) {
	pod, _ := d.Pod()
	leftOut, ok := l.take(pod)
	if !ok {
		return
	}
	attrs := l.table.describe(d)
	if leftOut > 0 {
		attrs = append(attrs, slog.Int("leftOut", leftOut))
	}
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "denied by policy", attrs...)
}

// TakePast takes in a packet that policies denied past the switch: what a pod sent, or an answer to it.
func (l *DropLog) TakePast(p hostnet.DroppedPacket) {
	pod, peer := p.From, p.To
	if !l.table.here(pod.Addr()) {
		pod, peer = peer, pod
	}
	l.Take(pipeline.Denied{Egress: true, Source: pod.Addr(), Destination: peer.Addr(), Protocol: p.Protocol, Port: peer.Port()})
}

// take reports whether a line about a pod may be logged now, and how many were left out before it.
func (l *DropLog) take(pod netip.Addr) (leftOut int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	own := l.pods[pod]
	if own == nil {
		own = &allowance{lines: podAtOnce, at: now}
		l.pods[pod] = own
	}
	l.all.grow(now, linesOfAll, allAtOnce)
	if own.grow(now, linesOfPod, podAtOnce); own.lines < 1 || l.all.lines < 1 {
		own.leftOut++
		return 0, false
	}
	leftOut, own.leftOut = own.leftOut, 0
	own.lines, l.all.lines, l.lines = own.lines-1, l.all.lines-1, l.lines+1
	return leftOut, true
}

func (a *allowance) grow(now time.Time, perSecond, most float64) {
	a.lines, a.at = min(a.lines+now.Sub(a.at).Seconds()*perSecond, most), now
}

// Run says how many packets the log has left out, until ctx ends.
func (l *DropLog) Run(ctx context.Context) {
	for {
		next := countsEvery
		if l.tell(ctx) {
			next = leftOutEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(next):
		}
	}
}

// tell says how many packets the log has left out, since it last did: what the switch has counted
// is all of them. It reports whether there is nothing to ask for again soon.
func (l *DropLog) tell(ctx context.Context) (settled bool) {
	packets, err := l.denied(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	pods := l.most()
	var refused *of.SwitchError
	switch {
	case errors.As(err, &refused):
		if !l.without {
			l.log.Warn("what policies deny is counted and not logged: the switch has no meters for that", "error", err)
		}
		l.without, l.known = true, false
		return true
	case err != nil:
		if !errors.Is(err, flowstore.ErrDisconnected) && ctx.Err() == nil {
			l.log.Debug("cannot say how many packets the log of what policies deny lacks", "error", err)
		}
		l.known = false
		return false
	}
	l.without = false
	if l.known && packets >= l.counted { // else the switch has made the meters anew, and lost count
		l.missing += int(packets-l.counted) - l.lines
	}
	l.known, l.counted, l.lines = true, packets, 0
	if l.missing > 0 {
		l.log.Info("denied by policy and left out of the log", "count", l.missing, "pods", pods)
		l.missing = 0
	}
	return true
}

// most are the pods of which most was left out, with how many, and forgets those of which nothing
// is to be remembered; mu is held.
func (l *DropLog) most() (pods []string) {
	now := l.now()
	for a, own := range l.pods {
		if own.grow(now, linesOfPod, podAtOnce); own.lines == podAtOnce && own.leftOut == 0 {
			delete(l.pods, a)
		}
	}
	list := slices.SortedFunc(maps.Keys(l.pods), func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(l.pods[b].leftOut, l.pods[a].leftOut), a.Compare(b))
	})
	for _, a := range list[:min(len(list), podsLeftOut)] {
		if l.pods[a].leftOut > 0 {
			pods = append(pods, l.table.named(a))
			l.pods[a].leftOut = 0
		}
	}
	return pods
}

// named is who has an address: a pod here, a node, or the address.
func (t *Table) named(a netip.Addr) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.who(a)
}

// here reports whether an address is that of a pod of this node.
func (t *Table) here(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.pods[a]
	return ok
}

// who is named; mu is held.
func (t *Table) who(a netip.Addr) string {
	if one, ok := t.pods[a]; ok {
		return one.key().String()
	}
	for _, n := range t.nodes.list {
		if a == n.HostIP || slices.Contains(n.Gateways(), a) || slices.Contains(n.Forwarders(), a) {
			return "node " + n.Host
		}
	}
	return a.String()
}

// describe says what was denied, of whom, and by which policies.
func (t *Table) describe(d pipeline.Denied) []slog.Attr {
	t.mu.Lock()
	defer t.mu.Unlock()
	pod, peer := d.Pod()
	direction := "ingress"
	if d.Egress {
		direction = "egress"
	}
	attrs := []slog.Attr{
		slog.String("pod", t.who(pod)), slog.String("direction", direction), slog.String("peer", t.who(peer)), slog.String("protocol", protocolName(d.Protocol)),
	}
	if d.Port != 0 && hasPorts(d.Protocol) {
		attrs = append(attrs, slog.Int("port", int(d.Port)))
	}
	if d.SentTo.IsValid() {
		attrs = append(attrs, slog.String("service", d.SentTo.String()))
	}
	return append(attrs, t.deniers(d)...)
}

// learnDenying takes in what ClusterNetworkPolicies come to, where that is something else now.
func (t *Table) learnDenying(compiled map[policy.Key]policy.Compiled) {
	if c, ok := compiled[clusterKey]; ok {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.denying = c
	}
}

// deniers are the policies that deny a packet: ClusterNetworkPolicies whose rule does, or the
// NetworkPolicies that isolate the pod. They are what counts now: none where that is another thing
// than it was a moment ago.
func (t *Table) deniers(d pipeline.Denied) []slog.Attr {
	address, _ := d.Pod()
	one, ok := t.pods[address]
	if !ok {
		return nil
	}
	isolating := one.selected.ingress
	if d.Egress {
		isolating = one.selected.egress
	}
	packet := policy.Packet{Src: d.Source, Dst: d.Destination, Protocol: d.Protocol, DstPort: d.Port}
	var names []string
	for _, by := range t.denying.DeniedBy(packet, d.Egress, len(isolating) > 0) {
		if slices.Contains(one.selected.cluster, by.Name) { // not others that say the same of other pods
			names = append(names, by.Name)
		}
	}
	if len(names) > 0 {
		return []slog.Attr{slog.Any("clusterPolicies", names)}
	}
	for _, n := range isolating {
		names = append(names, policy.Key{Namespace: one.Namespace, Name: n}.String())
	}
	return []slog.Attr{slog.Any("policies", names)}
}

// protocols are those of IP that are called by name.
var protocols = map[uint8]string{1: "ICMP", 6: "TCP", 17: "UDP", 132: "SCTP"}

func protocolName(p uint8) string {
	if name, ok := protocols[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

func hasPorts(p uint8) bool { return p != 1 && protocols[p] != "" }
