package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/k8s-ovs/k8s-ovs/test/netlab/ns"
)

// OVS is the Open vSwitch of one node.
type OVS struct {
	lab  *Lab
	node string
}

// OVS returns the Open vSwitch of a node; whether there is such a node shows when it is used.
func (l *Lab) OVS(node string) OVS { return OVS{l, node} }

func (o OVS) dir() string                { return filepath.Join(o.lab.dir, o.node, "ovs") }
func (o OVS) socket() string             { return filepath.Join(o.dir(), "db.sock") }
func (o OVS) process(name string) string { return o.node + "/" + name }

// DB is the address of its database: "unix:/run/netlab/LAB/n1/ovs/db.sock".
func (o OVS) DB() string { return "unix:" + o.socket() }

// env keeps Open vSwitch's programs away from the machine's own (ovs-vswitchd(8), ovs-ctl(8)); the last is for
// the scripts of [OVS.Supervise].
func (o OVS) env() []string {
	return []string{"OVS_RUNDIR=" + o.dir(), "OVS_DBDIR=" + o.dir(), "OVS_LOGDIR=" + o.dir(), "OVSDB_CTL=" + filepath.Join(o.dir(), "ovsdb-server.ctl")}
}

// schemas are the places where packages put Open vSwitch's database schema.
var schemas = []string{
	"/usr/share/openvswitch/vswitch.ovsschema",
	"/usr/local/share/openvswitch/vswitch.ovsschema",
}

// create makes the database and starts both daemons.
func (o OVS) create(ctx context.Context) error {
	if err := os.MkdirAll(o.dir(), 0o755); err != nil {
		return err
	}
	if err := createDatabase(ctx, o.Database()); err != nil {
		return fmt.Errorf("node %s: %w", o.node, err)
	}
	if err := o.StartOVSDB(ctx); err != nil {
		return err
	}
	// What ovs-ctl sets: the version of the switch and an identity.
	out, err := exec.CommandContext(ctx, "ovs-vswitchd", "--version").Output()
	if err != nil {
		return fmt.Errorf("ovs-vswitchd --version: %w", err)
	}
	words := strings.Fields(strings.SplitN(string(out), "\n", 2)[0])
	if len(words) == 0 {
		return fmt.Errorf("ovs-vswitchd --version prints nothing")
	}
	if _, err := o.VSCtl(ctx, "--no-wait", "init", "--", "set", "Open_vSwitch", ".",
		"ovs-version="+words[len(words)-1], "external-ids:system-id="+o.lab.name+"-"+o.node); err != nil {
		return err
	}
	return o.StartVswitchd(ctx)
}

