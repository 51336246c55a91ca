// Package ovstest starts a private Open vSwitch for a test: its own
// ovsdb-server and ovs-vswitchd in a temporary directory, reached by unix
// sockets only, in the network namespace of the test or, with [StartIn], another.
//
// It never touches an Open vSwitch that the machine runs. Bridges of type
// "dummy" have no devices and no traffic; those of type "netdev" make tap
// devices in its namespace, so a test that uses them starts it in or moves into a
// namespace of its own.
package ovstest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout bounds how long a daemon may take to answer; it takes some 50 ms.
const startTimeout = 20 * time.Second

// OVS is a running Open vSwitch. Its processes and files go at the end of the test.
type OVS struct {
	// RunDir has the management sockets, <bridge>.mgmt, and the pid files.
	RunDir string
	// DB is the path of ovsdb-server's unix socket.
	DB string

	t       testing.TB
	netns   string // path; "" for the test's own
	dir     string
	conf    string // the database file
	vswitch *daemon
	ovsdb   *daemon

	watchdog *watchdog
}

// daemon is a child process and what it said.
type daemon struct {
	name string
	cmd  *exec.Cmd
	log  string // path
	done chan struct{}
	once sync.Once
}

// Start starts an Open vSwitch without bridges. It fails the test when the
// programs are missing or do not come up.
func Start(t testing.TB) *OVS {
	t.Helper()
	return StartIn(t, "")
}

