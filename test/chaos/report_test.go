package main

import (
	"strings"
	"testing"
)

// TestParts: each part of the results is replaced alone.
func TestParts(t *testing.T) {
	results := replacePart("", faultsPart, "a table")
	results = replacePart(results, randomPart, "a run\n\nof an hour")
	results = replacePart(results, faultsPart, "another table\n")
	want := title + "\n## A random run\n\na run\n\nof an hour\n\n## Single faults\n\nanother table\n"
	if results != want {
		t.Errorf("the results are\n%s\nwant\n%s", results, want)
	}
}

// TestUsage: metrics are read, and growth is noticed.
func TestUsage(t *testing.T) {
	u, err := parseUsage("agent", "# HELP go_goroutines x\ngo_goroutines 70\nprocess_open_fds 20\nprocess_resident_memory_bytes 4.1943040e+07\nother{a=\"b\"} 1\n")
	if want := (usage{"agent", 40 << 20, 70, 20}); err != nil || u != want {
		t.Errorf("usage is %+v (%v), want %+v", u, err, want)
	}
	if _, err := parseUsage("agent", "go_goroutines 70\n"); err == nil {
		t.Error("metrics without memory are taken")
	}
	for what, last := range map[string]usage{
		"":            {"agent", 60 << 20, 80, 25},
		"memory":      {"agent", 200 << 20, 70, 20},
		"goroutines":  {"agent", 40 << 20, 300, 20},
		"descriptors": {"agent", 40 << 20, 70, 200},
	} {
		r := &run{first: []usage{u}, last: []usage{last}}
		if err := r.flat(); (err == nil) != (what == "") || err != nil && !strings.Contains(err.Error(), what) {
			t.Errorf("more %q: %v", what, err)
		}
	}
}
