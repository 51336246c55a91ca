package view

import (
	"cmp"
	"io"
	"net/netip"
	"slices"
	"strconv"

	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
)

// Limits is what the limited pods of live nodes do, by node.
type Limits map[netip.Addr]topology.NodeLimits

// Limited is one limited pod of `netns show`.
type Limited struct {
	Pod  string `json:"pod"`
	Node string `json:"node"`
	// Ingress is of what the pod receives, Egress of what it sends; null for no limit.
	Ingress *Limit `json:"ingress"`
	Egress  *Limit `json:"egress"`
}

// Limit is the limit of one direction and what it has done since it began.
type Limit struct {
	// Rate in bits per second; Burst in bytes, 0 where the agent chose it.
	Rate  uint64 `json:"rate"`
	Burst uint64 `json:"burst"`
	// Bytes that have passed; packets that waited, and that did not pass.
	Bytes   uint64 `json:"bytes"`
	Delayed uint64 `json:"delayed"`
	Dropped uint64 `json:"dropped"`
}

// of are the limited pods of a namespace, in order of name and node.
func (l Limits) of(namespace string) []Limited {
	pods := []Limited{}
	for _, n := range l {
		for _, p := range n.Pods {
			if p.Namespace == namespace {
				pods = append(pods, Limited{Pod: p.Pod, Node: n.Host, Ingress: limit(p.Ingress), Egress: limit(p.Egress)})
			}
		}
	}
	slices.SortFunc(pods, func(a, b Limited) int { return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Node, b.Node)) })
	return pods
}

func limit(u *topology.LimitUsed) *Limit {
	if u == nil {
		return nil
	}
	return &Limit{Rate: u.Rate, Burst: u.Burst, Bytes: u.Bytes, Delayed: u.Delayed, Dropped: u.Dropped}
}

// writeLimits writes the table of a namespace's limited pods, a direction a line.
func writeLimits(w io.Writer, pods []Limited) error {
	table := [][]string{{"LIMITED POD", "NODE", "DIRECTION", "RATE", "BURST", "BYTES", "DELAYED", "DROPPED"}}
	for _, p := range pods {
		if l := p.Ingress; l != nil {
			table = append(table, append([]string{p.Pod, p.Node, "ingress"}, l.cells()...))
		}
		if l := p.Egress; l != nil {
			table = append(table, append([]string{p.Pod, p.Node, "egress"}, l.cells()...))
		}
	}
	return write(w, table)
}

func (l *Limit) cells() []string {
	burst := none
	if l.Burst != 0 {
		burst = strconv.FormatUint(l.Burst, 10)
	}
	return []string{rate(l.Rate), burst, strconv.FormatUint(l.Bytes, 10), strconv.FormatUint(l.Delayed, 10), strconv.FormatUint(l.Dropped, 10)}
}

// rate is a rate in the largest unit that says it exactly, as in an annotation.
func rate(bits uint64) string {
	const units = "kMGTP"
	unit := ""
	for i := 0; i < len(units) && bits != 0 && bits%1000 == 0; i++ {
		bits, unit = bits/1000, units[i:i+1]
	}
	return strconv.FormatUint(bits, 10) + unit
}
