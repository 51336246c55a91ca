package ovstest_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/k8s-ovs/k8s-ovs/test/ovstest"
)

// The private switch works, forgets its flows when it is killed, has its
// bridges back afterwards, and leaves nothing behind.
func TestStart(t *testing.T) {
	var dir string
	t.Run("run", func(t *testing.T) {
		o := ovstest.Start(t)
		dir = o.RunDir
		mgmt := o.AddBridge("br0", "dummy")
		o.AddDummyPort("br0", "p1", 7)
		if _, err := os.Stat(mgmt); err != nil {
			t.Errorf("no management socket: %v", err)
		}
		if got := strings.TrimSpace(o.VSCtl("get", "Interface", "p1", "ofport")); got != "7" {
			t.Errorf("ofport is %s, want 7", got)
		}
		o.OFCtl("add-flow", "br0", "in_port=7,actions=drop")
		o.KillVswitchd()
		if _, err := o.TryOFCtl("dump-flows", "br0"); err == nil {
			t.Error("ovs-vswitchd answers after it was killed")
		}
		o.StartVswitchd()
		if got := o.OFCtl("dump-flows", "--no-stats", "br0"); strings.Contains(got, "drop") {
			t.Errorf("flows after a restart: %s", got)
		}
		if got := o.AppCtl("ofproto/list"); strings.TrimSpace(got) != "br0" {
			t.Errorf("bridges after a restart: %q", got)
		}
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

// A test that is killed leaves neither processes nor files.
func TestKilled(t *testing.T) {
	if os.Getenv("OVSTEST_BE_KILLED") != "" {
		o := ovstest.Start(t)
		pid := strings.TrimSpace(o.VSCtl("get", "Open_vSwitch", ".", "external_ids:ovstest"))
		os.Stdout.WriteString("running " + o.RunDir + " " + strings.Trim(pid, `"`) + "\n")
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "OVSTEST_BE_KILLED=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); len(said) != 3 && lines.Scan(); {
		said = strings.Fields(lines.Text())
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if len(said) != 3 {
		t.Fatalf("the test in a process of its own said %q", said)
	}
	pid, err := strconv.Atoi(said[2])
	if err != nil {
		t.Fatal(err)
	}
	gone := func() bool {
		_, err := os.Stat(said[1])
		return os.IsNotExist(err) && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	}
	for deadline := time.Now().Add(20 * time.Second); !gone(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("ovs-vswitchd %d or %s is still there", pid, said[1])
		}
	}
}