// createDatabase makes an empty database in a new file.
func createDatabase(ctx context.Context, path string) error {
	i := slices.IndexFunc(schemas, func(s string) bool { _, err := os.Stat(s); return err == nil })
	if i < 0 {
		return fmt.Errorf("no Open vSwitch schema in %s (Debian package openvswitch-switch)", strings.Join(schemas, ", "))
	}
	if out, err := exec.CommandContext(ctx, "ovsdb-tool", "create", path, schemas[i]).CombinedOutput(); err != nil {
		return fmt.Errorf("make the database: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// StartOVSDB starts ovsdb-server and waits until it answers.
func (o OVS) StartOVSDB(ctx context.Context) error {
	return o.start(ctx, "ovsdb-server",
		[]string{"ovsdb-server", filepath.Join(o.dir(), "conf.db"), "--remote=punix:" + o.socket(),
			"--unixctl=" + filepath.Join(o.dir(), "ovsdb-server.ctl"),
			"--remote=db:Open_vSwitch,Open_vSwitch,manager_options", "-vconsole:info", "-vsyslog:off", "-vfile:off"},
		func() (bool, error) {
			c, err := net.DialTimeout("unix", o.socket(), time.Second)
			if err != nil {
				return false, nil
			}
			return true, c.Close()
		})
}

// StartVswitchd starts ovs-vswitchd and waits until it has
// the bridges that are in the database.
func (o OVS) StartVswitchd(ctx context.Context) error {
	ctl := filepath.Join(o.dir(), "ovs-vswitchd.ctl")
	if err := os.Remove(ctl); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // one of a daemon that was killed would mislead the wait below
	}
	// In an empty database it makes the first row, and would wait for whom it is to start.
	out, err := o.VSCtl(ctx, "--no-wait", "list-br")
	if err != nil {
		return err
	}
	bridges := strings.Fields(out)
	s, err := o.lab.read()
	if err != nil {
		return err
	}
	n, err := s.node(o.node)
	if err != nil {
		return err
	}
	args := []string{"ovs-vswitchd", o.DB(), "--unixctl=" + ctl, "-vconsole:info", "-vsyslog:off", "-vfile:off"}
	if !n.SystemRoutes {
		args = append(args, "--disable-system-route") // as manifests/image/start-ovs-vswitchd
	}
	return o.start(ctx, "ovs-vswitchd", args,
		func() (bool, error) {
			have, err := o.AppCtl(ctx, "ofproto/list")
			if err != nil {
				return false, err
			}
			for _, b := range bridges {
				if !slices.Contains(strings.Fields(have), b) {
					return false, fmt.Errorf("it has not made bridge %s", b)
				}
			}
			return true, nil
		})
}

// start runs one of the daemons in the node's namespace until ready says so.
func (o OVS) start(ctx context.Context, name string, args []string, ready func() (bool, error)) error {
	s, err := o.lab.read()
	if err != nil {
		return err
	}
	if p, ok := s.Processes[o.process(name)]; ok && p.Alive() {
		return fmt.Errorf("%s runs already (pid %d)", p.Name, p.PID)
	}
	env := o.env()
	if name == "ovs-vswitchd" {
		env = append(env, "GLIBC_TUNABLES=glibc.malloc.tcache_count=64:glibc.malloc.tcache_max=2048") // as manifests/image/start-ovs-vswitchd
	}
	return o.lab.run(ctx, command{
		name:  o.process(name),
		netns: o.lab.nodeNetns(o.node),
		args:  args,
		env:   env,
		log:   filepath.Join(o.dir(), name+".log"),
	}, 20*time.Second, ready)
}

// KillVswitchd ends ovs-vswitchd with SIGKILL. Nothing starts it again until StartVswitchd.
func (o OVS) KillVswitchd() error { return o.lab.Process(o.process("ovs-vswitchd")).Kill() }

// KillOVSDB ends ovsdb-server with SIGKILL. Nothing starts it again until StartOVSDB.
func (o OVS) KillOVSDB() error { return o.lab.Process(o.process("ovsdb-server")).Kill() }

// Supervise has both daemons started by scripts of that folder and kept up by their supervisor, as
// their containers are, in place of the lab's own. It returns when they are up.
func (o OVS) Supervise(ctx context.Context, scripts string) error {
	if err := errors.Join(o.KillVswitchd(), o.KillOVSDB()); err != nil {
		return err
	}
	s, err := o.lab.read()
	if err != nil {
		return err
	}
	if scripts, err = filepath.Abs(scripts); err != nil {
		return err
	}
	for _, daemon := range []string{"ovsdb-server", "ovs-vswitchd"} {
		ctl := filepath.Join(o.dir(), daemon+".ctl")
		args := []string{filepath.Join(s.Options.BinDir, "k8s-ovs-supervise"), "--run-dir", o.dir(), daemon, filepath.Join(scripts, "start-"+daemon), "--unixctl=" + ctl}
		err := o.start(ctx, daemon, args, func() (bool, error) {
			_, err := o.tool(ctx, "ovs-appctl", []string{"-t", ctl, "--timeout=20", "version"})
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// End asks both daemons that [OVS.Supervise] has to end, as their containers are when their pod is deleted.
func (o OVS) End() error {
	var ending errgroup.Group
	for _, daemon := range []string{"ovsdb-server", "ovs-vswitchd"} {
		ending.Go(o.lab.Process(o.process(daemon)).Stop)
	}
	return ending.Wait()
}

// Replace is what a rolling update of Open vSwitch's DaemonSet does to a node that [OVS.Supervise] has: both
// daemons are asked to end, as their containers are, and others are started by scripts of that folder when
// away has passed since.
func (o OVS) Replace(ctx context.Context, scripts string, away time.Duration) error {
	if err := o.End(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(away):
	}
	return o.Supervise(ctx, scripts)
}

// Crash ends a daemon ("ovs-vswitchd", "ovsdb-server") that [OVS.Supervise] runs with a signal.
// One that is being started is waited for.
func (o OVS) Crash(ctx context.Context, daemon string, sig syscall.Signal) error {
	supervisor, err := o.lab.Process(o.process(daemon)).Get()
	if err != nil {
		return err
	}
	pidFile := filepath.Join(o.dir(), daemon+".pid")
	return waitFor(ctx, time.Millisecond, func() (bool, error) {
		if !supervisor.Alive() {
			return false, fmt.Errorf("the supervisor of %s (pid %d) has ended", daemon, supervisor.PID)
		}
		text, err := os.ReadFile(pidFile)
		if err != nil {
			return false, nil
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return false, nil // being written
		}
		if st, err := readStat(pid); err != nil || st.parent != supervisor.PID || st.state == 'Z' {
			return false, nil // that of the one before
		}
		return true, syscall.Kill(pid, sig)
	})
}

// VSCtl runs ovs-vsctl on the node's database and returns what it prints.
func (o OVS) VSCtl(ctx context.Context, args ...string) (string, error) {
	return o.tool(ctx, "ovs-vsctl", append([]string{"--db=" + o.DB(), "--timeout=20"}, args...))
}

// OFCtl runs ovs-ofctl; name bridges without folder ("br0").
func (o OVS) OFCtl(ctx context.Context, args ...string) (string, error) {
	return o.tool(ctx, "ovs-ofctl", append([]string{"-O", "OpenFlow14", "--timeout=20"}, args...))
}

// AppCtl runs ovs-appctl on ovs-vswitchd.
func (o OVS) AppCtl(ctx context.Context, args ...string) (string, error) {
	return o.tool(ctx, "ovs-appctl", append([]string{"-t", filepath.Join(o.dir(), "ovs-vswitchd.ctl"), "--timeout=20"}, args...))
}

func (o OVS) tool(ctx context.Context, program string, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(Environ(), o.env()...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := ns.Do(o.lab.nodeNetns(o.node), cmd.Run); err != nil {
		return stdout.String(), fmt.Errorf("%s: %s %s: %w: %s", o.node, program, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
