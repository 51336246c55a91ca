package main

import (
	"bytes"
	"fmt"
	"math"
)

// panel is one of a plot's diagrams.
type panel struct {
	title  string
	series [sides][]point // by x, ascending
}

// point is one value. One that is weak stands alone and hollow.
type point struct {
	x     float64
	label string // of x, on the axis
	y     float64
	weak  bool
}

// The plot's measures, in its own units, and its scale.
const (
	panelWidth, panelHeight = 320, 200
	marginLeft, marginTop   = 48, 64
	gap                     = 56
	plotMin, plotMax        = 0.9, 1.1
	plotStep                = 0.05
	// goodMin and goodMax are the bar, which is shaded.
	goodMin, goodMax = 0.97, 1.03
)

// plotStyle has the colours, light and dark: whoever looks decides.
const plotStyle = `<style>
text { font: 12px sans-serif; fill: #333 }
.title { font-weight: bold }
.value { stroke: #fff; stroke-width: 3; paint-order: stroke }
.paper { fill: #fff }
.frame { fill: none; stroke: #999 }
.grid { stroke: #ddd }
.good { fill: #2a7; fill-opacity: .13 }
.s0 { stroke: #06c; fill: #06c }
.s1 { stroke: #c50; fill: #c50 }
.line { fill: none; stroke-width: 1.5 }
.weak { fill: none }
@media (prefers-color-scheme: dark) {
text { fill: #ccc }
.paper { fill: #111 }
.value { stroke: #111 }
.frame { stroke: #777 }
.grid { stroke: #333 }
.s0 { stroke: #5af; fill: #5af }
.s1 { stroke: #fa5; fill: #fa5 }
.line, .weak { fill: none }
}
</style>
`

// plot draws panels, two in a row, as SVG: y from 0.9 to 1.1 over a logarithmic x.
// What is beyond the scale stands at its edge with its value.
func plot(title string, names [sides]string, panels []panel) []byte {
	var b bytes.Buffer
	rows := (len(panels) + 1) / 2
	width, height := marginLeft+2*panelWidth+gap+16, marginTop+rows*(panelHeight+gap)
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n%s<rect class=\"paper\" width=\"%d\" height=\"%d\"/>\n", title, plotStyle, width, height)
	fmt.Fprintf(&b, "<text class=\"title\" x=\"%d\" y=\"20\">%s</text>\n", marginLeft, title)
	for side, name := range names {
		x := marginLeft + panelWidth + gap + side*130
		marker(&b, side, float64(x), 16, false)
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"20\">%s</text>\n", x+10, name)
	}
	fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\">hollow: the machine carries less than %g times the limit</text>\n", marginLeft, height-12, headroom)
	for i, p := range panels {
		fmt.Fprintf(&b, "<g transform=\"translate(%d %d)\">\n", marginLeft+i%2*(panelWidth+gap), marginTop+i/2*(panelHeight+gap))
		p.draw(&b)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// atY is the place of a value in a panel.
func atY(y float64) float64 {
	return panelHeight * (plotMax - min(max(y, plotMin), plotMax)) / (plotMax - plotMin)
}

func (p panel) draw(b *bytes.Buffer) {
	fmt.Fprintf(b, "<text class=\"title\" x=\"0\" y=\"-8\">%s</text>\n", p.title)
	fmt.Fprintf(b, "<rect class=\"good\" y=\"%.1f\" width=\"%d\" height=\"%.1f\"/>\n", atY(goodMax), panelWidth, atY(goodMin)-atY(goodMax))
	for i := range int(math.Round((plotMax-plotMin)/plotStep)) + 1 {
		y := plotMin + float64(i)*plotStep
		fmt.Fprintf(b, "<path class=\"grid\" d=\"M0 %.1fH%d\"/>\n", atY(y), panelWidth)
		fmt.Fprintf(b, "<text x=\"-6\" y=\"%.1f\" text-anchor=\"end\">%.2f</text>\n", atY(y)+4, y)
	}
	fmt.Fprintf(b, "<rect class=\"frame\" width=\"%d\" height=\"%d\"/>\n", panelWidth, panelHeight)
	for side, points := range p.series {
		if side == 0 {
			for _, q := range points {
				fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", p.atX(q.x), panelHeight+18, q.label)
			}
		}
		p.drawSeries(b, side, points)
	}
}

// atX is the place of an x among the panel's, with a quarter of a decade at both ends.
func (p panel) atX(x float64) float64 {
	points := p.series[0]
	low, high := math.Log10(points[0].x)-0.25, math.Log10(points[len(points)-1].x)+0.25
	return panelWidth * (math.Log10(x) - low) / (high - low)
}

func (p panel) drawSeries(b *bytes.Buffer, side int, points []point) {
	for i, q := range points {
		if i > 0 && !q.weak && !points[i-1].weak {
			fmt.Fprintf(b, "<path class=\"line s%d\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", side, p.atX(points[i-1].x), atY(points[i-1].y), p.atX(q.x), atY(q.y))
		}
	}
	for _, q := range points {
		marker(b, side, p.atX(q.x), atY(q.y), q.weak)
		if q.y < plotMin || q.y > plotMax {
			p.drawValue(b, side, q)
		}
	}
}

// drawValue writes a point's value beside it, inside of the panel, the sides' one
// above the other.
func (p panel) drawValue(b *bytes.Buffer, side int, q point) {
	x, y, anchor := p.atX(q.x), atY(q.y)+14+14*float64(side), "end"
	if q.y < plotMin {
		y = atY(q.y) - 6 - 14*float64(side)
	}
	if x -= 7; x < panelWidth/2 {
		x, anchor = x+14, "start"
	}
	fmt.Fprintf(b, "<text class=\"value\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%.2f</text>\n", x, y, anchor, q.y)
}

// marker is a circle or a square: also without colours one tells them apart.
func marker(b *bytes.Buffer, side int, x, y float64, weak bool) {
	class := fmt.Sprintf("s%d", side)
	if weak {
		class += " weak"
	}
	if side == 0 {
		fmt.Fprintf(b, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", class, x, y)
		return
	}
	fmt.Fprintf(b, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"7\" height=\"7\"/>\n", class, x-3.5, y-3.5)
}
