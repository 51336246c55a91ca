package main

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/k8s-ovs/k8s-ovs/controller/internal/controller"
	"github.com/k8s-ovs/k8s-ovs/pkg/options"
)

// The example that we ship is one that the program takes.
func TestManifest(t *testing.T) {
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	cfg := controller.Defaults()
	cfg.Register(fs)
	options.AddConfig(fs)
	if err := options.Parse(fs, []string{"--config", "../manifests/standalone/controller.yaml"}); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Complete(); err != nil {
		t.Fatal(err)
	}
}

// Programs share an environment: the others know this one's flags.
func TestFlagsKnown(t *testing.T) {
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	cfg := controller.Defaults()
	cfg.Register(fs)
	options.AddConfig(fs)
	got := []string{"version"}
	fs.VisitAll(func(f *pflag.Flag) { got = append(got, f.Name) })
	slices.Sort(got)
	if diff := cmp.Diff(options.FlagsOf("k8s-ovs-controller"), got); diff != "" {
		t.Errorf("flags (-package options knows +program has):\n%s", diff)
	}
}