// StartIn is Start with the daemons in the network namespace at that path, such
// as /run/netns/x; "" is the test's own.
func StartIn(t testing.TB, netns string) *OVS {
	t.Helper()
	// Not t.TempDir: a unix socket's path has at most 107 bytes, and that one
	// grows with the test's name.
	dir, err := os.MkdirTemp("", "ovstest")
	if err != nil {
		t.Fatalf("private Open vSwitch: %v", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil { // the watchdog compares it
		t.Fatalf("private Open vSwitch: %v", err)
	}
	o := &OVS{netns: netns, RunDir: dir, DB: filepath.Join(dir, "db.sock"), t: t, dir: dir, conf: filepath.Join(dir, "conf.db")}
	if o.watchdog, err = startWatchdog(dir); err != nil {
		t.Fatalf("private Open vSwitch: start its watchdog: %v", err)
	}
	t.Cleanup(o.stop)
	o.must("ovsdb-tool", "create", o.conf, schemaFile(t))
	o.StartOVSDB()
	o.must("ovs-vsctl", "--db=unix:"+o.DB, "--no-wait", "init")
	o.StartVswitchd()
	return o
}

// schemaFile finds the schema of the vswitch database.
func schemaFile(t testing.TB) string {
	t.Helper()
	candidates := []string{
		"/usr/share/openvswitch/vswitch.ovsschema",
		"/usr/local/share/openvswitch/vswitch.ovsschema",
	}
	if d := os.Getenv("OVS_PKGDATADIR"); d != "" {
		candidates = append([]string{filepath.Join(d, "vswitch.ovsschema")}, candidates...)
	}
	for _, c := range candidates {
		if _, err := os.Stat(c); err == nil {
			return c
		}
	}
	t.Fatalf("private Open vSwitch: no vswitch.ovsschema in %s; install the package openvswitch-switch or set OVS_PKGDATADIR",
		strings.Join(candidates, ", "))
	return ""
}

// env points the programs at this Open vSwitch and at no other.
func (o *OVS) env() []string {
	return append(os.Environ(), "OVS_RUNDIR="+o.dir, "OVS_DBDIR="+o.dir, "OVS_LOGDIR="+o.dir, "OVS_SYSCONFDIR="+o.dir)
}

// StartOVSDB starts ovsdb-server again after [OVS.KillOVSDB] and waits until it answers.
func (o *OVS) StartOVSDB() {
	o.t.Helper()
	o.ovsdb = o.spawn("ovsdb-server", "ovsdb-server", o.conf, "--remote=punix:"+o.DB,
		"--unixctl="+o.ctl("ovsdb-server"), "--no-chdir", "-vconsole:warn", "-vsyslog:off")
	o.waitSocket(o.ovsdb, o.DB)
}

// LoseDatabase has ovsdb-server serve an empty database from now on; ovs-vswitchd stays.
func (o *OVS) LoseDatabase() {
	o.t.Helper()
	o.KillOVSDB()
	if err := os.Remove(o.conf); err != nil {
		o.t.Fatalf("private Open vSwitch: %v", err)
	}
	o.must("ovsdb-tool", "create", o.conf, schemaFile(o.t))
	o.StartOVSDB()
}

// FillDisk puts the database on a disk of its own without room; free makes some.
func (o *OVS) FillDisk() (free func()) {
	o.t.Helper()
	disk := filepath.Join(o.dir, "disk")
	ballast, moved := filepath.Join(disk, "ballast"), filepath.Join(disk, "conf.db")
	must := func(err error) {
		o.t.Helper()
		if err != nil {
			o.t.Fatalf("private Open vSwitch: a full disk: %v", err)
		}
	}
	o.KillOVSDB()
	must(os.Mkdir(disk, 0o755))
	must(unix.Mount("full", disk, "tmpfs", 0, "size=1m"))
	o.t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	data, err := os.ReadFile(o.conf)
	must(err)
	must(os.WriteFile(moved, data, 0o644))
	must(os.Remove(o.conf))
	must(os.Symlink(moved, o.conf))
	o.StartOVSDB()
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		o.t.Fatalf("private Open vSwitch: the disk is not full: %v", err)
	}
	return func() { must(os.Remove(ballast)) }
}

// StartVswitchd starts ovs-vswitchd again after [OVS.KillVswitchd], with further options
// of its command line, and waits until it has brought up the bridges of the database.
func (o *OVS) StartVswitchd(options ...string) {
	o.t.Helper()
	args := []string{"unix:" + o.DB, "--enable-dummy", "--unixctl=" + o.ctl("ovs-vswitchd"), "--no-chdir", "-vconsole:warn", "-vsyslog:off"}
	args = append(args, options...)
	if !onKernel {
		args = append(args, "--disable-system")
	}
	o.vswitch = o.spawn("ovs-vswitchd", "ovs-vswitchd", args...)
	o.waitSocket(o.vswitch, o.ctl("ovs-vswitchd"))
	// Without --no-wait this returns when ovs-vswitchd has taken the database in.
	o.VSCtl("set", "Open_vSwitch", ".", "external_ids:ovstest="+fmt.Sprint(o.vswitch.cmd.Process.Pid))
}

// KillVswitchd kills ovs-vswitchd as a crash would and waits until it is gone.
func (o *OVS) KillVswitchd() { o.vswitch.kill(syscall.SIGKILL) }

// KillOVSDB kills ovsdb-server as a crash would and waits until it is gone.
func (o *OVS) KillOVSDB() { o.ovsdb.kill(syscall.SIGKILL) }

// PauseVswitchd stops ovs-vswitchd where it stands, as if it hung, and returns
// what makes it go on.
func (o *OVS) PauseVswitchd() (resume func()) {
	o.t.Helper()
	p := o.vswitch.cmd.Process
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		o.t.Fatalf("private Open vSwitch: stop ovs-vswitchd: %v", err)
	}
	return func() { _ = p.Signal(syscall.SIGCONT) }
}

// onKernel says that tests with real packets run on the kernel module instead of
// the userspace datapath.
var onKernel = os.Getenv("NETLAB_DATAPATH") == "system"

// Datapath is that of bridges with real packets.
func Datapath() string {
	if onKernel {
		return "system"
	}
	return "netdev"
}

// AddBridge makes a bridge of the given datapath type, "dummy" or "netdev", in
// fail mode secure, and returns the path of its management socket. With
// NETLAB_DATAPATH=system in the environment the kernel module stands in for netdev.
func (o *OVS) AddBridge(name, datapathType string) string {
	o.t.Helper()
	if datapathType == "netdev" {
		datapathType = Datapath()
	}
	o.VSCtl("--may-exist", "add-br", name, "--", "set", "Bridge", name,
		"datapath_type="+datapathType, "fail_mode=secure")
	return o.Mgmt(name)
}

// AddDummyPort adds a port without a device and asks for its number.
func (o *OVS) AddDummyPort(bridge, name string, ofport int) {
	o.t.Helper()
	o.VSCtl("add-port", bridge, name, "--", "set", "Interface", name, "type=dummy", fmt.Sprintf("ofport_request=%d", ofport))
}

// Mgmt is the path of a bridge's management socket.
func (o *OVS) Mgmt(bridge string) string { return filepath.Join(o.dir, bridge+".mgmt") }

