package main

import (
	"testing"

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
