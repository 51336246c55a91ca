// Package e2e runs the real programs in the lab and checks what must hold from
// outside: who reaches whom, what a pod can forge, what survives which failure.
//
// It needs root and Open vSwitch. It builds the programs itself, with the race
// detector when it is built with it; NETLAB_BIN names a folder of ready ones.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// programs and the packages that make them.
var programs = map[string]string{
	"k8s-ovs":            "./cni",
	"k8s-ovs-agent":      "./node-agent",
	"k8s-ovs-supervise":  "./node-agent/supervise",
	"k8s-ovs-controller": "./controller",
	"netns":              "./netns",
	"netlab":             "./test/netlab/cmd/netlab",
}

// reference are plugins of others that tests use beside ours: package below theirs.
var reference = []string{"main/bridge", "ipam/host-local", "meta/bandwidth", "meta/tuning", "meta/sbr", "meta/firewall", "meta/portmap"}

// binDir has the programs under test.
var binDir = os.Getenv("NETLAB_BIN")

// scratch is a folder for programs that tests build for themselves; it goes at the end.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "k8s-ovs-e2e-own-"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	code, err := buildAndRun(m)
	_ = os.RemoveAll(scratch) // a folder in /tmp is no reason to fail
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	if binDir != "" {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "k8s-ovs-e2e-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // a folder in /tmp is no reason to fail
	root, err := filepath.Abs("../..")
	if err != nil {
		return 0, err
	}
	for name, pkg := range programs {
		args := []string{"build", "-o", filepath.Join(dir, name)}
		if raceEnabled && name != "netlab" {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, pkg)...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	for _, pkg := range reference {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, filepath.Base(pkg)), "github.com/containernetworking/plugins/plugins/"+pkg)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build %s: %w\n%s", pkg, err, out)
		}
	}
	binDir = dir
	return m.Run(), nil
}
