package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// reasons say of each kind of sig-network spec beyond conformance why the run
// leaves it out. The first that matches a spec's name is its reason.
var reasons = []struct {
	name   *regexp.Regexp
	reason string
}{
	{regexp.MustCompile(`LoadBalancer|load balancer|Loadbalancing|Ingress|GCE|Firewall`), "needs a cloud's load balancers"},
	{regexp.MustCompile(`(?i)IPv6|dual.?stack`), "k8s-ovs is IPv4 only"},
	{regexp.MustCompile(`(?i)internet|Networking-IPv4|upstream`), "needs the internet"},
	{regexp.MustCompile(`SCTP`), "needs the kernel's sctp module, which this machine may lack"},
	{regexp.MustCompile(`KubeProxy|kube-proxy|iptables|nftables|IPVS|Conntrack`), "is about kube-proxy on the node, which the run takes as it is"},
	{regexp.MustCompile(`\[Disruptive\]|\[Serial\]|\[Slow\]`), "disturbs other specs or is slow"},
	{regexp.MustCompile(`\[Feature:|\[FeatureGate:|\[Alpha\]|\[Beta\]`), "needs a feature that a plain cluster does not have"},
}

// readJUnit reads what ginkgo wrote: the specs that ran, and the names of those of
// sig-network that were not chosen, by name.
func readJUnit(r io.Reader) (ran []spec, notChosen []string, err error) {
	var file struct {
		Suites []struct {
			Cases []struct {
				Name    string  `xml:"name,attr"`
				Status  string  `xml:"status,attr"`
				Seconds float64 `xml:"time,attr"`
				Skipped struct {
					Message string `xml:"message,attr"`
				} `xml:"skipped"`
				Failure struct {
					Message string `xml:"message,attr"`
				} `xml:"failure"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.NewDecoder(r).Decode(&file); err != nil {
		return nil, nil, err
	}
	for _, suite := range file.Suites {
		for _, c := range suite.Cases {
			name, ok := strings.CutPrefix(c.Name, "[It] [sig-network] ")
			if !ok {
				continue
			}
			// A spec that skips itself says why; one that was not chosen does not.
			reason := strings.TrimPrefix(strings.TrimPrefix(c.Skipped.Message, "skipped"), " - ")
			if c.Status == string(skipped) && reason == "" {
				notChosen = append(notChosen, withoutLabels(name))
				continue
			}
			s := spec{name: withoutLabels(name), outcome: failed, took: seconds(c.Seconds), note: oneLine(reason + c.Failure.Message)}
			if c.Status == string(passed) || c.Status == string(skipped) {
				s.outcome = outcome(c.Status)
			}
			ran = append(ran, s)
		}
	}
	slices.SortFunc(ran, func(a, b spec) int { return cmp.Compare(a.name, b.name) })
	slices.Sort(notChosen)
	return ran, notChosen, nil
}

// notRun is how many of those that were not chosen did not run elsewhere either, by reason.
func notRun(notChosen []string, elsewhere []spec) map[string]int {
	count := map[string]int{}
	for _, name := range notChosen {
		if !slices.ContainsFunc(elsewhere, func(s spec) bool { return s.name == name }) {
			count[whyNotChosen(name)]++
		}
	}
	return count
}

func whyNotChosen(name string) string {
	for _, n := range reasons {
		if n.name.MatchString(name) {
			return n.reason
		}
	}
	return "beyond conformance"
}

// withoutLabels drops the list of labels that junit appends: "[Conformance]
// [sig-network, Conformance]".
func withoutLabels(name string) string {
	if i := strings.LastIndex(name, " [sig-network"); i >= 0 {
		return name[:i]
	}
	return name
}

// saying is what a test logs behind the file and line.
var saying = regexp.MustCompile(`^ +[\w-]+\.go:\d+: (.*\S)`)

// readTest2JSON reads the output of `go tool test2json`, in the order of the run.
// A test that never ended has failed.
func readTest2JSON(r io.Reader) ([]spec, error) {
	var specs []spec
	place := map[string]int{}
	measured, said := map[string]string{}, map[string]string{}
	for d := json.NewDecoder(bufio.NewReader(r)); ; {
		var e struct {
			Action, Test, Key, Value, Output string
			Elapsed                          float64
		}
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return specs, nil
		} else if err != nil {
			return nil, err
		}
		if e.Test == "" {
			continue
		}
		if e.Action == "run" {
			place[e.Test] = len(specs)
			specs = append(specs, spec{name: e.Test, outcome: failed, note: "did not end"})
			continue
		}
		s := &specs[place[e.Test]]
		switch {
		case e.Action == "pass":
			s.outcome, s.took, s.note = passed, seconds(e.Elapsed), measured[e.Test]
		case e.Action == "skip":
			s.outcome, s.took, s.note = skipped, seconds(e.Elapsed), said[e.Test]
		case e.Action == "fail":
			s.took, s.note = seconds(e.Elapsed), said[e.Test]
		case e.Action == "attr" && e.Key == "measured":
			measured[e.Test] = e.Value
		case e.Action == "output":
			if text := saying.FindStringSubmatch(e.Output); text != nil {
				said[e.Test] = oneLine(text[1])
			}
		}
	}
}

// readClusterPolicies reads the output of clusternetworkpolicy.test, a test of specs, which
// are made of parts. A spec's note says how many parts it has, or which failed.
func readClusterPolicies(r io.Reader) ([]spec, error) {
	all, err := readTest2JSON(r)
	if err != nil {
		return nil, err
	}
	var suite spec
	var specs []spec
	parts, bad := map[string][]spec{}, map[string][]string{}
	for _, s := range all {
		names := strings.SplitN(s.name, "/", 3)
		switch len(names) {
		case 1:
			suite = s
		case 2:
			s.name = names[1]
			specs = append(specs, s)
		case 3:
			parts[names[1]] = append(parts[names[1]], s)
			if s.outcome == failed {
				bad[names[1]] = append(bad[names[1]], strings.TrimSuffix(strings.ReplaceAll(names[2], "_", " ")+": "+s.note, ": "))
			}
		}
	}
	for i, s := range specs {
		switch {
		case bad[s.name] != nil:
			specs[i].note = oneLine(strings.Join(bad[s.name], "; "))
		case s.outcome == passed:
			specs[i].note = passedParts(parts[s.name])
		}
	}
	if suite.outcome == failed && count(specs, failed) == 0 { // its pods did not come, or would not go
		specs = append(specs, suite)
	}
	return specs, nil
}

// passedParts says how many parts a spec has, and what was left out of one.
func passedParts(parts []spec) string {
	note := fmt.Sprintf("parts: %d", len(parts))
	for _, p := range parts {
		if p.note != "" {
			return note + ", " + p.note
		}
	}
	return note
}

// oneLine is the beginning of a text, for a table.
func oneLine(text string) string {
	const most = 200
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if len(line) > most {
		line = line[:most] + "..."
	}
	return line
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
