package main

import (
	"fmt"
	"math"
	"strings"
)

// limitsPicture is the plot's file, beside the report.
const limitsPicture = "limits.svg"

// addLimits adds what was found out about limits to the report.
func (b *bench) addLimits(results []limitResult) {
	for _, r := range results {
		b.add(r.rows()...)
	}
	b.section("Rate limits", "%s", limitsTable(results))
	b.report.pictures = map[string][]byte{limitsPicture: limitsPlot(results)}
}

// title says in words what the traffic is.
func (l limited) title() string {
	where := map[string]string{"ingress": "to", "egress": "from"}[l.direction]
	rate, unit := l.rate/1e6, "Mbit/s"
	if l.rate >= 1e9 {
		rate, unit = l.rate/1e9, "Gbit/s"
	}
	title := fmt.Sprintf("%s %s a pod limited to %d %s", strings.ToUpper(l.protocol), where, rate, unit)
	if l.flows > 1 {
		title += fmt.Sprintf(", %d connections", l.flows)
	}
	return title
}

// rows are those of results.json. A limit that the machine hardly carries has
// no bars: what misses them is not the limit's.
func (r limitResult) rows() []Row {
	bars := struct{ goodput, retransmits, delay *bar }{ratioWithin(0.97, 1.03), oursAtMost(1), oursAtMost(math.Round(r.delay()))}
	note := ""
	if !r.shows(ours) {
		bars.goodput, bars.retransmits, bars.delay = nil, nil, nil
		note = fmt.Sprintf("%.0f Mbit/s without a limit", r.free[ours].mbits)
	}
	o, ref := r.sides[ours], r.sides[reference]
	goodput := compared(r.name(), r.title()+" (reference: bandwidth plugin; ratio: ours to the limit)", "Mbit/s", o.mbits, ref.mbits, r.n, bars.goodput)
	goodput.Ratio, goodput.Better = number(r.ratio(ours)), wayOne
	rows := []Row{r.spread(goodput, func(c carried) float64 { return c.mbits * 1e6 / float64(r.rate) })}
	if r.protocol == "tcp" {
		again := compared(r.name()+" retransmits", r.title()+": segments sent again", "%", o.retransmits, ref.retransmits, r.n, bars.retransmits)
		delay := compared(r.name()+" latency", r.title()+": longest UDP round trip meanwhile", "ms", o.roundTrip, ref.roundTrip, r.n, bars.delay)
		again.By, delay.By = byOurs, byOurs
		rows = append(rows,
			r.spread(again, func(c carried) float64 { return c.retransmits }), r.spread(delay, func(c carried) float64 { return c.roundTrip }))
	}
	for i := range rows {
		rows[i].Note = note
	}
	return rows
}

// spread notes how a row's number differs between the runs, of each of which value takes one.
func (r limitResult) spread(row Row, value func(carried) float64) Row {
	var xs []float64
	for _, run := range r.runs {
		xs = append(xs, value(run))
	}
	return row.from(xs, nil, func(xs, _ []float64) float64 { return median(xs) })
}

// limitsTable is the report's section: limits against goodput.
func limitsTable(results []limitResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, `Goodput is payload at the receiver, beside what was asked for; the reference is the bandwidth plugin (tbf), chained to bridge, with a burst of
100 ms of the rate and at least 64 KiB. Both pods are on one node. An asterisk: without a limit the machine carries less than %g times the limit.

![goodput divided by the limit](%s)

| limit | traffic | ours, Mbit/s | of the limit | reference, Mbit/s | of the limit | sent again, %% | reference | longest round trip, ms | reference |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
`, headroom, limitsPicture)
	for _, r := range results {
		traffic := fmt.Sprintf("%s, %s", r.direction, strings.ToUpper(r.protocol))
		if r.flows > 1 {
			traffic += fmt.Sprintf(", %d connections", r.flows)
		}
		fmt.Fprintf(&b, "| %s | %s |", shortRate(r.rate), traffic)
		for side, got := range r.sides {
			star := "*"
			if r.shows(side) {
				star = ""
			}
			fmt.Fprintf(&b, " %s | %s%s |", number(got.mbits).text(), number(r.ratio(side)).ratio(), star)
		}
		fmt.Fprintf(&b, " %s | %s |", number(r.sides[ours].retransmits).text(), number(r.sides[reference].retransmits).text())
		fmt.Fprintf(&b, " %s | %s |\n", number(r.sides[ours].roundTrip).text(), number(r.sides[reference].roundTrip).text())
	}
	return b.String()
}

// limitsPlot draws what one connection gets, a panel for each kind of traffic.
func limitsPlot(results []limitResult) []byte {
	var panels []panel
	for _, protocol := range []string{"tcp", "udp"} {
		for _, direction := range []string{"ingress", "egress"} {
			p := panel{title: fmt.Sprintf("%s, %s", direction, strings.ToUpper(protocol))}
			for _, r := range results {
				if r.direction != direction || r.protocol != protocol || r.flows > 1 {
					continue
				}
				for side := range sides {
					p.series[side] = append(p.series[side], point{x: float64(r.rate), label: shortRate(r.rate), y: r.ratio(side), weak: !r.shows(side)})
				}
			}
			panels = append(panels, p)
		}
	}
	return plot("Goodput divided by the limit", [sides]string{"k8s-ovs", "bandwidth plugin"}, panels)
}
