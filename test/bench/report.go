package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"strings"

	"github.com/k8s-ovs/k8s-ovs/pkg/atomicfile"
)

// report is everything that a run found out.
type report struct {
	machine machine
	rows    []Row
	// sections follow the table, in order.
	sections []section
	// pictures are further files, by their names.
	pictures map[string][]byte
}

// section is a part of the report's text: how something was measured, or where
// the time goes.
type section struct{ title, text string }

// json is results.json: the list of rows.
func (r report) json() ([]byte, error) {
	rows := r.rows
	if rows == nil {
		rows = []Row{}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(rows); err != nil {
		return nil, fmt.Errorf("encode the results: %w", err)
	}
	return b.Bytes(), nil
}

// markdown is RESULTS.md.
func (r report) markdown() string {
	var b strings.Builder
	b.WriteString("# Benchmark results\n\n")
	b.WriteString("Written by `make bench`; do not edit. Each line's two sides were measured in turn in one run, so the ratio means more than\nthe absolute numbers, which are this machine's. `n` is the number of measurements of each side. Bounds are how far the ratio, or ours\nwhere that is what counts, may be off by chance: 99 % of what the same measurements give when they are drawn again lies within.\n\n")
	for _, line := range r.machine.lines() {
		b.WriteString("- " + line + "\n")
	}
	b.WriteString("\n")
	b.WriteString(r.table())
	for _, s := range r.sections {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", s.title, strings.TrimSpace(s.text))
	}
	return b.String()
}

// table has one line for each row.
func (r report) table() string {
	var b strings.Builder
	b.WriteString("| measured | ours | reference | unit | ratio | bounds | bar | | n |\n")
	b.WriteString("|---|---:|---:|---|---:|---|---|---|---:|\n")
	for _, row := range r.rows {
		bar, verdict := row.Note, ""
		if row.bar != nil {
			bar, verdict = row.bar.String(), "met"
			if !row.met() {
				verdict = "**missed**"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %d |\n",
			row.title, row.Ours.text(), row.Reference.text(), row.Unit, row.Ratio.ratio(), row.bounds(), bar, verdict, row.N)
	}
	return b.String()
}

// bounds are the row's as the table has them; empty where it has none.
func (r Row) bounds() string {
	text := number.text
	if r.By == byRatio {
		text = number.ratio
	}
	if math.IsNaN(float64(r.Low)) || math.IsNaN(float64(r.High)) {
		return ""
	}
	return text(r.Low) + " to " + text(r.High)
}

// text is the number with three significant digits, without an exponent.
func (n number) text() string {
	v := float64(n)
	switch a := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case a >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

func (n number) ratio() string {
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return "–"
	}
	return fmt.Sprintf("%.3f", float64(n))
}

// write writes all files into dir, each whole or not at all.
func (r report) write(dir string) error {
	data, err := r.json()
	if err != nil {
		return err
	}
	files := map[string][]byte{"results.json": data, "RESULTS.md": []byte(r.markdown())}
	maps.Copy(files, r.pictures)
	for name, content := range files {
		if err := atomicfile.Replace(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
	}
	return nil
}
