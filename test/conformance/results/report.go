package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// The bars of a run.
const (
	reference   = "reference"
	ours        = "k8s-ovs"
	readyFact   = "nodes Ready after apply"
	readyWithin = 30 * time.Second
)

// verdict prints a summary, and is an error if a spec failed. A missed bar is only
// said: times on a machine that others use too prove little.
func (r results) verdict(w io.Writer) error {
	var errs []error
	type list struct {
		name  string
		specs []spec
	}
	lists := []list{{"upstream", r.upstream}, {"our", r.own}}
	if r.ranPolicies {
		lists = append(lists, list{"upstream NetworkPolicy", r.policies})
	}
	if r.ranClusterPolicies {
		lists = append(lists, list{"upstream ClusterNetworkPolicy", r.clusterPolicies})
	}
	for _, list := range lists {
		for _, s := range list.specs {
			if s.outcome == failed {
				errs = append(errs, fmt.Errorf("%s spec failed: %s", list.name, s.name))
			}
		}
		if count(list.specs, passed) == 0 {
			errs = append(errs, fmt.Errorf("no %s spec passed", list.name))
		}
		if _, err := fmt.Fprintf(w, "%s specs: %s\n", list.name, tally(list.specs)); err != nil {
			return err
		}
	}
	for _, missed := range r.missedBars() {
		if _, err := fmt.Fprintf(w, "missed: %v\n", missed); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// missedBars names each bar that the run measured and missed.
func (r results) missedBars() []error {
	var errs []error
	for _, f := range r.facts {
		if f.name != readyFact {
			continue
		}
		took, err := time.ParseDuration(strings.ReplaceAll(f.value, " ", ""))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
		} else if took > readyWithin {
			errs = append(errs, fmt.Errorf("%s: %s, the bar is %v", f.name, f.value, readyWithin))
		}
	}
	if r.starts != nil {
		if mine, bar := median(r.starts[ours]), median(r.starts[reference]); mine > bar {
			errs = append(errs, fmt.Errorf("pod start median %.0f ms, with the reference plugins %.0f ms", mine, bar))
		}
	}
	return errs
}

// markdown is RESULTS.md.
func (r results) markdown(now time.Time) string {
	var b strings.Builder
	by, network := "make conformance", "manifests/k8s-ovs-openvswitch.yaml"
	if r.overlay != "" {
		by, network = "make conformance-overlays", "test/conformance/overlays/"+r.overlay
	}
	fmt.Fprintf(&b, "# Conformance results\n\nWritten by `%s` on %s: Kubernetes 1.34.4 on two nodes of one machine, the network from\n`%s`, kube-proxy (nftables) for the hosts.\n\n", by, now.UTC().Format(time.DateOnly), network)
	fmt.Fprintf(&b, "| | |\n|---|---|\n| upstream `[sig-network]` `[Conformance]` specs | %s |\n", tally(r.upstream))
	if r.ranPolicies {
		fmt.Fprintf(&b, "| upstream `[sig-network]` `Netpol` specs | %s |\n", tally(r.policies))
	}
	if r.ranClusterPolicies {
		fmt.Fprintf(&b, "| specs of `sigs.k8s.io/network-policy-api` v0.3.0, ClusterNetworkPolicy | %s |\n", tally(r.clusterPolicies))
	}
	fmt.Fprintf(&b, "| our own specs | %s |\n", tally(r.own))
	for _, f := range r.facts {
		fmt.Fprintf(&b, "| %s | %s |\n", f.name, f.value)
	}
	if r.starts != nil {
		b.WriteString("\n## Pod start\n\nFrom the create call to Ready as a watch sees it, one pod at a time, in rounds that alternate between two clusters\nthat run at the same time on this machine. Milliseconds.\n\n| network | pods | median | 90% | slowest |\n|---|---|---|---|---|\n")
		for _, network := range slices.Sorted(maps.Keys(r.starts)) {
			ms := slices.Sorted(slices.Values(r.starts[network]))
			fmt.Fprintf(&b, "| %s | %d | %.0f | %.0f | %.0f |\n", network, len(ms), median(ms), ms[(len(ms)-1)*9/10], ms[len(ms)-1])
		}
	}
	if missed := errors.Join(r.missedBars()...); missed != nil {
		fmt.Fprintf(&b, "\n**Missed:** %s\n", strings.ReplaceAll(missed.Error(), "\n", "; "))
	}
	table(&b, "Our own specs", r.own)
	table(&b, "Upstream specs", r.upstream)
	if r.ranPolicies {
		table(&b, "Upstream specs of NetworkPolicy", r.policies)
	}
	if r.ranClusterPolicies {
		table(&b, "Upstream specs of ClusterNetworkPolicy", r.clusterPolicies)
	}
	if r.overlay != "" {
		return b.String() // a few specs were chosen: the rest says nothing
	}
	b.WriteString("\n## Not run\n\nSpecs of sig-network beyond conformance.\n\n| specs | why |\n|---|---|\n")
	for _, why := range slices.Sorted(maps.Keys(r.notRun)) {
		fmt.Fprintf(&b, "| %d | %s |\n", r.notRun[why], why)
	}
	return b.String()
}

func table(b *strings.Builder, title string, specs []spec) {
	fmt.Fprintf(b, "\n## %s\n\n| spec | outcome | seconds | |\n|---|---|---|---|\n", title)
	for _, s := range specs {
		outcome := string(s.outcome)
		if s.outcome == failed {
			outcome = "**failed**"
		}
		fmt.Fprintf(b, "| %s | %s | %.1f | %s |\n", strings.ReplaceAll(s.name, "|", "\\|"), outcome, s.took.Seconds(), strings.ReplaceAll(s.note, "|", "\\|"))
	}
}

func tally(specs []spec) string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", count(specs, passed), count(specs, failed), count(specs, skipped))
}

func count(specs []spec, o outcome) (n int) {
	for _, s := range specs {
		if s.outcome == o {
			n++
		}
	}
	return n
}

// median of what was measured; 0 of nothing.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
