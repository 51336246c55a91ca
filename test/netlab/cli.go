package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Netns runs the operator's CLI on the lab's records and returns what it
// prints. The error of one that fails has its standard error and unwraps to
// *exec.ExitError.
func (l *Lab) Netns(ctx context.Context, args ...string) (string, error) {
	s, err := l.read()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.Options.BinDir, "netns"), args...)
	cmd.Env = append(Environ(), l.Env(s.Etcd)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("netns %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// Mark is the environment variable that makes a process one of the lab's: Down ends it.
func (l *Lab) Mark() string { return marker + "=" + l.id }

// NodeExec runs a command in a node's namespace and returns what it prints.
func (l *Lab) NodeExec(ctx context.Context, node string, args ...string) (string, error) {
	n, err := l.Node(node)
	if err != nil {
		return "", err
	}
	return l.execIn(ctx, n.Netns, args)
}

// PodExec runs a command in a pod's namespace and returns what it prints.
func (l *Lab) PodExec(ctx context.Context, p Pod, args ...string) (string, error) {
	return l.execIn(ctx, p.Netns, args)
}

// execIn uses `ip netns exec`, which also shows the namespace's own /sys. What
// is left running is marked, so that it goes with the lab.
func (l *Lab) execIn(ctx context.Context, netns string, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", netns}, args...)...)
	cmd.Env = append(Environ(), l.Mark())
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return string(out), fmt.Errorf("%s: %s: %w", netns, strings.Join(args, " "), err)
	}
	return string(out), nil
}

// Program is the path of one of the lab's programs.
func (l *Lab) Program(name string) (string, error) {
	s, err := l.read()
	if err != nil {
		return "", err
	}
	return filepath.Join(s.Options.BinDir, name), nil
}

// Start starts one of the lab's programs again after it has ended: "controller",
// "etcd-1", "n1/agent", "n1/ovsdb-server", "n1/ovs-vswitchd".
func (l *Lab) Start(ctx context.Context, name string) error {
	node, program, _ := strings.Cut(name, "/")
	switch {
	case name == "controller":
		return l.StartController(ctx)
	case strings.HasPrefix(name, "etcd-"):
		n, err := strconv.Atoi(strings.TrimPrefix(name, "etcd-"))
		if err != nil {
			return fmt.Errorf("%q is no member of etcd, such as etcd-1", name)
		}
		return l.StartMember(ctx, n)
	case program == "agent":
		return l.Agent(node).Start(ctx)
	case program == "ovsdb-server":
		return l.OVS(node).StartOVSDB(ctx)
	case program == "ovs-vswitchd":
		return l.OVS(node).StartVswitchd(ctx)
	}
	return fmt.Errorf("lab %s cannot start %q; it can start controller, etcd-N, NODE/agent, NODE/ovsdb-server and NODE/ovs-vswitchd", l.name, name)
}