// VSCtl runs ovs-vsctl and returns its output; the test fails when it fails.
func (o *OVS) VSCtl(args ...string) string {
	o.t.Helper()
	return o.must("ovs-vsctl", append([]string{"--db=unix:" + o.DB, "--timeout=20"}, args...)...)
}

// OFCtl runs ovs-ofctl with OpenFlow 1.4; a bridge is named by its name.
func (o *OVS) OFCtl(args ...string) string {
	o.t.Helper()
	return o.must("ovs-ofctl", append([]string{"-O", "OpenFlow14"}, args...)...)
}

// TryOFCtl is OFCtl for calls that may fail.
func (o *OVS) TryOFCtl(args ...string) (string, error) {
	return o.run("ovs-ofctl", append([]string{"-O", "OpenFlow14"}, args...)...)
}

// AppCtl runs ovs-appctl against ovs-vswitchd, such as "ofproto/trace".
func (o *OVS) AppCtl(args ...string) string {
	o.t.Helper()
	return o.must("ovs-appctl", append([]string{"-t", o.ctl("ovs-vswitchd")}, args...)...)
}

// Log is what ovs-vswitchd said.
func (o *OVS) Log() string {
	b, _ := os.ReadFile(o.vswitch.log)
	return string(b)
}

func (o *OVS) ctl(name string) string { return filepath.Join(o.dir, name+".ctl") }

func (o *OVS) run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = o.env()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%s is not installed; the package openvswitch-switch has it", name)
		}
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (o *OVS) must(name string, args ...string) string {
	o.t.Helper()
	out, err := o.run(name, args...)
	if err != nil {
		o.t.Fatalf("private Open vSwitch: %v", err)
	}
	return out
}

func (o *OVS) spawn(name, program string, args ...string) *daemon {
	o.t.Helper()
	if o.netns != "" {
		// nsenter becomes the program: its pid is the daemon's.
		program, args = "nsenter", append([]string{"--net=" + o.netns, program}, args...)
	}
	d := &daemon{name: name, cmd: exec.Command(program, args...), log: filepath.Join(o.dir, name+".out"), done: make(chan struct{})}
	out, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		o.t.Fatalf("private Open vSwitch: %v", err)
	}
	defer out.Close()
	d.cmd.Env, d.cmd.Dir = o.env(), o.dir
	d.cmd.Stdout, d.cmd.Stderr = out, out
	// A group of its own, so that Ctrl-C reaches the test first, which cleans up.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		o.t.Fatalf("private Open vSwitch: %v; the package openvswitch-switch has %s", err, program)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.done)
	}()
	if err := o.watchdog.add(d.cmd.Process.Pid); err != nil {
		d.kill(syscall.SIGKILL)
		o.t.Fatalf("private Open vSwitch: tell its watchdog of %s: %v", name, err)
	}
	return d
}

// waitSocket waits until the daemon listens on a unix socket.
func (o *OVS) waitSocket(d *daemon, path string) {
	o.t.Helper()
	deadline := time.After(startTimeout)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if answers(path) {
			return
		}
		select {
		case <-d.done:
			said, _ := os.ReadFile(d.log)
			o.t.Fatalf("private Open vSwitch: %s ended at once: %s", d.name, said)
		case <-deadline:
			said, _ := os.ReadFile(d.log)
			o.t.Fatalf("private Open vSwitch: %s does not answer on %s: %s", d.name, path, said)
		case <-tick.C:
		}
	}
}

func (d *daemon) kill(sig syscall.Signal) {
	if d == nil {
		return
	}
	d.once.Do(func() {
		_ = d.cmd.Process.Signal(sig)
		_ = d.cmd.Process.Signal(syscall.SIGCONT) // it may be paused
	})
	<-d.done
}

// stop ends what is still running. ovs-vswitchd is killed: it has nothing to
// save, and asked nicely it would first take its devices down one by one.
func (o *OVS) stop() {
	o.vswitch.kill(syscall.SIGKILL)
	o.ovsdb.kill(syscall.SIGKILL)
	if o.t.Failed() {
		o.t.Logf("ovs-vswitchd said:\n%s", o.Log())
	}
	if err := o.watchdog.stop(); err != nil { // it removes the directory
		o.t.Errorf("private Open vSwitch: watchdog: %v", err)
	}
}
