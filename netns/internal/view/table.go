package view

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	// listed is how many names a cell of a table shows.
	listed = 4
	// spelled is how many names a dry run spells out a line each.
	spelled = 12
	// none stands in cells that have nothing to show.
	none = "-"
	// everybody stands for the networks of a global namespace; no namespace can
	// have this name.
	everybody = "(all)"
)

// WriteNamespaces writes the table of `netns list`.
func WriteNamespaces(w io.Writer, rows []Namespace) error {
	table := [][]string{{"NAMESPACE", "NETID", "NETWORK-WITH", "STATE"}}
	for _, r := range rows {
		table = append(table, []string{r.Namespace, r.netID(), r.networkWith(), state(r.State, r.Message)})
	}
	// Only where Kubernetes has such annotations.
	if slices.ContainsFunc(rows, func(r Namespace) bool { return r.Declared != "" }) {
		table[0] = slices.Insert(table[0], 3, "ANNOTATION")
		for i, r := range rows {
			table[i+1] = slices.Insert(table[i+1], 3, r.annotation())
		}
	}
	return write(w, table)
}

// annotation is what the annotation says, and whether it is overruled.
func (n Namespace) annotation() string {
	if n.Forced {
		return n.Declared + " (overruled by --force)"
	}
	return n.Declared
}

// WriteNodes writes the table of `netns nodes`.
func WriteNodes(w io.Writer, rows []Node) error {
	table := [][]string{{"NODE", "ADDRESS", "SUBNET", "DATAPATH", "MTU", "PODS", "APPLIED", "STATE"}}
	for _, r := range rows {
		cells := []string{r.Node, r.Address, r.Subnet, r.Datapath, none, none, none, state(r.State, r.Message)}
		if r.Live {
			cells[5], cells[6] = strconv.Itoa(r.Pods), strconv.FormatInt(r.AppliedRevision, 10)
		}
		if r.MTU > 0 {
			cells[4] = strconv.Itoa(r.MTU)
		}
		table = append(table, cells)
	}
	return write(w, table)
}

// WriteDetail writes what `netns show` shows.
func WriteDetail(w io.Writer, d Detail) error {
	reaches := names(d.Reaches, spelled)
	if d.Global {
		reaches = everybody
	}
	lines := [][]string{
		{"Namespace:", d.Namespace.Namespace},
		{"NetID:", d.netID()},
		{"Network with:", d.networkWith()},
		{"Reaches:", reaches},
		{"State:", state(d.State, d.Message)},
	}
	if d.Declared != "" {
		lines = append(lines, []string{"Annotation:", d.annotation()})
	}
	if d.LastRequest != nil {
		lines = append(lines, []string{"Last request:", d.LastRequest.String()})
	}
	lines = append(lines, []string{"Applied on:", d.Nodes.String()}, []string{"Policies:", d.policies()})
	if len(d.ClusterPolicies) > 0 {
		lines = append(lines, []string{"Cluster policies:", d.clusterPolicies()})
	}
	if err := write(w, lines); err != nil {
		return err
	}
	if len(d.Policies) > 0 {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := writePolicies(w, d.Policies); err != nil {
			return err
		}
	}
	if len(d.ClusterPolicies) > 0 {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := writeClusterPolicies(w, d.ClusterPolicies); err != nil {
			return err
		}
	}
	if len(d.Limited) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return writeLimits(w, d.Limited)
}

// String is the outcome in words, with who asked and when.
func (o Outcome) String() string {
	return fmt.Sprintf("%s (%s%s)", o.Message, o.Time.Format(time.RFC3339), by(o.By))
}

// WriteConfirmation writes what `netns nodes confirm` did for people.
func WriteConfirmation(w io.Writer, c Confirmation) error {
	return WriteLine(w, c.Message)
}

// WriteResult writes the result of an action for people.
func WriteResult(w io.Writer, r Result) error {
	lines := []string{r.Message}
	for _, note := range r.Notes {
		lines = append(lines, "note: "+note)
	}
	if r.Result == WouldChange {
		lines = append(lines, r.reach("newly reachable, in both directions:", r.Gains)...)
		lines = append(lines, r.reach("no longer reachable, in both directions:", r.Loses)...)
	}
	for _, line := range lines {
		if err := WriteLine(w, line); err != nil {
			return err
		}
	}
	return nil
}

// WriteOpened says whom a namespace that becomes global opens itself to.
func WriteOpened(w io.Writer, namespace string, gains []string) error {
	if len(gains) == 0 {
		return WriteLine(w, namespace+" becomes global: it reaches no namespace that it does not reach now; every namespace that comes later will reach it")
	}
	return WriteLine(w, fmt.Sprintf("%s becomes global: it and %s newly reach each other, and so does every namespace that comes later", namespace, names(gains, spelled)))
}

// reach lists one side of a dry run, a pair of namespaces a line; a long list
// is cut, as -o json has it whole.
func (r Result) reach(title string, others []string) []string {
	if len(others) == 0 {
		return []string{title, "  none"}
	}
	lines := []string{title}
	shown := others[:min(len(others), spelled)]
	for _, other := range shown {
		lines = append(lines, fmt.Sprintf("  %s <-> %s", r.Namespace, other))
	}
	if more := len(others) - len(shown); more > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more (%d in all; -o json lists them)", more, len(others)))
	}
	return lines
}

// String is the progress in words: "2/2 nodes", "1/2 nodes, missing on n2".
func (p Progress) String() string {
	var b strings.Builder
	if p.Live == 0 {
		b.WriteString("no node: none is live")
	} else {
		fmt.Fprintf(&b, "%d/%d nodes", p.Applied, p.Live)
	}
	if len(p.Lagging) > 0 {
		fmt.Fprintf(&b, ", missing on %s", names(p.Lagging, spelled))
	}
	if len(p.NotLive) > 0 {
		fmt.Fprintf(&b, "; not live and not counted: %s", names(p.NotLive, spelled))
	}
	return b.String()
}

func (n Namespace) netID() string {
	if n.NetID == nil {
		return none
	}
	return n.NetID.String()
}

func (n Namespace) networkWith() string {
	if n.Global {
		return everybody
	}
	return names(n.NetworkWith, listed)
}

// names lists at most limit names.
func names(list []string, limit int) string {
	switch {
	case len(list) == 0:
		return none
	case len(list) > limit:
		return fmt.Sprintf("%s and %d more", strings.Join(list[:limit], ", "), len(list)-limit)
	}
	return strings.Join(list, ", ")
}

// state is a state in words, with its message.
func state(s, message string) string {
	switch s {
	case NotLive:
		s = "not live"
	case NotReady:
		s = "not ready"
	case NoSubnet:
		s = "no subnet"
	case NoRecord:
		s = "no record"
	}
	if message == "" {
		return s
	}
	return s + ": " + strings.Join(strings.Fields(message), " ")
}

// write aligns the columns of a table; empty cells show none, and all are [Printable].
func write(w io.Writer, table [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	for _, row := range table {
		for i, cell := range row {
			if row[i] = Printable(cell); cell == "" {
				row[i] = none
			}
		}
		if _, err := fmt.Fprintln(tw, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}
