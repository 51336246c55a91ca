package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/k8s-ovs/k8s-ovs/pkg/netid"
	"github.com/k8s-ovs/k8s-ovs/pkg/store"
	"github.com/k8s-ovs/k8s-ovs/pkg/topology"
	"github.com/k8s-ovs/k8s-ovs/test/etcdtest"
)

func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "netns")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// TestBinary runs the real program: output, exit codes, and Ctrl-C while it waits.
func TestBinary(t *testing.T) {
	bin := build(t)
	etcd := etcdtest.Start(t)
	s, err := store.Open(store.Config{Endpoints: etcd.Endpoints})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.PutConfig(t.Context(), topology.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	lead, err := s.Campaign(t.Context(), topology.DefaultConfig().Name, "test", 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b"} {
		id := netid.ID(100 + i)
		if _, err := lead.PutNamespace(t.Context(), name, topology.Namespace{NetName: name, Effective: &id}, 0); err != nil {
			t.Fatal(err)
		}
	}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), bin, args...)
		cmd.Env = append(os.Environ(), "K8S_OVS_ETCD_ENDPOINTS="+etcd.Endpoints[0])
		return cmd
	}

	out, err := command("list").Output()
	if err != nil || !strings.Contains(string(out), "a           100     -") {
		t.Errorf("list: %v\n%s", err, out)
	}
	for want, args := range map[int][]string{
		1: {"show", "c"},
		2: {"show"},
		3: {"join", "a", "b", "--timeout", "1ms"},
	} {
		err := command(args...).Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != want {
			t.Errorf("%q: %v, want exit code %d", args, err, want)
		}
	}

	cmd := command("join", "a", "b")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stderr)
	if line, err := lines.ReadString('\n'); line != "waiting for the controller\n" {
		t.Errorf("%q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(rest), "interrupted: the request join a b stands") {
		t.Errorf("stderr: %s", rest)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%v, want exit code 1", err)
	}
}
