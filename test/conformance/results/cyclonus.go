package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// judgeCyclonus judges a run of cyclonus by its junit file, and writes what came out where
// it is told to. It is an error if a case failed or none ran.
func judgeCyclonus(from, write string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	cases, err := readCyclonus(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if write != "" {
		if err := os.WriteFile(write, []byte(cyclonusMarkdown(cases, time.Now())), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("cases of cyclonus: %s\n", tally(cases))
	var errs []error
	for _, c := range cases {
		if c.outcome == failed {
			errs = append(errs, fmt.Errorf("case of cyclonus failed: %s", c.name))
		}
	}
	if len(cases) == 0 {
		errs = append(errs, errors.New("no case of cyclonus ran"))
	}
	return errors.Join(errs...)
}

// readCyclonus reads the cases in the order of the run. The file says no times.
func readCyclonus(r io.Reader) (cases []spec, err error) {
	var suite struct {
		Cases []struct {
			Name    string    `xml:"name,attr"`
			Failure *struct{} `xml:"failure"`
		} `xml:"testcase"`
	}
	if err := xml.NewDecoder(r).Decode(&suite); err != nil {
		return nil, err
	}
	for _, c := range suite.Cases {
		s := spec{name: c.Name, outcome: passed}
		if c.Failure != nil {
			s.outcome = failed
		}
		cases = append(cases, s)
	}
	return cases, nil
}

// cyclonusMarkdown is CYCLONUS.md.
func cyclonusMarkdown(cases []spec, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Results of cyclonus\n\nWritten by `make cyclonus` on %s: cyclonus v0.5.6 on the cluster of `make conformance`, over TCP and UDP, its namespaces on one network.\n\n%d cases: %s.\n", now.UTC().Format(time.DateOnly), len(cases), tally(cases))
	if count(cases, failed) == 0 {
		return b.String()
	}
	b.WriteString("\nFailed:\n\n")
	for _, c := range cases {
		if c.outcome == failed {
			fmt.Fprintf(&b, "- %s\n", c.name)
		}
	}
	return b.String()
}
