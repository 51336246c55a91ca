// Results judges a conformance run by what it left in a folder: the upstream
// specs' junit file, the output of our own specs (test2json), pod starts and
// facts. It prints what failed, writes the whole as Markdown when asked to, and
// fails when a spec failed or none ran.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	from := flag.String("from", "", "folder with junit_01.xml, specs.json and facts.tsv, with policies/junit_01.xml and clusterpolicies.json where those ran, and with podstart.jsonl of a whole run")
	write := flag.String("write", "", "Markdown file to write")
	overlay := flag.String("overlay", "", "which of test/conformance/overlays the network was, if any")
	cyclonus := flag.String("cyclonus", "", "junit file of cyclonus, to be judged instead")
	flag.Parse()
	err := func() error {
		if *cyclonus != "" {
			return judgeCyclonus(*cyclonus, *write)
		}
		return judge(*from, *write, *overlay)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func judge(from, write, overlay string) error {
	r, err := read(from)
	r.overlay = overlay
	if err != nil {
		return err
	}
	if write != "" {
		if err := os.WriteFile(write, []byte(r.markdown(time.Now())), 0o644); err != nil {
			return err
		}
	}
	return r.verdict(os.Stdout)
}

// results of a run.
type results struct {
	// overlay that the network was from, if not the manifest.
	overlay  string
	upstream []spec
	// policies are the upstream specs of NetworkPolicy, which have a run of their own, where there was one.
	policies    []spec
	ranPolicies bool
	// clusterPolicies are the specs of ClusterNetworkPolicy's own suite, where they ran.
	clusterPolicies    []spec
	ranClusterPolicies bool
	// notRun counts the specs of sig-network that were not chosen, by reason.
	notRun map[string]int
	own    []spec
	// starts of pods in milliseconds by network, and whether they were measured.
	starts map[string][]float64
	facts  []fact
}

// spec is one that ran, or whose turn came.
type spec struct {
	name    string
	outcome outcome
	took    time.Duration
	// note is what a spec measured, or why it did not run.
	note string
}

type outcome string

const (
	passed  outcome = "passed"
	failed  outcome = "failed"
	skipped outcome = "skipped"
)

// fact is a measure of the run as the script took it.
type fact struct{ name, value string }

func read(folder string) (r results, err error) {
	open := func(name string, parse func(io.Reader) error) {
		f, e := os.Open(filepath.Join(folder, name))
		if e == nil {
			if e = parse(f); e != nil {
				e = fmt.Errorf("%s: %w", f.Name(), e)
			}
			e = errors.Join(e, f.Close())
		}
		err = errors.Join(err, e)
	}
	there := func(name string) bool { _, err := os.Stat(filepath.Join(folder, name)); return err == nil }
	if r.ranPolicies = there("policies"); r.ranPolicies {
		open("policies/junit_01.xml", func(f io.Reader) (err error) { r.policies, _, err = readJUnit(f); return err })
	}
	if r.ranClusterPolicies = there("clusterpolicies.json"); r.ranClusterPolicies {
		open("clusterpolicies.json", func(f io.Reader) (err error) { r.clusterPolicies, err = readClusterPolicies(f); return err })
	}
	open("junit_01.xml", func(f io.Reader) (err error) {
		var left []string
		r.upstream, left, err = readJUnit(f)
		r.notRun = notRun(left, r.policies)
		return err
	})
	open("specs.json", func(f io.Reader) (err error) { r.own, err = readTest2JSON(f); return err })
	open("facts.tsv", func(f io.Reader) (err error) { r.facts, err = readFacts(f); return err })
	if there("podstart.jsonl") {
		open("podstart.jsonl", func(f io.Reader) (err error) { r.starts, err = readStarts(f); return err })
	}
	return r, err
}

// readFacts reads lines of a name, a tab and a value.
func readFacts(r io.Reader) ([]fact, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var facts []fact
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok {
			return nil, fmt.Errorf("line %q has no tab", line)
		}
		facts = append(facts, fact{name, value})
	}
	return facts, nil
}

// readStarts puts the rounds of podstart together.
func readStarts(r io.Reader) (map[string][]float64, error) {
	starts := map[string][]float64{}
	for d := json.NewDecoder(r); ; {
		var round struct {
			Network string
			Starts  map[string][]float64
		}
		if err := d.Decode(&round); errors.Is(err, io.EOF) {
			return starts, nil
		} else if err != nil {
			return nil, err
		}
		for _, ms := range round.Starts {
			starts[round.Network] = append(starts[round.Network], ms...)
		}
	}
}
